"""What the bare programs reach on a quiet machine of the kind that COVEN is measured on: 2 virtual cores, Linux 6.18.

A ratio is only worth quoting when what it is held against does its work well. The figures were measured with programs
of others; CPU nanoseconds a packet, or packets a second where cores are crossed (far and near hop).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from coven.bench.result import Result

TOLERANCE = 0.15


@dataclass(frozen=True, slots=True)
class Known:
    """A figure to be reached: the best and the worst that was seen. It may be bettered."""

    best: float
    worst: float
    is_rate: bool = False  # packets a second: more is better; else nanoseconds


NANOSECONDS = {
    "bare_afpacket v3 block, 64 B": Known(1223, 1254),
    "bare_afpacket v2 block, 64 B": Known(1311, 1542),
    "bare_afxdp nap, 64 B": Known(969, 1078),
}
# by hop regime: three processes in a chain over two cores
RATES = {
    "bare_ring 3 0 64": {"far": Known(28e6, 28e6, True), "near": Known(89e6, 89e6, True)},
    "bare_ring 3 1 64": {"far": Known(15e6, 15e6, True), "near": Known(47e6, 47e6, True)},
}


def compare(results: Iterable[Result]) -> list[dict[str, Any]]:
    """Hold each bare program that was measured against what is known of it, each name once."""
    rows: dict[str, dict[str, Any]] = {}
    for result in results:
        for reference in _references(result):
            if result.reference and (result.reference.disturbed or not result.reference.packets_per_second):
                continue
            known = NANOSECONDS.get(reference["name"]) or RATES.get(reference["name"], {}).get(result.regime or "")
            if known is not None and reference["name"] not in rows:
                rows[reference["name"]] = _row(reference, known, result.regime)
    return list(rows.values())


def _references(result: Result) -> list[dict[str, Any]]:
    several = result.details.get("references")
    if several:
        return list(several.values())
    return [] if result.reference is None else [result.reference.to_json()]


def _row(reference: dict[str, Any], known: Known, regime: str | None) -> dict[str, Any]:
    measured = reference["packets_per_second"] if known.is_rate else reference["ns_per_packet"]
    # only being worse than all that was seen counts: a better one makes the ratio harder for COVEN
    worse = known.worst / measured if known.is_rate else measured / known.worst
    return {
        "name": reference["name"],
        "unit": "packets a second" if known.is_rate else "CPU ns a packet",
        "measured": measured,
        "known": sorted({known.best, known.worst}),
        "hop": regime,
        "within": worse <= 1 + TOLERANCE,
    }
