"""Journals of operations: what was begun and what was done, on disk before and after each step.

One file an operation, `journal/<operation>.jsonl`: a head, a line for each change of a step, and an end. A
journal without end belongs to an operation that a dead supervisor did not finish.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coven.supervisor.reserve import Reserve

OPERATION_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")
KEPT = 64  # ended operations that are remembered


@dataclass(slots=True)
class Record:
    """What a journal says."""

    head: dict[str, Any]
    steps: dict[int, dict[str, Any]] = field(default_factory=dict)  # last line of each step
    rolling_back: bool = False
    end: dict[str, Any] | None = None


class Journal:
    """The journal of one operation, open for appending."""

    def __init__(self, path: Path, reserve: Reserve | None = None) -> None:
        """Open or create; the first line of a new one must be its head. reserve: for when the disk is full."""
        self._path, self._reserve = path, reserve
        new = not path.exists()
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        if new:
            self._sync_folder()

    def write(self, line: Mapping[str, Any]) -> None:
        """Append a line; it is on disk when this returns."""
        data = json.dumps(line, separators=(",", ":")).encode() + b"\n"
        if self._reserve is None:
            self._append(data)
        else:
            self._reserve.write(lambda: self._append(data))

    def _append(self, data: bytes) -> None:
        """Append a whole line or nothing: half a line would hide all that come after it."""
        size = os.fstat(self._fd).st_size
        if os.write(self._fd, data) < len(data):
            os.ftruncate(self._fd, size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fdatasync(self._fd)

    def close(self) -> None:
        """Close the file; it stays until `prune` removes it."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _sync_folder(self) -> None:
        folder = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def read(path: Path) -> Record | None:
    """Read a journal; a last line that was cut off by a crash counts as not written. None without a head."""
    lines = list(_lines(path))
    if not lines or "operation" not in lines[0]:
        return None
    record = Record(head=lines[0]["operation"])
    for line in lines[1:]:
        if "step" in line:
            record.steps[int(line["step"])] = line
        elif "end" in line:
            record.end = line["end"]
        elif "rolling_back" in line:
            record.rolling_back = True
    return record


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            return
        if not isinstance(line, dict):
            return
        yield line


def read_all(folder: Path) -> dict[str, Record]:
    """Give all journals by operation, the oldest first."""
    found: dict[str, Record] = {}
    for path in sorted(folder.glob("*.jsonl"), key=lambda p: p.stat().st_mtime_ns):
        record = read(path)
        if record is None:
            path.unlink(missing_ok=True)
        elif OPERATION_PATTERN.fullmatch(path.stem):
            found[path.stem] = record
    return found


def prune(folder: Path, keep: set[str]) -> None:
    """Remove the oldest journals beyond KEPT, but none of `keep`."""
    paths = sorted(folder.glob("*.jsonl"), key=lambda p: p.stat().st_mtime_ns)
    for path in paths[: max(0, len(paths) - KEPT)]:
        if path.stem not in keep:
            with contextlib.suppress(OSError):
                path.unlink()
