"""`coven bench` runs each scenario, writes the JSON it promises, and calls a disturbed run INVALID."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from coven.bench import throughput
from coven.bench.forwarders import BARE, bare, passage
from coven.bench.links import Network
from coven.bench.measure import Programs, cores, pin
from coven.bench.run import SCENARIOS
from coven.bench.session import Session
from tests.lib.net import unavailable

NUMBER = {"type": ["number", "null"], "minimum": 0}
TIMES = {"type": "object", "required": ["p50", "p99", "p999"], "additionalProperties": {"type": "number"}}
SCHEMA = {
    "type": "object",
    "required": ["machine", "commit", "results"],
    "properties": {
        "machine": {"type": "object", "required": ["cpu", "cores", "kernel"]},
        "commit": {"type": "string", "minLength": 1},
        "results": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "additionalProperties": False,
                "required": ["scenario", "case", "packets_per_second", "ns_per_packet", "latency_us", "reference", "ratio"],
                "properties": {
                    "scenario": {"enum": list(SCENARIOS)},
                    "case": {"type": "string", "minLength": 1},
                    "packets_per_second": NUMBER,
                    "ns_per_packet": NUMBER,
                    "latency_us": {"oneOf": [{"type": "null"}, TIMES]},
                    "reference": {
                        "type": ["object", "null"],
                        "additionalProperties": False,
                        "required": ["name", "packets_per_second", "ns_per_packet"],
                        "properties": {"name": {"type": "string"}, "packets_per_second": NUMBER,
                                       "ns_per_packet": NUMBER, "latency_us": {"oneOf": [{"type": "null"}, TIMES]}},
                    },
                    "ratio": NUMBER,
                    "hop": {"enum": ["near", "far", None]},
                    "steal": {"type": "object"},
                    "validity": {"enum": ["VALID", "INVALID"]},
                    "why": {"type": "array", "items": {"type": "string"}},
                    "details": {"type": "object"},
                },
            },
        },
    },
}  # fmt: skip
needs_root = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))


@pytest.mark.root
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_scenario_writes_what_is_promised(scenario: str, tmp_path: Path) -> None:
    """Each run asks COVEN for its counters, and fails when a packet is not accounted for."""
    why = unavailable()
    if SCENARIOS[scenario].needs_root and why:
        pytest.skip(why)
    file = tmp_path / "bench.json"
    command = [sys.executable, "-m", "coven", "bench", scenario, "--quick", "--tool", "afpacket", "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    document = json.loads(file.read_text(encoding="utf-8"))
    jsonschema.validate(document, SCHEMA)
    assert not document["complete"]
    for row in document["results"]:
        assert row["scenario"] == scenario
        assert bool(row["why"]) == (row["validity"] == "INVALID")
        assert row["case"] in done.stdout
    compared = [row for row in document["results"] if row["reference"]]
    if scenario not in ("startup", "idle"):
        assert compared
        assert all(row["ratio"] for row in compared if row["ns_per_packet"] and row["reference"]["ns_per_packet"])
    _check(scenario, document["results"])


def _check(scenario: str, rows: list[dict[str, Any]]) -> None:
    """Look at what only this scenario tells."""
    if scenario == "memory":
        parts = {row["case"]: row["details"]["cpu_ns_by_part"] for row in rows}
        assert parts["fused C: null x 1"]["components"]["median"] == 0  # a fused component has no process
        assert parts["shared C: null x 1"]["components"]["median"] > 0
        assert {row["hop"] for row in rows if row["case"].startswith("copy")} <= {"near", "far"}
    if scenario in ("throughput", "soak"):
        row = rows[-1]["details"]
        assert row["sent"] >= row["received"]
        assert row["verdict"] in ("PASSED", "FAILED", "INVALID")
        assert {"dropped_by_coven", "rx_missed"} <= set(row)
    if scenario == "latency":
        assert rows[0]["case"].startswith("direct veth")
        assert all(0 < row["latency_us"]["p50"] <= row["latency_us"]["p99"] <= row["latency_us"]["p999"] for row in rows)
    if scenario == "idle":
        assert rows[0]["details"]["memory"]["component in C"]["processes"] == 3


def test_scenarios_are_listed() -> None:
    done = subprocess.run([sys.executable, "-m", "coven", "bench", "--list"], capture_output=True, text=True, check=True)
    assert [line.split()[0] for line in done.stdout.splitlines()] == list(SCENARIOS)


@contextlib.contextmanager
def hog(core: int) -> Iterator[None]:
    """Keep a core busy, before everybody else."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as process:
        try:
            # three times the share of those it disturbs, not all: they shall still come to their end
            os.setpriority(os.PRIO_PROCESS, process.pid, os.getpriority(os.PRIO_PROCESS, 0) - 5)
            pin(process.pid, core)
            yield
        finally:
            process.kill()


@pytest.mark.root
@needs_root
@pytest.mark.skipif(cores()[0] == cores()[1], reason="needs two cores")
@pytest.mark.parametrize(("place", "why"), [(1, "the generator sent"), (0, "others had the worker's core")])
def test_a_run_that_others_disturbed_is_invalid(place: int, why: str) -> None:
    programs = Programs()
    try:
        session = Session(quick=True, programs=programs)
        programs.path("traffic")  # compiled before the core is busy
        words = BARE["afpacket"]["spin"]  # wants its core whether packets come or not
        with Network() as net, bare(session, net, words) as standing, hog(cores()[place]):
            found = passage(session, net, standing, size=64, rate=500_000, seconds=0.5)
    finally:
        programs.close()
    reasons = throughput.reasons(found)
    assert any(why in reason for reason in reasons), (reasons, found)
