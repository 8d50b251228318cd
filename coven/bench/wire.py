"""From veth to veth, as fast as the generator sends: what a packet costs the worker, beside a bare forwarder.

The generator is on the other core; over veth its system call also carries each frame into the forwarder's receive
ring, so the kernel's part of receiving is charged to the generator, for COVEN and the bare forwarder alike.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial

from coven.bench.forwarders import BARE, Standing, bare, coven, end_traffic, start_traffic, tools
from coven.bench.function import PASS, Part, chain
from coven.bench.links import Network
from coven.bench.measure import Sample, Taken, cpu_ns, in_turn, rest, taken_reasons
from coven.bench.platform import Platform
from coven.bench.result import Result, of_samples
from coven.bench.session import Session
from coven.errors import CovenError

SIZES = {"64 B": 64, "512 B": 512, "1500 B": 1500, "IMIX": 0}  # of a frame without FCS
FUNCTIONS: dict[str, tuple[Part, ...]] = {
    "no component": (),
    "fused C x 3": chain(PASS["C"], "fused", 3),
    "fused C: firewall, 8 rules": (Part("firewall"),),
    "shared C x 1": chain(PASS["C"], "shared", 1),
    "shared C x 3": chain(PASS["C"], "shared", 3),
    "copy C x 3": chain(PASS["C"], "copy", 3),
}
ALL_SIZES = ("fused C x 3",)  # the others with 64 B only
QUICK = ("fused C x 3",)


def measure(
    session: Session, net: Network, size: int, forwarder: Callable[[], AbstractContextManager[Standing]]
) -> Sample:
    """Send as fast as can be, and count frames out and CPU time."""
    near = session.hop()  # frames cross the cores, whatever the forwarder is
    warm, long = (0.05, 0.15) if session.quick else (0.2, 0.5)
    with forwarder() as standing:
        process = start_traffic(session, net, size=size, rate=0, seconds=20)
        try:
            if standing.components:  # they share the generator's core and go first
                os.setpriority(os.PRIO_PROCESS, process.pid, 5)
            rest(warm)
            taken = Taken(standing.workers)
            before = _now(standing)
            rest(long)
            after = _now(standing)
            shares = taken.shares()
            if process.poll() is not None:
                raise CovenError("platform.internal", "the generator ended early")
        finally:
            process.terminate()
        end_traffic(process, 10)
        counted = standing.snapshot()["accounting"] if standing.snapshot else {}
    packets, offered, wall, worker, components = (b - a for a, b in zip(before, after, strict=True))
    more = {"offered_per_second": offered * 1e9 / wall, **{f"taken_{key}": value for key, value in shares.items()}}
    if counted:
        more["dropped_ratio"] = counted["drops"] / max(1, counted["rx"])
    reasons = taken_reasons(shares) if packets else ["nothing was forwarded"]
    return Sample(
        max(1, packets), wall, {"worker": worker, "components": components}, more,
        near.regime if near else None, tuple(reasons),
    )  # fmt: skip


def _now(standing: Standing) -> tuple[int, int, int, int, int]:
    return (
        standing.tx(), standing.offered(), time.monotonic_ns(), cpu_ns(standing.workers), cpu_ns(standing.components)
    )  # fmt: skip


def run(session: Session) -> list[Result]:
    """Measure all functions and bare forwarders in turn, tool by tool."""
    rows: list[Result] = []
    with Network() as net, Platform(enter=net.enter("box"), bin_dir=session.bin_dir) as platform:
        for tool in tools(session):
            rows += _tool(session, net, platform, tool)
    return rows


def _tool(session: Session, net: Network, platform: Platform, tool: str) -> list[Result]:
    runs: dict[str, Callable[[], Sample]] = {}
    cases: dict[str, str] = {}  # case -> size
    modes = [mode for mode in BARE[tool] if mode != "spin"]
    for label, size in SIZES.items():
        chosen = {
            f"{tool}: {title}, {label}": parts
            for title, parts in FUNCTIONS.items()
            if (label == "64 B" or title in ALL_SIZES)
            and session.wanted(f"{tool}: {title}, {label}")
            and not (session.quick and not session.only and (title not in QUICK or label != "64 B"))
        }
        if not chosen:
            continue
        for mode in modes:
            words = BARE[tool][mode]
            forwarder = partial(bare, session, net, words)
            runs[f"{' '.join(words)}, {label}"] = partial(measure, session, net, size, forwarder)
        for case, parts in chosen.items():
            runs[case] = partial(measure, session, net, size, partial(coven, platform, parts, tool))
            cases[case] = label
    samples = in_turn(runs, session.rounds, session.note)
    rows = []
    for case, label in cases.items():
        references = [f"{' '.join(BARE[tool][mode])}, {label}" for mode in modes]
        found = [of_samples("wire", case, samples[case], samples[name], name) for name in references]
        # the cheaper of the bare forwarders is the one to be held against
        best = min(found, key=lambda row: row.reference.ns_per_packet if row.reference else 0.0)
        every = {row.reference.name: row.reference.to_json() for row in found if row.reference}
        rows.append(replace(best, details={**best.details, "references": every}))
    return rows
