"""Capture files as the demo needs them: read every record, write a made-up one, compare input with output.

`python -m coven.demo.capture FILE` writes a capture with made log-ins among made web traffic.
"""

from __future__ import annotations

import random
import struct
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path

from coven.demo import login
from coven.errors import CovenError, Where

_MICROSECONDS, _NANOSECONDS = 0xA1B2C3D4, 0xA1B23C4D


@dataclass(frozen=True, slots=True)
class Packet:
    """One record. `length` is that of the packet on the wire: more than `data` if the capture cut it short."""

    data: bytes
    length: int


def read(path: Path) -> Iterator[Packet]:
    """Give the packets of a pcap file in order; either byte order, either resolution of time."""

    def bad(why: str) -> CovenError:
        return CovenError(
            "port.bad-file", f"{path.name}: {why}", where=Where(file=str(path)), hint="a classic pcap is needed"
        )

    with path.open("rb") as file:
        header = file.read(24)
        for order in "<>":
            if len(header) == 24 and struct.unpack(f"{order}I", header[:4])[0] in (_MICROSECONDS, _NANOSECONDS):
                break
        else:
            raise bad("not a pcap file")
        while record := file.read(16):
            if len(record) < 16:
                raise bad("a record header ends early")
            _, _, kept, length = struct.unpack(f"{order}IIII", record)
            data = file.read(kept)
            if len(data) < kept:
                raise bad("a record ends early")
            yield Packet(data, length)


def write(path: Path, packets: Iterable[bytes]) -> int:
    """Write whole frames, a millisecond apart; gives how many."""
    count = 0
    with path.open("wb") as file:
        file.write(struct.pack("<IHHiIII", _MICROSECONDS, 2, 4, 0, 0, 65535, 1))
        for count, data in enumerate(packets, 1):
            seconds, rest = divmod(count, 1000)
            file.write(struct.pack("<IIII", seconds, rest * 1000, len(data), len(data)) + data)
    return count


def made() -> Iterator[bytes]:
    """Make web traffic with log-ins in between: 20 rounds of downloads and of all log-ins and look-alikes."""
    source = random.Random(72)  # noqa: S311 # the same file each time
    client = login.End(bytes.fromhex("020077000001"), IPv4Address("198.18.77.1"), 40000)
    server = login.End(bytes.fromhex("020077000002"), IPv4Address("198.18.77.2"), login.HTTP)
    for number in range(20):
        visitor = login.End(client.mac, client.address, 50000 + number)
        request = b"GET /%d HTTP/1.1\r\nHost: demo\r\n\r\n" % number
        for segment in login.connection(visitor, server, request, source.randbytes(1400), is_login=False):
            yield segment.frame
        caller = login.End(client.mac, client.address, client.port + 10 * number)
        for _, segments in login.conversations(caller, server, source.randrange(256)):
            for segment in segments:
                yield segment.frame


if __name__ == "__main__":
    sys.stdout.write(f"{write(Path(sys.argv[1]), made())} packets written to {sys.argv[1]}\n")
