"""The figures as docs/benchmarks.md shows them: tables between two markers, the text around them stays."""

from __future__ import annotations

import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.bench.measure import ROOT

PAGE = ROOT / "docs" / "benchmarks.md"
BEGIN, END = "<!-- begin: written by make bench -->", "<!-- end: written by make bench -->"


def machine() -> dict[str, Any]:
    """Say what was measured on."""
    fields = {
        key.strip(): value.strip()
        for key, _, value in (line.partition(":") for line in Path("/proc/cpuinfo").read_text().splitlines())
    }
    release = {
        key: value.strip('"')
        for key, _, value in (line.partition("=") for line in Path("/etc/os-release").read_text().splitlines())
    }
    return {
        "cpu": fields.get("model name", platform.machine()),
        "cores": os.cpu_count(),
        "virtual": "hypervisor" in fields.get("flags", ""),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "kernel": platform.release(),
        "system": release.get("PRETTY_NAME", ""),
        "python": platform.python_version(),
        "load": [round(value, 1) for value in os.getloadavg()],
    }


def commit() -> str:
    """Say which commit was measured, and whether files differ from it."""

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
        return done.stdout.strip()

    changed = git("status", "--porcelain", "--", "coven", "tests/bench", "vnfc_examples", "packages")
    return (git("rev-parse", "--short=12", "HEAD") or "unknown") + (" with changes" if changed else "")


def _spread(value: Mapping[str, float], digits: int = 0, scale: float = 1.0) -> str:
    median, low, high = (f"{value[key] * scale:.{digits}f}" for key in ("median", "min", "max"))
    return f"{median} ({low} to {high})"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [
        "| " + " | ".join(head) + " |",
        "|---" + "|---:" * (len(head) - 1) + "|",
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
    ]


def _hop(result: Mapping[str, Any] | None) -> list[str]:
    if result is None:
        return ["One core only: no hop to measure.", ""]
    return [
        f"One way between the two cores, a spinning reader: {_spread(result['one_way_ns'])} ns, which is the "
        f"**{result['regime']}** regime (limit {result['limit_ns']:.0f} ns, by the median).",
        "",
    ]


def _memory(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return _table(
        ("chain, 64-byte packets", "Mpps", "CPU ns a packet", "of it worker", "components"),
        [
            (
                row["name"], _spread(row["pps"], 2, 1e-6), _spread(row["cpu_ns_per_packet"], 1),
                f"{row['cpu_ns_by_part']['worker']['median']:.1f}", f"{row['cpu_ns_by_part']['components']['median']:.1f}",
            )
            for row in rows
        ],
    )  # fmt: skip


def _wire(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    return _table(
        ("forwarder, frame without FCS", "kpps", "offered kpps", "dropped inside, %", "CPU ns a packet", "CPU, bare = 1", "rate, bare = 1"),
        [
            (
                row["name"], _spread(row["pps"], 0, 1e-3), f"{row['more']['offered_pps']['median'] * 1e-3:.0f}",
                f"{row['more']['dropped_inside']['median'] * 100:.1f}", _spread(row["cpu_ns_per_packet"]), f"{row.get('cpu_ratio', 0):.2f}", f"{row.get('rate_ratio', 0):.2f}",
            )
            for row in rows
        ],
    )  # fmt: skip


ANSWERS = {"Management Agent": "its successor answers `check`", "supervisor": "its successor answers"}


def _appliance(result: Mapping[str, Any]) -> list[str]:
    targets = {"C only": "0.7 s", "with Python": "1.5 s"}
    lines = _table(
        ("time", "seconds", "target"),
        [
            *(
                (f"deploy to first packet, {name}", _spread(value, 3), targets.get(name, ""))
                for name, value in result["deploy_to_first_packet_s"].items()
            ),
            *(
                (f"kill -9 of the {name}: no packet for", _spread(value, 3), "1 s")
                for name, value in result["crash_felt_s"].items()
            ),
            *(
                (f"kill -9 of the {name}: {ANSWERS[name]} after", _spread(value, 3), "2 s")
                for name, value in result["answers_again_s"].items()
            ),
        ],
    )
    lines += _table(
        ("process (l7-firewall deployed)", "RSS MB", "PSS MB", "idle, % of a core"),
        [
            (name, f"{value['rss_mb']:.1f}", f"{value['pss_mb']:.1f}", f"{result['idle_percent'].get(name, 0):.3f}")
            for name, value in result["memory"].items()
        ],
    )
    agent = result["memory"].get("management agent", {}).get("rss_mb", 0)
    return [
        *lines,
        f"Targets: management agent below 90 MB (is {agent:.0f} MB), idle appliance below 1 % of a core "
        f"(is {result['idle_percent_total']:.2f} %).",
        "",
    ]


def tables(results: Mapping[str, Any]) -> str:
    """Give the generated part of the page."""
    of = results["machine"]
    lines = [
        f"Machine: {of['cpu']}, {of['cores']} cores{', virtual' if of['virtual'] else ''}, {of['memory_gib']} GiB, "
        f"Linux {of['kernel']}, {of['system']}, Python {of['python']}; load averages at the beginning "
        f"{', '.join(str(value) for value in of['load'])}.",
        f"Commit {results['commit']}, {results['date']}, `{results['command']}`: {results['repeats']} rounds, "
        "all measurements of a table in turn; median (least to most).",
        "",
    ]
    sections = (
        ("hop", "The hop between cores", _hop), ("memory", "Memory to memory", _memory),
        ("wire", "veth to veth", _wire), ("appliance", "The appliance", _appliance),
    )  # fmt: skip
    for key, title, write in sections:
        if key in results:
            lines += [f"### {title}", "", *write(results[key])]
    return "\n".join(lines)


def write_page(results: Mapping[str, Any]) -> None:
    """Put the tables into docs/benchmarks.md, between its markers."""
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n{tables(results)}{END}{after}", encoding="utf-8")
