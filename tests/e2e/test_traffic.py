"""Ordinary traffic through the deployed function: everything arrives, and both sides count the same."""

from __future__ import annotations

import hashlib
import json
import os
import random
import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from tests.e2e.appliance import CLIENT, SERVER, Appliance
from tests.e2e.vlan import add_vlan
from tests.lib.net import Host

pytestmark = pytest.mark.root

UDP_SEGMENT = 103
VLAN = {"client": ("10.78.0.1", "fd78::1"), "server": ("10.78.0.2", "fd78::2")}
STACKED = {"client": ("10.79.0.1", "fd79::1"), "server": ("10.79.0.2", "fd79::2")}
FAMILIES = pytest.mark.parametrize("family", [0, 1], ids=["IPv4", "IPv6"])


def url(address: str, path: str) -> str:
    """Write a URL."""
    return f"http://{f'[{address}]' if ':' in address else address}:80/{path}"


@pytest.fixture(scope="module")
def vlans(appliance: Appliance) -> Iterator[None]:
    """Give both hosts a VLAN, and one stacked in another."""
    relays = []
    for host, name in ((appliance.client, "client"), (appliance.server, "server")):
        for interface, tags, (v4, v6) in (("tagged", (42,), VLAN[name]), ("stacked", (43, 7), STACKED[name])):
            relays.append(add_vlan(host, "eth0", interface, tags, f"{v4}/24", f"{v6}/64"))
    yield
    for relay in relays:
        if relay:
            relay.close()


@pytest.fixture(params=[False, True], ids=["untagged", "VLAN"])
def tagged(request: pytest.FixtureRequest) -> bool:
    """Whether the traffic is in a VLAN."""
    if request.param:
        request.getfixturevalue("vlans")
    return bool(request.param)


@pytest.fixture(scope="module")
def web(appliance: Appliance, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Files on the server, and their digests."""
    folder = tmp_path_factory.mktemp("web")
    digests = {}
    for name, length in (("large", 200_000_000), ("medium", 20_000_000), ("small", 3_000)):
        data = random.Random(length).randbytes(length)
        (folder / name).write_bytes(data)
        digests[name] = hashlib.sha256(data).hexdigest()
    appliance.serve(folder)
    return digests


@pytest.fixture(autouse=True)
def _accounted(appliance: Appliance) -> Iterator[None]:
    """Hold the accounting rule and the peers' counters after each test."""
    yield
    appliance.check()


@pytest.mark.slow
def test_a_200_mb_download_has_the_digest_of_the_file(appliance: Appliance, web: dict[str, str]) -> None:
    """One long TCP connection, offloads at the kernel's defaults."""
    result = appliance.fetch(url(SERVER[0], "large"))
    assert result["failures"] == []
    assert result["bytes"] == 200_000_000
    assert result["digests"] == [web["large"]]


@FAMILIES
def test_a_thousand_short_connections_none_failing(appliance: Appliance, web: dict[str, str], family: int) -> None:
    """50 at a time, each with its own handshake and farewell."""
    result = appliance.fetch(url(SERVER[family], "small"), times=1000 if family == 0 else 200, parallel=50)
    assert result["failures"] == []
    assert result["digests"] == [web["small"]]


@FAMILIES
def test_tcp_super_frames_are_split_and_arrive(
    appliance: Appliance, web: dict[str, str], family: int, tagged: bool
) -> None:
    """The sender's kernel hands over super-frames (segmentation offload is on), the receiver gets every byte."""
    features = appliance.server.run("ethtool", "-k", "eth0").stdout
    assert "tcp-segmentation-offload: on" in features
    before = appliance.counters()["accounting"]["created"]
    result = appliance.fetch(url((VLAN["server"] if tagged else SERVER)[family], "medium"))
    assert result["failures"] == []
    assert result["digests"] == [web["medium"]]
    assert appliance.counters()["accounting"]["created"] > before, "no super-frame was split"


def udp_server(host: Host, address: str, count: int) -> tuple[threading.Thread, list[bytes]]:
    """Receive datagrams on a host until there are `count`."""
    with host.entered():
        inbox = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    inbox.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_000_000)
    inbox.bind((address, 7000))
    inbox.settimeout(10)
    received: list[bytes] = []

    def receive() -> None:
        with inbox:
            while len(received) < count:
                try:
                    received.append(inbox.recv(65536))
                except TimeoutError:
                    return

    thread = threading.Thread(target=receive)
    thread.start()
    return thread, received


@FAMILIES
def test_udp_super_frames_are_split_and_arrive(appliance: Appliance, family: int, tagged: bool) -> None:
    """UDP_SEGMENT makes one super-frame of many datagrams, the last one shorter."""
    source, target = (VLAN["client"], VLAN["server"]) if tagged else (CLIENT, SERVER)
    size, per_frame, frames = 1000, 20, 30
    wanted = [
        bytes([number % 251]) * (size if place < per_frame - 1 else 333)
        for number in range(frames)
        for place in range(per_frame)
    ]
    thread, received = udp_server(appliance.server, target[family], len(wanted))
    before = appliance.counters()["accounting"]["created"]
    with appliance.client.entered():
        sender = socket.socket(socket.AF_INET6 if family else socket.AF_INET, socket.SOCK_DGRAM)
    with sender:
        sender.bind((source[family], 0))
        sender.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, size)
        for number in range(frames):
            sender.sendto(b"".join(wanted[number * per_frame : (number + 1) * per_frame]), (target[family], 7000))
    thread.join()
    assert received == wanted
    assert appliance.counters()["accounting"]["created"] - before >= frames * (per_frame - 1)


@FAMILIES
def test_single_datagrams_have_a_complete_checksum(appliance: Appliance, family: int, tagged: bool) -> None:
    """The sender's kernel leaves the checksum to the interface; every length, odd ones too, is accepted."""
    source, target = (VLAN["client"], VLAN["server"]) if tagged else (CLIENT, SERVER)
    wanted = [os.urandom(length) for length in (*range(66), 1001, 1471, 1472 - 20 * family)]
    thread, received = udp_server(appliance.server, target[family], len(wanted))
    with appliance.client.entered():
        sender = socket.socket(socket.AF_INET6 if family else socket.AF_INET, socket.SOCK_DGRAM)
    with sender:
        sender.bind((source[family], 0))
        for data in wanted:
            sender.sendto(data, (target[family], 7000))
    thread.join()
    assert received == wanted


@FAMILIES
@pytest.mark.parametrize("size", [0, 56, 1444, 4000])
def test_ping_answers(appliance: Appliance, family: int, size: int) -> None:
    """Both directions of ICMP, fragments too."""
    done = appliance.client.run("ping", "-q", "-c", "20", "-i", "0.02", "-s", str(size), SERVER[family])
    assert " 0% packet loss" in done.stdout


@FAMILIES
@pytest.mark.usefixtures("vlans")
def test_ping_answers_in_one_and_two_vlan_tags(appliance: Appliance, family: int) -> None:
    """A tag stays with its packet, also when another one is around it."""
    for addresses in (VLAN["server"], STACKED["server"]):
        done = appliance.client.run("ping", "-q", "-c", "10", "-i", "0.02", "-s", "1400", addresses[family])
        assert " 0% packet loss" in done.stdout


@FAMILIES
def test_neighbours_are_found(appliance: Appliance, family: int) -> None:
    """ARP and IPv6 neighbour discovery pass the function: the client learns the server's own hardware address."""
    mac = appliance.server.mac("eth0")
    appliance.client.ip("neigh", "flush", "dev", "eth0")
    appliance.client.run("ping", "-q", "-c", "1", SERVER[family])
    neighbours = json.loads(appliance.client.ip("-j", "neigh", "show", "dev", "eth0").stdout)
    assert mac in [entry.get("lladdr") for entry in neighbours if entry["dst"] == SERVER[family]]


def iperf(appliance: Appliance, *arguments: str) -> dict[str, dict[str, float]]:
    """Run iperf3 from the client to the server; gives its `end` object."""
    server = appliance.server.popen("iperf3", "-s", "-1", "-B", SERVER[0])
    appliance.server.wait_listening(5201)
    done = appliance.client.run("iperf3", "-J", "-c", SERVER[0], "-t", "2", *arguments, timeout=60)
    server.wait(timeout=20)
    end: dict[str, dict[str, float]] = json.loads(done.stdout)["end"]
    return end


@pytest.mark.parametrize("reverse", [(), ("-R",)], ids=["up", "down"])
def test_iperf3_tcp(appliance: Appliance, reverse: tuple[str, ...]) -> None:
    """A saturating TCP stream each way."""
    end = iperf(appliance, *reverse)
    assert end["sum_received"]["bytes"] > 10_000_000


@pytest.mark.parametrize("reverse", [(), ("-R",)], ids=["up", "down"])
def test_iperf3_udp(appliance: Appliance, reverse: tuple[str, ...]) -> None:
    """A UDP stream of 20 Mbit/s: what does not arrive was counted as dropped or missed, or iperf3 was slow to read it."""
    hosts = (appliance.client, appliance.server)
    before, unread = appliance.counters()["accounting"], sum(host.udp_not_taken() for host in hosts)
    end = iperf(appliance, "-u", "-b", "20M", "-l", "1400", *reverse)
    after = appliance.counters()["accounting"]
    counted = sum(after[key] - before[key] for key in ("drops", "rx_missed"))
    unread = sum(host.udp_not_taken() for host in hosts) - unread
    assert end["sum"]["packets"] > 3000
    assert end["sum"]["lost_packets"] <= counted + unread


def test_jumbo_request_beyond_the_mtu_is_refused_by_the_sender_not_lost(appliance: Appliance) -> None:
    """Path MTU is the same on both links, so nothing is dropped as too large."""
    before = appliance.counters()["accounting"]["drops"]
    appliance.client.run("ping", "-q", "-c", "3", "-i", "0.02", "-M", "do", "-s", "1472", SERVER[0])
    assert appliance.counters()["accounting"]["drops"] == before


def test_frames_of_unknown_kinds_pass_unchanged(appliance: Appliance) -> None:
    """Runts, unknown EtherTypes, stacked tags, broken IP headers: forwarded as they are."""
    source, target = (
        bytes.fromhex(host.mac("eth0").replace(":", ""))
        for host in (appliance.client, appliance.server)
    )
    head = target + source
    frames = [
        head + b"\x88\xb5",
        head + b"\x88\xb5" + b"x" * 46,
        head + b"\x81\x00\x00\x05\x88\xb5abc",
        head + b"\x88\xa8\x00\x05\x81\x00\x00\x06\x81\x00\x00\x07\x08\x00",
        head + b"\x08\x00\x45",
        head + b"\x08\x00\x4f" + b"\x00" * 19,
        head + b"\x08\x00" + struct.pack(">BBHHHBBH4s4s", 0x45, 0, 9999, 1, 0x2000, 64, 6, 0, b"\1\2\3\4", b"\5\6\7\10"),
        head + b"\x86\xdd\x60" + b"\x00" * 10,
        head + b"\x86\xdd" + struct.pack(">IHBB", 6 << 28, 8, 0, 64) + b"\x11" * 32 + b"\x3c\xff" + b"\x00" * 6,
        head + b"\x05\xdc" + b"\xaa\xaa\x03",
        head + b"\x88\xb5last",
    ]
    raw = []
    for host in (appliance.client, appliance.server):
        with host.entered():
            line = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
            line.bind(("eth0", 3))
            line.settimeout(10)
            raw.append(line)
    with raw[0] as out, raw[1] as inbox:
        for frame in frames:
            out.send(frame)
        arrived: list[bytes] = []
        while not arrived or arrived[-1] != frames[-1]:
            data, address, *_ = inbox.recvfrom(65536)
            if data[6:12] == source and address[2] != 4:
                arrived.append(data)
    # a tag in front is taken out of the bytes by the receiving kernel; such frames are compared without their first tag
    untagged = [f[:12] + f[16:] if f[12:14] in (b"\x81\x00", b"\x88\xa8") else f for f in frames]
    assert [frame for frame in arrived if frame in untagged] == untagged
