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
    """Plots the losses of a training run; of one that runs free the likelihood, and the loudness beside it.

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
        panels = [{"likelihood" if "likelihood" in lines[0] else "loss": "training", "validation_loss": "validation"}]
        if "loudness" in lines[0]:
            panels.append({"loudness": "loudness"})
        figure = Figure(figsize=(6, 3), layout="constrained")
        for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            for name, label in panel.items():
                axes.plot([line["step"] for line in lines], [line[name] for line in lines], label=label)
            axes.set(xlabel="step", ylabel="loss", ylim=(None, self.top))
            axes.legend()
        figure.savefig(self.output, dpi=80, metadata={"Software": None})


if __name__ == "__main__":
    tyro.cli(Curve).plot()
