"""What the scenarios of one run share: choices of the command line, compiled programs, the hop."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

from coven.bench import hop
from coven.bench.measure import Programs


@dataclass(frozen=True, slots=True)
class Session:
    """One run of `coven bench`."""

    rounds: int = 3
    only: str = ""
    quick: bool = False  # a second or two for each scenario
    seconds: float | None = None  # of the long runs
    tools: tuple[str, ...] = ()  # NIC tools; none named: all there are
    bin_dir: Path | None = None
    programs: Programs = field(default_factory=Programs)

    @property
    def measure_s(self) -> float:
        """Length of one measurement."""
        return 0.1 if self.quick else 0.3

    @property
    def warm_up_s(self) -> float:
        """Time before a measurement."""
        return 0.03 if self.quick else 0.1

    def wanted(self, case: str) -> bool:
        """Whether a case was asked for."""
        return self.only in case

    def note(self, text: str) -> None:
        """Say what was just found."""
        print(f"  {text}", file=sys.stderr, flush=True)

    def hop(self) -> hop.Hop | None:
        """Measure the hop between the two cores just now; None where there is one core."""
        return hop.measure(self.programs, 5, 1000)
