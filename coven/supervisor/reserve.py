"""Room on the disk that is kept free for bringing to an end, and writing down, what was begun."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Callable
from pathlib import Path

from coven.errors import CovenError

log = logging.getLogger(__name__)

BYTES = 1 << 20  # manifests and journal lines of an operation are far less


class Reserve:
    """A file of BYTES that is removed when the disk is full, and made again before the next operation."""

    def __init__(self, path: Path) -> None:
        """path: in a folder of our own, on the disk of what is written."""
        self._path = path

    def hold(self) -> None:
        """Make the file unless it is there. Raises CovenError platform.no-resources."""
        if self._path.exists():
            return
        try:
            fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(fd, 0, BYTES)
            finally:
                os.close(fd)
        except OSError as error:
            self._path.unlink(missing_ok=True)
            raise CovenError(
                "platform.no-resources",
                f"nothing more can be written below {self._path.parent}: {error.strerror}",
                hint="make room on the disk of the run folder; nothing was begun",
            ) from error

    def write(self, action: Callable[[], None]) -> None:
        """Do what writes to the disk; if that is full, give up the reserve and do it again. Raises OSError."""
        try:
            action()
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not self._path.exists():
                raise
            log.error("the disk of %s is full: using the reserve", self._path.parent)
            with contextlib.suppress(OSError):
                self._path.unlink()
            action()
