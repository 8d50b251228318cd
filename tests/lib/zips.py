"""Zip archives made byte by byte, so that each field can lie."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field


@dataclass
class Member:
    """An entry; what is None is what an honest archive would say."""

    name: bytes
    content: bytes = b""
    method: int = 8
    flags: int = 0x800
    mode: int = 0o100644
    made_on: int = 3
    crc: int | None = None
    packed: int | None = None
    size: int | None = None
    header: int | None = None
    local_name: bytes | None = None
    local_size: int | None = None
    local_flags: int | None = None
    data: bytes | None = None
    extra: bytes = b""
    comment: bytes = b""


@dataclass
class Zip:
    members: list[Member] = field(default_factory=list)
    count: int | None = None
    directory_size: int | None = None
    directory_offset: int | None = None
    before: bytes = b""
    between: bytes = b""
    after: bytes = b""
    comment: bytes = b""
    disk: int = 0

    def add(self, name: str | bytes, content: bytes = b"", **fields: object) -> Zip:
        raw = name if isinstance(name, bytes) else name.encode()
        self.members.append(Member(raw, content, **fields))  # type: ignore[arg-type]
        return self

    def bytes(self) -> bytes:
        body, directory = self.before, b""
        for member in self.members:
            offset = len(body) if member.header is None else member.header
            data = member.data if member.data is not None else pack(member)
            crc = zlib.crc32(member.content) if member.crc is None else member.crc
            packed = len(data) if member.packed is None else member.packed
            size = len(member.content) if member.size is None else member.size
            local_size = size if member.local_size is None else member.local_size
            local_flags = member.flags if member.local_flags is None else member.local_flags
            name = member.name if member.local_name is None else member.local_name
            body += struct.pack(
                "<4s2B4HL2L2H", b"PK\x03\x04", 20, 0, local_flags, member.method, 0, 33, crc, packed, local_size, len(name), 0
            )
            body += name + data
            directory += struct.pack(
                "<4s4B4HL2L5H2L", b"PK\x01\x02", 20, member.made_on, 20, 0, member.flags, member.method, 0, 33, crc, packed, size,
                len(member.name), len(member.extra), len(member.comment), 0, 0, member.mode << 16, offset,
            )  # fmt: skip
            directory += member.name + member.extra + member.comment
        offset = len(body) + len(self.between)
        end = struct.pack(
            "<4s4H2LH", b"PK\x05\x06", self.disk, 0,
            *([len(self.members) if self.count is None else self.count] * 2),
            len(directory) if self.directory_size is None else self.directory_size,
            offset if self.directory_offset is None else self.directory_offset, len(self.comment),
        )  # fmt: skip
        return body + self.between + directory + end + self.comment + self.after


def pack(member: Member) -> bytes:
    if member.method != 8:
        return member.content
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
    return deflater.compress(member.content) + deflater.flush()
