"""Append-only event log: one JSON object a line, numbered, bounded in size.

Two files: the present one and the one before it. A new event is one `write` of one line; a line that a kill
cut short is dropped when the log is opened again.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

MAX_BYTES = 4 * 1024 * 1024  # of one file
KEEP_IN_MEMORY = 2000


class EventLog:
    """Events of the platform, for whoever asks later or waits for the next one."""

    def __init__(self, path: Path) -> None:
        """path: of the present file; the one before it has `.1` appended."""
        self._path = path
        self._before = path.with_name(path.name + ".1")
        self._recent: deque[dict[str, Any]] = deque(maxlen=KEEP_IN_MEMORY)
        self._changed = threading.Condition()
        self._sequence = 0
        self.is_closed = False  # nothing more will come; nobody waits any longer
        for file in (self._before, self._path):
            self._load(file)
        self._file = self._open()

    def _load(self, path: Path) -> None:
        if not path.exists():
            return
        whole = 0
        with path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                whole += len(line)
                try:
                    event = json.loads(line)
                    self._sequence = max(self._sequence, int(event["sequence"]))
                except (ValueError, KeyError, TypeError):
                    continue
                self._recent.append(event)
        if whole != path.stat().st_size:
            os.truncate(path, whole)

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def append(self, event: dict[str, Any]) -> dict[str, Any]:
        """Add an event (it gets `sequence`, and `time` if it has none) and wake those who wait."""
        with self._changed:
            self._sequence += 1
            whole = {"time": time.time(), **event, "sequence": self._sequence}
            self._write(json.dumps(whole).encode() + b"\n")
            self._recent.append(whole)
            self._changed.notify_all()
        return whole

    def _write(self, line: bytes) -> None:
        """Write a line. What happened has happened, also when the disk is full: then it is known until the end only."""
        size = os.fstat(self._file).st_size
        try:
            if os.write(self._file, line) < len(line):
                os.ftruncate(self._file, size)
            elif size + len(line) > MAX_BYTES:
                os.close(self._file)
                self._path.replace(self._before)
                self._file = self._open()
        except OSError as error:
            log.error("events=%s cannot be written: %s", self._path, error.strerror)

    def after(self, sequence: int, *, limit: int = 100, wait_s: float = 0) -> list[dict[str, Any]]:
        """Give events younger than `sequence`, oldest first; wait for one up to `wait_s` seconds."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._sequence > sequence or self.is_closed, timeout=wait_s or 0
            )
            found = [event for event in self._recent if event["sequence"] > sequence]
        return found[:limit]

    def latest(self, limit: int) -> list[dict[str, Any]]:
        """Give the last `limit` events, oldest first."""
        with self._changed:
            return list(self._recent)[-limit:]

    def close(self) -> None:
        """End all waiting; what is appended afterwards is still written."""
        with self._changed:
            self.is_closed = True
            self._changed.notify_all()
