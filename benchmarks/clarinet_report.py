"""What benchmarks/clarinet_tables.py measured, as the tables and plots of docs/clarinet.md."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import scipy.stats

from benchmarks.clarinet_tables import BINS, MEASURES, SPEECH

__all__ = ["figures", "tables"]


def tables(result: dict) -> dict[str, str]:
    """Tables 1 and 2, and that of the clips, in Markdown, by their markers in docs/clarinet.md."""
    return {
        "table1": likelihood_table(result["table1"]["rows"]),
        "clipping": clipping_table(result["clipping"]["rows"]),
        "table2": markdown(
            ["model", "STOI", "PESQ", "LSD, dB", "MCD, dB"],
            [
                [row["model"], *(f"{row[name]:.2f}" if name in row else "diverged" for name in SPEECH)]
                for row in result["table2"]["rows"]
            ],
        ),
    }


def likelihood_table(rows: Sequence[dict]) -> str:
    """Means over the seeds, with intervals that hold them with 95% (Student's t)."""
    lines = []
    for model in dict.fromkeys(row["model"] for row in rows):
        mine = [row for row in rows if row["model"] == model]
        cells = []
        for name in MEASURES:
            values = [row[name] for row in mine if name in row]
            cells.append(f"{number(statistics.mean(values))} ± {number(interval(values))}" if len(values) > 1 else "")
        steps = ", ".join(str(step) for step in sorted({row["trained"] for row in mine}))
        lines.append([model, steps, *cells])
    lines.append(["Griffin-Lim", "", "no density", "", ""])
    return markdown(["output", "steps", "nats per sample", "without the clip", "bits per sample"], lines)


def clipping_table(rows: Sequence[dict]) -> str:
    """What each run came to, and what it went through: the figures of the log's lines."""
    header = ["log sigma clipped at", "steps", "nats per sample", "without the clip"]
    header += ["highest validation loss", "largest norm of the gradient"]
    lines = []
    for row in rows:
        nats = [number(row[name]) if name in row else "" for name in MEASURES[:2]]
        _, losses, norms = zip(*row["curve"], strict=True) if row["curve"] else ((), (), ())
        lines.append(
            [row["clip"], str(row["trained"]), *nats, *(f"{max(v):.2f}" if v else "" for v in (losses, norms))]
        )
    lines.append(["Griffin-Lim", "", "no density", "", "", ""])
    return markdown(header, lines)


def interval(values: Sequence[float]) -> float:
    """Half the width of the 95% confidence interval of a mean."""
    t = scipy.stats.t.ppf(0.975, len(values) - 1)
    return t * statistics.stdev(values) / math.sqrt(len(values))


def number(value: float) -> str:
    return f"{value:.3f}" if abs(value) < 1e4 else f"{value:.1e}"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    ruler = ["---", *["---:"] * (len(header) - 1)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (header, ruler, *rows))


def figures(result: dict, clipping: Path, distillation: Path) -> None:
    """Figures 3 and 4: validation loss and log sigma by where log sigma is clipped. Figure 1: both log sigmas."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    loss, shares = figure.subplots(1, 2)
    for row in (row for row in result["clipping"]["rows"] if row["trained"]):
        steps, losses, _ = zip(*row["curve"], strict=True)
        loss.plot(steps, losses, label=row["clip"])
        shares.stairs(row["log_sigma"], BINS.tolist(), label=row["clip"])
    loss.set(xlabel="step", ylabel="validation loss, nats per sample")
    shares.set(xlabel="log sigma, before clipping", ylabel="share of samples")
    loss.legend(title="clip")
    figure.savefig(clipping, dpi=100, metadata={"Software": None})

    figure = Figure(figsize=(9, 3.5), layout="constrained")
    rows = [row for row in result["table2"]["rows"] if "log_sigma_q" in row]
    rows = [row for row in rows if row["model"].startswith("student-1") and "STFT" in row["model"]]
    for axes, row in zip(figure.subplots(1, len(rows), sharey=True), rows, strict=True):
        for name, label in (("log_sigma_p", "teacher"), ("log_sigma_q", "student")):
            axes.stairs(row[name], BINS.tolist(), label=label)
        axes.set(xlabel="log sigma", title=row["model"])
        axes.legend()
    figure.savefig(distillation, dpi=100, metadata={"Software": None})
