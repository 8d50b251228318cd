"""What the worker tells of components that break the rules of their rings, and the end of those that go on with it.

The worker drops what a component may not say and counts it by kind (enum coven_violation of abi.h); that alone keeps it
whole. A component that does nothing else costs it time for ever, so who exceeds MOST within WITHIN seconds is killed,
restarted, and parked when it keeps on.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

MOST, WITHIN = 10_000, 10.0
LOOK_AGAIN = 1.0  # seconds after the worker told: what it did not tell, because it had told just then


class Violations:
    """Of all components of one worker."""

    def __init__(
        self,
        read: Callable[[int], dict[str, int]],
        tell: Callable[[int, dict[str, int]], None],
        expel: Callable[[int, str], None],
    ) -> None:
        """read: counts by kind of a component. tell: what was added to them. expel: ends a replica, and says why."""
        self._read, self._tell, self._expel = read, tell, expel
        self._seen: dict[int, dict[str, int]] = {}
        self._recent: dict[int, deque[tuple[float, int]]] = {}
        self._timers: dict[int, asyncio.TimerHandle] = {}

    def begin(self, components: int) -> None:
        """Know what was there before; nobody is told of that again."""
        self._seen = {component: self._read(component) for component in range(components)}

    def notice(self, component: int, replica: int | None, number: int) -> None:
        """Take a notice of the worker. replica: None when it is fused, or when no single one is to blame."""
        if component not in self._timers:
            self._look(component)
        if replica is None:
            return
        now = time.monotonic()
        recent = self._recent.setdefault(replica, deque())
        recent.append((now, number))
        while now - recent[0][0] > WITHIN:
            recent.popleft()
        total = sum(count for _, count in recent)
        if total > MOST:
            recent.clear()
            kinds = self._read(component)
            worst = ", ".join(sorted(kinds, key=lambda kind: -kinds[kind])[:3])
            self._expel(replica, f"{total} violations within {WITHIN:g} s ({worst})")

    def stop(self) -> None:
        """Look no further."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._recent.clear()

    def _look(self, component: int) -> None:
        """Tell what was added, and look again until nothing is."""
        self._timers.pop(component, None)
        before, now = self._seen.get(component, {}), self._read(component)
        self._seen[component] = now
        added = {kind: number - before.get(kind, 0) for kind, number in now.items() if number > before.get(kind, 0)}
        if not added:
            return
        self._tell(component, added)
        loop = asyncio.get_running_loop()
        self._timers[component] = loop.call_later(LOOK_AGAIN, self._look, component)
