"""Files in folders that the agent can write to, opened without following what it may put there.

We are root, the agent is not: a link in its folders must not make us open, read or show what it could not. Every
step of a path is opened by itself, from the folder before it, and none may be a link.
"""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

from coven.errors import CovenError, Where
from coven.folders import FOLDER

FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
MAX_DEPTH = 16
MAX_FILES = 8192
MAX_BYTES = 1 << 30


class Copy:
    """A copy of a component's folder, as it is at one moment, out of the agent's reach."""

    def __init__(self, part: str) -> None:
        """part: what the folder belongs to, for errors."""
        self._where = Where(part=part)
        self._files = self._bytes = 0

    def take(self, source: int, target: Path, depth: int = 0) -> None:
        """Copy what lies in the folder `source` into `target`. Raises CovenError for what no package can hold."""
        if depth > MAX_DEPTH:
            raise self._refusal(".", "lies in too many folders")
        for name in sorted(os.listdir(source)):
            self._take_one(source, name, target / name, depth)

    def _take_one(self, source: int, name: str, target: Path, depth: int) -> None:
        kind = os.stat(name, dir_fd=source, follow_symlinks=False).st_mode
        if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
            raise self._refusal(name, "is a link or a special file")
        if stat.S_ISDIR(kind):
            fd = os.open(name, FOLDER, dir_fd=source)
            try:
                target.mkdir(mode=0o755)
                self.take(fd, target, depth + 1)
            finally:
                os.close(fd)
            return
        with os.fdopen(os.open(name, FILE, dir_fd=source), "rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode) or not status.st_mode & stat.S_IROTH:
                raise self._refusal(name, "is not a file that everybody may read")
            self._files += 1
            self._bytes += status.st_size
            if self._files > MAX_FILES or self._bytes > MAX_BYTES:
                raise self._refusal(name, "is one file too many")
            with target.open("xb") as copy:
                shutil.copyfileobj(file, copy, 1 << 20)
            target.chmod(0o755 if status.st_mode & stat.S_IXUSR else 0o644)

    def _refusal(self, name: str, why: str) -> CovenError:
        return CovenError(
            "package.link-entry",
            f"{name!r} in the unpacked package {why}",
            hint="delete the package and upload it again",
            where=self._where,
        )
