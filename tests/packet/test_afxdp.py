"""The NIC tool afxdp on real veth pairs: a real worker between two hosts, the packet pool lent to the kernel."""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from coven.errors import CovenError
from coven.network import auto, ethtool, tool_of, xdp
from coven.network.interfaces import Interface
from tests.lib import builds
from tests.lib.dataplane import Rig, Snapshot, WorkerDied, c_component, chain_plan, played
from tests.lib.net import Host, Network, ip, unavailable
from tests.lib.parts import NULL
from tests.lib.ports import build as build_driver

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(bool(unavailable() or xdp.unavailable()), reason=str(unavailable() or xdp.unavailable())),
]

CLIENT4, SERVER4, CLIENT6, SERVER6 = "10.7.0.1", "10.7.0.2", "fd07::1", "fd07::2"
BUFFERS, LENT = 2048, 768  # three quarters of the pool, for two ports
RX_MISSED = 5
ETHER_TYPE = 0x88B5  # for experiments: no host answers it
POINTS = ("worker-after-rx", "worker-intent-valid", "worker-intent-half", "worker-intent-applied", "worker-free-list",
          "worker-before-tx", "worker-nic-placed", "worker-nic-shown", "worker-after-tx")  # fmt: skip


def afxdp(name: str, interface: str, **options: Any) -> dict[str, Any]:
    defaults = {"queues": 0, "zero_copy": "auto", "busy_poll": False}
    return {"name": name, "tool": "afxdp", "interface": interface, "options": {**defaults, **options}, "mtu": 1500}


def pool(fd: int, buffers: int = 64) -> xdp.Pool:
    return xdp.Pool(fd, 4096, buffers, 4096)


class Wire:
    """client - (lan) this namespace (wan) - server."""

    def __init__(self, net: Network) -> None:
        self.net = net
        self.client, self.server = net.host("client"), net.host("server")
        self.before = 0
        self.lan, self.wan = net.name("lan"), net.name("wan")
        net.veth(self.client, "eth0", None, self.lan)
        net.veth(self.server, "eth0", None, self.wan)

    def plan(self, components: list[dict[str, Any]] | None = None, *, back: bool = False, **options: Any) -> dict[str, Any]:
        ports = [afxdp("lan", self.lan, **options), afxdp("wan", self.wan, **options)]
        plan = chain_plan(ports, components or [], buffers=BUFFERS)
        plan["pool"]["buffer_bytes"] = 4096
        if back:
            plan["paths"].append({"name": "back", "ingress": "wan", "spi": 0})
            plan["ports"][1] |= {"path": 1, "first": {"port": 0}}
        return plan

    def addresses(self) -> None:
        self.client.address("eth0", f"{CLIENT4}/24", f"{CLIENT6}/64")
        self.server.address("eth0", f"{SERVER4}/24", f"{SERVER6}/64")

    def quiet(self) -> None:
        """Let the hosts' kernels say nothing by themselves; return when their links are up, and count from here."""
        for host in (self.client, self.server):
            host.run("sysctl", "-qw", "net.ipv6.conf.eth0.disable_ipv6=1")
            wait_up(host)
        self.before = self.came()

    def came(self) -> int:
        """Packets that came in at lan."""
        return int(Path(f"/sys/class/net/{self.lan}/statistics/rx_packets").read_text())


@pytest.fixture
def wire() -> Iterator[Wire]:
    with Network() as net:
        yield Wire(net)


def wait_up(host: Host) -> None:
    """Return when eth0 may send: a little after its carrier came."""
    end = time.monotonic() + 20
    while json.loads(host.ip("-j", "link", "show", "eth0").stdout)[0]["operstate"] != "UP":
        assert time.monotonic() < end
        threading.Event().wait(0.01)


def frame(number: int, size: int = 64) -> bytes:
    return b"\2\0\0\0\0\1" + b"\2\0\0\0\0\2" + struct.pack("!HI", ETHER_TYPE, number) + bytes(size - 18)


def raw(host: Host, protocol: int) -> socket.socket:
    with host.entered():
        made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        made.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE
        made.bind(("eth0", protocol))
    return made


def numbers(sink: socket.socket) -> list[int]:
    """Everything that came."""
    found = []
    sink.setblocking(False)
    with contextlib.suppress(BlockingIOError):
        while True:
            found.append(int.from_bytes(sink.recv(2048)[14:18], "big"))
    return found


def arrived(wire: Wire, taken: Snapshot) -> bool:
    """Whether the worker has taken or missed all that came in at the interface."""
    return taken.rx + taken.port(0, RX_MISSED) == wire.came() - wire.before


def check_buffers(taken: Snapshot) -> None:
    """Every buffer is somewhere, and with the NICs is what is lent: nothing leaked there."""
    assert taken.held == 0
    assert taken.free + taken.nic == BUFFERS, taken
    assert 2 * (LENT - 31) <= taken.nic <= 2 * LENT, taken


# ---- traffic -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", [SERVER4, SERVER6])
def test_tcp_through_components_arrives_whole(wire: Wire, address: str, tmp_path: Path) -> None:
    size = 30 << 20
    data = os.urandom(1 << 20) * (size >> 20)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    parts = [c_component("one", NULL), c_component("two", NULL, "shared"), c_component("three", NULL, "copy")]
    with Rig(wire.plan(parts, back=True), tmp_path) as rig:
        assert "XDP in the driver" in rig.ports[0].note and "copy mode" in rig.ports[0].note
        rig.start()
        wire.addresses()
        digest = hashlib.sha256()

        def serve() -> None:
            with listener, listener.accept()[0] as connection:
                while chunk := connection.recv(1 << 20):
                    digest.update(chunk)

        with wire.server.entered():
            listener = socket.create_server((address, 5001), family=family)
        listener.settimeout(30)
        thread = threading.Thread(target=serve)
        thread.start()
        with wire.client.entered(), socket.socket(family) as sender:
            sender.settimeout(30)
            sender.connect((address, 5001))
            sender.sendall(data)
            sender.shutdown(socket.SHUT_WR)
            thread.join(30)
        assert digest.digest() == hashlib.sha256(data).digest()
        wire.client.run("ping", "-c", "2", "-i", "0.05", "-s", "4000", "-W", "3", address)  # fragments
        taken = rig.wait(lambda s: s.held == 0)
        assert taken.rx > size / 1500 and taken.component(2, 0) > size / 1500
        check_buffers(taken)


def checksum_of(data: bytes) -> int:
    words = struct.unpack(f"!{len(data) // 2}H", data + bytes(len(data) % 2)) if len(data) % 2 == 0 else ()
    if not words:
        words = struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0")
    total = sum(words)
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def is_whole(packet: bytes) -> bool:
    """Verify the checksum of a TCP or UDP packet over IPv4 or IPv6 without options."""
    if packet[12:14] == b"\x08\0":
        end = 14 + int.from_bytes(packet[16:18], "big")
        addresses, protocol, l4 = packet[26:34], packet[23], packet[34:end]
    else:
        end = 54 + int.from_bytes(packet[18:20], "big")
        addresses, protocol, l4 = packet[22:54], packet[20], packet[54:end]
    return checksum_of(addresses + struct.pack("!HH", protocol, len(l4)) + l4) == 0xFFFF


@pytest.mark.parametrize("address", [SERVER4, SERVER6])
@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM], ids=["udp", "tcp"])
def test_partial_checksums_are_completed(wire: Wire, kind: int, address: str, tmp_path: Path) -> None:
    """The client's kernel leaves them to a NIC that a veth does not have; XDP gets them so."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with Rig(wire.plan(back=True), tmp_path) as rig:
        rig.start()
        wire.addresses()
        wire.client.run("ping", "-c", "1", "-W", "3", address)  # the neighbour is known then
        before, after = raw(wire.client, 3), raw(wire.server, 3)
        with before, after, wire.client.entered(), socket.socket(family, kind) as sender:
            before.settimeout(5)
            after.settimeout(5)
            sender.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                sender.connect((address, 5003))
            if kind == socket.SOCK_DGRAM:
                sender.send(b"odd length!")
            protocol = 17 if kind == socket.SOCK_DGRAM else 6

            def first(source: socket.socket) -> bytes:
                while True:
                    packet = source.recv(2048)
                    at = 23 if packet[12:14] == b"\x08\0" else 20
                    if packet[12:14] in (b"\x08\0", b"\x86\xdd") and packet[at] == protocol:
                        return packet

            sent, received = first(before), first(after)
        assert not is_whole(sent), "the client's kernel completed it: nothing was tested"
        assert is_whole(received)
        assert len(received) == len(sent)
        rig.wait(lambda s: s.held == 0)


def test_a_whole_checksum_and_a_wrong_one_stay_as_they_are() -> None:
    module = build_driver()
    ffi, lib = module.ffi, module.lib
    head = bytes(12) + b"\x08\0" + bytes.fromhex("4500002000000000401100000a0000010a000002")
    for field in (0x0000, 0x1234, 0xFFFF):
        packet = ffi.new("uint8_t[]", head + struct.pack("!HHHH", 7, 9, 12, field) + b"abcd")
        lib.coven_partial_complete(packet, 46)
        assert bytes(packet)[40:42] == struct.pack("!H", field)
    pseudo = checksum_of(bytes.fromhex("0a0000010a000002") + struct.pack("!HH", 17, 12))
    packet = ffi.new("uint8_t[]", head + struct.pack("!HHHH", 7, 9, 12, pseudo) + b"abcd")
    lib.coven_partial_complete(packet, 46)
    assert is_whole(bytes(packet)[:46])


@pytest.mark.parametrize("tag", [b"\x81\0", b"\x88\xa8"], ids=["C-tag", "S-tag"])
def test_a_tag_that_the_sender_moved_aside_is_put_back(wire: Wire, tag: bytes, tmp_path: Path) -> None:
    """A bridge before the port does what a VLAN interface does: the tag travels beside the frame."""
    with Network() as net:
        switch = net.host("switch")
        source = net.host("source")
        lan = net.name("lan")
        net.veth(source, "eth0", switch, "left")
        net.veth(switch, "right", None, lan)
        switch.ip("link", "add", "br0", "type", "bridge", "mcast_snooping", "0")
        for name in ("left", "right"):
            switch.ip("link", "set", name, "master", "br0")
        switch.ip("link", "set", "br0", "up")
        plan, frame_head = wire.plan(), b"\xff" * 6 + b"\2\0\0\0\0\2"
        plan["ports"][0]["interface"] = lan
        with Rig(plan, tmp_path) as rig, raw(source, 0) as sender, raw(wire.server, 3) as sink:
            sink.setsockopt(263, 8, 1)  # PACKET_AUXDATA: the server's kernel moves the tag aside again
            sink.settimeout(0.2)
            rig.start()
            packet, end = b"", time.monotonic() + 20
            while packet[12:14] != struct.pack("!H", ETHER_TYPE):  # the bridge forwards when it has seen the carrier
                assert time.monotonic() < end
                with contextlib.suppress(TimeoutError):
                    sender.send(frame_head + tag + struct.pack("!HH", 0x6007, ETHER_TYPE) + b"tagged".ljust(50))
                    packet, auxiliary, _, _ = sink.recvmsg(2048, 256)
            status, _, _, _, _, tci, tpid = struct.unpack("=IIIHHHH", auxiliary[0][2])
            assert (tci, struct.pack("!H", tpid), status & 0x10) == (0x6007, tag, 0x10)
            assert packet[14:20] == b"tagged"
            rig.wait(lambda s: s.held == 0)


def test_several_queues(wire: Wire, tmp_path: Path) -> None:
    """Packets of all queues get through; the number of queues asked for is set, and put back at the end."""
    with Network() as net:
        source, lan = net.host("source"), net.name("lan")
        ip("link", "add", lan, "numrxqueues", "4", "numtxqueues", "4", "type", "veth", "peer", "name", "eth0", "numrxqueues", "4",
           "numtxqueues", "4", "netns", source.namespace)  # fmt: skip
        net.links.append(lan)
        ip("link", "set", lan, "up")
        source.ip("link", "set", "eth0", "up")
        found = ethtool.channels(lan)
        assert found is not None
        start = found.receiving
        wanted = 3 if start != 3 else 2
        source.run("ethtool", "-L", "eth0", "tx", "2")
        plan = wire.plan()
        wire.quiet()
        plan["ports"][0] = {**plan["ports"][0], "interface": lan, "options": {"queues": wanted, "zero_copy": "no", "busy_poll": False}}
        with Rig(plan, tmp_path) as rig:
            assert f"{wanted} queues" in rig.ports[0].note
            assert len(rig.ports[0].fds) == wanted
            now = ethtool.channels(lan)
            assert now is not None and now.receiving == wanted
            rig.start()
            with raw(source, 0) as sender, raw(wire.server, ETHER_TYPE) as sink:
                wait_up(source)
                wait_up(wire.server)
                for number in range(500):
                    sender.send(frame(number))
                    if number % 100 == 99:  # a queue has fewer buffers than these
                        rig.wait(lambda s, n=number: s.tx > n)  # type: ignore[misc]
                assert set(numbers(sink)) >= set(range(500))
        again = ethtool.channels(lan)
        assert again is not None and again.receiving == start


def test_a_full_ring_is_missed_not_lost_silently(wire: Wire, tmp_path: Path) -> None:
    wire.quiet()
    with Rig(wire.plan(), tmp_path) as rig, raw(wire.client, 0) as sender, raw(wire.server, ETHER_TYPE) as sink:
        rig.start()
        sender.send(frame(0))
        rig.wait(lambda s: s.rx == 1)
        assert rig.worker is not None
        os.kill(rig.worker.pid, signal.SIGSTOP)
        for number in range(1, 3 * LENT):
            sender.send(frame(number))
        os.kill(rig.worker.pid, signal.SIGCONT)
        taken = rig.wait(lambda s: arrived(wire, s) and s.held == 0)
        assert LENT - 31 <= taken.rx <= LENT + 1
        assert taken.port(0, RX_MISSED) > LENT
        assert sorted(numbers(sink)) == list(range(taken.rx))
        check_buffers(taken)


def test_what_a_component_has_no_room_for_is_refused(wire: Wire, tmp_path: Path) -> None:
    """A component that takes nothing: what is too much is dropped at the port, and its buffers go round."""
    wire.quiet()
    plan = wire.plan([played("asleep", ring_size=128)])
    with Rig(plan, tmp_path) as rig, raw(wire.client, 0) as sender:
        rig.start()
        for number in range(6 * BUFFERS):
            sender.send(frame(number))
        taken = rig.wait(lambda s: arrived(wire, s))
        assert taken.drops.keys() == {("component asleep", "ring-full")}
        assert taken.held == taken.rx - taken.dropped == 128, "nothing is refused while there is room"
        assert taken.free + taken.held + taken.nic == BUFFERS
        assert taken.nic <= 2 * LENT


# ---- deaths --------------------------------------------------------------------------------------------


def survives(wire: Wire, tmp_path: Path, point: str, passes: tuple[int, ...]) -> None:
    wire.quiet()
    bin_dir = builds.executables(*builds.FAULTS)
    plan = wire.plan([c_component("fused", NULL), c_component("copied", NULL, "copy")])
    with (
        Rig(plan, tmp_path, bin_dir=bin_dir, env={"COVEN_FAULT": f"{point}:{passes[0]}"}) as rig,
        raw(wire.client, 0) as sender,
        raw(wire.server, ETHER_TYPE) as sink,
    ):
        number, seen = 0, []
        with contextlib.suppress(WorkerDied):
            rig.start()
        for n in (*passes[1:], None):
            assert rig.worker is not None
            pidfd = os.pidfd_open(rig.worker.pid)
            while number < 20_000 and not _readable(pidfd):
                sender.send(frame(number))
                number += 1
            os.close(pidfd)
            assert rig.wait_worker_death() == -9
            with contextlib.suppress(WorkerDied):
                rig.restart_worker(env={"COVEN_FAULT": f"{point}:{n}"} if n else None)
        rig.wait(lambda s: arrived(wire, s) and s.held == 0)
        for _ in range(2 * BUFFERS):  # each buffer goes round
            sender.send(frame(number))
            number += 1
        end = rig.wait(lambda s: arrived(wire, s) and s.held == 0)
        seen = numbers(sink)
        assert len(seen) == len(set(seen)), "a packet came twice"
        uncertain = end.drop("tx-uncertain")
        assert end.tx <= len(seen) <= end.tx + uncertain, end
        assert set(reason for _, reason in end.drops) <= {"worker-crash", "tx-uncertain", "component-crash", "ring-full"}, end
        assert uncertain <= 32 * len(passes)
        check_buffers(end)
        assert rig.stop() == 0


def _readable(fd: int) -> bool:
    import select

    return bool(select.select([fd], [], [], 0)[0])


@pytest.mark.parametrize("n", [1, 3, 40])
@pytest.mark.parametrize("point", POINTS)
def test_the_worker_dies_at_a_fault_point(wire: Wire, point: str, n: int, tmp_path: Path) -> None:
    survives(wire, tmp_path, point, (n,))


@pytest.mark.parametrize("point", POINTS)
def test_its_successors_die_there_too(wire: Wire, point: str, tmp_path: Path) -> None:
    survives(wire, tmp_path, point, (10, 1, 2, 5))


def test_what_an_earlier_opening_had_is_free(wire: Wire, tmp_path: Path) -> None:
    """A port that is opened anew has new rings; its buffers come back, also those of a worker that was killed."""
    wire.quiet()
    with Rig(wire.plan(), tmp_path) as rig, raw(wire.client, 0) as sender:
        rig.start()
        for number in range(100):
            sender.send(frame(number))
        check_buffers(rig.wait(lambda s: s.tx == 100))
        rig.kill_worker()
        assert rig.memory().nic > 0
        for index in (0, 1):
            rig.reopen(index)
        rig.restart_worker()
        for number in range(3 * BUFFERS):
            sender.send(frame(number))
        check_buffers(rig.wait(lambda s: arrived_again(s) and s.held == 0))


def arrived_again(taken: Snapshot) -> bool:
    return taken.rx + taken.port(0, RX_MISSED) >= 100 + 3 * BUFFERS


# ---- links ---------------------------------------------------------------------------------------------


def test_a_link_that_goes_down_and_comes_back(wire: Wire, tmp_path: Path) -> None:
    wire.quiet()
    with Rig(wire.plan(), tmp_path) as rig, raw(wire.client, 0) as sender, raw(wire.server, ETHER_TYPE) as sink:
        rig.start()
        sender.send(frame(0))
        rig.wait(lambda s: s.tx == 1)
        ip("link", "set", wire.wan, "down")
        for number in range(1, 101):
            sender.send(frame(number))
        taken = rig.wait(lambda s: s.rx == 101 and s.held == 0)
        assert taken.drops == {("port wan", "port-down"): 100}
        ip("link", "set", wire.wan, "up")
        for number in range(101, 201):
            sender.send(frame(number))
        wait_up(wire.server)
        taken = rig.wait(lambda s: s.rx == 201 and s.held == 0)
        seen = numbers(sink)
        assert seen == sorted(set(seen))
        assert not set(seen) & set(range(1, 101)), "what was counted as dropped was sent"
        assert len(seen) <= taken.tx == 201 - taken.dropped
        check_buffers(taken)


def test_an_interface_that_is_removed(wire: Wire, tmp_path: Path) -> None:
    """The rest of the function goes on, and the worker does not spin."""
    wire.quiet()
    with Rig(wire.plan(), tmp_path) as rig, raw(wire.client, 0) as sender:
        rig.start()
        ip("link", "del", wire.wan)
        for number in range(100):
            sender.send(frame(number))
        taken = rig.wait(lambda s: s.rx == 100 and s.held == 0)
        assert taken.drops == {("port wan", "port-down"): 100}
        before = taken.worker(0)
        threading.Event().wait(0.5)  # how often it turns in a time can be seen in no other way
        assert rig.snapshot().worker(0) - before < 3000
        ip("link", "del", wire.lan)
        rig.wait(lambda s: s.held == 0)
        assert rig.stop() == 0


# ---- opening -------------------------------------------------------------------------------------------


@contextlib.contextmanager
def memory() -> Iterator[int]:
    fd = os.memfd_create("pool")
    try:
        os.ftruncate(fd, 4096 + 64 * 4096)
        yield fd
    finally:
        os.close(fd)


def state_of(interface: str) -> dict[str, Any]:
    link = json.loads(ip("-j", "-d", "link", "show", interface).stdout)[0]
    setting = Path(f"/proc/sys/net/ipv6/conf/{interface}/disable_ipv6").read_text().strip()
    return {"xdp": link.get("xdp"), "promiscuity": link["promiscuity"], "ipv6": setting, "ethtool": ethtool.hold(interface)}


def test_everything_is_put_back(wire: Wire) -> None:
    before = state_of(wire.lan)
    with memory() as fd:
        opened = tool_of({"tool": "afxdp"}).open({**afxdp("lan", wire.lan), "pool": pool(fd)})
        now = state_of(wire.lan)
        assert now["xdp"] and now["promiscuity"] == before["promiscuity"] + 1 and now["ipv6"] == "1"
        opened.close()
    assert state_of(wire.lan) == before


def test_the_program_goes_with_its_holder(wire: Wire) -> None:
    """kill -9 of whoever opened the port takes the program off: nobody is left to do it."""
    script = (
        "import os, signal, sys\n"
        "from coven.network import tool_of, xdp\n"
        "fd = os.memfd_create('pool'); os.ftruncate(fd, 4096 + 64 * 4096)\n"
        f"port = {afxdp('lan', wire.lan)!r} | {{'pool': xdp.Pool(fd, 4096, 64, 4096)}}\n"
        "kept = tool_of(port).open(port)\n"
        "print('open', flush=True)\n"
        "signal.pause()\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "open\n"
        assert state_of(wire.lan)["xdp"]
        holder.kill()
    assert state_of(wire.lan)["xdp"] is None


def refused(port: dict[str, Any]) -> CovenError:
    with memory() as fd, pytest.raises(CovenError) as caught:
        tool_of({"tool": "afxdp"}).open({"pool": pool(fd), **port})
    return caught.value


def test_a_program_of_somebody_else_is_left_alone(wire: Wire) -> None:
    queues = xdp.make_map(1)
    program = xdp.load_program(queues, vlan_on=None)
    link = xdp.attach(program, socket.if_nametoindex(wire.lan), native=True)
    try:
        before = state_of(wire.lan)
        error = refused(afxdp("lan", wire.lan))
        assert (error.code, "XDP program" in error.message) == ("port.in-use", True)
        assert error.hint is not None and "xdp off" in error.hint
        assert state_of(wire.lan) == before
    finally:
        for fd in (link, program, queues):
            os.close(fd)


def test_what_does_not_fit_is_refused_and_leaves_nothing(wire: Wire) -> None:
    before = state_of(wire.lan)
    with memory() as fd:
        error = refused({**afxdp("lan", wire.lan), "pool": xdp.Pool(fd, 4096, 32, 8192)})
        assert error.code == "port.unsupported" and "8192" in error.message
    error = refused(afxdp("lan", wire.lan, zero_copy="yes"))
    assert error.code == "port.unsupported"
    assert refused(afxdp("lan", wire.lan, queues=8)).code == "port.unsupported"
    assert refused({**afxdp("lan", wire.lan), "workers": 2}).code == "port.unsupported"
    assert state_of(wire.lan) == before
    ip("link", "set", wire.lan, "mtu", "9000")
    error = refused(afxdp("lan", wire.lan))
    assert error.code == "port.unsupported" and "MTU" in error.message


def test_without_privilege(wire: Wire) -> None:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            libc = ctypes.CDLL(None)
            libc.prctl(8, 0, 0, 0, 0)  # PR_SET_KEEPCAPS off
            os.setresuid(65534, 65534, 65534)
            code = 0 if refused(afxdp("lan", wire.lan)).code == "platform.no-privilege" else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


# ---- auto ----------------------------------------------------------------------------------------------


def chosen(wire: Wire, **more: Any) -> tuple[str, str]:
    with memory() as fd:
        port = {"name": "lan", "tool": "auto", "interface": wire.lan, "options": {}, "pool": pool(fd), **more}
        opened = tool_of(port).open(port)
        opened.close()
    return opened.tool, opened.note


def test_auto_leaves_the_other_end_of_a_veth_as_it_is(wire: Wire) -> None:
    before = wire.client.run("ethtool", "-k", "eth0").stdout
    tool, why = chosen(wire)
    assert (tool, "virtual (veth)" in why) == ("afpacket", True)
    assert wire.client.run("ethtool", "-k", "eth0").stdout == before


def test_auto_on_a_driver_that_runs_xdp(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    """A veth stands for the NIC that a test machine does not have."""
    monkeypatch.setattr(auto, "against_afxdp", lambda *_: None)
    assert chosen(wire)[0] == "afxdp"
    before = state_of(wire.lan)
    with memory() as fd:
        tool, why = chosen(wire, pool=xdp.Pool(fd, 4096, 32, 8192))
    assert (tool, "8192 bytes" in why) == ("afpacket", True)
    queues = xdp.make_map(1)
    program = xdp.load_program(queues, vlan_on=None)
    link = xdp.attach(program, socket.if_nametoindex(wire.lan), native=True)
    try:
        tool, why = chosen(wire)
        assert (tool, "XDP program already" in why) == ("afpacket", True)
    finally:
        for fd in (link, program, queues):
            os.close(fd)
    assert state_of(wire.lan) == before


def test_what_speaks_against_afxdp() -> None:
    nic = Interface(2, "eth1", 1500, True, False, True, None, None, (), ())
    assert auto.against_afxdp(nic, 1) is None
    assert "several workers" in str(auto.against_afxdp(nic, 2))
    assert "virtual (veth)" in str(auto.against_afxdp(replace(nic, kind="veth"), 1))
