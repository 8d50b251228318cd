"""Zip archives from outside, unpacked with nothing trusted; and archives of our own, the same each time.

Python's zipfile believes much of what an archive says, so the directory is read here: every entry is
checked before the first byte is written, and what is written is bounded while it is inflated. Called by
package.py.
"""

from __future__ import annotations

import itertools
import os
import stat
import struct
import unicodedata
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO, NoReturn

from coven.errors import CovenError, Where

CHUNK = 64 * 1024

# APPNOTE.TXT 6.3.10, sections 4.3.16, 4.3.12 and 4.3.7.
END = struct.Struct("<4s4H2LH")
END_SIGNATURE = b"PK\x05\x06"
CENTRAL = struct.Struct("<4s4B4HL2L5H2L")
CENTRAL_SIGNATURE = b"PK\x01\x02"
LOCAL = struct.Struct("<4s2B4HL2L2H")
LOCAL_SIGNATURE = b"PK\x03\x04"
ZIP64_LOCATOR = b"PK\x06\x07"

FLAG_ENCRYPTED = 1 << 0
FLAG_DESCRIPTOR = 1 << 3  # sizes and CRC follow the data
FLAG_PATCH = 1 << 5
FLAG_STRONG = 1 << 6
FLAG_MASKED = 1 << 13
STORED, DEFLATED = 0, 8
MADE_ON_UNIX = 3


@dataclass(frozen=True, slots=True)
class Bounds:
    """What an archive may cost."""

    archive_bytes: int = 256 << 20
    directory_bytes: int = 4 << 20
    entries: int = 8192
    total_bytes: int = 1 << 30
    file_bytes: int = 512 << 20
    ratio: int = 200  # inflated to deflated, of files beyond `ratio_free_bytes`
    ratio_free_bytes: int = 1 << 20
    name_bytes: int = 1024
    depth: int = 16


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of an archive."""

    name: str
    method: int
    crc: int
    packed: int  # bytes in the archive
    size: int  # bytes unpacked
    header: int  # offset of its local header
    is_executable: bool


def bad(message: str, code: str = "package.bad-archive", name: str | None = None, hint: str | None = None) -> NoReturn:
    """Raise an error about the archive or one of its entries."""
    raise CovenError(code, message, hint=hint, where=Where(file=name[:200]) if name else None)


def unpack(archive: Path, target: Path, bounds: Bounds | None = None) -> dict[str, int]:
    """Unpack `archive` into the folder `target`, which exists and is empty; give each file with its size.

    Raises CovenError `package.*`; the caller removes `target` then.
    """
    bounds = bounds or Bounds()
    try:
        descriptor = os.open(archive, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        bad(f"the archive cannot be read: {error.strerror}", name=archive.name)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            bad("the archive is no regular file")
        if status.st_size > bounds.archive_bytes:
            bad(f"the archive has {status.st_size} bytes, at most {bounds.archive_bytes}", "package.bomb")
        entries = read_directory(file, status.st_size, bounds)
        for entry in entries:
            _write(file, entry, target, bounds)
    return {entry.name: entry.size for entry in entries}


def read_directory(file: BinaryIO, length: int, bounds: Bounds) -> list[Entry]:
    """Give the files of an archive, all checks done that need no inflating. Raises CovenError `package.*`."""
    count, size, offset = _read_end(file, length)
    if count > bounds.entries:
        bad(f"the archive has {count} entries, at most {bounds.entries}", "package.bomb")
    if size > bounds.directory_bytes:
        bad(f"the archive's directory has {size} bytes, at most {bounds.directory_bytes}", "package.bomb")
    file.seek(offset)
    directory = file.read(size)
    entries: list[Entry] = []
    names: dict[str, tuple[str, bool]] = {}
    own: set[str] = set()
    position = total = 0
    spans: list[tuple[int, int, str]] = []
    for _ in range(count):
        entry, is_folder, position = _read_entry(directory, position, bounds)
        _check_unique(entry.name, is_folder, names, own)
        spans.append((*_span(file, entry, offset), entry.name))
        if is_folder:
            if entry.size or entry.packed > 2:  # some tools deflate the nothing of a folder to two bytes
                bad("the entry of a folder has content", name=entry.name)
            continue
        total += entry.size
        _check_size(entry, total, bounds)
        entries.append(entry)
    if position != size:
        bad("the archive's directory is longer than its entries")
    spans.sort()
    for (_, end, name), (begin, _, _) in itertools.pairwise(spans):
        if end > begin:
            bad("two entries of the archive lie over each other", name=name)
    return entries


def _read_end(file: BinaryIO, length: int) -> tuple[int, int, int]:
    """Find the end record; give number of entries, bytes and offset of the directory."""
    tail_length = min(length, END.size + 65535 + 20)
    file.seek(length - tail_length)
    tail = file.read(tail_length)
    place = tail.rfind(END_SIGNATURE)
    while place >= 0:
        if place + END.size <= len(tail) and place + END.size + END.unpack_from(tail, place)[7] == len(tail):
            break
        place = tail.rfind(END_SIGNATURE, 0, place)
    if place < 0:
        bad("this is no zip archive, or its end is missing",
            hint="an upload or download may have ended early: compare the size with the original")  # fmt: skip
    _, disk, first_disk, here, count, size, offset, _ = END.unpack_from(tail, place)
    if disk or first_disk or here != count:
        bad("the archive is one of several parts")
    if count == 0xFFFF or 0xFFFFFFFF in (size, offset) or tail[:place][-20:].startswith(ZIP64_LOCATOR):
        bad("the archive uses zip64, which nothing of allowed size needs")
    if offset + size != length - tail_length + place:
        bad("the archive's directory is not where its end says",
            hint="nothing may stand before the first entry or after the directory")  # fmt: skip
    return count, size, offset


def _read_entry(directory: bytes, position: int, bounds: Bounds) -> tuple[Entry, bool, int]:
    """Read one entry of the directory; give it, whether it is a folder, and where the next begins."""
    if position + CENTRAL.size > len(directory):
        bad("the archive's directory ends within an entry")
    (signature, _, made_on, _, _, flags, method, _, _, crc, packed, size, name_length, extra_length,
     comment_length, disk, _, attributes, header) = CENTRAL.unpack_from(directory, position)  # fmt: skip
    begin = position + CENTRAL.size
    end = begin + name_length + extra_length + comment_length
    if signature != CENTRAL_SIGNATURE or end > len(directory):
        bad("the archive's directory is broken")
    name = _read_name(directory[begin : begin + name_length], bounds)
    if flags & (FLAG_ENCRYPTED | FLAG_STRONG | FLAG_MASKED):
        bad("the entry is encrypted", name=name)
    if flags & FLAG_PATCH or method not in (STORED, DEFLATED):
        bad(f"the entry is packed by method {method}; only `stored` and `deflated` are read", name=name)
    if disk or 0xFFFFFFFF in (packed, size, header):
        bad("the entry uses zip64 or another part", name=name)
    if method == STORED and packed != size:
        bad("the entry has two different lengths", name=name)
    mode = attributes >> 16
    kind = stat.S_IFMT(mode)
    is_folder = name.endswith("/")
    if kind not in (0, stat.S_IFDIR if is_folder else stat.S_IFREG):
        # Also when the archive says it was not made on Unix: other unpackers would still make the link.
        bad("the entry is a link, a device or another special file", "package.link-entry", name,
            "put the file itself into the package")  # fmt: skip
    is_executable = made_on == MADE_ON_UNIX and bool(mode & stat.S_IXUSR)
    return Entry(name, method, crc, packed, size, header, is_executable), is_folder, end


def _read_name(raw: bytes, bounds: Bounds) -> str:
    """Give an entry's name if it stays within the folder it is unpacked to, on every system."""
    shown = raw[:100].decode("utf-8", "backslashreplace")
    try:
        name = raw.decode("utf-8")
    except UnicodeDecodeError:
        bad("the entry's name is not UTF-8", "package.unsafe-path", shown)
    reason = unsafe_name(name, bounds)
    if reason:
        bad(f"the entry's name {reason}", "package.unsafe-path", shown)
    return name


def unsafe_name(name: str, bounds: Bounds | None = None) -> str | None:
    """Say why a name must not be a file's path within a package, or None. A folder's ends with a slash."""
    bounds = bounds or Bounds()
    if len(name.encode("utf-8", "surrogatepass")) > bounds.name_bytes:
        return f"is longer than {bounds.name_bytes} bytes"
    if any(unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") for character in name):
        return "has control characters"
    if "\\" in name:
        return "has a backslash"
    if ":" in name:
        return "has a colon"
    if name.startswith("/"):
        return "is absolute"
    parts = name.removesuffix("/").split("/")
    if len(parts) > bounds.depth:
        return f"has more than {bounds.depth} folders"
    if any(len(part.encode("utf-8", "surrogatepass")) > 255 for part in parts):
        return "has a part longer than 255 bytes"
    if any(part in ("", ".", "..") for part in parts):
        return "has an empty part, . or .."
    # Some systems drop dots and blanks at the end: "..." and ".. " would be "..".
    if any(part.rstrip(". ") == "" or part != part.strip() for part in parts):
        return "has a part of dots or blanks, or with blanks around it"
    return None


def _folded(name: str) -> str:
    """Give what two names have in common that some file system cannot tell apart."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", name).casefold())


def _check_unique(name: str, is_folder: bool, names: dict[str, tuple[str, bool]], own: set[str]) -> None:
    """Refuse a name that is there already, also in other case or Unicode form, or as both file and folder.

    names: every file and folder so far, those that longer names imply included; own: those with an entry.
    """
    parts = name.removesuffix("/").split("/")
    for depth in range(1, len(parts) + 1):
        part = "/".join(parts[:depth])
        as_folder = is_folder or depth < len(parts)
        other = names.setdefault(_folded(part), (part, as_folder))
        is_repeated = depth == len(parts) and _folded(part) in own
        if other != (part, as_folder) or is_repeated:
            bad(f"the archive has {other[0]!r} and {part!r}", "package.duplicate-entry", name)
    own.add(_folded("/".join(parts)))


def _check_size(entry: Entry, total: int, bounds: Bounds) -> None:
    if entry.size > bounds.file_bytes:
        bad(f"the file would have {entry.size} bytes, at most {bounds.file_bytes}", "package.bomb", entry.name)
    if total > bounds.total_bytes:
        bad(f"the archive unpacks to more than {bounds.total_bytes} bytes", "package.bomb")
    if entry.size > bounds.ratio_free_bytes and entry.size > bounds.ratio * entry.packed:
        bad(f"the file grows more than {bounds.ratio}-fold", "package.bomb", entry.name)


def _span(file: BinaryIO, entry: Entry, directory: int) -> tuple[int, int]:
    """Check an entry's local header; give where it begins and where its data ends."""
    file.seek(entry.header)
    raw = file.read(LOCAL.size)
    if len(raw) < LOCAL.size or entry.header + LOCAL.size > directory:
        bad("the entry lies outside the archive", name=entry.name)
    signature, _, _, flags, method, _, _, crc, packed, size, name_length, extra_length = LOCAL.unpack(raw)
    name = file.read(name_length)
    begin = entry.header + LOCAL.size + name_length + extra_length
    if signature != LOCAL_SIGNATURE or name != entry.name.encode() or method != entry.method:
        bad("the entry's two headers contradict each other", name=entry.name)
    if flags & (FLAG_ENCRYPTED | FLAG_STRONG | FLAG_MASKED):
        bad("the entry is encrypted", name=entry.name)
    if begin + entry.packed > directory:
        bad("the entry lies outside the archive", name=entry.name)
    stated = (crc, packed, size)
    if not flags & FLAG_DESCRIPTOR and 0xFFFFFFFF not in stated[1:] and stated != (entry.crc, entry.packed, entry.size):
        bad("the entry's two headers contradict each other", name=entry.name)
    return entry.header, begin + entry.packed


def _write(file: BinaryIO, entry: Entry, target: Path, bounds: Bounds) -> None:
    """Inflate one entry into its file, never more than its size."""
    path = target.joinpath(*entry.name.split("/"))
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    file.seek(entry.header)
    header = LOCAL.unpack(file.read(LOCAL.size))
    file.seek(header[10] + header[11], os.SEEK_CUR)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags, 0o755 if entry.is_executable else 0o644)
    with os.fdopen(descriptor, "wb") as output:
        os.fchmod(output.fileno(), 0o755 if entry.is_executable else 0o644)
        crc = _inflate(file, entry, output)
    if crc != entry.crc:
        bad("the entry's content does not have its checksum", name=entry.name)


def _inflate(file: BinaryIO, entry: Entry, output: BinaryIO) -> int:
    """Copy an entry's content to `output`; give its CRC."""
    inflater = zlib.decompressobj(-zlib.MAX_WBITS) if entry.method == DEFLATED else None
    left, written, crc = entry.packed, 0, 0
    pending = b""
    while left or pending:
        if not pending:
            pending = file.read(min(CHUNK, left))
            if not pending:
                bad("the archive ends within an entry", name=entry.name)
            left -= len(pending)
        if inflater is None:
            data, pending = pending, b""
        else:
            try:
                data = inflater.decompress(pending, CHUNK)
            except zlib.error:
                bad("the entry's content is broken", name=entry.name)
            pending = inflater.unconsumed_tail
            if inflater.unused_data or (inflater.eof and (left or pending)):
                bad("the entry has more content than its stream", name=entry.name)
        written += len(data)
        if written > entry.size:
            bad("the entry unpacks to more than it says", "package.bomb", entry.name)
        crc = zlib.crc32(data, crc)
        output.write(data)
    if inflater is not None:
        data = inflater.flush()  # what is left in zlib's own few bytes of state
        written += len(data)
        crc = zlib.crc32(data, crc)
        output.write(data[: max(0, entry.size - written + len(data))])
    if written != entry.size or (inflater is not None and not inflater.eof):
        bad("the entry does not unpack to what it says", name=entry.name)
    return crc


def pack(folder: Path, names: list[str], output: IO[bytes]) -> None:
    """Write the files `names` of a folder as a zip archive: same content, same bytes.

    Names in order, no time, modes 0644 or 0755, deflated.
    """
    with zipfile.ZipFile(output, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name in sorted(names):
            path = folder / name
            information = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            information.compress_type = zipfile.ZIP_DEFLATED
            information.create_system = MADE_ON_UNIX
            mode = 0o755 if path.stat().st_mode & stat.S_IXUSR else 0o644
            information.external_attr = (stat.S_IFREG | mode) << 16
            archive.writestr(information, path.read_bytes(), compresslevel=9)
