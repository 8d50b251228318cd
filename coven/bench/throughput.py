"""Throughput without loss (RFC 2544 section 26.1), then a long run at 80 % of what the same run found.

A rate counts as reached when a trial brings back every packet. On a machine shared with others a trial may fail for
reasons of theirs, so one that fails is repeated, up to three times in all.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import partial

from coven.bench.forwarders import BARE, Passage, Standing, bare, coven, end_traffic, passage, start_traffic, tools
from coven.bench.function import PASS, chain
from coven.bench.links import Network
from coven.bench.measure import rest, taken_reasons
from coven.bench.platform import Platform
from coven.bench.result import Reference, Result
from coven.bench.session import Session

SIZE = 64
SHARE = 0.8  # of the capacity, for the long run
LONG_S = 60.0
TRIALS = 3
RESOLUTION = 0.03
LEAST_RATE = 10_000
FUNCTION = chain(PASS["C"], "fused", 3)


@dataclass(frozen=True, slots=True)
class Capacity:
    """The highest rate without loss that was found."""

    rate: int
    by_generator: bool  # the generator sends no more than that
    trials: int


def generator_rate(session: Session, net: Network, size: int = SIZE) -> int:
    """Give what the generator sends at most when a forwarder runs, in packets a second."""
    seconds = 0.2 if session.quick else 0.5
    traffic = end_traffic(start_traffic(session, net, size=size, rate=0, seconds=seconds), 10)
    return max(LEAST_RATE, round(traffic.sent * 1e9 / traffic.wall_ns))


def search(session: Session, net: Network, forwarder: Standing, size: int = SIZE) -> Capacity:
    """Find the highest rate without loss by halving, to 3 %."""
    seconds = 0.15 if session.quick else 1.0
    most = generator_rate(session, net, size)
    low, high, trials = 0, most, 0
    steps = 4 if session.quick else 10
    rate = round(most * 0.95)
    while steps > 0 and high - low > RESOLUTION * high and rate >= LEAST_RATE:
        steps -= 1
        reached = False
        for _ in range(1 if session.quick else TRIALS):
            trials += 1
            found = passage(session, net, forwarder, size=size, rate=rate, seconds=seconds)
            reached = found.lost == 0 and not found.traffic.reasons()
            if reached:
                break
        if reached:
            low = rate
        else:
            high = rate
        rate = (low + high) // 2
    return Capacity(low, low >= 0.9 * most, trials)


def reasons(found: Passage) -> list[str]:
    """Say why a long run says nothing about COVEN."""
    return [*found.traffic.reasons(), *taken_reasons(found.taken)]


def hold(session: Session, net: Network, forwarder: Standing, rate: int, seconds: float, size: int = SIZE) -> Result:
    """Send at a rate for long; the row has losses by place, latency and CPU time."""
    found = passage(session, net, forwarder, size=size, rate=rate, seconds=seconds)
    traffic = found.traffic
    packets = max(1, traffic.received)
    elsewhere = found.lost - found.dropped - found.missed
    details = {
        "rate": rate, "seconds": seconds, "sent": traffic.sent, "received": traffic.received,
        "dropped_by_coven": found.dropped, "rx_missed": found.missed, "lost_elsewhere": elsewhere,
        "longest_gap_of_generator_us": traffic.longest_gap_ns / 1000,
        "cpu_ns_by_part": {part: {"median": ns / packets} for part, ns in found.cpu_ns.items()},
    }  # fmt: skip
    return Result(
        "throughput", "", traffic.received * 1e9 / max(1, traffic.wall_ns), found.cost,
        traffic.latency_us if traffic.received else None, regime=found.regime, taken=found.taken,
        invalid=tuple(reasons(found)), details=details,
    )  # fmt: skip


def verdict(row: Result) -> str:
    """Say whether a long run shows what it should: PASSED, FAILED, or INVALID."""
    if row.invalid:
        return "INVALID"
    return "PASSED" if row.details["dropped_by_coven"] == 0 else "FAILED"


def run(session: Session) -> list[Result]:
    """Search the capacity of COVEN and of the bare forwarder of each tool, then hold 80 % of it."""
    rows: list[Result] = []
    long_s = session.seconds if session.seconds is not None else 1.0 if session.quick else LONG_S
    with Network() as net, Platform(enter=net.enter("box"), bin_dir=session.bin_dir) as platform:
        for tool in tools(session):
            words = BARE[tool]["block"]
            name = " ".join(words)
            other, beside, _ = _found(session, net, partial(bare, session, net, words), name, 1.0)
            own, row, _ = _found(session, net, partial(coven, platform, FUNCTION, tool), f"{tool}: fused C x 3", long_s)
            reference = Reference(name, other.rate, beside.ns_per_packet or 0.0, beside.latency_us)
            case = f"{tool}: fused C x 3, {SIZE} B"
            searched = {"trials": own.trials, "capacity": own.rate, "limited_by_generator": own.by_generator}
            rows.append(
                replace(
                    row, case=f"{case}, {long_s:.0f} s at 80 %", reference=reference,
                    details={**row.details, **searched, "verdict": verdict(row)},
                )
            )  # fmt: skip
            rows.insert(
                len(rows) - 1,
                Result("throughput", f"{case}, without loss", float(own.rate), row.ns_per_packet, reference=reference,
                       taken=row.taken, details=searched,
                       invalid=() if own.rate else ("no rate went through without loss",)),
            )  # fmt: skip
    return rows


def _found(
    session: Session, net: Network, forwarder: Callable[[], AbstractContextManager[Standing]], name: str, seconds: float
) -> tuple[Capacity, Result, int]:
    """Search a capacity and hold 80 % of it."""
    with forwarder() as standing:
        rest(0.05)
        capacity = search(session, net, standing)
        session.note(f"{name}: {capacity.rate / 1e3:.0f} kpps without loss, {capacity.trials} trials")
        rate = max(LEAST_RATE, round(capacity.rate * SHARE))
        row = hold(session, net, standing, rate, seconds)
        said = "; ".join(row.invalid) or "valid"
        session.note(f"{name}: {seconds:g} s at {rate / 1e3:.0f} kpps: {row.details['sent']} sent, "
                     f"{row.details['received']} back: {said}")  # fmt: skip
        return capacity, row, rate
