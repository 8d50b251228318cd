"""Seeds for the fuzzers of packets: one valid input of each kind."""

from __future__ import annotations

import struct
from pathlib import Path

from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment, IPv6ExtHdrHopByHop
from scapy.layers.l2 import Dot1AD, Dot1Q, Ether

from tests.lib.segments import build


def packets() -> list[bytes]:
    """Give packets of every kind the parser knows."""
    eth = Ether(dst="02:00:00:00:00:02", src="02:00:00:00:00:01")
    return [
        bytes(packet)
        for packet in (
            eth / IP() / TCP() / b"x",
            eth / IP() / UDP() / b"x",
            eth / IP() / ICMP(),
            eth / IP(frag=3) / UDP(),
            eth / IPv6() / TCP(),
            eth / IPv6() / IPv6ExtHdrHopByHop() / IPv6ExtHdrDestOpt() / UDP(),
            eth / IPv6() / IPv6ExtHdrFragment(offset=4) / UDP(),
            eth / Dot1AD() / Dot1Q() / IP() / TCP(),
        )
    ]


def super_frames() -> list[bytes]:
    """Give frames with virtio-net headers, as fuzz_offload takes them."""
    frames = [build(version=v, protocol=p, payload=bytes(300), gso_size=100) for v in (4, 6) for p in (6, 17)]
    return [b"\1" + frame.vnet() + frame.data for frame in frames] + [
        b"\0" + struct.pack("=BBHHHH", 1, 0, 0, 0, 34, 16) + packet for packet in packets()
    ]


def captures() -> list[bytes]:
    """Give capture files in both formats and byte orders."""
    made = []
    for order in "<>":
        records = b"".join(struct.pack(f"{order}4I", 1, 2, len(p), len(p)) + p for p in packets())
        made.append(struct.pack(f"{order}IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1) + records)
        blocks = [
            (0x0A0D0D0A, struct.pack(f"{order}IHHq", 0x1A2B3C4D, 1, 0, -1)),
            (1, struct.pack(f"{order}HHI", 1, 0, 0) + struct.pack(f"{order}HHB3xHH", 9, 1, 9, 0, 0)),
            (6, struct.pack(f"{order}5I", 0, 0, 9, 60, 60) + bytes(60)),
            (3, struct.pack(f"{order}I", 60) + bytes(60)),
            (2, struct.pack(f"{order}HHIIII", 0, 0, 0, 1, 60, 60) + bytes(60)),
        ]
        made.append(
            b"".join(
                struct.pack(f"{order}II", kind, len(body) + 12) + body + struct.pack(f"{order}I", len(body) + 12)
                for kind, body in blocks
            )
        )
    return made


def write(folder: Path, seeds: list[bytes]) -> Path:
    """Write seeds to a folder; give it."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds):
        (folder / f"seed{number}").write_bytes(seed)
    return folder
