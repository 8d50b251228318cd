"""One row of what `coven bench` found, as the JSON file and the table have it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from coven.bench.measure import Sample, Spread


@dataclass(frozen=True, slots=True)
class Reference:
    """The bare minimum that a case is compared with, measured in the same run."""

    name: str
    packets_per_second: float
    ns_per_packet: float
    latency_us: Mapping[str, float] | None = None
    disturbed: bool = False  # most of its rounds were: what it reached says nothing

    def to_json(self) -> dict[str, Any]:
        """Give it as the JSON file has it."""
        row: dict[str, Any] = {
            "name": self.name,
            "packets_per_second": self.packets_per_second,
            "ns_per_packet": self.ns_per_packet,
        }
        return row | ({} if self.latency_us is None else {"latency_us": dict(self.latency_us)})


@dataclass(frozen=True, slots=True)
class Result:
    """One case of a scenario. `ns_per_packet` is CPU time of worker and components together."""

    scenario: str
    case: str
    packets_per_second: float | None = None
    ns_per_packet: float | None = None
    latency_us: Mapping[str, float] | None = None  # p50, p99, p999
    reference: Reference | None = None
    regime: str | None = None  # of the hop between the cores; None where nothing crosses them
    taken: Mapping[str, float] = field(default_factory=dict)  # shares of time that others had
    invalid: tuple[str, ...] = ()  # why it says nothing about COVEN
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ratio(self) -> float | None:
        """How much more a packet costs than with the reference; None where there is none."""
        own, other = self.ns_per_packet, self.reference and self.reference.ns_per_packet
        return own / other if own and other else None

    def to_json(self) -> dict[str, Any]:
        """Give it as the JSON file has it."""
        return {
            "scenario": self.scenario,
            "case": self.case,
            "packets_per_second": self.packets_per_second,
            "ns_per_packet": self.ns_per_packet,
            "latency_us": None if self.latency_us is None else dict(self.latency_us),
            "reference": None if self.reference is None else self.reference.to_json(),
            "ratio": self.ratio,
            "hop": self.regime,
            "steal": dict(self.taken),
            "validity": "INVALID" if self.invalid else "VALID",
            "why": list(self.invalid),
            "details": dict(self.details),
        }


def _one_regime(own: Sequence[Sample], other: Sequence[Sample]) -> tuple[list[Sample], list[Sample], str | None]:
    """Keep the rounds of one regime of the hop: the one most rounds have in which both were measured."""
    regimes = [sample.regime for sample in own if sample.regime]
    if not regimes:
        return list(own), list(other), None
    both = [regime for regime in regimes if not other or any(sample.regime in (regime, None) for sample in other)]
    chosen = max(set(both or regimes), key=(both or regimes).count)
    kept = [sample for sample in other if sample.regime in (chosen, None)]
    return [sample for sample in own if sample.regime == chosen], kept, chosen


def of_samples(
    scenario: str, case: str, own: Sequence[Sample], other: Sequence[Sample] = (), reference: str = ""
) -> Result:
    """Make a row of the rounds of a case and of its reference; only rounds of one hop regime are compared."""
    kept, beside, regime = _one_regime(own, other)
    compared = None
    if beside:
        rate = Spread.of([sample.rate for sample in beside]).median
        cost = Spread.of([sample.cost() for sample in beside]).median
        compared = Reference(reference, rate, cost, disturbed=bool(_common([s.invalid for s in beside])))
    invalid = _common([s.invalid for s in kept])
    if compared and compared.disturbed and not invalid:
        invalid = ("its reference was disturbed",)
    parts = {part: Spread.of([s.cost(part) for s in kept]).to_json() for part in kept[0].cpu_ns}
    keys = [key for key in kept[0].more if all(key in s.more for s in kept)]
    details: dict[str, Any] = {
        "packets_per_second": Spread.of([s.rate for s in kept]).to_json(),
        "ns_per_packet": Spread.of([s.cost() for s in kept]).to_json(),
        "cpu_ns_by_part": parts,
        "rounds": len(own),
        "rounds_compared": len(kept),
        **{key: Spread.of([s.more[key] for s in kept]).to_json() for key in keys if not key.startswith("taken_")},
    }
    taken = {key.removeprefix("taken_"): details_median(kept, key) for key in keys if key.startswith("taken_")}
    return Result(
        scenario, case, details["packets_per_second"]["median"], details["ns_per_packet"]["median"],
        reference=compared, regime=regime, taken=taken, details=details,
        invalid=invalid,
    )  # fmt: skip


def details_median(samples: Sequence[Sample], key: str) -> float:
    """Give the median of a further figure."""
    return Spread.of([sample.more[key] for sample in samples]).median


def _common(whys: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """Give why a case is invalid; it stands if at least half of its rounds do."""
    bad = [why for why in whys if why]
    return tuple(dict.fromkeys(bad[0])) if len(bad) * 2 > len(whys) else ()


def finite(value: Any) -> Any:
    """Give a JSON value in which every number that is none (no packet came through) is null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    return [finite(inner) for inner in value] if isinstance(value, (list, tuple)) else value
