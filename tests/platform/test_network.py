"""Opening ports: which interfaces are refused and how, taps, and what is put back."""

from __future__ import annotations

import os
import re
import select
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from coven.errors import CODES, CovenError
from coven.network import TOOLS, LinkEvent, LinkWatcher, OpenedPort, adopt, tool_of
from coven.network import afxdp as afxdp_module
from coven.network import tools as tools_module
from coven.network.interfaces import Interface, check_interface
from tests.lib.net import Host, Network, unavailable
from tests.lib.ports import DATAPLANE, Driver, forwarding, reasons

root = [pytest.mark.root, pytest.mark.skipif(bool(unavailable()), reason=str(unavailable()))]

needs_tun = pytest.mark.skipif(not Path("/dev/net/tun").exists(), reason="needs /dev/net/tun")


def pretend(name: str, **values: object) -> Interface:
    fields = {
        "index": 3, "name": name, "mtu": 1500, "is_up": True, "is_loopback": False, "is_ethernet": True, "master": None,
        "kind": None, "addresses": (), "routes": (),
    }  # fmt: skip
    return Interface(**{**fields, **values})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("values", "code", "words"),
    [
        ({"is_up": False}, "port.interface-down", "ip link set eth7 up"),
        ({"is_loopback": True, "is_ethernet": False}, "port.unsupported", "loopback"),
        ({"is_ethernet": False}, "port.unsupported", "not an Ethernet"),
        ({"master": "br0"}, "port.in-use", "belongs to br0"),
        ({"addresses": ("192.0.2.1/24",)}, "port.in-use", "192.0.2.1/24"),
        ({"routes": ("default",)}, "port.in-use", "route default"),
    ],
)
def test_interfaces_that_cannot_be_ports(values: dict[str, object], code: str, words: str) -> None:
    with pytest.raises(CovenError) as caught:
        check_interface("eth7", "lan", interfaces={"eth7": pretend("eth7", **values)})
    assert caught.value.code == code in CODES
    assert words in str(caught.value) and "port lan" in str(caught.value) and caught.value.hint


def test_a_missing_interface_names_near_ones() -> None:
    known = {name: pretend(name) for name in ("eth7", "eth8")} | {"lo": pretend("lo", is_loopback=True)}
    with pytest.raises(CovenError) as caught:
        check_interface("etH7", "lan", interfaces=known, taken=("eth8",))
    assert caught.value.code == "port.interface-missing"
    assert "did you mean 'eth7'?" in str(caught.value) and "eth8" not in str(caught.value)


def test_an_interface_that_is_a_port_already() -> None:
    with pytest.raises(CovenError) as caught:
        check_interface("eth7", "lan", interfaces={"eth7": pretend("eth7")}, taken=("eth7",))
    assert caught.value.code == "port.in-use"


def test_tools() -> None:
    assert set(TOOLS) == {"auto", "afpacket", "afxdp", "pcap", "tap", "gen"}
    with pytest.raises(CovenError, match="afpacket") as caught:
        tool_of({"name": "lan", "tool": "afpaket"})
    assert caught.value.code == "port.unknown-tool"


def test_numbers_agree_with_the_header() -> None:
    header = (DATAPLANE / "include" / "coven" / "abi.h").read_text()
    numbers = dict(re.findall(r"COVEN_PORT_([A-Z_]+)(?: =)? (\d+)u?", header))
    for name, value in (vars(tools_module) | vars(afxdp_module)).items():
        if name.startswith(("TOOL_", "FLAG_")):
            assert int(numbers[name.split("_", 1)[1]]) == value


@pytest.mark.parametrize("mtu", [68, 1500, 1888, 1889, 9000, 65535])
def test_ring_geometry(mtu: int) -> None:
    slot_bytes, slots = tools_module.ring_geometry(mtu)
    assert slot_bytes * slots == tools_module.RING_BYTES
    assert tools_module.RING_BLOCK_BYTES % slot_bytes == 0
    assert slot_bytes >= min(mtu + tools_module.SLOT_OVERHEAD_BYTES, 16384)


@pytest.fixture
def box() -> Iterator[Host]:
    with Network() as net:
        host, peer = net.host("box"), net.host("peer")
        net.veth(host, "lan", peer, "eth0")
        peer.address("eth0", "10.6.0.1/24", "fd06::1/64")
        host.peer = peer  # type: ignore[attr-defined]
        yield host


def afpacket(host: Host, interface: str = "lan", **options: object) -> OpenedPort:
    with host.entered():
        return TOOLS["afpacket"].open({"name": "lan", "interface": interface, "options": options})


class TestOnRealInterfaces:
    pytestmark = root

    def test_what_netlink_says(self, box: Host) -> None:
        box.ip("link", "add", "br0", "type", "bridge")
        for interface, code, prepare in [
            ("lo", "port.unsupported", []),
            ("nothing", "port.interface-missing", []),
            ("lan", "port.interface-down", ["link", "set", "lan", "down"]),
            ("lan", "port.in-use", ["link", "set", "lan", "master", "br0"]),
            ("lan", "port.in-use", ["addr", "add", "10.6.0.9/24", "dev", "lan"]),
        ]:
            if prepare:
                box.ip(*prepare)
            before = set(Path("/proc/self/fd").iterdir())
            with pytest.raises(CovenError) as caught:
                afpacket(box, interface)
            assert caught.value.code == code
            assert set(Path("/proc/self/fd").iterdir()) <= before
            if prepare:
                box.ip("link", "set", "lan", "nomaster")
                box.ip("link", "set", "lan", "up")
        box.ip("addr", "flush", "dev", "lan")
        box.ip("route", "add", "10.77.0.0/16", "dev", "lan")
        with pytest.raises(CovenError, match=r"10\.77\.0\.0"):
            afpacket(box)
        box.ip("route", "del", "10.77.0.0/16", "dev", "lan")
        opened = afpacket(box)
        assert opened.plan_fields["mtu"] == 1500 and opened.note
        with box.entered():
            opened.close()
            opened.close()

    def test_a_successor_puts_back_what_was_changed(self, box: Host) -> None:
        opened = afpacket(box)
        document = opened.to_json()
        successor = adopt(document, opened.fds)
        assert successor == opened
        with box.entered():
            knob = Path("/proc/sys/net/ipv6/conf/lan/disable_ipv6")
            assert knob.read_text().strip() == "1"
            successor.close()
            assert knob.read_text().strip() == "0"
        assert "clsact" not in box.run("tc", "qdisc", "show", "dev", "lan").stdout

    def test_filters_of_others_stay(self, box: Host) -> None:
        box.run("tc", "qdisc", "add", "dev", "lan", "clsact")
        opened = afpacket(box)
        assert "bpf" in box.run("tc", "filter", "show", "dev", "lan", "ingress").stdout
        with box.entered():
            opened.close()
        assert "clsact" in box.run("tc", "qdisc", "show", "dev", "lan").stdout
        assert box.run("tc", "filter", "show", "dev", "lan", "ingress").stdout == ""

    def test_a_port_whose_interface_went_away_closes(self, box: Host) -> None:
        opened = afpacket(box)
        box.ip("link", "del", "lan")
        with box.entered():
            opened.close()

    def test_watcher(self, box: Host) -> None:
        with box.entered():
            watcher = LinkWatcher(["lan", "absent"])

        def events(wanted: int) -> list[LinkEvent]:
            found: list[LinkEvent] = []
            end = time.monotonic() + 5
            while len(found) < wanted and time.monotonic() < end:
                select.select([watcher], [], [], 0.2)
                found += watcher.read()
            return found

        assert sorted(events(2), key=lambda event: event.interface) == [LinkEvent("absent", "gone"), LinkEvent("lan", "up")]
        box.ip("link", "set", "lan", "down")
        assert events(1) == [LinkEvent("lan", "down")]
        box.ip("link", "set", "lan", "up")
        assert events(1)[-1] == LinkEvent("lan", "up")
        box.peer.ip("link", "set", "eth0", "down")  # type: ignore[attr-defined]
        assert events(1) == [LinkEvent("lan", "down")]
        box.ip("link", "set", "lan", "down")
        box.ip("link", "set", "lan", "name", "other")
        assert events(1) == [LinkEvent("lan", "gone")]
        watcher.watch("other")
        assert events(1) == [LinkEvent("other", "down")]
        watcher.unwatch("lan")
        box.ip("link", "del", "other")
        assert events(1) == [LinkEvent("other", "gone")]
        watcher.close()

    @needs_tun
    def test_tcp_through_a_tap(self, box: Host) -> None:
        """The box itself is the client; its traffic crosses the tap with the kernel's offloads, both ways."""
        peer = box.peer  # type: ignore[attr-defined]
        with box.entered():
            tap = TOOLS["tap"].open({"name": "wan", "interface": "cvtap0", "options": {}})
            lan = TOOLS["afpacket"].open({"name": "lan", "interface": "lan", "options": {}})
        one, other = Driver(tap), Driver(lan)
        box.address("cvtap0", "10.6.0.2/24", "fd06::2/64")
        data = os.urandom(1 << 20) * 8
        try:
            with forwarding(one, other):
                for address, family in (("10.6.0.1", socket.AF_INET), ("fd06::1", socket.AF_INET6)):
                    box.run("ping", "-c", "1", "-W", "3", address)
                    with peer.entered():
                        listener = socket.create_server((address, 5001), family=family)
                    with listener, box.entered(), socket.create_connection((address, 5001), timeout=10) as up:
                        down = listener.accept()[0]
                        for source, sink in ((up, down), (down, up)):
                            assert self.carry(source, sink, data) == data
                        down.close()
            assert one.shared.created > 500 and other.shared.created > 500
            assert one.drops() == {} == other.drops()
            box.ip("link", "set", "cvtap0", "down")
            assert one.send(bytes(60)) == reasons()["port-down"]
            box.ip("link", "del", "cvtap0")
            due = one.ffi.new("uint64_t *")
            one.receive()
            assert one.lib.driver_wait(one.handle, due) == -1, "a deleted tap is readable for ever"
        finally:
            with box.entered():
                tap.close()
                lan.close()

    @staticmethod
    def carry(source: socket.socket, sink: socket.socket, data: bytes) -> bytes:
        source.setblocking(False)
        sink.setblocking(False)
        sent, received = 0, bytearray()
        while len(received) < len(data):
            writable = [source] if sent < len(data) else []
            readable, ready, _ = select.select([sink], writable, [], 10)
            assert readable or ready, f"nothing moves after {len(received)} bytes"
            if ready:
                sent += source.send(data[sent : sent + (1 << 20)])
            if readable:
                received += sink.recv(1 << 20)
        return bytes(received)

    @needs_tun
    def test_a_tap_goes_away_with_its_port(self, box: Host) -> None:
        with box.entered():
            tap = TOOLS["tap"].open({"name": "wan", "interface": "cvtap0", "options": {}})
            with pytest.raises(CovenError) as caught:
                TOOLS["tap"].open({"name": "wan", "interface": "cvtap0", "options": {}})
            assert caught.value.code == "port.in-use"
            tap.close()
        assert box.ip("link", "show", "cvtap0", check=False).returncode != 0


@needs_tun
def test_without_root_it_says_what_is_needed() -> None:
    """In a child of another user, since the test itself may be root."""
    if os.geteuid() != 0:
        pytest.skip("needs root to become nobody")
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgid(65534)
            os.setuid(65534)
            TOOLS["tap"].open({"name": "lan", "interface": "cvnever", "options": {}})
        except CovenError as error:
            os.write(write, str(error).encode())
        finally:
            os._exit(0)
    os.close(write)
    os.waitpid(pid, 0)
    text = os.read(read, 65536).decode()
    os.close(read)
    assert "[platform.no-privilege]" in text and "sudo" in text, text or struct.pack("=I", 0)
