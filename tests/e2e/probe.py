"""A probe every 5 ms from the client to the server, and which of them arrived when."""

from __future__ import annotations

import itertools
import socket
import struct
import threading
import time
from types import TracebackType

from tests.lib.net import Host

INTERVAL_S = 0.005
PORT = 7777


class Probe:
    """Numbered datagrams under way while the `with` lasts.

    Neighbours are pinned, so that a lost ARP answer is never taken for a lost probe.
    """

    def __init__(self, client: Host, server: Host, source: str, target: str) -> None:
        """source, target: IPv4 addresses on `eth0` of the two hosts."""
        self._end = threading.Event()
        self._target = target
        with client.entered():
            self._out = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._out.bind((source, 0))
        with server.entered():
            self._in = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._in.bind((target, PORT))
        self._in.settimeout(0.5)
        self.sent: dict[int, float] = {}
        self.arrived: dict[int, float] = {}
        self.twice: list[int] = []
        self._threads = [threading.Thread(target=self._send), threading.Thread(target=self._receive)]

    def _send(self) -> None:
        number = 0
        while not self._end.wait(INTERVAL_S):
            self.sent[number] = time.monotonic()
            self._out.sendto(struct.pack(">I", number), (self._target, PORT))
            number += 1

    def _receive(self) -> None:
        while True:
            try:
                (number,) = struct.unpack(">I", self._in.recv(64))
            except TimeoutError:
                if self._end.is_set():
                    return
                continue
            if number in self.arrived:
                self.twice.append(number)
            self.arrived[number] = time.monotonic()

    def wait_for_arrivals(self, count: int, deadline: float = 20) -> None:
        """Return when `count` more probes have arrived than now."""
        wanted = len(self.arrived) + count
        end = time.monotonic() + deadline
        while len(self.arrived) < wanted:
            assert time.monotonic() < end, f"no {count} probes arrived within {deadline} s"
            threading.Event().wait(0.005)

    @property
    def lost(self) -> list[int]:
        """Give the numbers that were sent and have not arrived; final after the `with`."""
        return [number for number in self.sent if number not in self.arrived]

    def longest_gap(self) -> float:
        """Give the longest time in seconds between two arrivals."""
        times = sorted(self.arrived.values())
        return max((b - a for a, b in itertools.pairwise(times)), default=0.0)

    def __enter__(self) -> Probe:
        """Begin; the first probes have arrived."""
        for thread in self._threads:
            thread.start()
        self.wait_for_arrivals(20)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: BaseException | TracebackType | None) -> None:
        """Send no more, take in what is still under way."""
        if kind is None:
            self.wait_for_arrivals(20)
        self._end.set()
        for thread in self._threads:
            thread.join()
        self._out.close()
        self._in.close()
