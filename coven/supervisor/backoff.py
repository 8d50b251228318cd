"""When something that died may be started again."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

FIRST_S, LONGEST_S = 0.1, 5.0
DEATHS, WITHIN_S = 5, 30.0


@dataclass(slots=True)
class BackOff:
    """At once, then 0.1 s doubling to 5 s; five deaths within 30 s are too many. Quiet for 30 s: from the beginning.

    So are five starts in a row that failed, however long each took: what hangs in its start would never be parked else.
    """

    deaths: list[float] = field(default_factory=list)
    wait: float = 0.0
    failed: int = 0  # starts since it was ready last

    def died(self, now: float | None = None) -> float | None:
        """Note the death of what had been ready; give the seconds to wait, or None when it has died too often."""
        self.failed = 0
        return self._note(now)

    def start_failed(self, now: float | None = None) -> float | None:
        """Note that it did not become ready; give the same."""
        self.failed += 1
        wait = self._note(now)
        return None if self.failed >= DEATHS else wait

    def _note(self, now: float | None) -> float | None:
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
        self.deaths, self.wait, self.failed = [], 0.0, 0
