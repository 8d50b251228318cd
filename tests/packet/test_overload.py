"""A component that is too slow: what it has no room for is dropped at once, others lose nothing, control traffic passes."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest

from coven.dataplane.core import lib
from tests.lib.dataplane import Rig, Snapshot, c_component, chain_plan, gen, pcap, played
from tests.lib.parts import NULL, counter

N = 5000
RING = 128
RATE = 1_000_000  # a port with a rate is as a wire: it does not wait
RESERVE = RING // 8


def slow(isolation: str = "copy", name: str = "slow", **more: Any) -> dict[str, Any]:
    """A component that the test plays, and that takes nothing unless the test says so."""
    return played(name, isolation, ring_size=RING, copy_buffers=4 * RING, hold={"packets": 4 * RING, "ms": 600_000}, **more)


def fused_in(taken: Snapshot, component: int = 0) -> int:
    return taken.component(component, lib.COVEN_COMPONENT_IN_PKTS)


@pytest.mark.parametrize("isolation", ["shared", "copy"])
def test_nothing_is_spent_on_packets_without_room(isolation: str, tmp_path: Path) -> None:
    """Neither the flow table nor the component before the full one sees a packet that cannot pass."""
    parts = [counter("fused"), slow(isolation)]
    with Rig(chain_plan([gen("in", N, rate=RATE, flows=N), gen("out")], parts), tmp_path) as rig:
        rig.start()
        end = rig.wait(lambda s: s.rx == N)
        assert end.drops == {("component slow", "ring-full"): N - RING}
        assert (end.held, fused_in(end)) == (RING, RING)
        assert end.worker(lib.COVEN_WORKER_FLOWS_CREATED) <= RING  # a gauge: it may not have been looked at yet
        rig.detach(0)
        assert rig.snapshot().check().free == 2048


def test_room_is_used_as_it_comes(tmp_path: Path) -> None:
    """Each packet that the component gives back makes room for exactly one."""
    parts = [c_component("first", NULL), slow()]
    with Rig(chain_plan([gen("in", 2**40, rate=RATE), gen("out")], parts), tmp_path) as rig:
        rig.start()
        stand_in = rig.stand_in("slow")
        rig.wait(lambda s: s.held == RING)
        for turn in range(1, 6):
            stand_in.give(stand_in.take())
            taken = rig.wait(lambda s, t=turn: s.tx == 32 * t and s.held == RING)  # type: ignore[misc]
            assert fused_in(taken) == RING + 32 * turn
            assert set(taken.drops) == {("component slow", "ring-full")}
        rig.pause(0)


def test_what_is_under_way_to_the_full_component_counts(tmp_path: Path) -> None:
    """Behind another component with a process of its own: not more comes in than will fit there in the end."""
    parts = [played("first", ring_size=1024), slow()]
    with Rig(chain_plan([gen("in", N, rate=RATE), gen("out")], parts), tmp_path) as rig:
        rig.start()
        first = rig.stand_in("first")
        rig.wait(lambda s: s.rx == N)
        given = 0
        while given < RING:
            entries = first.take()
            first.give(entries)
            given += len(entries)
        end = rig.wait(lambda s: s.held_by_component[1] == RING)
        assert end.drops == {("component slow", "ring-full"): N - RING}
        assert fused_in(end) == RING


def test_a_component_that_is_down_costs_nothing_either(tmp_path: Path) -> None:
    parts = [c_component("first", NULL), slow()]
    with Rig(chain_plan([gen("in", N, rate=RATE), gen("out")], parts), tmp_path) as rig:
        rig.start(attach=False)
        end = rig.wait(lambda s: s.rx == N)
        assert end.drops == {("component slow", "component-down"): N}
        assert fused_in(end) == 0


def test_a_way_around_is_used(tmp_path: Path) -> None:
    """Not every way leads through the full component, so packets come in, and only those that choose it are dropped."""
    parts = [played("choose", outputs=2, ring_size=1024), slow()]
    ways = {0: [{"port": 1}, {"hop": 1}]}
    with Rig(chain_plan([gen("in", 600, rate=RATE), gen("out")], parts, next_of=ways), tmp_path) as rig:
        rig.start()
        choose = rig.stand_in("choose")
        for turn in range(20):
            entries = choose.take(30)
            while len(entries) < 30:
                entries += choose.take(30 - len(entries))
            for entry in entries:
                entry.output = turn % 2
            choose.give(entries)
        end = rig.wait(lambda s: s.tx + s.dropped + s.held_by_component[1] == 600)
        assert (end.tx, end.drops) == (300, {("component slow", "ring-full"): 300 - RING})


def two_paths() -> dict[str, Any]:
    """`a` through the slow component, `b` through a fused one; they share a worker and a pool."""
    plan = chain_plan([gen("a", 40 * N, rate=RATE), gen("out")], [slow(), c_component("fast", NULL)], buffers=512)
    plan["ports"].append({**gen("b", N, rate=RATE), "path": 1, "first": {"hop": 1}})
    plan["hops"] = [{"component": 0, "path": 0, "next": [{"port": 1}]}, {"component": 1, "path": 1, "next": [{"port": 1}]}]
    plan["paths"].append({"name": "other", "ingress": "b", "spi": 0})
    return plan


def test_a_full_path_takes_nothing_from_another(tmp_path: Path) -> None:
    with Rig(two_paths(), tmp_path) as rig:
        rig.start()
        end = rig.wait(lambda s: s.port(2, lib.COVEN_PORT_RX_PKTS) == N and s.port(0, lib.COVEN_PORT_RX_PKTS) == 40 * N)
        assert end.tx == N
        assert end.drops == {("component slow", "ring-full"): 40 * N - RING}


# ---- priority ----------------------------------------------------------------------------------------


def ethernet(ether_type: int, payload: bytes, tags: bytes = b"") -> bytes:
    return (bytes((2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2)) + tags + struct.pack(">H", ether_type) + payload).ljust(60, b"\0")


def ipv4(protocol: int, payload: bytes) -> bytes:
    head = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), 0, 0, 64, protocol, 0, bytes(4), bytes(4))
    return ethernet(0x0800, head + payload)


def ipv6(protocol: int, payload: bytes, tags: bytes = b"") -> bytes:
    head = struct.pack(">IHBB16s16s", 6 << 28, len(payload), protocol, 255, bytes(16), bytes(16))
    return ethernet(0x86DD, head + payload, tags)


def ports(source: int, target: int) -> bytes:
    return struct.pack(">HH", source, target) + bytes(16)


ARP = ethernet(0x0806, bytes(28))
SOLICITATION = ipv6(58, bytes((135, 0)) + bytes(22))
BFD = ipv4(17, ports(49152, 3784))
VLAN = bytes((0x81, 0, 0, 7))
ORDINARY = ipv4(17, ports(1000, 2000))


def paced(path: Path, frames: list[bytes]) -> Path:
    """A capture whose packets all came at one moment: played at its pace it does not wait for room."""
    head = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262144, 1)
    path.write_bytes(head + b"".join(struct.pack("<IIII", 1, 0, len(f), len(f)) + f for f in frames))
    return path


def held_of(frames: list[bytes], priority: list[str], folder: Path) -> Snapshot:
    """Send frames at a component that takes nothing."""
    source = pcap("in", paced(folder / "in.pcap", frames), paced=True)
    with Rig(chain_plan([source, gen("out")], [slow()], priority=priority), folder) as rig:
        rig.start()
        end = rig.wait(lambda s: s.rx == len(frames))
        assert end.drop("ring-full") == len(frames) - end.held
        return end


KINDS = {
    "arp": ("arp", ARP, True), "arp-tagged": ("arp", ethernet(0x0806, bytes(28), VLAN), True),
    "nd": ("nd", SOLICITATION, True), "nd-tagged": ("nd", ipv6(58, bytes((136, 0)) + bytes(22), VLAN), True),
    "nd-no-echo": ("nd", ipv6(58, bytes((128, 0)) + bytes(22)), False),
    "bfd": ("bfd", BFD, True), "bfd-multihop": ("bfd", ipv6(17, ports(49152, 4784)), True),
    "bfd-not-tcp": ("bfd", ipv4(6, ports(49152, 3784)), False),
    "udp-source": ("udp/53", ipv4(17, ports(53, 4000)), True), "udp-other": ("udp/53", ORDINARY, False),
    "tcp": ("tcp/179", ipv4(6, ports(4000, 179)), True), "ospf": ("ip/89", ipv4(89, bytes(24)), True),
    "lldp": ("ether/0x88cc", ethernet(0x88CC, bytes(20)), True), "none": ("arp", ORDINARY, False),
    "runt": ("nd", b"\1\2\3", False), "cut": ("bfd", BFD[:34], False),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_what_has_priority(kind: str, tmp_path: Path) -> None:
    """There is room for it where there is none for others."""
    name, frame, has_priority = KINDS[kind]
    end = held_of([ORDINARY] * (RING + 5) + [frame], [name], tmp_path)
    assert end.held == RING - RESERVE + has_priority


def test_there_is_an_end_to_priority(tmp_path: Path) -> None:
    """Its room is bounded, is not taken by others, and others get the room that was not kept."""
    frames = [ORDINARY, ARP] * 10 + [ORDINARY] * 2 * RING + [ARP, SOLICITATION, BFD] * RING
    end = held_of(frames, ["arp", "nd", "bfd"], tmp_path)
    assert end.held == RING
    assert end.drop("ring-full") == len(frames) - RING


def test_priority_holds_beyond_the_first_component(tmp_path: Path) -> None:
    """The full component is no gate, so ordinary packets come up to it, and are dropped there."""
    source = pcap("in", paced(tmp_path / "in.pcap", [ORDINARY] * 400 + [ARP] * 8), paced=True)
    parts = [played("choose", outputs=2, ring_size=1024), slow()]
    ways = {0: [{"port": 1}, {"hop": 1}]}
    plan = chain_plan([source, gen("out")], parts, next_of=ways, priority=["arp"])
    with Rig(plan, tmp_path) as rig:
        rig.start()
        choose = rig.stand_in("choose")
        moved = 0
        while moved < 408:
            entries = choose.take()
            moved += len(entries)
            for entry in entries:
                entry.output = 1
            choose.give(entries)
        end = rig.wait(lambda s: s.held_by_component[0] == 0)
        assert end.held == RING - RESERVE + 8
        assert end.drops == {("component slow", "ring-full"): 408 - end.held}
