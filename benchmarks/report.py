"""Writes the table of benchmarks/results/*.json between its markers in README.md: python -m benchmarks.report"""

from __future__ import annotations

import json
from pathlib import Path

from benchmarks.run import RESULTS

__all__ = ["main", "table", "with_tables"]

README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- benchmarks -->", "<!-- /benchmarks -->"
HEADER = (
    "| case | samples/s | x real time | of the limit | PyTorch, samples/s | x PyTorch |\n"
    "| --- | ---: | ---: | ---: | ---: | ---: |\n"
)


def _significant(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


def _row(name: str, case: dict) -> str:
    ours, theirs = case["kernels"], case["baseline"]
    speed = f"{ours['samples_per_second']:,.0f}"
    if case["latency"] is not None:
        speed += f" ({1000 * case['latency']:.0f} ms)"
    return (
        f"| `{name}`: {case['about']} | {speed} | {_significant(ours['real_time_factor'])} | {case['share']:.0%} "
        f"| {theirs['samples_per_second']:,.0f} | {_significant(case['ratio'])} |\n"
    )


def table(result: dict) -> str:
    """One machine's result in Markdown."""
    machine, threads, ceilings = result["machine"], result["threads"], result["ceilings"]
    bandwidth = ", ".join(f"{value / 1e9:.0f} from {level}" for level, value in ceilings["bandwidth"].items())
    return (
        f"{machine['cpu']}, {threads} thread{'s' if threads > 1 else ''}, {result['dtype']} on {machine['isa']}; "
        f"one core does {ceilings['operations'] / 1e9:.0f} GFLOP/s and reads, in GB/s, {bandwidth}. "
        f"PyTorch {machine['torch']}, Python {machine['python']}; {result['date']}.\n\n"
        + HEADER
        + "".join(_row(name, case) for name, case in result["cases"].items())
    )


def with_tables(text: str, results: list[dict]) -> str:
    """The README with these results in place of what stands between its markers.

    Raises:
        ValueError: the markers are missing, or out of order.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"README.md must have {BEGIN} and, behind it, {END}")
    return f"{before}{BEGIN}\n{chr(10).join(map(table, results))}{END}{after}"


def main() -> None:
    results = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*.json"))]
    README.write_text(with_tables(README.read_text(encoding="utf-8"), results), encoding="utf-8")


if __name__ == "__main__":
    main()
