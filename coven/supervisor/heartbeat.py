"""The heartbeat of a worker, looked at from time to time: a worker may hang while nobody asks it anything."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Callable

from coven.dataplane.core import ffi

LOOK_EVERY = 2.0  # seconds
STALE_NS = 3_000_000_000  # a sleeping worker wakes each second, a busy one stores it every 1024 loops


class Heartbeat:
    """Of one worker, through all its restarts."""

    def __init__(self, stats: Callable[[], int | None], stale: Callable[[], None]) -> None:
        """stats: descriptor of the worker's counters, None when it should not be looked at. stale: it does not beat."""
        self._stats, self._stale = stats, stale
        self._timer: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """Look from now on."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(LOOK_EVERY, self._look)

    def stop(self) -> None:
        """Look no further."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        self.begin()
        stats = self._stats()
        if stats is None:
            return
        beat = os.pread(stats, 8, ffi.offsetof("struct coven_stats", "heartbeat_ns"))
        if time.monotonic_ns() - int.from_bytes(beat, sys.byteorder) > STALE_NS:
            self._stale()
