"""README's table and the plots, from benchmarks/results/: python -m benchmarks.report"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks import clarinet_report
from benchmarks.cases import CASES
from benchmarks.clarinet_tables import CLARINET
from benchmarks.quality import QUALITY
from benchmarks.run import RESULTS
from benchmarks.workloads import PYTORCH
from fastwave.ops.rounding import DTYPES

__all__ = ["main", "plot", "quality_table", "read_results", "table", "with_speeds", "with_table"]

ROOT = Path(__file__).parent.parent
COLOURS = dict(zip(DTYPES, ("tab:blue", "tab:orange", "tab:green"), strict=True))
HEADER = (
    "| case | dtype | threads | kHz | x real time | of the limit | x PyTorch | x fastest other |\n"
    "| --- | --- | ---: | ---: | ---: | ---: | ---: | --- |\n"
)


def read_results() -> dict[str, list[dict]]:
    """The results of each machine, that with the most first, in the order of the cases, the types and the threads."""
    order = [case.name for case in CASES]
    machines: dict[str, list[dict]] = {}
    for path in sorted(RESULTS.glob("*/*.json")):
        machines.setdefault(path.parent.name, []).append(json.loads(path.read_text(encoding="utf-8")))
    for results in machines.values():
        results.sort(key=lambda r: (order.index(r["case"]), r["threads"], DTYPES.index(r["dtype"])))
    return dict(sorted(machines.items(), key=lambda machine: -len(machine[1])))


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _row(result: dict) -> str:
    ours, ratios = result["kernels"], dict(result["ratios"])
    latency = f" ({1000 * result['latency']:.1f} ms)" if result["latency"] is not None else ""
    pytorch = ratios.pop(PYTORCH)
    other = min(ratios, key=ratios.get, default=None)
    return (
        f"| `{result['case']}` | {result['dtype']} | {result['threads']} "
        f"| {ours['samples_per_second'] / 1000:.1f}{latency} | {_number(ours['real_time_factor'])} "
        f"| {result['share']:.0%} | {_number(pytorch)} | {f'{_number(ratios[other])} ({other})' if other else ''} |\n"
    )


def table(results: Sequence[dict]) -> str:
    """One machine's results in Markdown."""
    machine = results[0]["machine"]
    cases = {result["case"]: result["about"] for result in results}
    dates = sorted({result["date"] for result in results})
    return (
        f"{machine['cpu']}, {machine['isa']}; PyTorch {machine['torch']}; {dates[-1]}.\n\n"
        + HEADER
        + "".join(map(_row, results))
        + "\n"
        + "; ".join(f"`{name}`: {about}" for name, about in cases.items())
        + ".\n"
    )


def with_speeds(text: str, machines: Mapping[str, Sequence[dict]]) -> str:
    """A page with the results of some cases between <!-- speed CASE ... --> and <!-- /speed CASE ... -->."""
    for cases in re.findall("<!-- speed (.+?) -->", text):
        tables = []
        for results in machines.values():
            rows = "".join(_row(result) for result in results if result["case"] in cases.split())
            if rows:
                tables.append(f"{results[0]['machine']['cpu']}, {results[0]['machine']['isa']}:\n\n{HEADER}{rows}")
        text = with_table(text, f"speed {cases}", "\n".join(tables))
    return text


def quality_table(quality: dict) -> str:
    """What each type costs, in Markdown."""
    lines = [
        f"Test clips {', '.join(quality['clips'])}; {quality['isa']}, {quality['date']}.\n",
        "| dtype | `lj-teacher`, nats per sample | `lj-stft`, STOI | `lj-stft`, PESQ |",
        "| --- | ---: | ---: | ---: |",
    ]
    for dtype, row in quality["dtypes"].items():
        lines.append(f"| {dtype} | {row['log_likelihood']:.4f} | {row['stoi']:.4f} | {row['pesq']:.3f} |")
    return "\n".join(lines) + "\n"


def with_table(text: str, marker: str, new: str) -> str:
    """A page with a table in place of what stands between <!-- marker --> and <!-- /marker -->.

    Raises:
        ValueError: the markers are missing, or out of order.
    """
    before, begin, rest = text.partition(f"<!-- {marker} -->")
    _, end, after = rest.partition(f"<!-- /{marker} -->")
    if not begin or not end:
        raise ValueError(f"the page must have <!-- {marker} --> and, behind it, <!-- /{marker} -->")
    return f"{before}{begin}\n{new}{end}{after}"


def plot(results: Sequence[dict], speed: Path, share: Path) -> None:
    """Two plots of one machine's results: kHz, with real time marked, and the share of the limit."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys((result["case"], result["threads"]) for result in results))
    labels = [f"{case}, {threads} thread{'s' if threads > 1 else ''}" for case, threads in names]
    for path, title, value in (
        (speed, "thousand samples a second; the line is real time", lambda r: r["kernels"]["samples_per_second"] / 1e3),
        (share, "share of what the processor can do, %", lambda r: 100 * r["share"]),
    ):
        figure = Figure(figsize=(8, 0.5 * len(names) + 1.2), layout="constrained")
        axes = figure.add_subplot()
        for result in results:
            place = names.index((result["case"], result["threads"])) + 0.27 * (DTYPES.index(result["dtype"]) - 1)
            axes.barh(place, value(result), 0.25, color=COLOURS[result["dtype"]])
            axes.text(value(result), place, f" {value(result):.0f}", va="center", fontsize=7)
            if path == speed:
                real_time = result["sample_rate"] / 1e3
                axes.plot([real_time] * 2, [place - 0.14, place + 0.14], color="black", linewidth=1.5)
        axes.set_yticks(range(len(names)), labels)
        axes.invert_yaxis()
        axes.set_xlabel(title)
        if path == share:
            axes.axvline(100, color="black", linewidth=1.5)
        for dtype, colour in COLOURS.items():
            axes.barh(0, 0, color=colour, label=dtype)
        axes.legend(loc="lower right")
        figure.savefig(path, dpi=120, metadata={"Software": None})


def _rewrite(page: Path, marker: str, new: str) -> None:
    page.write_text(with_table(page.read_text(encoding="utf-8"), marker, new), encoding="utf-8")


def main() -> None:
    parts = []
    for machine, results in read_results().items():
        speed, share = f"docs/speed-{machine}.png", f"docs/limit-{machine}.png"
        plot(results, ROOT / speed, ROOT / share)
        parts.append(f"{table(results)}\n![Speed]({speed})\n![Share of the limit]({share})\n")
    _rewrite(ROOT / "README.md", "benchmarks", "\n".join(parts))
    models = ROOT / "docs" / "models.md"
    models.write_text(with_speeds(models.read_text(encoding="utf-8"), read_results()), encoding="utf-8")
    if QUALITY.exists():
        costs = json.loads(QUALITY.read_text(encoding="utf-8"))
        _rewrite(ROOT / "docs" / "kernels.md", "quality", quality_table(costs))
    if CLARINET.exists():
        result, docs = json.loads(CLARINET.read_text(encoding="utf-8")), ROOT / "docs"
        clarinet_report.figures(result, docs / "clarinet-clipping.png", docs / "clarinet-distillation.png")
        for marker, new in clarinet_report.tables(result).items():
            _rewrite(docs / "clarinet.md", marker, new)


if __name__ == "__main__":
    main()
