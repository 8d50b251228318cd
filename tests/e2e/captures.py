"""The outside captures, and what l7-firewall must do with each."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from coven.demo import login
from coven.demo.capture import Packet

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("COVEN_TESTDATA") or ROOT.parent / "shared" / "data")
SKYPE = DATA / "captures" / "skype.pcap"
WEB = sorted((DATA / "captures" / "web").glob("*.pcap"))

needs_data = [
    pytest.mark.data,
    pytest.mark.skipif(not SKYPE.exists(), reason=f"no captures in {DATA / 'captures'} (COVEN_TESTDATA names another place)"),
]


def payload_offset(packet: bytes) -> int:
    """Give where the TCP payload of an untagged IPv4 frame begins."""
    tcp = 14 + (packet[14] & 15) * 4
    return tcp + (packet[tcp + 12] >> 4) * 4


def without_one_bit(packets: list[Packet], position: int) -> list[Packet]:
    """Give the log-in packets of a capture with one bit of the payload turned, all others as they are."""
    changed = []
    for packet in packets:
        data = packet.data
        if login.is_login(data):
            data = login.flip(data, payload_offset(data) + position)
        changed.append(Packet(data, packet.length))
    return changed


def on_another_port(packets: list[Packet], port: int) -> list[Packet]:
    """Give the log-in packets with their server's port changed, all others as they are."""
    changed = []
    for packet in packets:
        data = packet.data
        if login.is_login(data):
            tcp = 14 + (data[14] & 15) * 4
            place = tcp if int.from_bytes(data[tcp : tcp + 2]) in (login.HTTP, login.HTTPS) else tcp + 2
            data = data[:place] + port.to_bytes(2) + data[place + 2 :]
        changed.append(Packet(data, packet.length))
    return changed
