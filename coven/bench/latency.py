"""One-way latency at 10, 50 and 90 % of what goes through without loss, beside bare forwarders at the same rate.

From CLOCK_REALTIME read just before the sender's system call to the kernel's own stamp of the frame at the server's
interface: the reader's waking up is not in it. The floor of the method is measured over a direct veth pair.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from statistics import median

from coven.bench.forwarders import BARE, Passage, Standing, bare, coven, end_traffic, passage, start_traffic, tools
from coven.bench.function import PASS, chain
from coven.bench.links import Network
from coven.bench.measure import rest, taken_reasons
from coven.bench.platform import Platform
from coven.bench.result import Reference, Result
from coven.bench.session import Session
from coven.bench.throughput import LEAST_RATE, search

SIZE = 64
LOADS = (10, 50, 90)
ISOLATED = (1, 2, 3)
FUSED = chain(PASS["C"], "fused", 3)
ALLOWED_US = {"balanced": 3.0, "low-latency": 2.0}  # above the bare forwarder that waits alike


@dataclass(frozen=True, slots=True)
class Case:
    """A forwarder, the loads in per cent, and the bare one it is held against."""

    forwarder: Callable[[], AbstractContextManager[Standing]]
    loads: tuple[int, ...]
    against: str | None = None  # name of another case
    allowed_us: float | None = None  # above it, p50


def _cases(session: Session, net: Network, platform: Platform, tool: str) -> dict[str, Case]:
    loads = (10,) if session.quick else LOADS
    found: dict[str, Case] = {}
    for mode, profile in (("block", "balanced"), ("spin", "low-latency")):
        words = BARE[tool][mode]
        name = " ".join(words)
        found[name] = Case(partial(bare, session, net, words), loads)
        found[f"{tool}: fused C x 3, {profile}"] = Case(
            partial(coven, platform, FUSED, tool, profile=profile), loads, name, ALLOWED_US[profile]
        )
    blocking = " ".join(BARE[tool]["block"])
    for n in (1,) if session.quick else ISOLATED:
        parts = chain(PASS["C"], "shared", n)
        # The generator never leaves its core: beside it a component would wait for the scheduler, not for packets.
        forwarder = partial(coven, platform, parts, tool, beside_worker=True)
        found[f"{tool}: shared C x {n}, balanced"] = Case(forwarder, (10,), blocking)
    return found


def run(session: Session) -> list[Result]:
    """Find the rates, then measure all forwarders in turn, load by load."""
    rows: list[Result] = []
    with Network() as net, Platform(enter=net.enter("box"), bin_dir=session.bin_dir) as platform:
        rows.append(_floor(session, net))
        for tool in tools(session):
            with coven(platform, FUSED, tool) as standing:
                capacity = max(search(session, net, standing).rate, 10 * LEAST_RATE)
            session.note(f"{tool}: loads are of {capacity / 1e3:.0f} kpps")
            cases = _cases(session, net, platform, tool)
            samples: dict[tuple[str, int], list[Passage]] = {}
            for _ in range(session.rounds):
                for name, case in cases.items():
                    _measure(session, net, capacity, name, case, samples)
            rows += _rows(cases, samples, capacity)
    return [row for row in rows if session.wanted(row.case)]


def _measure(
    session: Session, net: Network, capacity: int, name: str, case: Case, samples: dict[tuple[str, int], list[Passage]]
) -> None:
    seconds = 0.2 if session.quick else 0.8
    with case.forwarder() as standing:
        rest(0.1)
        for load in case.loads:
            rate = capacity * load // 100
            found = passage(session, net, standing, size=SIZE, rate=rate, seconds=seconds)
            samples.setdefault((name, load), []).append(found)
            times = "/".join(f"{value:.1f}" for value in found.traffic.latency_us.values())
            session.note(f"{name}, {load} %: {times} us (p50/p99/p99.9) at {rate / 1e3:.0f} kpps")


def _typical(samples: list[Passage]) -> Passage:
    """Give the round with the median p50, of those that were not disturbed if there are any."""
    kept = [found for found in samples if not _reasons(found)] or samples
    return sorted(kept, key=lambda found: found.traffic.p50_ns)[(len(kept) - 1) // 2]


def _reasons(found: Passage) -> list[str]:
    lost = found.lost / max(1, found.traffic.sent)
    return [
        *found.traffic.reasons(), *taken_reasons(found.taken),
        *([f"{lost * 100:.1f} % of the packets were lost"] if lost > 0.01 else []),
    ]  # fmt: skip


def _rows(cases: Mapping[str, Case], samples: Mapping[tuple[str, int], list[Passage]], capacity: int) -> list[Result]:
    rows = []
    for (name, load), taken in samples.items():
        case, typical = cases[name], _typical(taken)
        other = samples.get((case.against or "", load))
        beside = _typical(other) if other else None
        reference = None
        if beside and case.against:
            reference = Reference(case.against, _rate(beside), beside.cost, beside.traffic.latency_us)
        more = typical.traffic.latency_us["p50"] - beside.traffic.latency_us["p50"] if beside else None
        details = {
            "load_percent": load, "rate": capacity * load // 100, "rounds": len(taken),
            "p50_us_of_rounds": [found.traffic.latency_us["p50"] for found in taken],
            "p50_above_reference_us": more, "allowed_us": case.allowed_us,
            "median_p50_us": median(found.traffic.latency_us["p50"] for found in taken),
            "longest_gap_of_generator_us": typical.traffic.longest_gap_ns / 1000,
            "dropped_by_coven": typical.dropped, "rx_missed": typical.missed,
        }  # fmt: skip
        rows.append(
            Result("latency", f"{name}, {load} %", _rate(typical), typical.cost, typical.traffic.latency_us, reference,
                   regime=typical.regime, taken=typical.taken, invalid=tuple(_reasons(typical)), details=details)
        )  # fmt: skip
    return rows


def _rate(found: Passage) -> float:
    return found.traffic.received * 1e9 / max(1, found.traffic.wall_ns)


def _floor(session: Session, net: Network) -> Result:
    """Measure the method itself: a wire from client to server without anything between."""
    seconds = 0.2 if session.quick else 1.0
    process = start_traffic(session, net, size=SIZE, rate=50_000, seconds=seconds, interface="direct")
    traffic = end_traffic(process, seconds + 30)
    session.note(f"direct veth: {traffic.latency_us['p50']:.1f} us")
    rate = traffic.received * 1e9 / max(1, traffic.wall_ns)
    return Result(
        "latency", "direct veth, 50 kpps", rate, None, traffic.latency_us, invalid=tuple(traffic.reasons()),
        details={"longest_gap_of_generator_us": traffic.longest_gap_ns / 1000},
    )  # fmt: skip
