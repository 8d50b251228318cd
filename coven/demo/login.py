"""A Skype log-in made from its fingerprint, as frames on the wire, and look-alikes that must pass.

The client begins with an SSL 2 client hello of 72 bytes: 56 fixed ones and a challenge of 16, in which each byte is 205
times the one before plus 113, modulo 256. The server answers with a TLS server hello of 79 bytes that never change.
`is_login` is the demo's own reading of a frame: what the function does is held against it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address

# SSL 2: 15 cipher specifications of three bytes
_CIPHERS = bytes.fromhex(
    "000005 000004 00000a 000009 000064 000062 000008 000003 000006 010080 0700c0 030080 060040 020080 040080"
)
_SERVER_RANDOM = bytes.fromhex("401be48602ade029e17774e544b9c99cb431315e02dd779d154a9609ba5da870")
_SERVER_SESSION = bytes.fromhex("1ca0e4f64c6351ae2f8e4ee1e6766a0a88d5d8c55cae98c5e481f22a69bf9058")
CHALLENGE_BYTES = 16
HTTP, HTTPS, OTHER = 80, 443, 8443

_FIN, _SYN, _PSH, _ACK = 0x01, 0x02, 0x08, 0x10


def challenge(first: int) -> bytes:
    """Give the 16 bytes of the client's challenge that begin with `first`."""
    values = [first]
    while len(values) < CHALLENGE_BYTES:
        values.append((205 * values[-1] + 113) % 256)
    return bytes(values)


def client_hello(first: int) -> bytes:
    """Give the client's 72 bytes: record header, type 1, version 3.1, lengths, ciphers, challenge."""
    body = struct.pack(">BHHHH", 1, 0x0301, len(_CIPHERS), 0, CHALLENGE_BYTES) + _CIPHERS + challenge(first)
    return struct.pack(">H", 0x8000 | len(body)) + body


def server_hello() -> bytes:
    """Give the server's 79 bytes: TLS record, handshake header, version, random, session, cipher, compression."""
    body = b"\x03\x01" + _SERVER_RANDOM + bytes([len(_SERVER_SESSION)]) + _SERVER_SESSION + b"\x00\x05\x00"
    return b"\x16\x03\x01" + struct.pack(">HI", len(body) + 4, 0x02 << 24 | len(body)) + body


def flip(data: bytes, position: int) -> bytes:
    """Give `data` with the lowest bit of one byte turned."""
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


def checksum(data: bytes) -> int:
    """Give the Internet checksum of `data` (RFC 1071)."""
    total: int = sum(struct.unpack(f">{(len(data) + 1) // 2}H", data + b"\x00" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


@dataclass(frozen=True, slots=True)
class End:
    """One end of a made TCP connection."""

    mac: bytes
    address: IPv4Address
    port: int


@dataclass(frozen=True, slots=True)
class Segment:
    """One frame of a made connection and what must become of it."""

    what: str
    to_server: bool
    frame: bytes
    is_login: bool


def frame(source: End, target: End, sequence: int, acknowledged: int, flags: int, payload: bytes) -> bytes:
    """Build Ethernet, IPv4 and TCP around a payload, all checksums complete."""
    tcp = struct.pack(
        ">HHIIBBHHH", source.port, target.port, sequence, acknowledged, 5 << 4, flags, 65535, 0, 0
    )
    addresses = source.address.packed + target.address.packed
    pseudo = addresses + struct.pack(">BBH", 0, 6, len(tcp) + len(payload))
    tcp = tcp[:16] + struct.pack(">H", checksum(pseudo + tcp + payload)) + tcp[18:]
    ip = struct.pack(">BBHHHBBH", 0x45, 0, 40 + len(payload), sequence & 0xFFFF, 0x4000, 64, 6, 0) + addresses
    ip = ip[:10] + struct.pack(">H", checksum(ip)) + ip[12:]
    return target.mac + source.mac + b"\x08\x00" + ip + tcp + payload


def connection(client: End, server: End, hello: bytes, answer: bytes, *, is_login: bool) -> Iterator[Segment]:
    """Make a whole connection: handshake, the client's hello, the server's answer, both ends' farewell."""
    mine, theirs = 1000, 9000  # sequence numbers

    def segment(what: str, flags: int, payload: bytes = b"", *, to_server: bool, marked: bool = False) -> Segment:
        nonlocal mine, theirs
        ack = flags & _ACK
        if to_server:
            made = frame(client, server, mine, theirs if ack else 0, flags, payload)
            mine += len(payload) + bool(flags & (_SYN | _FIN))
        else:
            made = frame(server, client, theirs, mine if ack else 0, flags, payload)
            theirs += len(payload) + bool(flags & (_SYN | _FIN))
        return Segment(what, to_server, made, marked)

    yield segment("SYN", _SYN, to_server=True)
    yield segment("SYN-ACK", _SYN | _ACK, to_server=False)
    yield segment("ACK", _ACK, to_server=True)
    yield segment("client hello", _PSH | _ACK, hello, to_server=True, marked=is_login)
    yield segment("server hello", _PSH | _ACK, answer, to_server=False, marked=is_login)
    yield segment("FIN", _FIN | _ACK, to_server=True)
    yield segment("FIN", _FIN | _ACK, to_server=False)
    yield segment("last ACK", _ACK, to_server=True)


def conversations(client: End, server: End, first: int) -> Iterator[tuple[str, list[Segment]]]:
    """Make three log-ins, and three connections that differ from one in a single bit or in the port.

    first: where the challenges begin. The client's port counts up from the one given.
    """
    hello, answer = client_hello(first), server_hello()

    def at(offset: int, port: int = HTTPS) -> tuple[End, End]:
        return (
            End(client.mac, client.address, client.port + offset),
            End(server.mac, server.address, port),
        )

    for number, port in enumerate((HTTPS, HTTPS, HTTP)):
        ends = at(number, port)
        varied = client_hello((first + 37 * number) % 256)
        yield f"log-in on port {port}", list(connection(*ends, varied, answer, is_login=True))
    yield (
        "one bit of the fixed parts changed",
        list(connection(*at(3), flip(hello, 20), flip(answer, 40), is_login=False)),
    )
    yield (
        "one bit of the challenge changed",
        list(connection(*at(4), flip(hello, 60), flip(answer, 78), is_login=False)),
    )
    yield f"on port {OTHER}", list(connection(*at(5, OTHER), hello, answer, is_login=False))


def tcp_payload(packet: bytes) -> tuple[int, int, bytes] | None:
    """Read source port, target port and payload of a TCP segment over IPv4; None for anything else."""
    if len(packet) < 34:
        return None
    offset = 12
    while packet[offset : offset + 2] in (b"\x81\x00", b"\x88\xa8") and len(packet) >= offset + 26:
        offset += 4
    ip = packet[offset + 2 :]
    if packet[offset : offset + 2] != b"\x08\x00" or ip[0] >> 4 != 4 or ip[9] != 6:
        return None
    header, total, fragment = (ip[0] & 15) * 4, int.from_bytes(ip[2:4]), int.from_bytes(ip[6:8]) & 0x3FFF
    tcp = ip[header:total]
    if fragment or len(tcp) < 20:
        return None
    return int.from_bytes(tcp[0:2]), int.from_bytes(tcp[2:4]), tcp[(tcp[12] >> 4) * 4 :]


def is_login(packet: bytes) -> bool:
    """Tell whether a frame carries one of the two hellos of a Skype log-in from or to port 80 or 443."""
    found = tcp_payload(packet)
    if found is None or not {HTTP, HTTPS} & set(found[:2]):
        return False
    payload = found[2]
    if len(payload) == len(server_hello()):
        return payload == server_hello()
    return len(payload) == 72 and payload == client_hello(payload[56])
