"""A running platform with l7-firewall between two hosts, and how its counters are held against the hosts' own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil

from coven.cli.client import Client
from coven.demo.hosts import end_processes, identity
from coven.demo.platform import Platform, follow
from tests.lib.net import Host, Network

DEADLINE = 20.0
CLIENT, SERVER = ("10.77.0.1", "fd77::1"), ("10.77.0.2", "fd77::2")
PEER = (sys.executable, "-I", "-m", "coven.demo.peer")


def wait_for(what: str, condition: Callable[[], Any], deadline: float = DEADLINE) -> Any:
    """Give what a condition gives as soon as that is true."""
    end = time.monotonic() + deadline
    while not (value := condition()):
        assert time.monotonic() < end, f"not within {deadline} s: {what}"
        threading.Event().wait(0.01)
    return value


@contextlib.contextmanager
def started_platform(files: Sequence[Path] = ()) -> Iterator[Platform]:
    """Start a platform in folders of its own; everything of it is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="coven-e2e-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        platform = Platform(folder, files)
        try:
            platform.start()
            yield platform
        finally:
            if platform.process:
                with contextlib.suppress(psutil.NoSuchProcess):
                    end_processes(identity(platform.process.pid))
                platform.process.wait(timeout=10)


def deploy(rest: Client, package: str, instance: str, ports: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """Deploy l7-firewall and give the instance."""
    body = {"id": instance, "package": package, "ports": dict(ports), "start": True, **more}
    follow(rest, rest.post("/v1/instances", body), print)
    answer: dict[str, Any] = rest.get(f"/v1/instances/{instance}")
    return answer


def terminate(rest: Client, instance: str) -> None:
    """Take an instance away."""
    follow(rest, rest.post(f"/v1/instances/{instance}/terminate", {"force": True}), print)


def assert_accounting(counters: Mapping[str, Any]) -> None:
    """Hold the rule of the whole: rx + created == tx + consumed + drops + held, with figures summed here."""
    total = counters["accounting"]
    assert total["rx"] == sum(port["rx_pkts"] for port in counters["ports"].values())
    assert total["tx"] == sum(port["tx_pkts"] for port in counters["ports"].values())
    assert total["drops"] == sum(drop["packets"] for drop in counters["drops"])
    assert total["rx"] + total["created"] == total["tx"] + total["consumed"] + total["drops"] + total["held"], total


def drops_by_reason(counters: Mapping[str, Any]) -> dict[str, int]:
    """Add up drops over all scopes."""
    reasons: dict[str, int] = {}
    for drop in counters["drops"]:
        reasons[drop["reason"]] = reasons.get(drop["reason"], 0) + drop["packets"]
    return reasons


class Appliance:
    """l7-firewall between `client` and `server`."""

    instance = "fw"

    def __init__(self, net: Network, platform: Platform, package: str, *, mtu: int = 1500) -> None:
        """Make both hosts, join them to the namespace the platform runs in, and deploy."""
        self.platform, self.rest, self.package = platform, platform.rest, package
        self.client, self.server = net.host("client"), net.host("server")
        self.hosts: dict[str, Host] = {"lan": self.client, "wan": self.server}
        self.interfaces = {"lan": net.name("lan"), "wan": net.name("wan")}
        for port, host in self.hosts.items():
            net.veth(host, "eth0", None, self.interfaces[port], mtu=mtu)
            # the appliance's end has no address: the stack of its host stays silent on the wire
            disable = Path(f"/proc/sys/net/ipv6/conf/{self.interfaces[port]}/disable_ipv6")
            if disable.exists():
                disable.write_text("1")
        self.client.address("eth0", f"{CLIENT[0]}/24", f"{CLIENT[1]}/64")
        self.server.address("eth0", f"{SERVER[0]}/24", f"{SERVER[1]}/64")
        deploy(self.rest, package, self.instance, self.interfaces)
        self.before = self.observe()

    def counters(self) -> dict[str, Any]:
        """Give COVEN's counters."""
        snapshot: dict[str, Any] = self.rest.get(f"/v1/instances/{self.instance}/counters")
        return snapshot

    def _peers(self) -> dict[str, dict[str, int]]:
        return {port: host.counters("eth0") for port, host in self.hosts.items()}

    def observe(self) -> tuple[dict[str, dict[str, int]], dict[str, Any]]:
        """Give the hosts' and COVEN's counters at a moment at which nothing moves."""

        def quiet() -> tuple[dict[str, dict[str, int]], dict[str, Any]] | None:
            peers, counters = self._peers(), self.counters()
            return (peers, counters) if peers == self._peers() and not counters["accounting"]["held"] else None

        found: tuple[dict[str, dict[str, int]], dict[str, Any]] = wait_for("a quiet moment", quiet)
        return found

    def check(self, *, missed: bool = False) -> dict[str, Any]:
        """Hold the accounting rule, and COVEN's ports against the other ends of their links; gives the counters.

        missed: the kernel may have lost frames on the way in (a flood); they must be in rx_missed.
        """

        def differences() -> list[str]:
            peers, counters = self.observe()
            assert_accounting(counters)
            found = []
            for port in self.hosts:
                now, then = counters["ports"][port], self.before[1]["ports"][port]
                lost = now["rx_missed"] - then["rx_missed"] if missed else 0
                for ours, theirs, plus in (("rx_pkts", "tx_packets", lost), ("tx_pkts", "rx_packets", 0)):
                    told = now[ours] - then[ours] + plus
                    seen = peers[port][theirs] - self.before[0][port][theirs]
                    if told != seen:
                        found.append(f"{port}: {ours} {told}, the peer's {theirs} {seen}")
            return found

        last: list[str] = []

        def equal() -> bool:
            nonlocal last
            last = differences()
            return not last

        try:
            wait_for("equal counters on both sides", equal, 5)
        except AssertionError as error:
            raise AssertionError(f"{error}: {last}") from None
        return self.counters()

    def metric(self, component: str, name: str) -> int:
        """Ask a component for one of its metrics."""
        return int(self.request({"component": component, "metric": name})["value"])

    def request(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Ask a component something."""
        answer: dict[str, Any] = self.rest.post(f"/v1/instances/{self.instance}/request", dict(body))
        return answer

    def state(self) -> dict[str, Any]:
        """Give the instance as the agent tells it."""
        answer: dict[str, Any] = self.rest.get(f"/v1/instances/{self.instance}")
        return answer

    def serve(self, folder: Path, port: int = 80) -> None:
        """Serve a folder over HTTP on the server."""
        self.server.popen(*PEER, "serve", str(folder), str(port))
        self.server.wait_listening(port)

    def fetch(self, url: str, times: int = 1, parallel: int = 1, timeout: float = 240) -> dict[str, Any]:
        """Let the client fetch; gives bytes, seconds, digests, failures."""
        done = self.client.run(*PEER, "fetch", url, str(times), str(parallel), timeout=timeout)
        measured: dict[str, Any] = json.loads(done.stdout)
        return measured


def kill(pid: int) -> None:
    """End a process as kill -9 does."""
    os.kill(pid, signal.SIGKILL)


