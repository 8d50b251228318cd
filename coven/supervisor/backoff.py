"""When something that died may be started again."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

FIRST_S, LONGEST_S = 0.1, 5.0
DEATHS, WITHIN_S = 5, 30.0


@dataclass(slots=True)
class BackOff:
    """At once, then 0.1 s doubling to 5 s; five deaths within 30 s are too many. Quiet for 30 s: from the beginning."""

    deaths: list[float] = field(default_factory=list)
    wait: float = 0.0

    def died(self, now: float | None = None) -> float | None:
        """Note a death; give the seconds to wait, or None when it has died too often."""
        now = time.monotonic() if now is None else now
        self.deaths = [when for when in self.deaths if now - when <= WITHIN_S]
        if not self.deaths:
            self.wait = 0.0
        self.deaths.append(now)
        if len(self.deaths) >= DEATHS:
            return None
        wait = self.wait
        self.wait = min(max(self.wait * 2, FIRST_S), LONGEST_S)
        return wait

    def reset(self) -> None:
        """Forget all deaths."""
        self.deaths, self.wait = [], 0.0
