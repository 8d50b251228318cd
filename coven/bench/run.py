"""Runs the scenarios that were asked for, shows a table and writes the JSON file."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from coven.bench import appliance, hop, known, latency, memory, report, scale, soak, throughput, wire
from coven.bench.measure import Programs
from coven.bench.result import Result, finite
from coven.bench.session import Session
from coven.errors import CovenError
from coven.suggest import near_miss


@dataclass(frozen=True, slots=True)
class Scenario:
    """A named set of cases."""

    run: Callable[[Session], list[Result]]
    summary: str
    needs_root: bool = False  # network namespaces
    by_default: bool = True


SCENARIOS: dict[str, Scenario] = {
    "memory": Scenario(
        memory.run, "chains from memory to memory: fused, shared, copy; against a bare loop and bare rings"
    ),
    "wire": Scenario(
        wire.run, "veth to veth at full load: CPU time of a packet by size and NIC tool; against bare forwarders", True
    ),
    "throughput": Scenario(
        throughput.run, "the highest rate without loss (RFC 2544), then 60 s at 80 % of it: no drop by COVEN", True
    ),
    "latency": Scenario(
        latency.run, "one way at 10, 50, 90 % of that; profiles, isolated hops; against bare forwarders", True
    ),
    "scale": Scenario(scale.run, "cost of a packet against flows, rules, paths and components"),
    "startup": Scenario(
        appliance.run_startup, "from deploy to the first packet, and how long deaths are felt", True
    ),
    "idle": Scenario(appliance.run_idle, "what an appliance costs through which nothing passes", True),
    "soak": Scenario(soak.run, "80 % of capacity for long: no loss, memory flat", True, by_default=False),
}


def run(arguments: argparse.Namespace) -> int:
    """Carry out the command; gives the exit status."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: platform and namespaces go, too
    if arguments.list:
        for name, scenario in SCENARIOS.items():
            needs = " (needs root)" if scenario.needs_root else ""
            print(f"{name:<12} {scenario.summary}{needs}")
        return 0
    names = _names(arguments.scenarios)
    programs = Programs()
    session = Session(
        rounds=1 if arguments.quick else max(1, arguments.rounds), only=arguments.only, quick=arguments.quick,
        seconds=arguments.seconds, tools=tuple(arguments.tool or ()), bin_dir=arguments.bin_dir, programs=programs,
    )  # fmt: skip
    try:
        document = measure(session, names)
    finally:
        programs.close()
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    report.show(document)
    return 1 if document["failed"] else 0


def _names(given: list[str]) -> list[str]:
    for name in given:
        if name not in SCENARIOS:
            raise CovenError(
                "request.invalid", f"there is no scenario {name!r}",
                hint=near_miss(name, SCENARIOS) or f"scenarios are: {', '.join(SCENARIOS)}",
            )  # fmt: skip
    return given or [name for name, scenario in SCENARIOS.items() if scenario.by_default]


def measure(session: Session, names: list[str]) -> dict[str, Any]:
    """Run scenarios one after the other; gives the document of the JSON file."""
    begin = time.monotonic()
    document: dict[str, Any] = {"machine": report.machine(), "commit": report.commit()}
    document["date"] = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
    document["quick"] = session.quick
    document["complete"] = not (session.quick or session.only or session.tools) and names == _names([])
    near = hop.measure(session.programs)
    document["hop"] = None if near is None else near.to_json()
    results: list[Result] = []
    skipped: dict[str, str] = {}
    failed: dict[str, str] = {}
    for name in names:
        scenario = SCENARIOS[name]
        if scenario.needs_root and os.geteuid() != 0:
            skipped[name] = "needs root, for network namespaces"
            document["complete"] = False
            continue
        print(f"{name}: {scenario.summary}", file=sys.stderr, flush=True)
        try:
            results += scenario.run(session)
        except CovenError as error:  # what the others found is not lost for it
            failed[name] = str(error)
            session.note(f"failed: {error}")
    document["results"] = [finite(result.to_json()) for result in results]
    document["references"] = finite(known.compare(results))
    document["skipped"], document["failed"] = skipped, failed
    document["complete"] = document["complete"] and not failed
    document["seconds"] = round(time.monotonic() - begin, 1)
    return document
