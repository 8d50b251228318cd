"""The hop between two cores: how long one waits for what the other wrote. It decides what a ring can reach."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from coven.bench.measure import Programs, cores

FAR_NS = 150.0  # cores of one cache take some 20 to 100 ns; other sockets, and cores a hypervisor takes away, more


@dataclass(frozen=True, slots=True)
class Hop:
    """One way between the two cores, a spinning reader."""

    median_ns: float
    low_ns: float
    high_ns: float

    @property
    def regime(self) -> str:
        """`near` or `far`: results across cores are compared only within one."""
        return "near" if self.median_ns < FAR_NS else "far"

    def to_json(self) -> dict[str, Any]:
        """Give it as the JSON file has it."""
        return {"one_way_ns": {"median": self.median_ns, "min": self.low_ns, "max": self.high_ns},
                "regime": self.regime, "limit_ns": FAR_NS}  # fmt: skip


def measure(programs: Programs, batches: int = 15, rounds: int = 2000) -> Hop | None:
    """Measure one way; None on a machine with one core."""
    one, other = cores()
    if one == other:
        return None
    return Hop(*programs.words("hop", one, other, batches, rounds))
