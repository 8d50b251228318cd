"""Capture files as ends of a port: checked whole before a worker sees them."""

from __future__ import annotations

import os
import stat
import struct
import time
from collections.abc import Sequence
from pathlib import Path

from coven.dataplane.core import ffi, lib
from coven.errors import CovenError, Where
from coven.folders import open_folder

WHY_BYTES = 200
MAGICS = (0xA1B2C3D4, 0xA1B23C4D, 0x0A0D0D0A)
SNAPLEN = 262144
LINKTYPE_ETHERNET = 1


def open_input(path: Path, where: Where, folders: Sequence[str] | None = None) -> int:
    """Open a capture file for reading after a check of all its records. Raises CovenError port.bad-file.

    folders: the file must lie below one of them; None: anywhere.
    """
    fd = _open(path, os.O_RDONLY, where, folders)
    try:
        why = ffi.new("char[]", WHY_BYTES)
        if lib.coven_capture_check(fd, why, WHY_BYTES) < 0:
            message = bytes(ffi.string(why)).decode("utf-8", "replace")
            raise _bad(path, message, where, "record Ethernet frames with: tcpdump -i eth0 -w FILE")
        mark_opening(fd)
    except BaseException:
        os.close(fd)
        raise
    return fd


def open_output(
    path: Path, input_fd: int, where: Where, *, nanosecond: bool = False, folders: Sequence[str] | None = None
) -> int:
    """Make a capture file with its header. A file that exists is only replaced if it is a capture or empty, and
    never if it is the input. Raises CovenError port.bad-file.
    """
    fd = _open(path, os.O_RDWR | os.O_CREAT, where, folders)
    try:
        one, other = os.fstat(fd), os.fstat(input_fd)
        if (one.st_dev, one.st_ino) == (other.st_dev, other.st_ino):
            raise _bad(path, "the output file is also the input", where, "write to another file")
        head = os.pread(fd, 4, 0)
        if head and not any(head in (struct.pack("<I", magic), struct.pack(">I", magic)) for magic in MAGICS):
            raise _bad(path, "the file exists and is no capture", where, "name another file; this one is left as it is")
        os.ftruncate(fd, 0)
        magic = 0xA1B23C4D if nanosecond else 0xA1B2C3D4
        os.pwrite(fd, struct.pack("=IHHiIII", magic, 2, 4, 0, 0, SNAPLEN, LINKTYPE_ETHERNET), 0)
        mark_opening(fd)
    except OSError as error:
        os.close(fd)
        raise _bad(path, f"the file cannot be written: {error.strerror}", where, None) from error
    except BaseException:
        os.close(fd)
        raise
    return fd


def mark_opening(fd: int) -> None:
    """Make an opening of a file tell itself from every other: the file's offset, which nothing else uses
    (reads and writes name theirs), holds a number that does not come again. It survives the worker.
    """
    os.lseek(fd, time.monotonic_ns() & 0x3FFF_FFFF_FFFF_FFFF, os.SEEK_SET)


def _open(path: Path, flags: int, where: Where, folders: Sequence[str] | None) -> int:
    """Open a regular file; links at the end of the path are not followed, since this runs with privileges."""
    flags |= os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        if folders is None:
            fd = os.open(path, flags, 0o644)
        else:
            folder, base = _allowed(path, where, folders)
            with open_folder(base, folder) as beneath:
                fd = os.open(path.name, flags, 0o644, dir_fd=beneath)
    except OSError as error:
        raise _bad(path, f"the file cannot be opened: {error.strerror}", where, None) from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise _bad(path, "this is not a regular file", where, None)
    return fd


def _allowed(path: Path, where: Where, folders: Sequence[str]) -> tuple[Path, Path]:
    """Give the real folder of a file and which of `folders` it is below.

    What changes after this look is not followed: the folder is opened step by step (open_folder).
    """
    folder = path.parent.resolve()
    for name in folders:
        base = Path(name).resolve()
        if folder.is_relative_to(base):
            return folder, base
    hint = f"start it with --files {folder}"
    raise _bad(path, f"COVEN was not allowed to use capture files in {folder}", where, hint)


def _bad(path: Path, message: str, where: Where, hint: str | None) -> CovenError:
    return CovenError(
        "port.bad-file", message, hint=hint, where=Where(file=str(path), part=where.part)
    )
