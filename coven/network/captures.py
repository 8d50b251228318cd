"""Capture files as ends of a port: checked whole before a worker sees them, and only replaced when packets can come."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import secrets
import stat
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from coven.dataplane.core import ffi, lib
from coven.errors import CovenError, Where
from coven.folders import open_folder

log = logging.getLogger(__name__)

WHY_BYTES = 200
HEADER_BYTES = 24
MAGICS = (0xA1B2C3D4, 0xA1B23C4D, 0x0A0D0D0A)
SNAPLEN = 262144
LINKTYPE_ETHERNET = 1
OFFSET_BITS = (61, 42, 30)  # that a file system takes: tmpfs and XFS, ext4 (16 TiB), FAT and old ones (2 GiB)
MISSING, EMPTY, CAPTURE = "missing", "empty", "capture"


@dataclass(frozen=True, slots=True)
class Output:
    """An output file, and what was there before: what there was stays until `begin_output`.

    inode: device and number; None in a note that was made before the file was opened.
    """

    path: str
    folders: tuple[str, ...] | None
    before: str  # MISSING, EMPTY or CAPTURE
    inode: tuple[int, int] | None = None

    def to_json(self) -> dict[str, Any]:
        """Give it as the manifest holds it."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Output:
        """Rebuild it."""
        folders, inode = document["folders"], document["inode"]
        return cls(
            path=str(document["path"]),
            folders=None if folders is None else tuple(map(str, folders)),
            before=str(document["before"]),
            inode=None if inode is None else (int(inode[0]), int(inode[1])),
        )


def open_input(path: Path, where: Where, folders: Sequence[str] | None = None) -> int:
    """Open a capture file for reading after a check of all its records. Raises CovenError port.bad-file.

    folders: the file must lie below one of them; None: anywhere.
    """
    fd, _ = _open(path, os.O_RDONLY, where, folders)
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


def foresee_output(path: Path, folders: Sequence[str] | None = None) -> Output | None:
    """Say what opening this output would find; None where there is nothing to put back."""
    kept = None if folders is None else tuple(folders)
    try:
        return None if path.lstat().st_size else Output(str(path), kept, EMPTY)
    except FileNotFoundError:
        return Output(str(path), kept, MISSING)
    except OSError:
        return None  # open_output has the words


def open_output(
    path: Path, input_fd: int, where: Where, *, nanosecond: bool = False, folders: Sequence[str] | None = None
) -> tuple[int, Output]:
    """Open a capture file for writing. It is made, with its header, when it is missing; what it holds stays until
    `begin_output`. One that exists is only taken if it is a capture or empty, and never if it is the input.
    Raises CovenError port.bad-file; nothing is left then.
    """
    fd, made = _open(path, os.O_RDWR | os.O_CREAT, where, folders)
    status = os.fstat(fd)
    before = MISSING if made else CAPTURE if status.st_size else EMPTY
    output = Output(str(path), None if folders is None else tuple(folders), before, (status.st_dev, status.st_ino))
    try:
        other = os.fstat(input_fd)
        if output.inode == (other.st_dev, other.st_ino):
            raise _bad(path, "the output file is also the input", where, "write to another file")
        if before == CAPTURE:
            head = os.pread(fd, 4, 0) if status.st_size >= HEADER_BYTES else b""
            if not any(head in (struct.pack("<I", magic), struct.pack(">I", magic)) for magic in MAGICS):
                hint = "name another file; this one is left as it is"
                raise _bad(path, "the file exists and is no capture", where, hint)
        else:
            begin_output(fd, nanosecond=nanosecond)
        mark_opening(fd)
    except OSError as error:
        os.close(fd)
        discard_output(output)
        raise _bad(path, f"the file cannot be written: {error.strerror}", where, None) from error
    except BaseException:
        os.close(fd)
        discard_output(output)
        raise
    return fd, output


def begin_output(fd: int, *, nanosecond: bool) -> None:
    """Make an open file a capture without packets. The header comes first: a full disk then costs nothing."""
    magic = 0xA1B23C4D if nanosecond else 0xA1B2C3D4
    os.pwrite(fd, struct.pack("=IHHiIII", magic, 2, 4, 0, 0, SNAPLEN, LINKTYPE_ETHERNET), 0)
    os.ftruncate(fd, HEADER_BYTES)


def discard_output(output: Output) -> None:
    """Put back what was there before an output was opened. A file that holds a packet, or is another one, stays."""
    if output.before == CAPTURE:
        return
    path = Path(output.path)
    try:
        with _parent(path, output.folders) as parent:
            status = os.stat(path.name, dir_fd=parent, follow_symlinks=False)
            if output.inode not in (None, (status.st_dev, status.st_ino)):
                return
            if not stat.S_ISREG(status.st_mode) or status.st_size > HEADER_BYTES:
                return
            if output.before == MISSING:
                os.unlink(path.name, dir_fd=parent)
                return
            fd = os.open(path.name, os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent)
            try:
                os.ftruncate(fd, 0)
            finally:
                os.close(fd)
    except FileNotFoundError:
        return
    except (OSError, CovenError) as error:
        log.warning("file=%s not put back: %s", path, error)


def mark_opening(fd: int) -> None:
    """Make an opening of a file tell itself from every other: the file's offset, which nothing else uses
    (reads and writes name theirs), holds a number that does not come again. It survives the worker.
    """
    for bits in OFFSET_BITS:
        try:
            os.lseek(fd, 1 << bits | secrets.randbits(bits), os.SEEK_SET)
            return
        except OSError as error:
            if error.errno != errno.EINVAL or bits == OFFSET_BITS[-1]:
                raise


def _open(path: Path, flags: int, where: Where, folders: Sequence[str] | None) -> tuple[int, bool]:
    """Open a regular file, and tell whether it was made just now (with O_CREAT).

    Links at the end of the path are not followed, since this runs with privileges.
    """
    flags |= os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    made = bool(flags & os.O_CREAT)
    try:
        with contextlib.nullcontext() if folders is None else _parent(path, folders, where) as parent:
            name: str | Path = path if parent is None else path.name
            try:
                fd = os.open(name, flags | (os.O_EXCL if made else 0), 0o644, dir_fd=parent)
            except FileExistsError:
                made = False
                fd = os.open(name, flags & ~os.O_CREAT, dir_fd=parent)
    except OSError as error:
        raise _bad(path, f"the file cannot be opened: {error.strerror}", where, None) from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise _bad(path, "this is not a regular file", where, None)
    return fd, made


@contextlib.contextmanager
def _parent(path: Path, folders: Sequence[str] | None, where: Where = Where()) -> Iterator[int]:  # noqa: B008 - frozen
    """Give a descriptor of the folder of a file, below one of `folders`. Raises OSError, CovenError port.bad-file."""
    if folders is None:
        fd = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield fd
        finally:
            os.close(fd)
        return
    folder, base = _allowed(path, where, folders)
    with open_folder(base, folder) as fd:
        yield fd


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
