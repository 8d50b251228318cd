"""What chaos does to a platform: each action harms it in one way, repairs what only an operator can, and waits for what must hold.

`ACTIONS` has them with their weights. An action draws everything it does from `Chaos.choose`, so a seed gives the same run
again as far as the machine does.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import os
import random
import shutil
import signal
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from coven import package
from coven.cli.client import Client
from coven.demo.platform import Platform, follow
from coven.errors import CovenError
from tests.e2e.appliance import CLIENT, SERVER, Appliance, assert_accounting, wait_for
from tests.e2e.captures import ROOT
from tests.e2e.parts import answered, is_another, pin_neighbours, processes
from tests.e2e.probe import INTERVAL_S, PORT, Probe
from tests.lib.net import Network, ip

COMPONENTS = ("counter", "hog", "filter")
PARTS = ("worker", *COMPONENTS, "coven.management", "coven.supervisor")
KEPT = ("coven-keeper", "coven.supervisor", "coven.management")  # in this order: a keeper names the supervisor
ISOLATIONS = ({"*": "copy"}, {"*": "shared"}, {"counter": "shared", "*": "copy"}, {"hog": "shared", "*": "copy"})
PARKING_S = 30.0  # five deaths within this time park a component
DEATHS = 3  # one more may come by what an action does not count
DISK_BYTES = 256 << 20
BACK_S = 60.0  # for everything to be well again
VNF = """\
coven: 1
name: chaos
version: "{version}"
provider: tests
summary: counts, may eat memory, filters
ports: {{lan: {{}}, wan: {{}}}}
flows: {{capacity: {capacity}, when_full: {when_full}}}
components:
  counter: {{source: vnfc/python-counter, isolation: copy}}
  hog: {{source: vnfc/hog, isolation: copy, limits: {{memory: 128M}}}}
  filter: {{source: vnfc/filter, isolation: copy, options: {{mode: count}}}}
paths:
  both: {{hops: [lan, {order}, wan], bidirectional: same-order}}
"""
HOG = """\
name: hog
summary: eats memory when asked to
framework: python
entry: hog.py
operations: [{name: eat, help: takes all memory there is}]
"""
HOG_PY = """\
from coven.component import Component, operation


class Hog(Component):
    def process_packet(self, packet):
        packet.forward()

    @operation("eat")
    def eat(self) -> dict[str, int]:
        eaten = []
        while True:
            eaten.append(bytearray(b"x" * (1 << 20)))
"""


class Traffic(Probe):
    """Probes that go on where there is no wire."""

    def _send(self) -> None:
        number = 0
        while not self._end.wait(INTERVAL_S):
            self.sent[number] = time.monotonic()
            with contextlib.suppress(OSError):
                self._out.sendto(struct.pack(">I", number), (self._target, PORT))
            number += 1


def build_packages(work: Path) -> list[Path]:
    """Make the archives: the same components under descriptors that differ."""
    made = []
    for version, order, capacity, when_full in (
        ("1.0.0", "counter, hog, filter", 65536, "idle"), ("1.1.0", "filter, counter, hog", 64, "oldest"),
    ):  # fmt: skip
        folder = work / version
        for name in ("python-counter", "filter"):
            shutil.copytree(
                ROOT / "vnfc_examples" / name, folder / "vnfc" / name, ignore=shutil.ignore_patterns("__pycache__")
            )
        (folder / "vnfc" / "hog").mkdir()
        (folder / "vnfc" / "hog" / "component.yaml").write_text(HOG)
        (folder / "vnfc" / "hog" / "hog.py").write_text(HOG_PY)
        text = VNF.format(version=version, order=order, capacity=capacity, when_full=when_full)
        (folder / "vnf.yaml").write_text(text)
        made.append(package.build(folder, work))
    return made


class Chaos:
    """A platform, the hosts beside it, and the dice."""

    def __init__(self, net: Network, platform: Platform, archives: list[Path], seed: int) -> None:
        """archives: packages that take the instance's place in turn."""
        self.choose = random.Random(seed)
        self.archives, self.net = archives, net
        self.packages = [str(platform.rest.upload("/v1/packages", archive)["id"]) for archive in archives]
        self.appliance = Appliance(net, platform, self.packages[0])
        pin_neighbours(self.appliance)
        self.deaths: dict[str, collections.deque[float]] = {part: collections.deque(maxlen=DEATHS) for part in PARTS}
        self.done: list[str] = []
        self.state_dir = platform.folder / "state"

    @property
    def rest(self) -> Client:
        return self.appliance.rest

    @property
    def one(self) -> str:
        return f"/v1/instances/{self.appliance.instance}"

    def note(self, text: str) -> None:
        """Say what is done, for whoever looks for what went wrong."""
        self.done.append(text)
        print(f"chaos: {text}", flush=True)

    def may_die(self) -> list[str]:
        """Give the parts that a further death does not park."""
        now = time.monotonic()
        return [part for part, times in self.deaths.items() if len(times) < DEATHS or now - times[0] > PARKING_S]

    def pause(self, most_s: float) -> None:
        """Let traffic pass for a while."""
        threading.Event().wait(self.choose.random() * most_s)

    def all_processes(self) -> dict[str, int] | None:
        """Give all processes by part, or None while one is missing."""
        found = processes(self.appliance)
        return found if set(PARTS) <= found.keys() and all(found[part] for part in PARTS) else None

    def is_well(self) -> bool:
        """Whether all parts run and nobody complains; accounting is held against every answer."""
        state = self.appliance.state()
        if state["health"] != "ok" or state["state"] != "started" or self.all_processes() is None:
            return False
        assert_accounting(self.appliance.counters())
        return True

    def settle(self) -> None:
        """Wait until everything is well."""
        try:
            wait_for("all is well", answered(self.is_well), BACK_S)
        except AssertionError as error:
            state = answered(self.appliance.state)() or {}
            told = {key: state.get(key) for key in ("state", "health", "problems")}
            raise AssertionError(f"{error}; {told}; done: {self.done[-8:]}") from None

    def operate(self, path: str, body: dict[str, Any] | None = None) -> None:
        """Carry a slow verb out."""
        follow(self.rest, self.rest.post(path, body if body is not None else {}), lambda text: None)

    def connect(self, port: str) -> None:
        """Make the link of a port anew, as it was."""
        host, address = self.appliance.hosts[port], {"lan": CLIENT, "wan": SERVER}[port]
        self.net.veth(host, "eth0", None, self.appliance.interfaces[port])
        host.address("eth0", f"{address[0]}/24", f"{address[1]}/64")
        pin_neighbours(self.appliance)


# ---- actions -----------------------------------------------------------------------------------------


def kill(chaos: Chaos) -> None:
    """SIGKILL to one or two parts at once: others take their places."""
    able = chaos.may_die()
    victims = chaos.choose.sample(able, min(len(able), chaos.choose.choice((1, 1, 1, 2))))
    chaos.note(f"kill {', '.join(victims)}")
    found = wait_for("all parts run", answered(chaos.all_processes), BACK_S)
    for part in victims:
        chaos.deaths[part].append(time.monotonic())
        os.kill(found[part], signal.SIGKILL)
    for part in victims:
        another = functools.partial(is_another, chaos.appliance, part, found[part])
        wait_for(f"another {part}", answered(another), BACK_S)


def freeze(chaos: Chaos) -> None:
    """SIGSTOP to a part, for a moment or for longer than a hang may last: it goes on, or another takes its place."""
    able = chaos.may_die()
    if not able:
        return
    part = chaos.choose.choice(able)
    chaos.note(f"freeze {part}")
    pid = wait_for("all parts run", answered(chaos.all_processes), BACK_S)[part]
    chaos.deaths[part].append(time.monotonic())
    pidfd = os.pidfd_open(pid)
    try:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGSTOP)
        chaos.pause(chaos.choose.choice((0.1, 3.0)))
    finally:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGCONT)
        os.close(pidfd)


def eat(chaos: Chaos) -> None:
    """A component takes more memory than it may: it is told so or ends, and nobody else notices."""
    if "hog" not in chaos.may_die():
        return
    chaos.note("eat memory")
    chaos.deaths["hog"].append(time.monotonic())
    before = processes(chaos.appliance)
    try:
        chaos.appliance.request({"component": "hog", "operation": "eat"})
        raise AssertionError("a component ate without end")
    except CovenError as error:
        chaos.note(f"  {error.code}")
    chaos.settle()
    after = processes(chaos.appliance)
    for part in set(PARTS) - {"hog"}:
        assert after[part] == before[part], f"{part} was replaced because the hog ate"


def link_down(chaos: Chaos) -> None:
    """An interface goes down and up again: its port says so and goes on by itself."""
    port = chaos.choose.choice(("lan", "wan"))
    chaos.note(f"{port} down and up")

    def state_is(wanted: str) -> bool:
        return any(p["name"] == port and p["state"] == wanted for p in chaos.appliance.state()["ports"])

    ip("link", "set", chaos.appliance.interfaces[port], "down")
    wait_for(f"{port} is down", answered(lambda: state_is("down")), BACK_S)
    chaos.pause(0.5)
    ip("link", "set", chaos.appliance.interfaces[port], "up")
    wait_for(f"{port} is up", answered(lambda: state_is("up")), BACK_S)


def link_removed(chaos: Chaos) -> None:
    """An interface is removed and made again: the operator is told, and `restart` opens the new one."""
    port = chaos.choose.choice(("lan", "wan"))
    chaos.note(f"{port} removed and made again")
    ip("link", "del", chaos.appliance.interfaces[port])
    wait_for(
        "the operator is told",
        answered(lambda: any("removed" in problem for problem in chaos.appliance.state()["problems"])),
        BACK_S,
    )
    chaos.connect(port)
    chaos.operate(f"{chaos.one}/restart")


def redeploy(chaos: Chaos) -> None:
    """Another descriptor takes the place of the one that runs, with other isolation."""
    number, grants = chaos.choose.randrange(len(chaos.packages)), chaos.choose.choice(ISOLATIONS)
    chaos.note(f"redeploy {chaos.packages[number]} with {grants}")
    assert_accounting(chaos.appliance.counters())
    chaos.operate(f"{chaos.one}/terminate", {"force": True})
    assert chaos.appliance.instance not in [each["id"] for each in chaos.rest.get("/v1/instances")["instances"]]
    chaos.operate("/v1/instances", {
        "id": chaos.appliance.instance, "package": chaos.packages[number], "ports": dict(chaos.appliance.interfaces),
        "start": True, "grants": grants,
    })  # fmt: skip
    for part in ("worker", *COMPONENTS):
        chaos.deaths[part].clear()


def upload(chaos: Chaos) -> None:
    """Archives that are none are refused; one that is, again, is known already. What runs does not notice."""
    archive = chaos.choose.choice(chaos.archives)
    data = archive.read_bytes()
    at = chaos.choose.randrange(len(data))
    bad = {
        "noise": chaos.choose.randbytes(2000),
        "cut": data[:at],
        "torn": data[: at // 2] + chaos.choose.randbytes(64) + data[at // 2 + 64 :],
        "again": data,
    }
    kind = chaos.choose.choice(sorted(bad))
    chaos.note(f"upload {kind}")
    file = archive.parent / "upload.coven"
    file.write_bytes(bad[kind])
    with contextlib.suppress(CovenError):
        answer = chaos.rest.upload("/v1/packages", file)
        assert kind in ("again", "torn"), f"{kind} was taken: {answer}"  # torn where nothing is read
        assert answer["id"] in chaos.packages
    assert {each["id"] for each in chaos.rest.get("/v1/packages")["packages"]} == set(chaos.packages)


def disk_full(chaos: Chaos) -> None:
    """No room in the state directory: what needs some is refused in words, what runs goes on, nothing is lost for ever."""
    chaos.note("disk full")
    filler = chaos.state_dir / "filler"
    try:
        with filler.open("wb") as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(1 << 20))
                file.flush()
        try:
            chaos.rest.upload("/v1/packages", chaos.choose.choice(chaos.archives))
        except CovenError as error:
            chaos.note(f"  {error.code}")
        assert chaos.appliance.state()["health"] == "ok"
        if chaos.choose.random() < 0.5 and "coven.management" in chaos.may_die():
            chaos.note("  and the agent dies")
            chaos.deaths["coven.management"].append(time.monotonic())
            os.kill(processes(chaos.appliance)["coven.management"], signal.SIGKILL)
    finally:
        filler.unlink(missing_ok=True)
    wait_for("packages are known", answered(lambda: len(chaos.rest.get("/v1/packages")["packages"]) == len(chaos.packages)), BACK_S)


def ask(chaos: Chaos) -> None:
    """Questions, sensible and not: each gets an answer, none an internal error."""
    chaos.note("ask")
    gets = ["", "/monitor", "/counters", "/list", "/check", "/flows?limit=7", "/flows?address=nowhere", "/logs", "/logs?lines=0"]
    posts = [
        ("/request", {"component": "counter", "metric": "flows"}), ("/request", {"component": "nobody"}), ("/heal", {"component": "x"}),
        ("/flows/export", {"flow": "nonsense"}), ("/flows/import", {"blob": "AAAA"}), ("/start", {"x": 1}), ("/terminate", {}),
    ]  # fmt: skip
    for _ in range(12):
        try:
            if chaos.choose.random() < 0.6:
                chaos.rest.get(chaos.one + chaos.choose.choice(gets))
            else:
                chaos.rest.post(chaos.one + chaos.choose.choice(posts)[0], chaos.choose.choice(posts)[1])
        except CovenError as error:
            assert error.code != "platform.internal", error


def move_flow(chaos: Chaos) -> None:
    """The state of a flow is taken away and brought back: its packets pass again."""
    flows = chaos.rest.get(f"{chaos.one}/flows")["flows"]
    if not flows:
        return
    name = chaos.choose.choice(flows)["flow"]
    chaos.note(f"move {name}")
    try:
        blob = chaos.rest.post(f"{chaos.one}/flows/export", {"flow": name, "move": True})["blob"]
        chaos.rest.post(f"{chaos.one}/flows/import", {"blob": blob})
    except CovenError as error:
        chaos.note(f"  {error.code}")
        assert error.code in ("flow.not-found", "flow.busy", "flow.table-full"), error
    else:
        moved = [each["flow"] for each in chaos.rest.get(f"{chaos.one}/flows")["flows"] if each["moved"]]
        assert name not in moved


ACTIONS: tuple[tuple[Callable[[Chaos], None], int], ...] = (
    (kill, 8), (freeze, 4), (eat, 2), (link_down, 3), (link_removed, 1), (redeploy, 2), (upload, 2), (disk_full, 2), (ask, 3),
    (move_flow, 3),
)  # fmt: skip


def run(chaos: Chaos, seconds: float) -> None:
    """Do one thing after the other, and hold after each that all is well again."""
    actions, weights = zip(*ACTIONS, strict=True)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        action = chaos.choose.choices(actions, weights)[0]
        try:
            action(chaos)
        except CovenError as error:
            raise AssertionError(f"{error.code}: {error.message}; done: {chaos.done[-8:]}") from error
        chaos.settle()
        chaos.pause(0.5)


# ---- what holds at the end ---------------------------------------------------------------------------


def platform_pids(chaos: Chaos) -> set[int]:
    """Give all processes of the platform: those below what was started, and those that outlived their parents."""
    assert chaos.appliance.platform.process is not None
    top = psutil.Process(chaos.appliance.platform.process.pid)
    return {top.pid, *(child.pid for child in top.children(recursive=True) if child.status() != psutil.STATUS_ZOMBIE)}


def assert_real(chaos: Chaos) -> None:
    """Hold what the agent tells against the processes there are, and every buffer against the pool."""

    def quiet() -> dict[str, Any] | None:
        counters = chaos.appliance.counters()
        return counters if counters["accounting"]["held"] == 0 else None

    counters = wait_for("nothing is inside", answered(quiet), BACK_S)
    assert_accounting(counters)
    told = {pid for part, pid in processes(chaos.appliance).items()}
    wait_for("no process but those of the state", lambda: platform_pids(chaos) == told, BACK_S)


def assert_gone(chaos: Chaos) -> None:
    """Take the instance away: nothing of it is left, in processes, files, memory or on interfaces."""
    chaos.operate(f"{chaos.one}/terminate", {"force": True})
    wait_for("the instance's processes end", lambda: sorted(named(chaos)) == sorted(KEPT), BACK_S)
    assert chaos.rest.get("/v1/instances")["instances"] == []
    for interface in chaos.appliance.interfaces.values():
        assert "xdp" not in ip("-j", "link", "show", interface).stdout
    installed = {path.name for path in (chaos.state_dir / "packages").iterdir()}
    assert installed == set(chaos.packages), installed


def named(chaos: Chaos) -> list[str]:
    """Give what each process of the platform is."""
    found = []
    for pid in platform_pids(chaos):
        with contextlib.suppress(psutil.NoSuchProcess):
            line = " ".join(psutil.Process(pid).cmdline())
            found.append(next((word for word in KEPT if word in line), line))
    return found


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """Give a folder a file system of its own that can be full."""
    folder.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},mode=755", "coven-chaos", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)
