"""What components and workers write to their standard output and error: the last lines, with times."""

from __future__ import annotations

import asyncio
import os
import time
from collections import deque
from typing import Any

LINES = 1000
LINE_BYTES = 4096
CHUNK = 65536
BYTES_PER_SECOND = 1 << 20  # above this a process waits on its own pipe: its noise must not become our work


class LogTail:
    """The last lines of one process's output. Survives the process; `follow` is called for each start."""

    def __init__(self) -> None:
        """Nothing is followed yet."""
        self._lines: deque[tuple[float, str]] = deque(maxlen=LINES)
        self._partial = b""
        self._fd = -1
        self._window = 0.0
        self._seen = 0

    def follow(self, fd: int) -> None:
        """Read from a pipe until it ends; the descriptor stays the caller's."""
        self.stop()
        os.set_blocking(fd, False)
        self._fd = fd
        asyncio.get_running_loop().add_reader(fd, self._readable)

    def stop(self) -> None:
        """Read what is there and stop following."""
        if self._fd >= 0:
            self._drain()
        if self._fd >= 0:
            asyncio.get_running_loop().remove_reader(self._fd)
            self._fd = -1
        if self._partial:
            self._add(self._partial)
            self._partial = b""

    def lines(self, number: int) -> list[dict[str, Any]]:
        """Give the last lines as {"time", "text"}."""
        self._drain()
        kept = list(self._lines)[-number:] if number > 0 else []
        return [{"time": when, "text": text} for when, text in kept]

    def texts(self, number: int) -> list[str]:
        """Give the last lines without times."""
        return [line["text"] for line in self.lines(number)]

    def clear(self) -> None:
        """Forget what an earlier start wrote."""
        self._lines.clear()

    def _drain(self) -> None:
        for _ in range(4):
            if self._fd < 0 or not self._read():
                return

    def _readable(self) -> None:
        if not self._read():
            return
        now = time.monotonic()
        if now - self._window >= 1:
            self._window, self._seen = now, 0
        if self._seen > BYTES_PER_SECOND:
            loop, fd = asyncio.get_running_loop(), self._fd
            loop.remove_reader(fd)
            loop.call_later(1 - (now - self._window), self._resume, fd)

    def _resume(self, fd: int) -> None:
        if fd == self._fd:
            asyncio.get_running_loop().add_reader(fd, self._readable)

    def _read(self) -> bool:
        """Take one chunk; False when there is none."""
        try:
            data = os.read(self._fd, CHUNK)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            asyncio.get_running_loop().remove_reader(self._fd)
            self._fd = -1
            return False
        self._seen += len(data)
        *whole, self._partial = (self._partial + data).split(b"\n")
        for line in whole:
            self._add(line)
        if len(self._partial) > LINE_BYTES:
            self._add(self._partial)
            self._partial = b""
        return True

    def _add(self, line: bytes) -> None:
        text = line[:LINE_BYTES].decode("utf-8", "replace").rstrip("\r")
        self._lines.append((time.time(), text))
