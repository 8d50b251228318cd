"""What components and workers write to their standard output and error: the last lines, with times.

A pipe gives each line once, so what was read is written down as well: in the run directory, for the next supervisor.
Nothing is done while nobody writes.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import time
from collections import deque
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

LINES = 1000
LINE_BYTES = 4096
CHUNK = 65536
KEPT_BYTES = 1 << 18  # of a file; then the next one is begun, and the one before the last goes
BYTES_PER_SECOND = 1 << 20  # above this the pipe is left full, and text is lost: noise must not become our work


class LogTail:
    """The last lines of one process's output. Survives the process; `follow` is called for each start."""

    def __init__(self, path: Path) -> None:
        """path: of the file that keeps the lines; it and a second one beside it are made when there are any."""
        self._path, self._older = path, path.with_name(path.name + ".1")
        self._lines: deque[tuple[float, str]] = deque(maxlen=LINES)
        self._unkept: list[tuple[float, str]] = []
        self._partial = b""
        self._fd = -1
        self._window = 0.0
        self._seen = 0
        self.throttled = False  # text was lost since `clear`

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
        self._keep()

    def recall(self) -> None:
        """Take over the lines that a predecessor has read."""
        for path in (self._older, self._path):
            with contextlib.suppress(OSError):
                for line in path.read_text(encoding="utf-8").splitlines():
                    with contextlib.suppress(ValueError, TypeError):  # the last one may be torn
                        when, text = json.loads(line)
                        self._lines.append((float(when), str(text)))

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
        self._unkept.clear()
        self.throttled = False
        for path in (self._older, self._path):
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

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
            if not self.throttled:
                self._add(b"[more than can be read: output is lost from here on, now and then]")
            self.throttled = True
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
        self._keep()
        return True

    def _add(self, line: bytes) -> None:
        text = line[:LINE_BYTES].decode("utf-8", "replace").rstrip("\r")
        self._lines.append((time.time(), text))
        self._unkept.append(self._lines[-1])

    def _keep(self) -> None:
        """Write down what was added. A disk that is full costs the next supervisor these lines, nothing else."""
        lines, self._unkept = self._unkept, []
        if not lines:
            return
        data = "".join(json.dumps(line) + "\n" for line in lines).encode()
        try:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            fd = os.open(self._path, flags, 0o600)
            try:
                os.write(fd, data)
                full = os.fstat(fd).st_size > KEPT_BYTES
            finally:
                os.close(fd)
            if full:
                self._path.replace(self._older)
        except OSError as error:
            log.debug("log=%s not kept: %s", self._path, error)


def sweep(folder: Path, known: set[str]) -> None:
    """Remove the files of parts that do not exist any more. known: names of files that are kept."""
    with contextlib.suppress(OSError):
        for path in folder.iterdir():
            if path.name.removesuffix(".1") not in known:
                path.unlink()
