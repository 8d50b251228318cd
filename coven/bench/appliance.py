"""The appliance as a whole, as `coven agent` starts it: from deploy to the first packet, how long a death is felt, what
it costs when nothing happens.

Asked over REST, between two hosts. The reference of what is waited for is the start of the Python interpreter and of a
bare forwarder: nothing that starts processes can be faster.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from coven import package
from coven.bench.function import PASS, Function, chain, write_package
from coven.bench.links import Network
from coven.bench.measure import Spread, cpu_ns, rest
from coven.bench.probe import Probe
from coven.bench.result import Result
from coven.bench.session import Session
from coven.cli.client import Client
from coven.demo.hosts import end_processes, identity
from coven.demo.platform import Platform, follow
from coven.errors import CovenError
from coven.management.supervisor_client import SupervisorClient

DEADLINE_S = 20.0
IDLE_LIMIT = 0.5  # per cent of a core, profile balanced
TARGET_S = {"deploy, C only": 0.7, "deploy, with Python": 1.5}
FUNCTIONS = {
    "C only": Function(chain(PASS["C"], "copy", 1), {"in": None, "out": None}),
    "with Python": Function(chain(PASS["Python"], "copy", 1), {"in": None, "out": None}),
    "three isolated": Function(chain(PASS["C"], "shared", 3), {"in": None, "out": None}),
}


@dataclass(frozen=True, slots=True)
class Appliance:
    """A platform with its agent, and the network it stands in."""

    rest: Client
    pid: int
    run_dir: Path
    net: Network
    packages: Mapping[str, str]  # of FUNCTIONS, by name

    def processes(self) -> list[psutil.Process]:
        """Give all processes of the platform."""
        top = psutil.Process(self.pid)
        return [top, *top.children(recursive=True)]

    def deploy(self, function: str, instance: str) -> float:
        """Deploy, and give the seconds until the first frame came through. The instance stays."""
        with Probe(self.net) as probe:
            rest(0.05)
            begin = time.monotonic()
            arrived: list[float] = []
            thread = threading.Thread(target=lambda: arrived.append(probe.first_after(begin)))
            thread.start()
            body = {"id": instance, "package": self.packages[function], "ports": {"in": "lan", "out": "wan"},
                    "grants": {"*": "shared"}, "start": True}  # fmt: skip
            follow(self.rest, self.rest.post("/v1/instances", body), _unsaid)
            thread.join()
            if not arrived:
                raise CovenError("platform.internal", "no frame came through")
            return arrived[0] - begin

    def terminate(self, instance: str) -> None:
        """Take an instance away."""
        follow(self.rest, self.rest.post(f"/v1/instances/{instance}/terminate", {"force": True}), _unsaid)


def _unsaid(step: str) -> None:
    """Steps are not shown: the time of the whole is what counts."""


@contextlib.contextmanager
def appliance() -> Iterator[Appliance]:
    """Start a platform, agent and all, between two hosts; everything is gone afterwards."""
    with Network() as net, tempfile.TemporaryDirectory(prefix="coven-bench-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        platform = Platform(folder, enter=net.enter("box"))
        try:
            platform.start()
            packages = {title: _upload(platform.rest, folder, title) for title in FUNCTIONS}
            yield Appliance(platform.rest, platform.pid, folder / "run", net, packages)
        finally:
            if platform.process:
                with contextlib.suppress(psutil.NoSuchProcess):
                    end_processes(identity(platform.process.pid))
                platform.process.wait(timeout=10)


def _upload(rest_client: Client, folder: Path, title: str) -> str:
    source = folder / "sources" / title.lower().replace(" ", "-")
    source.mkdir(parents=True)
    write_package(FUNCTIONS[title], source, name=source.name)
    return str(rest_client.upload("/v1/packages", package.build(source, folder))["id"])


# ---- deaths --------------------------------------------------------------------------------------------


def felt(b: Appliance, instance: str, find: Callable[[dict[str, Any]], int]) -> float:
    """Kill -9 a process of an instance under traffic; give the seconds in which no frame came through."""
    with Probe(b.net) as probe:
        probe.first_after(time.monotonic(), 50)
        pid = find(b.rest.get(f"/v1/instances/{instance}"))
        begin = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        _until("it did not come back", lambda: find(b.rest.get(f"/v1/instances/{instance}")) not in (pid, 0))
        probe.first_after(time.monotonic(), 100)
        return probe.longest_gap(begin)


def _until(what: str, condition: Callable[[], bool]) -> None:
    end = time.monotonic() + DEADLINE_S
    while True:
        with contextlib.suppress(CovenError, OSError):
            if condition():
                return
        if time.monotonic() > end:
            raise CovenError("platform.unavailable", what)
        rest(0.001)


def agent_again(b: Appliance, instance: str) -> float:
    """Kill -9 the Management Agent; give the seconds until its successor has answered `check` of an instance."""
    pid = b.rest.get("/v1")["agent"]["pid"]
    begin = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    _until("no agent answers again", lambda: bool(b.rest.get(f"/v1/instances/{instance}/check")["healthy"]))
    return time.monotonic() - begin


def supervisor_again(b: Appliance) -> float:
    """Kill -9 the supervisor; give the seconds until its successor has answered what it knows of all instances."""
    pid = b.rest.get("/v1")["supervisor"]["pid"]
    client = SupervisorClient(b.run_dir / "supervisor.sock", patience_s=0.0)
    begin = time.monotonic()
    os.kill(pid, signal.SIGKILL)

    def answers() -> bool:
        return client.request("hello")["pid"] != pid and bool(client.request("state"))

    _until("no supervisor answers again", answers)
    taken = time.monotonic() - begin
    _until("the agent does not find the supervisor", lambda: b.rest.get("/v1")["supervisor"] is not None)
    return taken


def _worker(instance: dict[str, Any]) -> int:
    return int(instance["workers"][0]["pid"] or 0)


def _component(instance: dict[str, Any]) -> int:
    return int(instance["components"][0]["replicas"][0]["pid"] or 0)


def run_startup(session: Session) -> list[Result]:
    """Measure deployments and deaths."""
    times: dict[str, list[float]] = {}

    def took(what: str, seconds: float) -> None:
        times.setdefault(what, []).append(seconds)
        session.note(f"{what}: {seconds:.3f} s")

    with appliance() as b:
        took("python and psutil: start to end", _interpreter())
        for title in ("C only", "with Python"):
            took(f"deploy, {title}, compiling its C first", b.deploy(title, "first"))
            b.terminate("first")
        for number in range(session.rounds):
            instance = f"run-{number}"
            took("python and psutil: start to end", _interpreter())
            took("deploy, C only", b.deploy("C only", instance))
            b.terminate(instance)
            took("deploy, with Python", b.deploy("with Python", instance))
            took("kill -9 of the Python component: no packet for", felt(b, instance, _component))
            took("kill -9 of the worker: no packet for", felt(b, instance, _worker))
            # the agent first: a successor of the supervisor knows of no earlier death
            took("kill -9 of the Management Agent: answers after", agent_again(b, instance))
            took("kill -9 of the supervisor: answers after", supervisor_again(b))
            b.terminate(instance)
    return [_timed(what, values) for what, values in times.items()]


def _interpreter() -> float:
    """Give the seconds that an interpreter with the libraries of a supervisor takes from start to end."""
    begin = time.monotonic()
    subprocess.run([sys.executable, "-c", "import asyncio, json, psutil"], check=True)
    return time.monotonic() - begin


def _timed(what: str, values: list[float]) -> Result:
    spread = Spread.of(values)
    limit = TARGET_S.get(what, 2.0 if "answers" in what else 1.0 if "no packet" in what else None)
    return Result("startup", what, details={"seconds": spread.to_json(), "target_s": limit, "rounds": len(values)})


# ---- idle ----------------------------------------------------------------------------------------------

LABELS = {"coven-keeper": "keeper", "coven.supervisor": "supervisor", "coven.management": "management agent",
          "coven-worker": "worker", "coven-component-host": "component in C",
          "coven.processing.python": "component in Python"}  # fmt: skip


def _label(process: psutil.Process) -> str:
    words = process.cmdline()
    line = " ".join(words)
    return next((label for word, label in LABELS.items() if word in line), Path(words[0]).name if words else "ended")


def run_idle(session: Session) -> list[Result]:
    """Measure CPU time and memory of an appliance with three isolated components through which nothing passes."""
    with appliance() as b:
        b.deploy("three isolated", "idle")
        rest(0.5 if session.quick else 2.0)  # what starting left to do
        processes = {process.pid: _label(process) for process in b.processes()}
        before = {pid: cpu_ns([pid]) for pid in processes}
        begin = time.monotonic_ns()
        rest(1.0 if session.quick else 10.0)
        wall = time.monotonic_ns() - begin
        used: dict[str, float] = {}
        for pid, label in processes.items():
            used[label] = used.get(label, 0.0) + 100.0 * (cpu_ns([pid]) - before[pid]) / wall
        memory: dict[str, dict[str, float]] = {}
        for process in b.processes():
            full = process.memory_full_info()
            row = memory.setdefault(_label(process), {"rss_mb": 0.0, "pss_mb": 0.0, "processes": 0})
            row["rss_mb"] += full.rss / 1e6
            row["pss_mb"] += full.pss / 1e6
            row["processes"] += 1
        b.terminate("idle")
    total = sum(used.values())
    session.note(f"idle: {total:.3f} % of a core")
    details = {"percent_of_a_core": total, "limit_percent": IDLE_LIMIT, "by_process": used, "memory": memory,
               "verdict": "PASSED" if total <= IDLE_LIMIT else "FAILED"}  # fmt: skip
    return [Result("idle", "agent, supervisor, worker, 3 isolated components; balanced", details=details)]
