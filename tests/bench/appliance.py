"""The appliance as a whole: from `deploy` to the first packet, memory, CPU time when idle, how long a crash is felt.

A platform as `coven agent` starts it, asked over REST, between two hosts. A probe every millisecond (a frame of the
local experimental EtherType, IEEE 802) tells from outside when packets get through.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import socket
import struct
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from coven.cli.client import Client
from coven.demo.platform import follow
from coven.errors import CovenError
from coven.package import build
from tests.bench.measure import ROOT, Spread, cpu_ns, rest
from tests.e2e.appliance import started_platform
from tests.lib.net import Host, Network
from tests.lib.platform import Client as SupervisorClient

ETHERTYPE = 0x88B5
PROBE_S = 0.001
IDLE_S = 4.0
DEADLINE_S = 20.0


class Probe:
    """Numbered frames from one host to the other while the `with` lasts, and when they arrived."""

    def __init__(self, client: Host, server: Host) -> None:
        """Open the two packet sockets on `eth0`."""
        with client.entered():
            self._out = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._out.bind(("eth0", 0))
        with server.entered():
            self._in = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETHERTYPE))
        self._in.bind(("eth0", ETHERTYPE))
        self._in.settimeout(0.2)
        self._end = threading.Event()
        self._news = threading.Condition()
        self.arrivals: list[float] = []
        self._threads = [threading.Thread(target=self._send), threading.Thread(target=self._receive)]

    def _send(self) -> None:
        number = 0
        while not self._end.wait(PROBE_S):
            number += 1
            frame = bytes.fromhex("020000000002020000000001") + struct.pack(">HQ", ETHERTYPE, number)
            with contextlib.suppress(OSError):
                self._out.send(frame.ljust(60, b"\0"))

    def _receive(self) -> None:
        while not self._end.is_set():
            with contextlib.suppress(TimeoutError):
                self._in.recv(64)
                with self._news:
                    self.arrivals.append(time.monotonic())
                    self._news.notify_all()

    def first_after(self, moment: float, count: int = 1) -> float:
        """Wait for the first arrival after a moment, and for `count` in all; give the time of the first."""
        with self._news:
            done = self._news.wait_for(lambda: len(self._since(moment)) >= count, DEADLINE_S)
            assert done, "no frame came through"
            return self._since(moment)[0]

    def longest_gap(self, begin: float) -> float:
        """Give the longest time between two arrivals since a moment, the last one before it included."""
        with self._news:
            times = [t for t in self.arrivals if t < begin][-1:] + self._since(begin)
        return max(b - a for a, b in itertools.pairwise(times))

    def _since(self, moment: float) -> list[float]:
        at = len(self.arrivals)
        while at > 0 and self.arrivals[at - 1] > moment:
            at -= 1
        return self.arrivals[at:]

    def __enter__(self) -> Probe:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        for thread in self._threads:
            thread.join()
        self._out.close()
        self._in.close()


class Bench:
    """A platform and two hosts."""

    def __init__(self, net: Network, rest_client: Client, pid: int, run_dir: Path) -> None:
        """Join two hosts to this namespace."""
        self.rest, self.pid, self.run_dir = rest_client, pid, run_dir
        self.client, self.server = net.host("client"), net.host("server")
        self.ports = {"lan": net.name("lan"), "wan": net.name("wan")}
        for host, interface in ((self.client, self.ports["lan"]), (self.server, self.ports["wan"])):
            net.veth(host, "eth0", None, interface)
            silent = Path(f"/proc/sys/net/ipv6/conf/{interface}/disable_ipv6")
            if silent.exists():
                silent.write_text("1")

    def processes(self) -> list[psutil.Process]:
        """Give all processes of the platform."""
        top = psutil.Process(self.pid)
        return [top, *top.children(recursive=True)]

    def named(self, part: str) -> psutil.Process:
        """Give the process whose command line has a word."""
        return next(p for p in self.processes() if part in " ".join(p.cmdline()))


@contextlib.contextmanager
def bench() -> Iterator[tuple[Bench, Callable[[str], str]]]:
    """Start all, and give a function that uploads a package of `packages/` and tells its id."""
    with Network() as net, started_platform() as platform, tempfile.TemporaryDirectory() as folder:
        assert platform.process is not None

        def upload(name: str) -> str:
            archive = build(ROOT / "packages" / name, Path(folder) / f"{name}.coven")
            return str(platform.rest.upload("/v1/packages", archive)["id"])

        yield Bench(net, platform.rest, platform.process.pid, platform.folder / "run"), upload


def first_packet(b: Bench, package: str, instance: str) -> float:
    """Deploy, and give the seconds until the first frame came through. The instance stays."""
    with Probe(b.client, b.server) as probe:
        rest(0.05)
        begin = time.monotonic()
        watcher: list[float] = []
        thread = threading.Thread(target=lambda: watcher.append(probe.first_after(begin)))
        thread.start()
        body = {"id": instance, "package": package, "ports": b.ports, "start": True}
        follow(b.rest, b.rest.post("/v1/instances", body), _unsaid)
        thread.join()
        return watcher[0] - begin


def _unsaid(step: str) -> None:
    """Steps are not shown: the time of the whole is what counts."""


def terminate(b: Bench, instance: str) -> None:
    """Take an instance away."""
    follow(b.rest, b.rest.post(f"/v1/instances/{instance}/terminate", {"force": True}), _unsaid)


def felt_crash(b: Bench, instance: str, find: Callable[[dict[str, Any]], int]) -> float:
    """Kill -9 a process of an instance under traffic; give the seconds in which no frame came through."""
    with Probe(b.client, b.server) as probe:
        probe.first_after(time.monotonic(), 50)
        pid = find(b.rest.get(f"/v1/instances/{instance}"))
        begin = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        end = time.monotonic() + DEADLINE_S
        while find(b.rest.get(f"/v1/instances/{instance}")) in (pid, None):
            assert time.monotonic() < end, "it did not come back"
            rest(0.01)
        probe.first_after(time.monotonic(), 100)
        return probe.longest_gap(begin)


def check_after_kill(b: Bench, instance: str) -> float:
    """Kill -9 the Management Agent; give the seconds until its successor has answered `check` of an instance."""
    pid = b.rest.get("/v1")["agent"]["pid"]
    begin = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    end = begin + DEADLINE_S
    while True:
        with contextlib.suppress(CovenError):  # nobody there yet, or not yet joined to the supervisor
            answer = b.rest.get(f"/v1/instances/{instance}/check")
            done = time.monotonic()
            assert answer["healthy"], answer
            assert b.rest.get("/v1")["agent"]["pid"] != pid, "the dead one answered"
            return done - begin
        assert time.monotonic() < end, "no agent answers again"
        rest(PROBE_S)


def supervisor_after_kill(b: Bench) -> float:
    """Kill -9 the supervisor; give the seconds until its successor has answered what it knows of all instances."""
    pid = b.rest.get("/v1")["supervisor"]["pid"]
    begin = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    end = begin + DEADLINE_S
    while True:
        with contextlib.suppress(OSError):
            asking = SupervisorClient(b.run_dir / "supervisor.sock")
            try:
                asking.request("state")
                done = time.monotonic()
                if asking.request("hello")["pid"] != pid:
                    break
            finally:
                asking.close()
        assert time.monotonic() < end, "no supervisor answers again"
        rest(PROBE_S)
    while b.rest.get("/v1")["supervisor"] is None:  # what follows asks through the agent
        assert time.monotonic() < end, "the agent does not find the supervisor again"
        rest(PROBE_S)
    return done - begin


def idle(b: Bench) -> dict[str, float]:
    """Give the share of one core that each process uses while nothing happens, in per cent."""
    rest(1.0)  # what starting left to do
    pids = {p.pid: _label(p) for p in b.processes()}
    before = {pid: cpu_ns([pid]) for pid in pids}
    begin = time.monotonic_ns()
    rest(IDLE_S)
    wall = time.monotonic_ns() - begin
    used: dict[str, float] = {}
    for pid, label in pids.items():
        used[label] = used.get(label, 0.0) + 100.0 * (cpu_ns([pid]) - before[pid]) / wall
    return used


def _label(process: psutil.Process) -> str:
    words = process.cmdline()
    line = " ".join(words)
    known = {"coven-keeper": "keeper", "coven.supervisor": "supervisor", "coven.management": "management agent",
             "coven-worker": "worker", "coven-component-host": "component in C",
             "coven.processing.python": "component in Python"}  # fmt: skip
    return next((label for word, label in known.items() if word in line), Path(words[0]).name if words else "ended")


def memory(b: Bench) -> dict[str, dict[str, float]]:
    """Give resident and proportional memory of each process in MB."""
    found = {}
    for process in b.processes():
        full = process.memory_full_info()
        found[_label(process)] = {"rss_mb": full.rss / 1e6, "pss_mb": full.pss / 1e6}
    return found


def _worker(instance: dict[str, Any]) -> int:
    return int(instance["workers"][0]["pid"] or 0)


def _analyzer(instance: dict[str, Any]) -> int:
    part = next(c for c in instance["components"] if c["name"] == "analyzer")
    return int(part["replicas"][0]["pid"] or 0)


VICTIMS: dict[str, Callable[[dict[str, Any]], int]] = {"Python component": _analyzer, "worker": _worker}


def _after_kills(b: Bench, instance: str, answers: dict[str, list[float]], note: Callable[[str], None]) -> None:
    """Kill agent, then supervisor: whose successor knows of no earlier death, so the agent's is always the first."""
    answers["Management Agent"].append(check_after_kill(b, instance))
    answers["supervisor"].append(supervisor_after_kill(b))
    for victim, seconds in answers.items():
        note(f"kill -9 of the {victim}: its successor answers after {seconds[-1]:.3f} s")


def run(repeats: int, note: Callable[[str], None]) -> dict[str, Any]:
    """Measure all of it."""
    starts: dict[str, list[float]] = {"C only": [], "with Python": []}
    crashes: dict[str, list[float]] = {victim: [] for victim in VICTIMS}
    answers: dict[str, list[float]] = {"Management Agent": [], "supervisor": []}
    with bench() as (b, upload):
        packages = {"C only": upload("passthrough"), "with Python": upload("l7-firewall")}
        for title, package in packages.items():
            starts[f"{title}, compiling its C first"] = [first_packet(b, package, "first")]
            terminate(b, "first")
        for number in range(repeats):
            for title, package in packages.items():
                starts[title].append(first_packet(b, package, f"run-{number}"))
                note(f"deploy to first packet, {title}: {starts[title][-1]:.3f} s")
                # one crash of each in the life of an instance: those after it wait longer and longer (back-off)
                for victim, find in VICTIMS.items() if title == "with Python" else ():
                    crashes[victim].append(felt_crash(b, f"run-{number}", find))
                    note(f"kill -9 of the {victim} is felt for {crashes[victim][-1]:.3f} s")
                if title == "with Python":
                    _after_kills(b, f"run-{number}", answers, note)
                terminate(b, f"run-{number}")
        first_packet(b, packages["with Python"], "fw")
        resident, used = memory(b), idle(b)
        note(f"idle: {sum(used.values()):.2f} % of a core")
        terminate(b, "fw")
    return {
        "deploy_to_first_packet_s": {k: Spread.of(v).to_json() for k, v in starts.items()},
        "crash_felt_s": {k: Spread.of(v).to_json() for k, v in crashes.items()},
        "answers_again_s": {k: Spread.of(v).to_json() for k, v in answers.items()},
        "memory": resident,
        "idle_percent": used,
        "idle_percent_total": sum(used.values()),
    }
