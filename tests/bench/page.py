"""The figures as docs/benchmarks.md shows them: tables between two markers, the text around them stays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from coven.bench import report

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- begin: written by make bench -->", "<!-- end: written by make bench -->"
TITLES = {
    "memory": "From memory to memory", "wire": "veth to veth, full load", "throughput": "Throughput without loss",
    "latency": "One-way latency", "scale": "Cost against size", "startup": "Starting and restarting",
    "idle": "Idle", "soak": "Soak",
}  # fmt: skip


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    cells = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return ["| " + " | ".join(head) + " |", "|---" + "|---:" * (len(head) - 1) + "|",
            *("| " + " | ".join(row) + " |" for row in cells), ""]  # fmt: skip


def _machine(document: Mapping[str, Any]) -> list[str]:
    of, near = document["machine"], document["hop"]
    hop = "" if near is None else (
        f" Hop between the cores at the beginning: {near['one_way_ns']['median']:.0f} ns, {near['regime']} "
        f"(limit {near['limit_ns']:.0f} ns)."
    )  # fmt: skip
    return [
        f"Machine: {of['cpu']}, {of['cores']} cores{', virtual' if of['virtual'] else ''}, {of['memory_gib']} GiB, "
        f"Linux {of['kernel']}, {of['system']}, Python {of['python']}; load averages at the beginning "
        f"{', '.join(str(value) for value in of['load'])}.{hop}",
        "",
        f"Commit {document['commit']}, {document['date']}, {document['seconds'] / 60:.0f} minutes. Medians of the rounds; "
        "`bench.json` has the least and the most of each.",
        "",
    ]


def _idle(result: Mapping[str, Any]) -> list[str]:
    details = result["details"]
    rows = [
        [name, f"{row['processes']:.0f}", f"{row['rss_mb']:.1f}", f"{row['pss_mb']:.1f}", f"{details['by_process'].get(name, 0):.3f}"]
        for name, row in details["memory"].items()
    ]  # fmt: skip
    return _table(("process", "number", "RSS MB", "PSS MB", "% of a core"), rows)


def tables(document: Mapping[str, Any], drawn: Mapping[str, str]) -> str:
    """Give the generated part of the page. drawn: plots by scenario, as paths from the page."""
    lines = _machine(document)
    scenarios = list(dict.fromkeys(result["scenario"] for result in document["results"]))
    for scenario in scenarios:
        results = [result for result in document["results"] if result["scenario"] == scenario]
        rows = [report.row_of(result) for result in results]
        shown = [i for i in range(len(report.COLUMNS)) if i == 0 or any(row[i] for row in rows)]
        head = [report.COLUMNS[i] or "remarks" for i in shown]
        lines += [f"### {TITLES.get(scenario, scenario)}", "", *_table(head, [[row[i] for i in shown] for row in rows])]
        lines += [line for result in results if scenario == "idle" for line in _idle(result)]
        for name, path in drawn.items():
            if name.partition("-")[0] == scenario:
                lines += [f"![{TITLES.get(scenario, scenario)}: {name.replace('-', ' ')}]({path})", ""]
    if document["references"]:
        lines += ["### The bare programs against what is known of them", ""]
        head = ("program", "measured", "known", "unit", "hop", "within 15 %")
        lines += _table(head, [report.reference_row(row) for row in document["references"]])
    return "\n".join(lines)


def write(document: Mapping[str, Any], drawn: Mapping[str, str]) -> None:
    """Put the tables into docs/benchmarks.md, between its markers."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n{tables(document, drawn)}{END}{after}", encoding="utf-8")
