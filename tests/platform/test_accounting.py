"""The books against the counters of the veth peers, while everything that an operator or fate can do is done under traffic."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from coven.errors import CovenError
from tests.lib import plans
from tests.lib.net import Host, Network, unavailable
from tests.lib.platform import BIN, PlatformUnderTest, wait_gone
from tests.platform import components as sources

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(bool(unavailable()), reason=str(unavailable())),
    pytest.mark.skipif(not (BIN / "coven-worker").exists(), reason="the programs are not built"),
]

INSTANCE = "fw-1"
BURST = 20  # frames each millisecond


def frame(number: int) -> bytes:
    """Make one of 50 UDP flows; the number stands in it."""
    head = bytes.fromhex("020000000002020000000001 0800 4500005c00000000 4011 0000 0a070001 0a070002")
    ports = (40000 + number % 50).to_bytes(2, "big") + (9).to_bytes(2, "big")
    return head + ports + bytes.fromhex("00480000") + number.to_bytes(8, "big") + bytes(56)


class Stage:
    """client - (lan) appliance (wan) - server; nobody but the test sends anything."""

    def __init__(self, network: Network, platform: PlatformUnderTest, box: Host, client: Host, server: Host) -> None:
        self.network, self.platform, self.box, self.client, self.server = network, platform, box, client, server
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._send)

    def _send(self) -> None:
        number = 0
        while not self._end.is_set():
            # an interface that was removed is another one when it comes back
            with (
                contextlib.suppress(OSError),
                self.client.entered(),
                socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw,
            ):
                raw.bind(("eth0", 0))
                while not self._end.wait(0.001):
                    for _ in range(BURST):
                        number += 1
                        raw.send(frame(number))

    def __enter__(self) -> Stage:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def snapshot(self) -> dict[str, Any]:
        return dict(self.platform.request("snapshot", instance=INSTANCE))

    def moves_on(self, packets: int = 200) -> None:
        """Return when so many more packets have left."""

        def sent() -> int | None:
            try:
                taken = self.snapshot()
            except CovenError:
                return None
            assert taken["accounting"]["balanced"], taken
            return int(taken["accounting"]["tx"]) + 1

        first = self.platform.wait_for(sent, "no snapshot")
        self.platform.wait_for(lambda: (sent() or 0) > first + packets, "no packets leave")

    def pid(self, name: str) -> int:
        return int(self.platform.replica(INSTANCE, name)["pid"])

    def quiet(self) -> dict[str, Any]:
        """End the traffic; give the snapshot once nothing is inside."""
        self._end.set()
        self._thread.join()

        def empty() -> dict[str, Any] | None:
            first, second = self.snapshot(), self.snapshot()
            return second if second["accounting"]["held"] == 0 and first["accounting"] == second["accounting"] else None

        return dict(self.platform.wait_for(empty, "packets stay inside"))


def join(network: Network, host: Host, box: Host, name: str) -> None:
    """Join a host's eth0 and an interface of the appliance, on which nobody says anything by himself."""
    network.veth(host, "eth0", box, name, up=False)
    for end, link in ((host, "eth0"), (box, name)):
        end.run("sh", "-c", f"echo 1 > /proc/sys/net/ipv6/conf/{link}/disable_ipv6")
        end.ip("link", "set", link, "up")


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with Network() as network:
        box, client, server = network.host("box"), network.host("client"), network.host("server")
        for host, name in ((client, "lan"), (server, "wan")):
            join(network, host, box, name)
        with PlatformUnderTest(tmp_path, host=box) as platform:
            root = platform.package("demo", {"one/one.c": sources.COUNT_C, "two/two.py": sources.FORWARD_PY})
            one = plans.component("one", root, "c", state=sources.COUNT_STATE, metrics=sources.COUNT_METRICS)
            two = plans.component("two", root, on_failure="bypass")
            ports = [plans.afpacket_port("lan", "lan"), plans.afpacket_port("wan", "wan")]
            platform.deploy(plans.chain(INSTANCE, root, [one, two], ports))
            with Stage(network, platform, box, client, server) as made:
                yield made
            platform.execute("terminate", INSTANCE, force=True)
        assert platform.leftovers() == []


def restart(stage: Stage) -> None:
    stage.platform.execute("restart", INSTANCE)


def stop_and_start(stage: Stage) -> None:
    stage.platform.execute("stop", INSTANCE)
    assert stage.snapshot()["accounting"]["balanced"]
    stage.platform.execute("start", INSTANCE)


def flap(stage: Stage) -> None:
    for name in ("wan", "lan"):
        stage.box.ip("link", "set", name, "down")
        stage.platform.wait_for(lambda name=name: stage.platform.instance(INSTANCE)["health"] != "ok", f"{name} is up")
        stage.box.ip("link", "set", name, "up")
    stage.platform.wait_for(lambda: stage.platform.instance(INSTANCE)["health"] == "ok", "the ports are down")


def park_what_bypasses(stage: Stage) -> None:
    def die() -> bool:
        row = stage.platform.replica(INSTANCE, "two")
        if row["state"] == "ready" and row["pid"]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(row["pid"], signal.SIGKILL)
                wait_gone(row["pid"])
        return bool(row["state"] == "parked")

    stage.platform.wait_for(die, "it is not parked")
    stage.moves_on()
    stage.platform.execute("heal", INSTANCE)


def kill(*names: str) -> Callable[[Stage], None]:
    def deed(stage: Stage) -> None:
        old = {name: stage.pid(name) for name in names if name != "worker"}
        worker = stage.platform.instance(INSTANCE)["workers"][0]["pid"]
        for pid in [*old.values(), *([worker] if "worker" in names else [])]:
            os.kill(pid, signal.SIGKILL)
        for name, pid in old.items():
            stage.platform.wait_ready(INSTANCE, name, other_than=pid)
        if "worker" in names:
            stage.platform.wait_worker(INSTANCE, other_than=worker)

    return deed


DEEDS: dict[str, Callable[[Stage], None]] = {
    "restart": restart,
    "stop-start": stop_and_start,
    "links-down-and-up": flap,
    "park": park_what_bypasses,
    "kills": lambda stage: [kill(*names)(stage) for names in (("worker",), ("one",), ("two",), ("worker", "one", "two"))] and None,
}


@pytest.mark.parametrize("deed", DEEDS)
def test_peers_count_what_the_books_say(stage: Stage, deed: str) -> None:
    stage.moves_on()
    DEEDS[deed](stage)
    stage.moves_on()
    end = stage.quiet()
    books, ports = end["accounting"], end["ports"]
    assert books["balanced"]
    drops = {(row["scope"], row["reason"]): row["packets"] for row in end["drops"]}
    uncertain = sum(n for (_, reason), n in drops.items() if reason == "tx-uncertain")
    arrived = stage.server.counters("eth0")["rx_packets"]
    assert arrived <= ports["wan"]["tx_pkts"] + uncertain
    if deed != "links-down-and-up":  # a link that is going down takes packets and loses them
        assert arrived >= ports["wan"]["tx_pkts"]
    sent = stage.client.counters("eth0")["tx_packets"]
    assert ports["lan"]["rx_pkts"] + ports["lan"]["rx_missed"] <= sent
    if deed in ("kills", "park"):  # the port was never closed and never down
        assert ports["lan"]["rx_pkts"] + ports["lan"]["rx_missed"] == sent
    assert ports["wan"]["rx_pkts"] == 0


def test_an_interface_that_is_removed_and_made_anew(stage: Stage) -> None:
    """What has its name is another one: the port stays down, and says why, until it is opened again."""
    platform = stage.platform
    stage.moves_on()
    stage.box.ip("link", "del", "lan")
    platform.wait_for(lambda: platform.instance(INSTANCE)["health"] != "ok", "lan is up")
    join(stage.network, stage.client, stage.box, "lan")
    stage.box.ip("link", "set", "wan", "down")  # an event behind those of the new interface
    platform.wait_for(lambda: [port["state"] for port in platform.instance(INSTANCE)["ports"]] == ["down", "down"], "up")
    assert any("removed" in problem for problem in platform.instance(INSTANCE)["problems"])
    supervisor = platform.supervisor_pid
    platform.kill(supervisor)
    platform.wait_supervisor(other_than=supervisor)
    platform.wait_for(lambda: any("removed" in x for x in platform.instance(INSTANCE)["problems"]), "not known any more")
    stage.box.ip("link", "set", "wan", "up")
    platform.execute("restart", INSTANCE)
    platform.wait_for(lambda: platform.instance(INSTANCE)["health"] == "ok", "not up again")
    stage.moves_on()
    assert stage.quiet()["accounting"]["balanced"]
