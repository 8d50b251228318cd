"""Control traffic between two hosts while the component on its way is overrun: on veth pairs, by the tool afpacket."""

from __future__ import annotations

import contextlib
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.lib.dataplane import Rig, chain_plan
from tests.lib.net import Network, ip, unavailable
from tests.packet.test_afxdp import raw, wait_up
from tests.packet.test_overload import ARP, BFD, ORDINARY, RESERVE, RING, VLAN, ethernet, slow

pytestmark = [pytest.mark.root, pytest.mark.skipif(bool(unavailable()), reason=str(unavailable()))]

TAGGED_ARP = ethernet(0x0806, bytes(28), VLAN)
CONTROL = [ARP, BFD, TAGGED_ARP, BFD]
FLOOD, ROUNDS, TAKEN = 250, 6, 32
EACH = FLOOD + len(CONTROL)
PRIORITY = ["arp", "bfd"]


class Wire:
    """client - (lan) this namespace (wan) - server; nobody says anything by himself."""

    def __init__(self, net: Network) -> None:
        self.lan, self.wan = net.name("lan"), net.name("wan")
        client, server = net.host("client"), net.host("server")
        for host, name in ((client, self.lan), (server, self.wan)):
            net.veth(host, "eth0", None, name, up=False)
            host.run("sysctl", "-qw", "net.ipv6.conf.eth0.disable_ipv6=1")
            Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1")
            ip("link", "set", name, "up")
        self.hosts = (client, server)

    def up(self) -> None:
        """Only now, so that the ports' counters begin with the wire's."""
        for host in self.hosts:
            host.ip("link", "set", "eth0", "up")
        for host in self.hosts:
            wait_up(host)
        self.source, self.sink = raw(self.hosts[0], 0), raw(self.hosts[1], 3)

    def plan(self, priority: list[str]) -> dict[str, Any]:
        rows = [
            {"name": name, "tool": "afpacket", "interface": interface, "options": {}, "mtu": 1500}
            for name, interface in (("lan", self.lan), ("wan", self.wan))
        ]
        return chain_plan(rows, [slow("shared")], priority=priority)

    def arrived(self) -> list[bytes]:
        """Give what has come to the server since the last call."""
        found = []
        with contextlib.suppress(BlockingIOError):
            while True:
                found.append(self.sink.recv(2048, socket.MSG_DONTWAIT))
        return found


@pytest.fixture
def wire() -> Iterator[Wire]:
    with Network() as net:
        made = Wire(net)
        yield made
        made.source.close()
        made.sink.close()


def run(wire: Wire, priority: list[str], folder: Path) -> tuple[Counter[bool], int]:
    """Overrun the component for some rounds; give how many ordinary (False) and control packets came through, and drops."""
    came = 0
    through: Counter[bool] = Counter()
    with Rig(wire.plan(priority), folder) as rig:
        rig.start()
        stand_in = rig.stand_in("slow")
        wire.up()
        for number in range(1, ROUNDS + 1):
            for frame in [ORDINARY] * FLOOD + CONTROL:
                wire.source.send(frame)
            rig.wait(lambda s, n=number: s.rx == n * EACH)  # type: ignore[misc]
            stand_in.give(stand_in.take(TAKEN))
            came += TAKEN
            rig.wait(lambda s, came=came: s.tx == came)  # type: ignore[misc]
        left = rig.snapshot().held
        while left:
            entries = stand_in.take()
            stand_in.give(entries)
            left -= len(entries)
            came += len(entries)
        rig.wait(lambda s: s.tx == came)
        end = rig.snapshot().check()
        assert (end.held, end.tx) == (0, came)
        assert set(end.drops) == {("component slow", "ring-full")}
        for frame in wire.arrived():
            through[frame != ORDINARY] += 1
        assert through.total() == came
        return through, end.dropped


def test_arp_and_bfd_pass_where_others_have_no_room(wire: Wire, tmp_path: Path) -> None:
    through, dropped = run(wire, PRIORITY, tmp_path)
    assert through[True] == ROUNDS * len(CONTROL)
    ordinary = RING - RESERVE
    assert ordinary <= through[False] < ordinary + ROUNDS * TAKEN
    assert dropped == ROUNDS * FLOOD - through[False]


def test_without_priority_they_are_lost_as_others_are(wire: Wire, tmp_path: Path) -> None:
    through, _ = run(wire, [], tmp_path)
    assert through[True] < len(CONTROL)
