"""Archives from outside: what is refused, with which code, and that nothing lands outside or stays behind."""

from __future__ import annotations

import io
import os
import stat
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coven.errors import CODES, CovenError
from coven.package.archive import Bounds, pack, unpack
from tests.lib.zips import Zip

SMALL = Bounds(archive_bytes=1 << 20, directory_bytes=8192, entries=50, total_bytes=3 << 20, file_bytes=2 << 20,
               ratio=50, ratio_free_bytes=64 << 10)  # fmt: skip


def refused(tmp_path: Path, content: bytes, bounds: Bounds = SMALL) -> CovenError:
    """Unpack, expect a refusal, and check that nothing was written outside of the target."""
    outer = tmp_path / "outer"
    target = outer / "a" / "b" / "target"
    target.mkdir(parents=True)
    archive = tmp_path / "x.coven"
    archive.write_bytes(content)
    with pytest.raises(CovenError) as caught:
        unpack(archive, target, bounds)
    outside = [path for path in outer.rglob("*") if target not in path.parents]
    assert sorted(p.name for p in outside) == ["a", "b", "target"]
    return caught.value


def simple() -> Zip:
    return Zip().add("vnf.yaml", b"coven: 1\n" * 20).add("vnfc/a/a.c", b"int x;\n")


def zeros(length: int) -> bytes:
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
    return b"".join(deflater.compress(bytes(1 << 16)) for _ in range(length >> 16)) + deflater.flush()


BROKEN = simple().bytes()
ZIP64_LOCATOR = b"PK\x06\x07" + bytes(16)
ATTACKS: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "dot-dot": ("package.unsafe-path", lambda: Zip().add("../x", b"1").bytes(), ".."),
    "dot-dot-inside": ("package.unsafe-path", lambda: Zip().add("a/../../x", b"1").bytes(), ".."),
    "dot-dot-folder": ("package.unsafe-path", lambda: Zip().add("../", mode=0o40755).bytes(), ".."),
    "absolute": ("package.unsafe-path", lambda: Zip().add("/etc/x", b"1").bytes(), "absolute"),
    "backslash": ("package.unsafe-path", lambda: Zip().add("..\\x", b"1").bytes(), "backslash"),
    "drive": ("package.unsafe-path", lambda: Zip().add("C:x", b"1").bytes(), "colon"),
    "stream": ("package.unsafe-path", lambda: Zip().add("a:b", b"1").bytes(), "colon"),
    "dot": ("package.unsafe-path", lambda: Zip().add("./a", b"1").bytes(), "empty part"),
    "empty-part": ("package.unsafe-path", lambda: Zip().add("a//b", b"1").bytes(), "empty part"),
    "no-name": ("package.unsafe-path", lambda: Zip().add("", b"1").bytes(), "empty part"),
    "dots-and-blanks": ("package.unsafe-path", lambda: Zip().add(".. /x", b"1").bytes(), "blanks"),
    "nul": ("package.unsafe-path", lambda: Zip().add("a\0b", b"1").bytes(), "control"),
    "newline": ("package.unsafe-path", lambda: Zip().add("a\nb", b"1").bytes(), "control"),
    "right-to-left": ("package.unsafe-path", lambda: Zip().add("a\u202eb", b"1").bytes(), "control"),
    "not-utf-8": ("package.unsafe-path", lambda: Zip().add(b"a\xff", b"1").bytes(), "UTF-8"),
    "long-part": ("package.unsafe-path", lambda: Zip().add("a" * 256, b"1").bytes(), "255"),
    "long-name": ("package.unsafe-path", lambda: Zip().add("a/" * 600 + "a", b"1").bytes(), "1024"),
    "deep": ("package.unsafe-path", lambda: Zip().add("a/" * 20 + "a", b"1").bytes(), "folders"),
    "symlink": ("package.link-entry", lambda: Zip().add("a", b"/etc/passwd", mode=0o120777).bytes(), "link"),
    "symlink-from-dos": ("package.link-entry", lambda: Zip().add("a", b"/x", mode=0o120777, made_on=0).bytes(), "link"),
    "device": ("package.link-entry", lambda: Zip().add("a", mode=0o020666).bytes(), "device"),
    "fifo": ("package.link-entry", lambda: Zip().add("a", mode=0o010666).bytes(), "special"),
    "folder-as-file": ("package.link-entry", lambda: Zip().add("a", mode=0o40755).bytes(), "special"),
    "same-name": ("package.duplicate-entry", lambda: Zip().add("a", b"1").add("a", b"2").bytes(), "'a'"),
    "same-case": ("package.duplicate-entry", lambda: Zip().add("A", b"1").add("a", b"2").bytes(), "'A'"),
    "same-unicode": ("package.duplicate-entry", lambda: Zip().add("\u00e9", b"1").add("e\u0301", b"2").bytes(), "'\u00e9'"),
    "sharp-s": ("package.duplicate-entry", lambda: Zip().add("stra\u00dfe", b"1").add("STRASSE", b"2").bytes(), "STRASSE"),
    "same-folder-case": ("package.duplicate-entry", lambda: Zip().add("D/a", b"1").add("d/b", b"2").bytes(), "'D'"),
    "file-then-folder": ("package.duplicate-entry", lambda: Zip().add("a", b"1").add("a/b", b"2").bytes(), "'a'"),
    "folder-then-file": ("package.duplicate-entry", lambda: Zip().add("a/b", b"1").add("a", b"2").bytes(), "'a'"),
    "folder-twice": ("package.duplicate-entry", lambda: Zip().add("a/", mode=0o40755).add("a/", mode=0o40755).bytes(), "'a'"),
    "many-entries": ("package.bomb", lambda: _many(51), "51 entries"),
    "big-directory": ("package.bomb", lambda: Zip().add("a", b"1", extra=bytes(9000)).bytes(), "directory"),
    "big-file": ("package.bomb", lambda: Zip().add("a", size=(2 << 20) + 1, data=b"x").bytes(), "bytes"),
    "big-total": ("package.bomb", lambda: _total().bytes(), "unpacks to more"),
    "ratio": ("package.bomb", lambda: Zip().add("a", bytes(1 << 20)).bytes(), "50-fold"),
    "lying-size": ("package.bomb", lambda: Zip().add("a", b"x", data=zeros(2 << 20), crc=0).bytes(), "more than it says"),
    "big-archive": ("package.bomb", lambda: bytes(SMALL.archive_bytes + 1), "at most"),
    "encrypted": ("package.bad-archive", lambda: Zip().add("a", b"1", flags=0x801).bytes(), "encrypted"),
    "encrypted-locally": ("package.bad-archive", lambda: Zip().add("a", b"1", local_flags=0x801).bytes(), "encrypted"),
    "strong-encryption": ("package.bad-archive", lambda: Zip().add("a", b"1", flags=0x840).bytes(), "encrypted"),
    "method": ("package.bad-archive", lambda: Zip().add("a", b"1", method=14).bytes(), "method 14"),
    "patch": ("package.bad-archive", lambda: Zip().add("a", b"1", flags=0x820).bytes(), "packed by"),
    "zip64-count": ("package.bad-archive", lambda: Zip(count=0xFFFF).add("a", b"1").bytes(), "zip64"),
    "zip64-offset": ("package.bad-archive", lambda: Zip(directory_offset=0xFFFFFFFF).add("a", b"1").bytes(), "zip64"),
    "zip64-size": ("package.bad-archive", lambda: Zip().add("a", b"1", size=0xFFFFFFFF).bytes(), "zip64"),
    "zip64-locator": ("package.bad-archive", lambda: _with_locator(), "zip64"),
    "overlap": ("package.bad-archive", lambda: _overlap(), "over each other"),
    "same-data-twice": ("package.bad-archive", lambda: Zip().add("a", b"1").add("b", b"1", header=0).bytes(), "contradict"),
    "outside": ("package.bad-archive", lambda: Zip().add("a", b"1", header=1 << 20).bytes(), "outside"),
    "data-outside": ("package.bad-archive", lambda: Zip().add("a", b"1", packed=1000).bytes(), "outside"),
    "in-the-directory": ("package.bad-archive", lambda: Zip().add("a", b"1", packed=20, flags=0x808).bytes(), "outside"),
    "other-local-name": ("package.bad-archive", lambda: Zip().add("a", b"1", local_name=b"../x").bytes(), "contradict"),
    "other-local-size": ("package.bad-archive", lambda: Zip().add("a", b"1", local_size=2).bytes(), "contradict"),
    "stored-lengths": ("package.bad-archive", lambda: Zip().add("a", b"1", method=0, size=2).bytes(), "two different"),
    "wrong-crc": ("package.bad-archive", lambda: Zip().add("a", b"1", crc=5).bytes(), "checksum"),
    "short-content": ("package.bad-archive", lambda: Zip().add("a", b"1", size=2).bytes(), "does not unpack"),
    "broken-content": ("package.bad-archive", lambda: Zip().add("a", b"1", data=b"\xff" * 9).bytes(), "broken"),
    "cut-stream": ("package.bad-archive", lambda: Zip().add("a", b"hello" * 9, data=b"\xcbH").bytes(), "does not unpack"),
    "more-than-stream": ("package.bad-archive", lambda: Zip().add("a", b"1", data=zeros(0) + b"abc").bytes(), "more content"),
    "folder-with-content": ("package.bad-archive", lambda: Zip().add("a/", b"1", mode=0o40755).bytes(), "content"),
    "parts": ("package.bad-archive", lambda: Zip(disk=1).add("a", b"1").bytes(), "several parts"),
    "hidden-before": ("package.bad-archive", lambda: b"x" * 50 + simple().bytes(), "not where"),
    "count-too-small": ("package.bad-archive", lambda: Zip(count=1).add("a").add("b").bytes(), "longer than"),
    "count-too-large": ("package.bad-archive", lambda: Zip(count=3).add("a").add("b").bytes(), "ends within"),
    "directory-garbage": ("package.bad-archive", lambda: BROKEN.replace(b"PK\x01\x02", b"PK\x01\x09"), "broken"),
    "text-after": ("package.bad-archive", lambda: BROKEN + b"more", "no zip archive"),
    "empty": ("package.bad-archive", lambda: b"", "no zip archive"),
    "not-a-zip": ("package.bad-archive", lambda: b"\x7fELF" * 1000, "no zip archive"),
}  # fmt: skip


def _many(count: int) -> bytes:
    archive = Zip()
    for number in range(count):
        archive.add(f"f{number}")
    return archive.bytes()


def _total() -> Zip:
    archive = Zip()
    for number in range(4):
        archive.add(f"f{number}", os.urandom(1) * (1 << 20), method=0)
    for member in archive.members:
        member.content, member.data, member.packed, member.method = b"", b"x" * 30000, 30000, 8
        member.size = 1 << 20
    return archive


def _with_locator() -> bytes:
    whole = Zip().add("a", b"1").bytes()
    end = whole.rfind(b"PK\x05\x06")
    return whole[:end] + ZIP64_LOCATOR + whole[end:]


def _overlap() -> bytes:
    """Two entries that share most of their bytes: the second's header lies in the first's data (stored)."""
    inner = Zip().add("b", b"secret" * 10, method=0).bytes()
    local = inner[: inner.index(b"PK\x01\x02")]
    archive = Zip().add("a", local, method=0)
    archive.add("b", b"secret" * 10, method=0, header=31)
    return archive.bytes()


@pytest.mark.parametrize("name", ATTACKS)
def test_attack(name: str, tmp_path: Path) -> None:
    code, content, words = ATTACKS[name]
    error = refused(tmp_path, content())
    assert error.code == code, str(error)
    assert words in str(error)


@pytest.mark.parametrize("length", range(len(BROKEN)))
def test_truncated_at_every_byte(length: int, tmp_path: Path) -> None:
    assert refused(tmp_path, BROKEN[:length]).code == "package.bad-archive"


def test_a_fifo_instead_of_an_archive_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(CovenError, match="no regular file"):
        unpack(tmp_path / "fifo", tmp_path)


def test_modes(tmp_path: Path) -> None:
    content = Zip().add("plain", b"1", mode=0o106777 & ~0o111).add("run", b"2", mode=0o104755).add("d/", mode=0o40700)
    (tmp_path / "x.zip").write_bytes(content.bytes())
    target = tmp_path / "t"
    target.mkdir()
    assert unpack(tmp_path / "x.zip", target) == {"plain": 1, "run": 1}
    assert stat.S_IMODE((target / "plain").stat().st_mode) == 0o644
    assert stat.S_IMODE((target / "run").stat().st_mode) == 0o755


def test_archives_of_other_tools_are_read(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/b.txt", "hello" * 1000)
        archive.comment = b"made elsewhere PK\x05\x06"
        with archive.open("streamed", "w", force_zip64=True) as file:
            file.write(b"x" * 70000)
    assert unpack(tmp_path / "x.zip", tmp_path / "t") == {"a/b.txt": 5000, "streamed": 70000}
    assert (tmp_path / "t/streamed").read_bytes() == b"x" * 70000


class Unseekable(io.RawIOBase):
    """A pipe: zipfile then writes sizes behind the data."""

    def __init__(self) -> None:
        self.content = b""

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        self.content += bytes(data)  # type: ignore[call-overload]
        return len(bytes(data))  # type: ignore[call-overload]


def test_archives_with_data_descriptors_are_read(tmp_path: Path) -> None:
    (tmp_path / "t").mkdir()
    pipe = Unseekable()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as archive:  # type: ignore[call-overload]
        archive.writestr("a", b"hello" * 1000)
        archive.writestr("b", b"world" * 1000)
    (tmp_path / "x.zip").write_bytes(pipe.content)
    assert unpack(tmp_path / "x.zip", tmp_path / "t") == {"a": 5000, "b": 5000}


NAMES = st.text(alphabet="abcdefgh", min_size=1, max_size=8)


@given(st.dictionaries(st.builds("x{}/y{}".format, NAMES, NAMES), st.binary(max_size=3000), max_size=8))
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_what_is_packed_is_unpacked(tmp_path: Path, files: dict[str, bytes]) -> None:
    source, target = tmp_path / os.urandom(6).hex(), tmp_path / os.urandom(6).hex()
    target.mkdir()
    source.mkdir()
    for name, content in files.items():
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_bytes(content)
    archive = tmp_path / (target.name + ".zip")
    with archive.open("wb") as output:
        pack(source, list(files), output)
    assert unpack(archive, target) == {name: len(content) for name, content in files.items()}
    assert {name: (target / name).read_bytes() for name in files} == files


@given(
    st.lists(st.tuples(st.integers(0, len(BROKEN) - 1), st.integers(0, 255)), max_size=6),
    st.binary(max_size=40),
    st.integers(0, len(BROKEN)),
)
@settings(max_examples=600, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_damaged_archives_raise_nothing_else(
    tmp_path: Path, changes: list[tuple[int, int]], inserted: bytes, at: int
) -> None:
    content = bytearray(BROKEN)
    for place, value in changes:
        content[place] = value
    content[at:at] = inserted
    base = tmp_path / os.urandom(6).hex()
    target = base / "in" / "target"
    target.mkdir(parents=True)
    (tmp_path / "x.zip").write_bytes(content)
    try:
        unpack(tmp_path / "x.zip", target, SMALL)
    except CovenError as error:
        assert error.code in CODES
    assert sorted(p.name for p in base.rglob("*") if target not in p.parents) == ["in", "target"]
    assert sum(p.stat().st_size for p in target.rglob("*") if p.is_file()) <= SMALL.total_bytes + 65536


@given(st.binary(max_size=400))
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_random_bytes_raise_nothing_else(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.zip").write_bytes(content + b"PK\x05\x06" + content)
    with pytest.raises(CovenError):
        unpack(tmp_path / "x.zip", tmp_path, SMALL)
