"""The benchmark measures what it says: it runs, counts packets, and leaves the text around its tables alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench import report
from tests.bench.measure import ROOT, Sample, Spread, table_rows


def test_a_chain_is_measured(tmp_path: Path) -> None:
    output = tmp_path / "bench.json"
    command = [
        sys.executable,
        "-m",
        "tests.bench",
        "--part",
        "memory",
        "--only",
        "filter",
        "--repeats",
        "2",
        "--output",
        str(output),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    results = json.loads(output.read_text())
    (row,) = results["memory"]
    assert row["name"] == "fused C: filter"
    assert row["pps"]["min"] > 0
    assert row["cpu_ns_by_part"]["worker"]["median"] > 0
    assert row["cpu_ns_by_part"]["components"]["median"] == 0  # a fused component has no process
    assert "| fused C: filter |" in done.stdout


def test_samples_become_rows() -> None:
    samples = [Sample(1000, 10**6 * n, {"worker": 100_000 * n, "components": 50_000}) for n in (1, 2, 4)]
    (row,) = table_rows({"x": samples})
    assert row["pps"] == Spread(500_000.0, 250_000.0, 1_000_000.0).to_json()
    assert row["cpu_ns_per_packet"] == Spread(250.0, 150.0, 450.0).to_json()


def test_every_kill_has_its_row() -> None:
    one = Spread.of([0.1]).to_json()
    lines = report._appliance({
        "deploy_to_first_packet_s": {"C only": one}, "crash_felt_s": {"worker": one}, "memory": {}, "idle_percent": {},
        "idle_percent_total": 0.0, "answers_again_s": {"Management Agent": one, "supervisor": one},
    })  # fmt: skip
    rows = [line for line in lines if line.startswith("| kill -9")]
    assert [row.rsplit("|", 2)[1].strip() for row in rows] == ["1 s", "2 s", "2 s"]
    assert "Management Agent: its successor answers `check` after | 0.100" in rows[1]


def test_only_the_part_between_the_markers_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "benchmarks.md"
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n", encoding="utf-8")
    monkeypatch.setattr(report, "PAGE", page)
    results = {
        "machine": report.machine(),
        "commit": "c0ffee",
        "date": "today",
        "command": "x",
        "repeats": 1,
        "hop": None,
    }
    report.write_page(results)
    text = page.read_text(encoding="utf-8")
    assert text.startswith(f"before\n{report.BEGIN}\nMachine: ")
    assert text.endswith(f"{report.END}\nafter\n")
    assert "old" not in text
    assert "c0ffee" in text
