"""Captures replayed by the client's interface, taken from the server's; frames that a capture cut short are skipped."""

from __future__ import annotations

import socket
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from coven.demo import login
from coven.demo.capture import read
from coven.demo.platform import Platform
from tests.e2e.appliance import Appliance, drops_by_reason
from tests.e2e.captures import SKYPE, WEB, needs_data
from tests.lib.net import Host, Network

pytestmark = [pytest.mark.root, *needs_data]

WINDOW = 64  # frames under way at once: less than any queue on the way
LAST = bytes.fromhex("020000000002020000000001" + "88b5") + b"the last frame" * 4


@pytest.fixture(scope="module")
def jumbo(_namespaces: None, platform: Platform, package: str) -> Iterator[Appliance]:
    """An appliance on links with room for every captured frame."""
    with Network() as net:
        appliance = Appliance(net, platform, package, mtu=9000)
        for host in (appliance.client, appliance.server):  # the hosts' own stacks stay silent
            with host.entered():  # without IPv6 it reports no multicast groups either
                Path("/proc/sys/net/ipv6/conf/eth0/disable_ipv6").write_text("1")
            host.ip("addr", "flush", "dev", "eth0")
            host.ip("link", "set", "eth0", "arp", "off")
            with host.entered():  # no multicast reports of IPv6 among the captured frames
                Path("/proc/sys/net/ipv6/conf/eth0/disable_ipv6").write_text("1", encoding="ascii")
        yield appliance


def line(host: Host) -> socket.socket:
    """Open a raw socket on a host's interface."""
    with host.entered():
        raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    raw.bind(("eth0", 3))
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8_000_000)
    raw.settimeout(10)
    return raw


def untagged(frame: bytes) -> bytes:
    """Give a frame as a raw socket gives it: the kernel takes the first VLAN tag out of the bytes."""
    return frame[:12] + frame[16:] if frame[12:14] in (b"\x81\x00", b"\x88\xa8") else frame


def replay(appliance: Appliance, frames: list[bytes]) -> list[bytes]:
    """Send frames from the client, a window at a time, each closed by a frame that must pass; gives what arrived."""
    arrived: list[bytes] = []
    with line(appliance.client) as out, line(appliance.server) as inbox:
        for start in range(0, len(frames), WINDOW):
            for frame in frames[start : start + WINDOW]:
                out.send(frame)
            out.send(LAST)
            while True:
                data, address = inbox.recvfrom(65536)
                if address[2] == socket.PACKET_OUTGOING:
                    continue
                if data == LAST:
                    break
                arrived.append(data)
    return arrived


def run(appliance: Appliance, capture: Path) -> tuple[list[bytes], list[bytes], dict[str, int]]:
    """Replay a capture; gives what was sent, what arrived, and the drops it caused by reason."""
    packets = list(read(capture))
    whole = [packet.data for packet in packets if len(packet.data) == packet.length]
    if len(whole) < len(packets):
        short = len(packets) - len(whole)
        warnings.warn(f"{capture.name}: {short} frames that the capture cut short are skipped", stacklevel=2)
    before = drops_by_reason(appliance.counters())
    arrived = replay(appliance, whole)
    after = drops_by_reason(appliance.check())
    return whole, arrived, {reason: n for reason in after if (n := after[reason] - before.get(reason, 0))}


def test_skype_exactly_its_log_in_packets_are_dropped(jumbo: Appliance) -> None:
    """The same 35 as on files, the other 3249 byte-identical and in order."""
    sent, arrived, drops = run(jumbo, SKYPE)
    assert len(sent) == 3284
    assert arrived == [untagged(frame) for frame in sent if not login.is_login(frame)]
    assert drops == {"component-verdict": 35}


@pytest.mark.parametrize("capture", WEB, ids=lambda path: path.stem.split("__")[-1])
def test_web_traffic_passes_untouched(jumbo: Appliance, capture: Path) -> None:
    """Nothing dropped, nothing changed, nothing out of order."""
    sent, arrived, drops = run(jumbo, capture)
    assert arrived == [untagged(frame) for frame in sent]
    assert drops == {}
