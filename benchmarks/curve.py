"""A run's learning curve: python -m benchmarks.curve RUN -o PNG"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Annotated

import tyro

__all__ = ["Curve"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curve:
    """Plots the losses of a training run.

    Attributes:
        run: the folder that ``fastwave train`` or ``distill`` wrote.
        output: the PNG to write.
        top: the largest loss to show; all where absent.
    """

    run: tyro.conf.Positional[Path]
    output: Annotated[Path, tyro.conf.arg(aliases=("-o",))]
    top: float | None = None

    def plot(self) -> None:
        from matplotlib.figure import Figure

        lines = [json.loads(line) for line in (self.run / "log.jsonl").read_text(encoding="utf-8").splitlines()]
        figure = Figure(figsize=(6, 3), layout="constrained")
        axes = figure.add_subplot()
        for name, label in (("loss", "training"), ("validation_loss", "validation")):
            axes.plot([line["step"] for line in lines], [line[name] for line in lines], label=label)
        axes.set(xlabel="step", ylabel="loss", ylim=(None, self.top))
        axes.legend()
        figure.savefig(self.output, dpi=80, metadata={"Software": None})


if __name__ == "__main__":
    tyro.cli(Curve).plot()
