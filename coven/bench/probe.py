"""Numbered frames from the client to the server, one every millisecond, and when they arrived.

They tell from outside when packets get through. The EtherType is the local experimental one (IEEE 802).
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import struct
import threading
import time
from types import TracebackType

from coven.bench.links import Network
from coven.errors import CovenError

ETHERTYPE = 0x88B5
PERIOD_S = 0.001
DEADLINE_S = 20.0


class Probe:
    """Sends for as long as the `with` lasts."""

    def __init__(self, net: Network) -> None:
        """Open the two packet sockets on `eth0`."""
        with net.entered("client"):
            self._out = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._out.bind(("eth0", 0))
        with net.entered("server"):
            self._in = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETHERTYPE))
        self._in.bind(("eth0", ETHERTYPE))
        self._in.settimeout(0.2)
        self._end = threading.Event()
        self._news = threading.Condition()
        self.arrivals: list[float] = []
        self._threads = [threading.Thread(target=self._send), threading.Thread(target=self._receive)]

    def _send(self) -> None:
        number = 0
        while not self._end.wait(PERIOD_S):
            number += 1
            frame = bytes.fromhex("020000000002020000000001") + struct.pack(">HQ", ETHERTYPE, number)
            with contextlib.suppress(OSError):
                self._out.send(frame.ljust(60, b"\0"))

    def _receive(self) -> None:
        while not self._end.is_set():
            with contextlib.suppress(TimeoutError):
                self._in.recv(64)
                with self._news:
                    self.arrivals.append(time.monotonic())
                    self._news.notify_all()

    def first_after(self, moment: float, count: int = 1) -> float:
        """Wait for the first arrival after a moment, and for `count` in all; give the time of the first."""
        with self._news:
            if not self._news.wait_for(lambda: len(self._since(moment)) >= count, DEADLINE_S):
                raise CovenError("platform.internal", "no frame came through")
            return self._since(moment)[0]

    def longest_gap(self, begin: float) -> float:
        """Give the longest time between two arrivals since a moment, the last one before it included."""
        with self._news:
            times = [t for t in self.arrivals if t < begin][-1:] + self._since(begin)
        return max(b - a for a, b in itertools.pairwise(times))

    def _since(self, moment: float) -> list[float]:
        at = len(self.arrivals)
        while at > 0 and self.arrivals[at - 1] > moment:
            at -= 1
        return self.arrivals[at:]

    def __enter__(self) -> Probe:
        """Begin to send."""
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop."""
        self._end.set()
        for thread in self._threads:
            thread.join()
        self._out.close()
        self._in.close()
