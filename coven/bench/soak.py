"""A long run at 80 % of capacity: memory of every process flat, no packet lost by COVEN."""

from __future__ import annotations

import contextlib
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from coven.bench.forwarders import BARE, bare, coven, passage, tools
from coven.bench.function import PASS, Part, chain
from coven.bench.links import Network
from coven.bench.measure import rest
from coven.bench.platform import Platform
from coven.bench.result import Reference, Result
from coven.bench.session import Session
from coven.bench.throughput import LEAST_RATE, SHARE, reasons, search, verdict

SLICE_S = 10.0  # traffic between two looks at memory
LONG_S = 60.0
GROWTH_MB = 2.0  # between the end of the first fifth and the end, of any process: what Python's allocator may keep
# a component in each way of running, and flow state, so that what could leak is there
FUNCTION = (*chain(PASS["C"], "fused", 2), Part("flow-firewall"))


def memory_of(top: int) -> dict[str, float]:
    """Give proportional memory (PSS) in MB of a process and all below it, by process id and name."""
    found = {}
    process = psutil.Process(top)
    for one in (process, *process.children(recursive=True)):
        with contextlib.suppress(psutil.Error):
            words = one.cmdline()
            name = next((word for word in ("coven.supervisor", "coven-launch") if word in words), Path(words[0]).name)
            found[f"{name} {one.pid}"] = one.memory_full_info().pss / 1e6
    return found


def run(session: Session) -> list[Result]:
    """Find the capacity, then hold 80 % of it in slices and look at memory between them."""
    rows = []
    with Network() as net, Platform(enter=net.enter("box"), bin_dir=session.bin_dir) as platform:
        for tool in tools(session)[:1] if session.quick else tools(session):
            words = BARE[tool]["block"]
            with bare(session, net, words) as standing:
                rate = max(LEAST_RATE, round(search(session, net, standing).rate * SHARE))
                beside = passage(session, net, standing, size=64, rate=rate, seconds=0.3 if session.quick else 2.0)
            reference = Reference(
                " ".join(words), beside.traffic.received * 1e9 / max(1, beside.traffic.wall_ns), beside.cost,
                beside.traffic.latency_us,
            )  # fmt: skip
            rows.append(_soak(session, net, platform, tool, reference))
    return rows


def _soak(session: Session, net: Network, platform: Platform, tool: str, reference: Reference) -> Result:
    seconds = session.seconds if session.seconds is not None else 1.0 if session.quick else LONG_S
    one = min(SLICE_S, seconds / 5)
    totals: dict[str, Any] = {"sent": 0, "received": 0, "dropped_by_coven": 0, "rx_missed": 0}
    samples: list[dict[str, Any]] = []
    why: dict[str, None] = {}
    cpu, wall, disturbed, slices = 0, 0, 0, 0
    with coven(platform, FUNCTION, tool) as standing:
        rest(0.1)
        rate = max(LEAST_RATE, round(search(session, net, standing).rate * SHARE))
        begin = time.monotonic()
        while time.monotonic() - begin < seconds or slices < 5:
            found = passage(session, net, standing, size=64, rate=rate, seconds=one, flows=1000)
            slices += 1
            bad = reasons(found)
            disturbed += bool(bad)
            why |= dict.fromkeys(bad[:1])
            cpu += sum(found.cpu_ns.values())
            wall += found.traffic.wall_ns
            totals["sent"] += found.traffic.sent
            totals["received"] += found.traffic.received
            totals["dropped_by_coven"] += found.dropped
            totals["rx_missed"] += found.missed
            samples.append({"s": round(time.monotonic() - begin, 1), "pss_mb": memory_of(standing.pid)})
            total = sum(samples[-1]["pss_mb"].values())
            session.note(f"{samples[-1]['s']:.0f} s: {totals['sent']} sent, {totals['received']} back, {total:.1f} MB")
        latency = found.traffic.latency_us
    growth = _growth(samples)
    details = {
        **totals, "rate": rate, "seconds": seconds, "slices": slices, "slices_disturbed": disturbed,
        "growth_mb": growth, "memory": samples,
    }  # fmt: skip
    # a soak in which a few slices were disturbed still says that nothing leaks; one with many says nothing of loss
    invalid: tuple[str, ...] = ()
    if disturbed * 5 > slices:
        invalid = (f"{disturbed} of {slices} slices were disturbed, the first: {next(iter(why))}",)
    row = Result(
        "soak", f"{tool}: fused C x 3 with flow state, {seconds:.0f} s at 80 %",
        totals["received"] * 1e9 / max(1, wall), cpu / max(1, totals["received"]), latency, reference,
        invalid=invalid, details=details,
    )  # fmt: skip
    flat = all(value <= GROWTH_MB for value in growth.values())
    said = verdict(row) if flat else "FAILED (memory grows)"
    return replace(row, details={**details, "verdict": said})


def _growth(samples: list[dict[str, Any]]) -> dict[str, float]:
    """Give how much each process has grown since the first fifth of the time, in MB."""
    early, late = samples[max(0, len(samples) // 5 - 1)]["pss_mb"], samples[-1]["pss_mb"]
    return {name: round(late[name] - early[name], 2) for name in late if name in early}
