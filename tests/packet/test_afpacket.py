"""The NIC tool afpacket on real veth pairs, offloads at the kernel's defaults."""

from __future__ import annotations

import contextlib
import fcntl
import json
import mmap
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from coven.network import OpenedPort, tool_of
from tests.e2e.vlan import Relay, add_vlan
from tests.lib.net import Host, Network, unavailable
from tests.lib.ports import BOOK_ONLY, Driver, build, fork_forwarder, forwarding, reasons
from tests.lib.segments import build as build_super
from tests.lib.segments import expected

pytestmark = [pytest.mark.root, pytest.mark.skipif(bool(unavailable()), reason=str(unavailable()))]

CLIENT4, SERVER4 = "10.7.0.1", "10.7.0.2"
CLIENT6, SERVER6 = "fd07::1", "fd07::2"
TRANSFER_BYTES = 20_000_000


def open_port(box: Host, interface: str) -> OpenedPort:
    with box.entered():
        return tool_of({"tool": "auto", "interface": interface}).open({"name": interface, "interface": interface})


class Bench:
    """client - (lan) box (wan) - server, with a driver on each side of the box."""

    def __init__(self, net: Network, mtu: int = 1500, buffer_bytes: int = 4096) -> None:
        self.net = net
        self.relays: list[Relay] = []
        self.client, self.server, self.box = net.host("client"), net.host("server"), net.host("box")
        for host, name in ((self.client, "lan"), (self.server, "wan")):
            net.veth(host, "eth0", self.box, name, mtu=mtu, up=False)
            self.box.ip("link", "set", name, "up")
        self.opened = [open_port(self.box, name) for name in ("lan", "wan")]
        self.lan, self.wan = (Driver(opened, buffer_bytes=buffer_bytes) for opened in self.opened)
        for host in (self.client, self.server):  # only now, so that the hosts' counters begin with the ports'
            host.ip("link", "set", "eth0", "up")
        self.client.address("eth0", f"{CLIENT4}/24", f"{CLIENT6}/64")
        self.server.address("eth0", f"{SERVER4}/24", f"{SERVER6}/64")

    def close(self) -> None:
        for relay in self.relays:
            relay.close()
        for driver in (self.lan, self.wan):
            driver.close()
        for opened in self.opened:
            with self.box.entered():
                opened.close()

    def drain(self) -> None:
        """Carry over what the client has sent and its kernel has still to hand on. The server must be up: a packet sent to a
        link without carrier is thrown away by the kernel, which says that it went."""
        end = time.monotonic() + 20
        while self.client.counters("eth0")["tx_packets"] > self.lan.shared.frames:
            assert time.monotonic() < end
            self.lan.lib.driver_pump(self.lan.handle, self.wan.handle, 32)

    def check(self) -> None:
        """Everything that came went out or has a reason; the kernel lost nothing before us."""
        while self.lan.lib.driver_pump(self.lan.handle, self.wan.handle, 32):
            pass
        while self.wan.lib.driver_pump(self.wan.handle, self.lan.handle, 32):
            pass
        for one, other in ((self.lan, self.wan), (self.wan, self.lan)):
            drops = sum(one.shared.rx_drops)
            assert one.shared.frames + one.shared.created == one.shared.received + drops
            assert one.shared.received == other.shared.sent + sum(other.shared.tx_drops)
            assert one.lib.driver_missed(one.handle) == 0

    def vlan(self, *tags: int) -> None:
        """Put both hosts on a VLAN, with addresses of its own."""
        for host, last in ((self.client, 1), (self.server, 2)):
            relay = add_vlan(host, "eth0", "tagged", tags, f"10.8.0.{last}/24", f"fd08::{last}/64")
            if relay:
                self.relays.append(relay)
            if len(tags) > 1:  # two tags do not fit below the MTU of the veth otherwise
                host.ip("link", "set", "tagged", "mtu", "1496")


@pytest.fixture
def bench() -> Iterator[Bench]:
    with Network() as net:
        made = Bench(net)
        try:
            yield made
        finally:
            made.close()


def transfer(bench: Bench, address: str, port: int = 5001, size: int = TRANSFER_BYTES) -> None:
    """Send random bytes by TCP from client to server, all at once, and compare them."""
    data = os.urandom(1 << 20) * (size >> 20)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    received = bytearray()
    with bench.server.entered():
        listener = socket.create_server((address, port), family=family)

    def serve() -> None:
        listener.settimeout(20)
        with listener, listener.accept()[0] as connection:
            connection.settimeout(20)
            while chunk := connection.recv(1 << 20):
                received.extend(chunk)

    thread = threading.Thread(target=serve)
    thread.start()
    with bench.client.entered(), socket.socket(family) as sender:
        sender.settimeout(20)
        sender.connect((address, port))
        sender.sendall(data)
        sender.shutdown(socket.SHUT_WR)
        thread.join(30)
    assert bytes(received) == data


@pytest.mark.parametrize("address", [SERVER4, SERVER6])
def test_ping_and_neighbour_discovery(bench: Bench, address: str) -> None:
    with forwarding(bench.lan, bench.wan):
        bench.client.run("ping", "-c", "3", "-i", "0.05", "-W", "3", address)
        bench.client.run("ping", "-c", "1", "-s", "4000", "-W", "3", address)  # fragments
    bench.check()


@pytest.mark.parametrize("address", [SERVER4, SERVER6])
def test_tcp_super_frames_arrive_whole(bench: Bench, address: str) -> None:
    with forwarding(bench.lan, bench.wan):
        transfer(bench, address)
    assert bench.lan.shared.created > 1000, "the client's kernel handed over no super-frames: nothing was tested"
    assert bench.lan.drops() == {} == bench.wan.drops()
    bench.client.ip("link", "set", "eth0", "down")
    bench.drain()
    bench.check()
    sent = bench.client.counters("eth0")
    assert (sent["tx_packets"], sent["tx_bytes"]) == (bench.lan.shared.frames, bench.lan.shared.bytes)
    assert bench.server.counters("eth0")["rx_packets"] == bench.wan.shared.sent


@pytest.mark.parametrize("tags", [(7,), (20, 7)])
@pytest.mark.parametrize("address", ["10.8.0.2", "fd08::2"])
def test_tcp_super_frames_with_vlan_tags(bench: Bench, address: str, tags: tuple[int, ...]) -> None:
    bench.vlan(*tags)
    with forwarding(bench.lan, bench.wan):
        transfer(bench, address)
    assert bench.lan.shared.created > 1000
    assert bench.lan.drops() == {} == bench.wan.drops()
    bench.check()


@pytest.mark.parametrize("address", [SERVER4, SERVER6, "10.8.0.2", "fd08::2"])
def test_udp_super_frames(bench: Bench, address: str) -> None:
    """UDP_SEGMENT: the kernel hands over one frame for many datagrams."""
    if address.startswith(("10.8", "fd08")):
        bench.vlan(7)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with bench.server.entered():
        receiver = socket.socket(family, socket.SOCK_DGRAM)
        receiver.setsockopt(socket.SOL_SOCKET, 33, 8 << 20)  # SO_RCVBUFFORCE
        receiver.bind((address, 5002))
    receiver.settimeout(5)
    sent = []
    with bench.client.entered():
        sender = socket.socket(family, socket.SOCK_DGRAM)
    with forwarding(bench.lan, bench.wan), receiver, sender:
        bench.client.run("ping", "-c", "1", "-W", "3", address)  # the queue for an unknown neighbour is short
        sender.connect((address, 5002))
        sender.setsockopt(socket.SOL_UDP if hasattr(socket, "SOL_UDP") else 17, 103, 1000)  # UDP_SEGMENT
        for n in range(20):
            pieces = [struct.pack("!II", n, i) + os.urandom(992) for i in range(40)] + [b"short tail"]
            sender.send(b"".join(pieces))
            sent += pieces
        received = [receiver.recv(2000) for _ in sent]
    assert received == sent
    assert bench.lan.shared.created >= 20 * 40
    bench.check()


@pytest.mark.parametrize("tags", [(), ((0x8100, 7),), ((0x88A8, 9), (0x8100, 0xE007))])
@pytest.mark.parametrize(("version", "protocol"), [(4, 6), (6, 6), (4, 17), (6, 17)])
def test_super_frames_with_tags_keep_them(
    bench: Bench, version: int, protocol: int, tags: tuple[tuple[int, int], ...]
) -> None:
    """The box's kernel moves the outer tag aside. Super-frames larger and smaller than a slot of the ring."""
    sent, wanted = [], []
    with bench.client.entered(), socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as source:
        source.setsockopt(263, 15, 1)  # PACKET_VNET_HDR
        source.bind(("eth0", 0))
        for size in (1700, 3000, 30_000, 60_000):
            frame = build_super(version=version, protocol=protocol, payload=os.urandom(size), gso_size=1400, inner_tags=tags, ip_id=size)
            sent.append(frame)
            header = frame.csum_start + (20 if protocol == 6 else 8)
            wanted += expected(frame, version=version, protocol=protocol, l3=14 + 4 * len(tags), header=header)
            source.send(frame.vnet() + frame.data)
    received = [packet for packet in bench.lan.receive_until(len(wanted)) if packet[:6] == sent[0].data[:6]]
    assert received == wanted
    assert bench.lan.drops() == {}
    assert bench.lan.shared.created >= len(wanted) - len(sent)


def test_tunnelled_super_frames_are_refused(bench: Bench) -> None:
    """The kernel tells their inner type only; split by it they would carry wrong outer headers."""
    frame = build_super(version=4, protocol=6, payload=bytes(3000), gso_size=1000)
    outer = build_super(version=4, protocol=17, payload=bytes(8) + frame.data, gso_size=1000)
    shift = len(outer.data) - len(frame.data)
    with bench.client.entered(), socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as source:
        source.setsockopt(263, 15, 1)
        source.bind(("eth0", 0))
        vnet = struct.pack("=BBHHHH", 1, 1, 0, 1000, frame.csum_start + shift, 16)
        with contextlib.suppress(OSError):  # newer kernels refuse to send it at all
            source.send(vnet + outer.data)
            bench.lan.receive_until(1, 20)
            assert bench.lan.drops() == {"offload-malformed": 1}


def test_sctp_checksums_are_completed(bench: Bench) -> None:
    """SCTP asks for a CRC32c at the place of a checksum."""
    try:
        with bench.server.entered():
            listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 132)
    except OSError as error:
        pytest.skip(f"no SCTP in this kernel: {error.strerror}")
    with listener, bench.client.entered(), forwarding(bench.lan, bench.wan):
        listener.bind((SERVER4, 5003))
        listener.listen()
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM, 132) as sender:
            sender.settimeout(5)
            sender.connect((SERVER4, 5003))
    bench.check()


def test_jumbo_frames_up_to_the_buffer(bench: Bench) -> None:
    with Network() as net:
        big = Bench(net, mtu=9000, buffer_bytes=16384)
        try:
            with forwarding(big.lan, big.wan):
                big.client.run("ping", "-c", "3", "-i", "0.05", "-M", "do", "-s", "8972", "-W", "3", SERVER4)
                transfer(big, SERVER4)
            assert big.lan.drops() == {} == big.wan.drops()
            big.check()
        finally:
            big.close()


def test_jumbo_frames_beyond_the_buffer_are_oversize(bench: Bench) -> None:
    with Network() as net:
        big = Bench(net, mtu=9000)  # buffers of 4096 bytes
        try:
            with forwarding(big.lan, big.wan):
                lost = big.client.run("ping", "-c", "2", "-i", "0.05", "-M", "do", "-s", "8972", "-W", "1", SERVER4, check=False)
            assert lost.returncode == 1
            assert big.lan.drops()["oversize"] == 2
            big.check()
        finally:
            big.close()


@contextlib.contextmanager
def raw_socket(host: Host, interface: str = "eth0") -> Iterator[socket.socket]:
    with host.entered():
        made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        made.bind((interface, 3))
    made.settimeout(3)
    with made:
        yield made


def ethernet(number: int, size: int) -> bytes:
    return b"\xff" * 6 + b"\x02\0\0\0\0\x07" + b"\x88\xb5" + struct.pack("!I", number) + bytes(size - 18)


def numbers_of(sink: socket.socket, n: int) -> list[int]:
    """Take n of our packets from a socket; give their numbers."""
    found = []
    while len(found) < n:
        try:
            packet = sink.recv(65536)
        except TimeoutError:
            break
        if packet[12:14] == b"\x88\xb5" and packet[6:12] == b"\x02\0\0\0\0\x07":
            found.append(struct.unpack_from("!I", packet, 14)[0])
    return found


def test_runts_and_strange_frames_pass_unchanged(bench: Bench) -> None:
    frames = [
        b"\xff" * 6 + b"\x02\0\0\0\0\x07" + b"\x88\xb5",  # a header and nothing else
        b"\xff" * 6 + b"\x02\0\0\0\0\x07" + b"\x08\x00" + b"\x45\x00",  # IPv4 cut short
        b"\xff" * 6 + b"\x02\0\0\0\0\x07" + b"\x86\xdd" + b"\x60" + bytes(39),
        b"\xff" * 6 + b"\x02\0\0\0\0\x07" + b"\x00\x10" + b"\xaa\xaa\x03",  # IEEE 802.3 length
    ]
    with raw_socket(bench.client) as source, raw_socket(bench.server) as sink, forwarding(bench.lan, bench.wan):
        for frame in frames:
            source.send(frame)
        received = []
        while len(received) < len(frames):
            packet = sink.recv(65536)
            if packet[6:12] == b"\x02\0\0\0\0\x07":
                received.append(packet)
    assert received == frames
    bench.check()


def test_an_interface_that_goes_down_and_up(bench: Bench) -> None:
    """No error ends it, the loop does not spin on the socket's error, and packets flow again."""
    with raw_socket(bench.client) as source, raw_socket(bench.server) as sink:
        with forwarding(bench.lan, bench.wan):
            source.send(ethernet(1, 60))
            assert numbers_of(sink, 1) == [1]
            bench.box.ip("link", "set", "wan", "down")
            sleeps = bench.lan.shared.sleeps
            for n in range(10):
                source.send(ethernet(100 + n, 60))
            for _ in range(200):
                if bench.wan.drops().get("port-down", 0) >= 10:
                    break
                threading.Event().wait(0.01)
            assert bench.wan.drops()["port-down"] == 10
            threading.Event().wait(0.3)
            assert bench.lan.shared.sleeps - sleeps < 200, "poll returned at once again and again"
            bench.box.ip("link", "set", "wan", "up")
            with contextlib.suppress(TimeoutError):  # what the socket said when its interface went down
                sink.recv(1)
            source.send(ethernet(2, 60))
            assert numbers_of(sink, 1) == [2]
        bench.check()


def test_an_interface_that_is_deleted(bench: Bench) -> None:
    bench.box.ip("link", "del", "wan")
    with raw_socket(bench.client) as source, forwarding(bench.lan, bench.wan):
        sleeps = bench.lan.shared.sleeps
        source.send(ethernet(1, 60))
        for _ in range(200):
            if bench.wan.drops().get("port-down"):
                break
            threading.Event().wait(0.01)
        threading.Event().wait(0.2)
        assert set(bench.wan.drops()) == {"port-down"}
        assert bench.lan.shared.sleeps - sleeps < 150


def test_what_the_kernel_loses_is_rx_missed_and_frames_wait_without_buffers(bench: Bench) -> None:
    slots = bench.opened[0].plan_fields["ring_frames"]
    with raw_socket(bench.client) as source:
        assert bench.lan.receive(0) == []  # no buffer is free: everything stays in the ring
        for n in range(slots + 50):
            source.send(ethernet(n, 100))
    frames = [frame for _ in range(2 * slots // 32) for frame in bench.lan.receive()]
    numbers = [struct.unpack_from("!I", frame, 14)[0] for frame in frames if frame[12:14] == b"\x88\xb5"]
    missed = bench.lan.lib.driver_missed(bench.lan.handle)
    assert numbers == list(range(len(numbers)))
    assert len(numbers) + missed >= slots + 50 > len(numbers)
    assert bench.lan.lib.driver_missed(bench.lan.handle) == missed
    with raw_socket(bench.client) as source:
        source.send(ethernet(7777, 100))
        assert any(struct.unpack_from("!I", frame, 14)[0] == 7777 for frame in bench.lan.receive_until(1))


def test_packets_too_large_for_the_interface_are_mtu_exceeded(bench: Bench) -> None:
    assert bench.wan.send(ethernet(1, 1600)) == reasons()["mtu-exceeded"]
    assert bench.wan.send(b"\xff" * 6) == reasons()["tx-error"]
    assert bench.wan.send(ethernet(1, 60), cut=5) == reasons()["truncated"]


@pytest.mark.skipif(not Path("/dev/net/tun").exists(), reason="needs /dev/net/tun")
def test_what_the_interface_has_no_room_for_is_tx_full() -> None:
    """A tap whose other end nobody reads, without a queue before it: the kernel says so for each frame."""
    with Network() as net:
        box = net.host("box")
        with box.entered():
            unread = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
            request = struct.pack("16sH22x", b"full", 0x0002 | 0x1000)  # IFF_TAP | IFF_NO_PI
            fcntl.ioctl(unread, 0x400454CA, request)  # TUNSETIFF
        try:
            box.ip("link", "set", "full", "txqueuelen", "8", "up")
            box.run("tc", "qdisc", "replace", "dev", "full", "root", "noqueue")
            opened = open_port(box, "full")
            port = Driver(opened)
            results = [port.send(ethernet(n, 60)) for n in range(40)]
            room = results.count(0xFF)
            assert 0 < room < 40
            assert set(results[room:]) == {reasons()["tx-full"]}
            assert port.drops() == {"tx-full": 40 - room}
            os.read(unread, 2048)
            assert port.send(ethernet(99, 60)) == 0xFF
            port.close()
            with box.entered():
                opened.close()
        finally:
            os.close(unread)


def test_a_super_frame_goes_on_in_later_bursts_and_in_another_process(bench: Bench) -> None:
    """Three buffers at a time; between two bursts the port is given up as if its worker had been killed."""
    with bench.client.entered():
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    bench.client.ip("neigh", "add", SERVER4, "lladdr", "02:00:00:00:00:09", "dev", "eth0")
    with sender:
        sender.connect((SERVER4, 9))
        sender.setsockopt(17, 103, 1000)
        pieces = [struct.pack("!I", n) * 250 for n in range(50)]
        sender.send(b"".join(pieces[:25]))
        sender.send(b"".join(pieces[25:]))
    payloads: list[bytes] = []
    driver = bench.lan
    for n in range(60):
        if n % 2:
            driver.receive(3, book=False)  # killed before the burst was booked: it is read again
        payloads += [packet[42:] for packet in driver.receive(3) if packet[23:24] == b"\x11" and packet[36:38] == b"\0\x09"]
        if n % 3 == 0:
            driver = Driver(bench.opened[0], shared=bench.lan.memory)
    assert payloads == pieces
    assert bench.lan.shared.created >= 48


@pytest.mark.parametrize("popped", [False, True])
def test_what_a_dead_process_had_not_given_back_is_given_back(bench: Bench, popped: bool) -> None:
    """Killed after each booking, before or within the release; more often than the ring has slots."""
    slots = bench.opened[0].plan_fields["ring_frames"]
    with bench.client.entered():
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    bench.client.ip("neigh", "add", SERVER4, "lladdr", "02:00:00:00:00:09", "dev", "eth0")
    queue = socket.socket(fileno=os.dup(bench.opened[0].fds[0]))
    with sender, queue:
        sender.connect((SERVER4, 9))
        sender.setsockopt(17, 103, 960)
        bench.client.run("sysctl", "-q", "net.ipv6.conf.eth0.disable_ipv6=1")  # nothing else is to come
        while bench.lan.receive():
            pass
        driver = bench.lan
        for n in range(slots // 8 + 40):
            sent = [[struct.pack("!III", n, m, i) * 80 for i in range(3)] for m in range(8)]
            for pieces in sent:
                sender.send(b"".join(pieces))
            received = []
            for _ in range(8):
                received.append([packet[42:] for packet in driver.receive(3, book=BOOK_ONLY)])
                if popped:
                    queue.recv(16)  # the copy was taken, the slot was not cleared
                driver.close()
                driver = Driver(bench.opened[0], shared=bench.lan.memory)
            assert received == sent
    assert bench.lan.drops() == {}
    assert driver.lib.driver_missed(driver.handle) == 0
    driver.close()


def test_kills_lose_little_and_repeat_nothing(bench: Bench) -> None:
    """kill -9 of the forwarding process under super-frames and small frames: no slot leaks, nothing comes twice."""
    size = build().ffi.sizeof("struct driver_shared")
    memories = [mmap.mmap(-1, size) for _ in range(2)]
    with raw_socket(bench.client) as source, raw_socket(bench.server) as sink, bench.client.entered():
        sink.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        bench.client.ip("neigh", "add", SERVER4, "lladdr", "02:00:00:00:00:09", "dev", "eth0")
        sender.connect((SERVER4, 9))
        sender.setsockopt(17, 103, 1000)
        number = 0
        for _ in range(30):
            pid = fork_forwarder(*bench.opened, *memories)
            for _ in range(60):
                source.send(ethernet(number, 100))
                number += 1
                sender.send(os.urandom(20_000))
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        last = [Driver(opened, shared=memory) for opened, memory in zip(bench.opened, memories, strict=True)]
        with forwarding(*last):
            source.send(ethernet(999_999, 100))
            found = numbers_of(sink, number + 1)
        sender.close()
    assert found[-1] == 999_999
    assert len(set(found)) == len(found), "a frame was forwarded twice"
    assert found == sorted(found)
    assert len(found) > number - 30 * 40, "more was lost than what a killed process held"
    assert last[0].drops() == {}, "the queue of super-frames and the ring fell out of step"
    for driver in last:
        driver.close()


def test_the_host_is_shut_out_and_let_in_again() -> None:
    with Network() as net:
        client, box = net.host("client"), net.host("box")
        net.veth(client, "eth0", box, "lan")
        client.address("eth0", "10.9.0.1/24")
        knob = Path("/proc/sys/net/ipv6/conf/lan/disable_ipv6")
        opened = open_port(box, "lan")
        with box.entered():
            assert knob.read_text().strip() == "1"
        box.ip("addr", "add", "10.9.0.2/24", "dev", "lan")  # as if the host had another interface with it
        assert client.run("ping", "-c", "1", "-W", "1", "10.9.0.2", check=False).returncode != 0
        with box.entered():
            opened.close()
            assert knob.read_text().strip() == "0"
        assert client.run("ping", "-c", "1", "-W", "3", "10.9.0.2", check=False).returncode == 0
        assert json.loads(box.ip("-j", "-d", "link", "show", "lan").stdout)[0]["promiscuity"] == 0
