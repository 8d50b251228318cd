"""What stands between client and server: COVEN with a function, or a bare forwarder; and the traffic through it."""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coven.bench.function import Function, Part
from coven.bench.links import Network, counters
from coven.bench.measure import Taken, cores, cpu_ns, pin, rest
from coven.bench.platform import Platform, Running
from coven.bench.session import Session
from coven.errors import CovenError
from coven.forwarder.instance_plan import PORT_TOOLS

SENT_SHARE = 0.995  # of what was wanted: a generator that reaches less measures itself
START_S = 10.0
# The bare forwarders of each NIC tool: program and arguments behind the two interfaces, by what they are for.
BARE: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "afpacket": {
        "cheap": ("bare_afpacket", "v3", "block"),
        "block": ("bare_afpacket", "v2", "block"),
        "spin": ("bare_afpacket", "v2", "spin"),
    },
    "afxdp": {
        "cheap": ("bare_afxdp", "nap"),
        "block": ("bare_afxdp", "block"),
        "spin": ("bare_afxdp", "spin"),
    },
}


def tools(session: Session) -> list[str]:
    """Give the NIC tools to measure: those asked for of those there are."""
    usable = [tool for tool in BARE if tool in PORT_TOOLS]
    return [tool for tool in usable if not session.tools or tool in session.tools]


@dataclass(frozen=True, slots=True)
class Standing:
    """A forwarder that runs."""

    pid: int  # a process in its namespace
    workers: tuple[int, ...]
    components: tuple[int, ...]
    snapshot: Callable[[], dict[str, Any]] | None  # None: it has no counters of its own

    def tx(self) -> int:
        """Give the frames that left towards the server."""
        return counters(self.pid, "wan").tx

    def offered(self) -> int:
        """Give the frames that came from the client."""
        return counters(self.pid, "lan").rx


@contextlib.contextmanager
def bare(session: Session, net: Network, words: tuple[str, ...]) -> Iterator[Standing]:
    """Run a bare forwarder on its core."""
    program, *arguments = words
    command = [*net.enter("box"), session.programs.path(program), "lan", "wan", *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            pin(process.pid, cores()[0])
            _wait_bound(program, process)
            yield Standing(process.pid, (process.pid,), (), None)
        finally:
            process.kill()


def _wait_bound(program: str, process: subprocess.Popen[str]) -> None:
    """Return when the forwarder has opened its sockets: those of AF_PACKET and AF_XDP are listed by the kernel."""
    end = time.monotonic() + START_S
    while True:
        with contextlib.suppress(OSError):
            # before, it is nsenter in another namespace
            if Path(f"/proc/{process.pid}/exe").readlink().name == program and _sockets(process.pid):
                rest(0.02)  # between bind() and the first look at the ring
                return
        if process.poll() is not None or time.monotonic() > end:
            said = process.stderr.read() if process.poll() is not None and process.stderr else "no sockets"
            raise CovenError("platform.internal", f"the bare forwarder did not start: {said.strip()}")
        rest(0.01)


def _sockets(pid: int) -> int:
    rows = 0
    for name in ("packet", "xdp"):
        with contextlib.suppress(OSError):
            rows += max(0, len(Path(f"/proc/{pid}/net/{name}").read_text().splitlines()) - 1)
    return rows


@contextlib.contextmanager
def coven(platform: Platform, parts: tuple[Part, ...], tool: str, **more: Any) -> Iterator[Standing]:
    """Deploy a function between the interfaces lan and wan; platform: runs in the appliance's namespace."""
    ports = {"in": {"tool": tool, "interface": "lan"}, "out": {"tool": tool, "interface": "wan"}}
    with platform.deployed(Function(parts, ports, **more)) as running:
        yield standing(platform, running)


def standing(platform: Platform, running: Running) -> Standing:
    """Give a deployed function as a forwarder."""
    if platform.keeper is None:
        raise CovenError("platform.unavailable", "the platform was not started")
    return Standing(platform.keeper.pid, tuple(running.workers), tuple(running.components), running.snapshot)


# ---- traffic -------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Traffic:
    """What the generator says of one run."""

    sent: int
    wanted: int
    received: int
    lost_by_ring: int
    wall_ns: int
    longest_gap_ns: int  # between two looks at its clock: it was not running
    p50_ns: int
    p99_ns: int
    p999_ns: int
    max_ns: int

    @property
    def latency_us(self) -> dict[str, float]:
        """Give one-way latencies."""
        return {"p50": self.p50_ns / 1000, "p99": self.p99_ns / 1000, "p999": self.p999_ns / 1000}

    def reasons(self) -> list[str]:
        """Say why the run says nothing about the forwarder."""
        found = []
        if self.sent < self.wanted * SENT_SHARE:
            found.append(f"the generator sent {self.sent} of {self.wanted} packets")
        if self.lost_by_ring:
            found.append(f"the generator's own ring lost {self.lost_by_ring} packets")
        return found


def start_traffic(
    session: Session, net: Network, *, size: int, rate: int, seconds: float, interface: str = "eth0", flows: int = 1
) -> subprocess.Popen[str]:
    """Start the generator on its core. rate 0: as fast as it can; then nothing is taken back."""
    words = (net.path("client"), net.path("server"), interface, size, rate, round(seconds * 1000), flows)
    command = [session.programs.path("traffic"), *map(str, words)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    pin(process.pid, cores()[1])
    return process


def end_traffic(process: subprocess.Popen[str], deadline_s: float) -> Traffic:
    """Wait for the generator's end and give what it says."""
    try:
        said, wrong = process.communicate(timeout=deadline_s)
    except subprocess.TimeoutExpired:
        raise CovenError("platform.internal", "the generator did not end") from None
    finally:  # also when the bench is interrupted
        if process.poll() is None:
            process.kill()
            process.communicate()
    if process.returncode != 0:
        raise CovenError("platform.internal", f"the generator ended with {process.returncode}: {wrong.strip()}")
    return Traffic(*(int(word) for word in said.split()))


@dataclass(frozen=True, slots=True)
class Passage:
    """Paced traffic through a forwarder: what was lost, and by whom."""

    traffic: Traffic
    dropped: int  # by COVEN, in its counters
    missed: int  # rx_missed: lost by the kernel before COVEN saw it
    taken: Mapping[str, float]
    cpu_ns: Mapping[str, int]  # of worker and components
    regime: str | None = None  # of the hop between the cores just before

    @property
    def cost(self) -> float:
        """CPU nanoseconds for a packet that came back."""
        return sum(self.cpu_ns.values()) / max(1, self.traffic.received)

    @property
    def lost(self) -> int:
        """Give all packets that did not come back."""
        return self.traffic.sent - self.traffic.received


def passage(
    session: Session, net: Network, forwarder: Standing, *, size: int, rate: int, seconds: float, **more: Any
) -> Passage:
    """Send at a rate through a forwarder and take everything back."""
    near = session.hop()
    before = forwarder.snapshot()["accounting"] if forwarder.snapshot else {}
    taken = Taken(forwarder.workers)
    used = cpu_ns(forwarder.workers), cpu_ns(forwarder.components)
    process = start_traffic(session, net, size=size, rate=rate, seconds=seconds, **more)
    traffic = end_traffic(process, seconds + 30)
    cpu = {"worker": cpu_ns(forwarder.workers) - used[0], "components": cpu_ns(forwarder.components) - used[1]}
    shares = taken.shares()
    after = forwarder.snapshot()["accounting"] if forwarder.snapshot else {}
    return Passage(
        traffic, after.get("drops", 0) - before.get("drops", 0),
        after.get("rx_missed", 0) - before.get("rx_missed", 0), shares, cpu,
        near.regime if near else None,
    )  # fmt: skip
