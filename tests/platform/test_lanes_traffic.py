"""Several workers on one wire: each flow meets one worker in both directions, in order, and no packet is there twice."""

from __future__ import annotations

import os
import random
import select
import signal
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lib import plans
from tests.lib.net import Host, Network, unavailable
from tests.lib.platform import BIN, PlatformUnderTest
from tests.platform import components as sources

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(bool(unavailable()), reason=str(unavailable())),
    pytest.mark.skipif(not (BIN / "coven-worker").exists(), reason="the programs are not built"),
]

INSTANCE = "fw-1"
FLOWS = 61  # no multiple of the workers: going round among them would not be by flow
ROUNDS = 20  # frames of each flow and direction
WORKERS = 3
MARK = b"lanes-in"
SILENCE_S = 10.0  # until what is missing counts as lost


class Flow:
    """A UDP flow between two random ends, of IPv4 or IPv6, some in a VLAN."""

    def __init__(self, number: int, chance: random.Random, *, tags: bool) -> None:
        self.number = number
        self.family = socket.AF_INET6 if number % 3 == 0 else socket.AF_INET
        self.tag = b"\x81\x00" + struct.pack(">H", 7) if tags and number % 5 == 0 else b""
        size = 16 if self.family == socket.AF_INET6 else 4
        first = 0x20 if size == 16 else 10
        self.ends = [
            (bytes([first]) + chance.randbytes(size - 1), chance.randrange(1024, 65536)) for _ in range(2)
        ]

    def frame(self, direction: int, number: int) -> bytes:
        """Give packet `number` of a direction."""
        (source, source_port), (target, target_port) = self.ends if direction == 0 else self.ends[::-1]
        data = MARK + struct.pack(">HHI", self.number, direction, number)
        datagram = struct.pack(">HHHH", source_port, target_port, 8 + len(data), 0) + data
        ethernet = bytes.fromhex("020000000001020000000002")
        if self.family == socket.AF_INET6:
            label = 1 + self.number if direction == 0 else 0  # hosts label as they like
            head = struct.pack(">IHBB", 6 << 28 | label, len(datagram), 17, 64) + source + target
            return ethernet + self.tag + b"\x86\xdd" + head + datagram
        head = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(datagram), 1, 0, 64, 17, 0) + source + target
        words = sum(struct.unpack(">10H", head))
        words = (words & 0xFFFF) + (words >> 16)
        checksum = ~((words & 0xFFFF) + (words >> 16)) & 0xFFFF
        return ethernet + self.tag + b"\x08\x00" + head[:10] + struct.pack(">H", checksum) + head[12:] + datagram


class End:
    """An interface beside the appliance: sends frames, and takes down those with our mark."""

    def __init__(self, host: Host, interface: str) -> None:
        with host.entered():
            self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
            self.socket.setsockopt(263, 23, 1)  # PACKET_IGNORE_OUTGOING
            self.socket.setsockopt(socket.SOL_SOCKET, 33, 16 << 20)  # SO_RCVBUFFORCE
            self.socket.bind((interface, 3))
        self.socket.setblocking(False)
        self.seen: list[tuple[int, int, int]] = []  # flow, direction, number

    def take(self) -> None:
        while True:
            try:
                data = self.socket.recv(2048)
            except BlockingIOError:
                return
            at = data.find(MARK)
            if at >= 0:
                self.seen.append(struct.unpack_from(">HHI", data, at + len(MARK)))


def veth(network: Network, box: Host, platform: PlatformUnderTest) -> tuple[list[dict[str, Any]], Callable[[], list[End]]]:
    hosts = []
    for name in ("lan", "wan"):
        host = network.host(f"at-{name}")
        network.veth(host, "eth0", box, name, up=False)
        for end, link in ((host, "eth0"), (box, name)):
            end.run("sh", "-c", f"echo 1 > /proc/sys/net/ipv6/conf/{link}/disable_ipv6")
            end.ip("link", "set", link, "up")
        hosts.append(host)
    ports = [plans.afpacket_port("lan", "lan"), plans.afpacket_port("wan", "wan")]
    return ports, lambda: [End(host, "eth0") for host in hosts]


def auto(network: Network, box: Host, platform: PlatformUnderTest) -> tuple[list[dict[str, Any]], Callable[[], list[End]]]:
    ports, ends = veth(network, box, platform)
    return [{**port, "tool": "auto"} for port in ports], ends


def tap(network: Network, box: Host, platform: PlatformUnderTest) -> tuple[list[dict[str, Any]], Callable[[], list[End]]]:
    box.run("sh", "-c", "echo 1 > /proc/sys/net/ipv6/conf/default/disable_ipv6")
    ports = [{**plans.afpacket_port(name, f"cv{name}"), "tool": "tap"} for name in ("lan", "wan")]
    return ports, lambda: [End(box, "cvlan"), End(box, "cvwan")]


class Stage:
    """An appliance of several workers with an end at each side."""

    def __init__(self, platform: PlatformUnderTest, box: Host, ends: list[End], *, tags: bool) -> None:
        """tags: the kernel divides what a raw socket sends to a tap before it has seen the tag, so not there."""
        self.platform, self.box, self.ends = platform, box, ends
        self.sent = [0, 0]
        chance = random.Random(72)
        self.flows = [Flow(number, chance, tags=tags) for number in range(FLOWS)]

    def exchange(self, rounds: int = ROUNDS) -> None:
        """Send packets of all flows in both directions, and wait for them at the other side."""
        for end in self.ends:
            end.take()
            end.seen.clear()
        base = self.sent[0]
        for number in range(base, base + rounds):
            for flow in self.flows:
                for direction, end in enumerate(self.ends):
                    end.socket.send(flow.frame(direction, number))
                    self.sent[direction] += flow.number == 0
            wanted = (number - base + 1) * FLOWS  # no more than one round on the way: rings of components are small
            for end in self.ends:
                while len(end.seen) < wanted and select.select([end.socket], [], [], SILENCE_S)[0]:
                    end.take()
                assert len(end.seen) == wanted

    def in_order(self, rounds: int = ROUNDS) -> None:
        """All packets have come, once, each flow in its order."""
        for direction, end in enumerate(reversed(self.ends)):
            for flow in self.flows:
                numbers = [n for which, way, n in end.seen if (which, way) == (flow.number, direction)]
                last = self.sent[0]
                assert numbers == list(range(last - rounds, last)), (flow.number, direction)

    def books(self) -> dict[str, Any]:
        taken = self.platform.request("snapshot", instance=INSTANCE)
        shares = [share["accounting"] for share in taken["workers"]]
        assert all(share["balanced"] for share in shares), shares
        assert taken["accounting"]["balanced"]
        for key in ("rx", "tx", "drops", "held"):
            assert taken["accounting"][key] == sum(share[key] for share in shares)
        return taken

    def flows_of_workers(self) -> list[int]:
        rows = self.platform.request("metrics", instance=INSTANCE)["components"]["one"]["replicas"]
        return [int(row["flows"]) for row in rows]


Make = Callable[..., Stage]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    with Network() as network:
        box = network.host("box")
        with PlatformUnderTest(tmp_path, host=box) as platform:

            def made(kind: Callable[..., Any], isolation: str) -> Stage:
                root = platform.package("demo", {"one/one.c": sources.COUNT_C})
                what = {"state": sources.COUNT_STATE, "metrics": sources.COUNT_METRICS}
                one = plans.component("one", root, "c", isolation_asked=isolation, isolation=isolation, **what)
                ports, ends = kind(network, box, platform)
                plan = plans.chain(INSTANCE, root, [one], ports, back=True)
                plan["worker"]["cores"] = [None] * WORKERS
                platform.deploy(plan)
                return Stage(platform, box, ends(), tags=kind is not tap)

            yield made
            platform.execute("terminate", INSTANCE, force=True)
        assert platform.leftovers() == []


@pytest.mark.parametrize(
    ("kind", "isolation"), [(veth, "fused"), (veth, "copy"), (auto, "fused"), (tap, "fused"), (tap, "copy")]
)
def test_each_flow_meets_one_worker_in_both_directions(make: Make, kind: Callable[..., Any], isolation: str) -> None:
    stage = make(kind, isolation)
    stage.exchange()
    stage.in_order()
    taken = stage.books()
    assert taken["drops"] == []
    assert taken["accounting"]["rx"] == taken["accounting"]["tx"] == 2 * FLOWS * ROUNDS
    # a flow that two workers saw would count twice
    flows = stage.flows_of_workers()
    assert sum(flows) == FLOWS, flows
    assert min(flows) > 0, flows
    assert [share["accounting"]["rx"] for share in taken["workers"]] == [2 * ROUNDS * n for n in flows]


def test_flows_stay_with_their_worker_when_links_and_workers_come_back(make: Make) -> None:
    stage = make(veth, "fused")
    platform = stage.platform
    stage.exchange(2)
    stage.in_order(2)
    flows = stage.flows_of_workers()
    for name in ("lan", "wan"):
        stage.box.ip("link", "set", name, "down")
        platform.wait_for(lambda name=name: platform.instance(INSTANCE)["health"] != "ok", f"{name} is up")
        stage.box.ip("link", "set", name, "up")
    platform.wait_for(lambda: platform.instance(INSTANCE)["health"] == "ok", "the ports are down")
    stage.exchange(2)
    stage.in_order(2)
    assert stage.flows_of_workers() == flows
    lost = platform.instance(INSTANCE)["workers"][1]["pid"]
    platform.kill(lost)

    def back() -> bool:
        found = platform.instance(INSTANCE)["workers"][1]
        return found["state"] == "running" and found["pid"] != lost

    platform.wait_for(back, "worker 1 does not come back")
    stage.exchange(2)
    stage.in_order(2)
    stage.books()
    assert stage.flows_of_workers() == flows


def test_only_the_flows_of_a_dead_worker_wait(make: Make) -> None:
    stage = make(veth, "fused")
    platform = stage.platform
    stage.exchange(1)
    before = platform.instance(INSTANCE)["workers"]
    share = stage.flows_of_workers()
    os.kill(before[2]["pid"], signal.SIGSTOP)  # it stands still, as a dead one would until it is started again
    try:
        for flow in stage.flows:
            stage.ends[0].socket.send(flow.frame(0, 1))
        come: set[int] = set()
        stage.ends[1].seen.clear()
        wanted = FLOWS - share[2]
        while len(come) < wanted and select.select([stage.ends[1].socket], [], [], SILENCE_S)[0]:
            stage.ends[1].take()
            come |= {which for which, _, number in stage.ends[1].seen if number == 1}
        assert len(come) == wanted
    finally:
        os.kill(before[2]["pid"], signal.SIGCONT)
    # those of the other one waited in its receive ring
    while len(come) < FLOWS and select.select([stage.ends[1].socket], [], [], SILENCE_S)[0]:
        stage.ends[1].take()
        come |= {which for which, _, number in stage.ends[1].seen if number == 1}
    assert len(come) == FLOWS
    stage.platform.wait_for(lambda: stage.books()["accounting"]["tx"] == 3 * FLOWS, "not all were sent")


def test_nothing_is_there_twice_while_ports_are_opened(make: Make) -> None:
    """Sockets of several workers are opened one after the other under traffic; each packet still has one worker."""
    stage = make(veth, "fused")
    source, target = stage.ends
    done = threading.Event()
    sent = [0]

    def send() -> None:
        while not done.is_set():
            for flow in stage.flows:
                source.socket.send(flow.frame(0, sent[0]))
            sent[0] += 1
            done.wait(0.0005)

    def arrive(rounds: int) -> None:
        start = sent[0]
        while target.seen[-1:] == [] or target.seen[-1][2] < start + rounds:
            assert select.select([target.socket], [], [], SILENCE_S)[0], "nothing comes any more"
            target.take()

    sender = threading.Thread(target=send)
    sender.start()
    try:
        for _ in range(3):
            arrive(5)
            stage.platform.execute("restart", INSTANCE)
        arrive(5)
    finally:
        done.set()
        sender.join()
    for flow in stage.flows:
        numbers = [number for which, _, number in target.seen if which == flow.number]
        assert numbers == sorted(set(numbers)), flow.number
    stage.books()
