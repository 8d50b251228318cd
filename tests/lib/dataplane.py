"""A data plane for tests: shared memory of a plan, a real coven-worker, components; no root, no supervisor.

    plan = chain_plan([gen("in", packets=1000), gen("out")], [c_component("null", NULL_C, isolation="fused")])
    with Rig(plan, tmp_path) as rig:
        rig.start()
        rig.wait(lambda s: s.tx == 1000)
        rig.snapshot().check()                # the accounting rule

`start()` starts the worker, gives it segments, ports and code, starts the isolated components, attaches and runs.
A component whose framework is "stand-in" is played by the test: `rig.stand_in("name")` gives the other ends of its rings.
`kill_worker()` and `restart_worker()` do what a supervisor would; `rig.snapshot()` asks the worker, `rig.memory()`
reads the segments without it. Every wait has a deadline; close() ends what was started, by pid.
"""

from __future__ import annotations

import array
import contextlib
import fcntl
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from coven.agents.client import AgentClient
from coven.agents.protocol import start_lines
from coven.dataplane.core import Control, Ring, Segment, ffi, lib, pack_control, sizeof, unpack_control
from coven.dataplane.layout import Layout, SegmentImage, drop_reasons, layout
from coven.errors import CovenError
from coven.network import tool_of
from coven.network.opened import OpenedPort
from coven.network.xdp import Pool
from coven.processing.framework import Source, load
from tests.lib import builds

DEADLINE_S = 30.0
ROOT = builds.ROOT
REASONS = [reason.label for reason in drop_reasons()]
PORT_BASE = 8
COMPONENT_BASE = PORT_BASE + 8 * lib.COVEN_MAX_PORTS
PATH_BASE = COMPONENT_BASE + 8 * lib.COVEN_MAX_COMPONENTS
DROP_BASE = PATH_BASE + 4 * lib.COVEN_MAX_PATHS

# ---- plans -------------------------------------------------------------------------------------------


def gen(name: str, packets: int = 0, size: int | str = 64, rate: int = 0, flows: int = 1) -> dict[str, Any]:
    """A port that makes packets and swallows what is sent to it."""
    options = {"packets": packets, "bytes": 0 if size == "imix" else size, "rate": rate, "flows": flows}
    return {"name": name, "tool": "gen", "interface": None, "options": options, "mtu": 0}


def pcap(name: str, read: Path | None = None, write: Path | None = None, **options: bool) -> dict[str, Any]:
    """A port on capture files."""
    files = {"in": str(read) if read else None, "out": str(write) if write else None}
    return {"name": name, "tool": "pcap", "interface": None, "options": {**files, **options}, "mtu": 0}


def c_component(name: str, source: Path, isolation: str = "fused", **more: Any) -> dict[str, Any]:
    """A component in C from one source file, compiled when the rig starts."""
    return {"name": name, "framework": "c", "source": str(source.parent), "entry": source.name,
            "isolation": isolation, **more}  # fmt: skip


def py_component(name: str, source: Path, isolation: str = "copy", **more: Any) -> dict[str, Any]:
    """A component in Python."""
    return {**c_component(name, source, isolation), "framework": "python", **more}


def played(name: str, isolation: str = "copy", **more: Any) -> dict[str, Any]:
    """A component that the test plays itself through `Rig.stand_in`."""
    return {"name": name, "framework": "stand-in", "isolation": isolation, **more}


def chain_plan(
    ports: Sequence[dict[str, Any]],
    components: Sequence[dict[str, Any]],
    *,
    next_of: Mapping[int, Sequence[Any]] | None = None,
    buffers: int = 2048,
    **more: Any,
) -> dict[str, Any]:
    """A plan in the form of docs/internals.md section 6: one path from ports[0] through all components to ports[1].

    next_of: replaces the outputs of a hop, {hop number: [{"hop": n} | {"port": n} | None, ...]}.
    """
    last = len(components) - 1
    hops = [
        {"component": i, "path": 0, "next": list((next_of or {}).get(i, [{"port": 1} if i == last else {"hop": i + 1}]))}
        for i in range(len(components))
    ]
    first = {"hop": 0} if components else {"port": 1}
    rows = [{**port, "path": None, "first": None} for port in ports]
    rows[0] |= {"path": 0, "first": first}
    return {
        "version": 1,
        "instance": "test",
        "pool": {"buffers": buffers, "buffer_bytes": 2048, "headroom": 256},
        "flows": {"capacity": 1024, "idle_timeout_ms": 120000},
        "worker": {"cores": [None], "profile": "balanced"},
        "ports": rows,
        "components": list(components),
        "hops": hops,
        "paths": [{"name": "path", "ingress": ports[0]["name"], "spi": 0}],
        **more,
    }


# ---- snapshots ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Counters and owners at one moment."""

    rx: int
    created: int
    tx: int
    consumed: int
    held: int
    free: int
    quarantine: int
    nic: int  # lent to a NIC, or sent and not given back
    drops: dict[tuple[str, str], int]  # (scope, reason): packets; scope "component x", "port x" or "worker"
    cells: list[int]
    held_by_component: list[int]

    def check(self) -> Snapshot:
        """Assert the accounting rule, and that every buffer has an owner; give itself."""
        assert self.rx + self.created == self.tx + self.consumed + self.dropped + self.held, self
        return self

    @property
    def dropped(self) -> int:
        """All drops."""
        return sum(self.drops.values())

    def drop(self, reason: str) -> int:
        """Drops of one reason in all scopes."""
        assert reason in REASONS, reason
        return sum(n for (_, why), n in self.drops.items() if why == reason)

    def port(self, index: int, counter: int) -> int:
        """A cell of enum coven_port_counter."""
        return self.cells[PORT_BASE + 8 * index + counter]

    def component(self, index: int, counter: int) -> int:
        """A cell of enum coven_component_counter."""
        return self.cells[COMPONENT_BASE + 8 * index + counter]

    def worker(self, counter: int) -> int:
        """A cell of enum coven_worker_counter."""
        return self.cells[counter]

    def __str__(self) -> str:
        return (f"rx {self.rx} created {self.created} tx {self.tx} consumed {self.consumed} dropped {self.dropped} "
                f"{self.drops} held {self.held} free {self.free} quarantine {self.quarantine} nic {self.nic}")  # fmt: skip


def _snapshot(plan: Mapping[str, Any], cells: list[int], kinds: list[int], held_by: list[int]) -> Snapshot:
    scopes = {i: f"component {c['name']}" for i, c in enumerate(plan["components"])}
    scopes |= {lib.COVEN_MAX_COMPONENTS + i: f"port {p['name']}" for i, p in enumerate(plan["ports"])}
    drops: dict[tuple[str, str], int] = {}
    for i, n in enumerate(cells[DROP_BASE:]):
        if n:
            scope, reason = divmod(i, lib.COVEN_MAX_REASONS)
            drops[scopes.get(scope, "worker"), REASONS[reason]] = n

    def ports(k: int) -> int:
        return sum(cells[PORT_BASE + 8 * p + k] for p in range(lib.COVEN_MAX_PORTS))

    def components(k: int) -> int:
        return sum(cells[COMPONENT_BASE + 8 * c + k] for c in range(lib.COVEN_MAX_COMPONENTS))

    return Snapshot(
        rx=ports(lib.COVEN_PORT_RX_PKTS),
        created=ports(lib.COVEN_PORT_CREATED) + components(lib.COVEN_COMPONENT_CREATED),
        tx=ports(lib.COVEN_PORT_TX_PKTS),
        consumed=components(lib.COVEN_COMPONENT_CONSUMED),
        held=kinds[lib.COVEN_OWNER_WORKER] + kinds[lib.COVEN_OWNER_FUSED] + kinds[lib.COVEN_OWNER_REPLICA],
        free=kinds[lib.COVEN_OWNER_FREE],
        quarantine=kinds[lib.COVEN_OWNER_QUARANTINE],
        nic=kinds[lib.COVEN_OWNER_NIC],
        drops=drops,
        cells=cells,
        held_by_component=held_by,
    )


# ---- played components -------------------------------------------------------------------------------


@dataclass(slots=True)
class PlayedReplica:
    """The component's ends of a replica, for a test that plays the component (honest or not)."""

    segment: Segment
    head: Any
    rx: Ring  # in-ring, consumer
    tx: Ring  # out-ring, producer
    doorbell: int
    memory: memoryview  # of all buffers
    buffer_bytes: int
    metas: Any = field(default_factory=lambda: ffi.new("struct coven_meta[]", 32))
    exts: Any = field(default_factory=lambda: ffi.new("struct coven_meta_ext[]", 32))

    def take(self, n: int = 32) -> list[Any]:
        """Wait for packets and give copies of at most n entries; the in-ring's head moves at once."""
        deadline = time.monotonic() + DEADLINE_S
        while True:
            got = self.rx.dequeue_burst(self.metas, n, self.exts)
            if got:
                return [self._copy(self.metas[i]) for i in range(got)]
            if self.rx.sleep():
                left = deadline - time.monotonic()
                assert left > 0, "no packets came"
                if select.select([self.doorbell], [], [], left)[0]:
                    os.eventfd_read(self.doorbell)
                self.rx.awake()

    def give(self, entries: Sequence[Any]) -> None:
        """Give entries back, as they are (at most 32)."""
        for i, entry in enumerate(entries):
            ffi.memmove(ffi.addressof(self.metas, i), entry, sizeof("coven_meta"))
        assert self.tx.enqueue_burst(self.metas, len(entries)) == len(entries)

    @staticmethod
    def _copy(meta: Any) -> Any:
        copy = ffi.new("struct coven_meta *")
        ffi.memmove(copy, ffi.addressof(meta), sizeof("coven_meta"))
        return copy


# ---- rig ---------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Component:
    """A running isolated replica."""

    number: int
    row: dict[str, Any]
    segment: Segment
    bells: tuple[int, int]  # worker -> component, component -> worker
    pid: int = -1
    pidfd: int = -1
    agent: AgentClient | None = None


class Rig:
    """Segments, ports, a worker and components of one plan. See the module's words."""

    def __init__(
        self,
        plan: dict[str, Any],
        folder: Path,
        *,
        bin_dir: Path | None = None,
        env: Mapping[str, str] | None = None,
        component_env: Mapping[str, str] | None = None,
    ) -> None:
        """bin_dir: other executables (tests.lib.builds). env: of the worker, component_env: of components."""
        self.plan = plan
        self.folder = folder
        self.bin_dir = bin_dir or builds.BIN
        self.env = {"PATH": os.defpath, **(env or {})}
        self.component_env = {"PATH": os.defpath, "LANG": "C.UTF-8", "HOME": "/tmp", **(component_env or {})}
        self.layout: Layout = layout(plan, seed=(0x0706050403020100, 0x0F0E0D0C0B0A0908))
        self.segments = {
            image.name: self._make(image)
            for image in (self.layout.pool, self.layout.ledger, self.layout.stats, *self.layout.states)
        }
        self.ports: list[OpenedPort] = [self._open(row) for row in plan["ports"]]
        for port in self.ports:
            port.begin()
        self.segments["plan"] = self._plan_segment()
        self.components: dict[int, _Component] = {}
        self.worker: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._peer: socket.socket | None = None
        self._seq = 0
        self.log = folder / "worker.log"
        self.withheld: set[int] = set()  # ports the worker is not given

    # ---- memory ----

    def _open(self, row: Mapping[str, Any]) -> OpenedPort:
        geometry = self.plan["pool"]
        memory = Pool(self.segments["pool"].fd, lib.COVEN_POOL_DATA_OFFSET, geometry["buffers"], geometry["buffer_bytes"])
        return tool_of(row).open({**row, "pool": memory})

    def reopen(self, index: int) -> None:
        """Close a port and open it anew, for the next worker."""
        self.ports[index].close()
        self.ports[index] = self._open(self.plan["ports"][index])

    @staticmethod
    def _make(image: SegmentImage) -> Segment:
        return Segment.create(image.name, image.size, image.head)

    def _plan_segment(self) -> Segment:
        raw = ffi.new("struct coven_plan *")
        ffi.memmove(raw, self.layout.plan.head, len(self.layout.plan.head))
        for i, opened in enumerate(self.ports):
            for key, value in opened.plan_fields.items():
                setattr(raw.ports[i], key, value)
            if self.plan["ports"][i]["mtu"]:
                raw.ports[i].mtu = self.plan["ports"][i]["mtu"]
        return Segment.create("plan", self.layout.plan.size, bytes(ffi.buffer(raw)))

    # ---- worker ----

    def start(self, *, run: bool = True, attach: bool = True) -> None:
        """Start worker and components; run=False leaves ports unread, attach=False leaves components away."""
        self.start_worker()
        if attach:
            for place in self.layout.places:
                self.start_component(place.number)
        if run:
            self.request(lib.COVEN_CONTROL_RUN)

    def start_worker(self) -> Control:
        """Start a worker on the segments as they are, up to READY; give READY's answer."""
        if self._control is None:
            self._control, self._peer = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            self._control.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
            self._peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        assert self._peer is not None
        with self.log.open("ab") as log:
            self.worker = subprocess.Popen(
                [str(self.bin_dir / "coven-worker"), "--instance", "test", "--index", "0"],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self.env, pass_fds=(3,),
                preexec_fn=_as_fd_3(self._peer.fileno()),
            )  # fmt: skip
        for image in (self.layout.plan, self.layout.pool, self.layout.ledger, self.layout.stats, *self.layout.states):
            self.request(lib.COVEN_CONTROL_SEGMENT, image.index, (image.kind,), fds=(self.segments[image.name].fd,))
        for index, opened in enumerate(self.ports):
            if index not in self.withheld:
                self.request(lib.COVEN_CONTROL_PORT, index, fds=opened.fds)
        for index, row in enumerate(self.plan["components"]):
            if row["isolation"] == "fused" and row["framework"] == "c":
                self.send_code(index, row)
        return self.request(lib.COVEN_CONTROL_READY)

    def send_code(self, index: int, row: dict[str, Any]) -> None:
        """Give the code of a fused component."""
        artifact = builds.component(Path(row["source"]) / row["entry"])
        lines = start_lines(row, instance="test", replica=0, entry=str(artifact), options=row.get("options") or {})
        text = "1\tstart\t\n" + "".join("\t".join(line) + "\n" for line in lines)
        fd = os.open(artifact, os.O_RDONLY | os.O_CLOEXEC)
        try:
            self.request(lib.COVEN_CONTROL_CODE, index, payload=text.encode(), fds=(fd,))
        finally:
            os.close(fd)

    def request(
        self, op: int, index: int = 0, args: Sequence[int] = (), payload: bytes = b"", fds: Sequence[int] = (),
        *, wait: bool = True,
    ) -> Control:  # fmt: skip
        """Ask the worker. Raises WorkerDied when it is gone, AssertionError when it refuses or does not answer."""
        assert self._control is not None
        self._seq += 1
        message = Control(op, self._seq, index, 0, tuple(args), payload)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self._control.sendmsg([pack_control(message)], rights)
        return self.answer(self._seq) if wait else message

    def answer(self, seq: int) -> Control:
        """Wait for the answer to a request that was sent with wait=False."""
        assert self._control is not None
        assert self.worker is not None
        deadline = time.monotonic() + DEADLINE_S
        pidfd = os.pidfd_open(self.worker.pid)
        try:
            while True:
                ready = select.select([self._control, pidfd], [], [], max(0.0, deadline - time.monotonic()))[0]
                if self._control in ready:
                    reply = unpack_control(self._control.recv(65536))
                    if reply.seq != seq:
                        continue
                    text = reply.payload[:300].decode("utf-8", "replace") or os.strerror(-reply.result)
                    assert reply.result >= 0, f"the worker refused {reply.op & 0xFF}: {text}"
                    return reply
                if pidfd in ready:
                    raise WorkerDied(self.log.read_text())
                assert ready, f"the worker did not answer; its log:\n{self.log.read_text()}"
        finally:
            os.close(pidfd)

    def wait_worker_death(self) -> int:
        """Give the worker's exit status (negative: signal) once it ended."""
        assert self.worker is not None
        return self.worker.wait(DEADLINE_S)

    def kill_worker(self) -> None:
        """kill -9, and wait for its end."""
        assert self.worker is not None
        self.worker.kill()
        self.worker.wait(DEADLINE_S)

    def restart_worker(self, *, env: Mapping[str, str] | None = None, run: bool = True) -> Control:
        """Start a successor, attach what runs, start what does not run yet, and run; give READY's answer."""
        self.env = {"PATH": os.defpath, **(env or {})}
        self._drain()
        answer = self.start_worker()
        for place in self.layout.places:
            if place.number in self.components:
                self.attach(place.number)
            else:
                self.start_component(place.number)
        if run:
            self.request(lib.COVEN_CONTROL_RUN)
        return answer

    def _drain(self) -> None:
        """Throw messages away that the dead worker did not read, and answers that nobody waits for."""
        for end in (self._control, self._peer):
            assert end is not None
            with contextlib.suppress(BlockingIOError):
                while True:
                    _, rights, _, _ = end.recvmsg(65536, 1024, socket.MSG_DONTWAIT)
                    for _, _, data in rights:
                        for fd in array.array("i", data):
                            os.close(fd)

    # ---- components ----

    def start_component(self, number: int) -> None:
        """Start an isolated replica (again) on a new replica segment, and attach it."""
        place = self.layout.places[number]
        row = self.plan["components"][place.component]
        old = self.components.pop(number, None)
        if old:
            self._end(old)
        bells = (os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK), os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))
        component = _Component(number, row, self._make(self.layout.replicas[number]), bells)
        self.components[number] = component
        if row["framework"] != "stand-in":
            self._spawn(component, place.component, place.replica)
        self.attach(number)

    def attach(self, number: int) -> None:
        """ATTACH a replica that is ready."""
        component = self.components[number]
        self.request(lib.COVEN_CONTROL_ATTACH, number, fds=(component.segment.fd, *component.bells))

    def detach(self, number: int, *, crashed: bool = True) -> tuple[int, int]:
        """DETACH; give how many packets were dropped, and how many staged outputs forwarded."""
        answer = self.request(lib.COVEN_CONTROL_DETACH, number, (int(crashed),))
        return answer.args[0], answer.args[1]

    def kill_component(self, number: int = 0) -> None:
        """kill -9 a component's process and wait for its end; the worker is not told."""
        component = self.components[number]
        os.kill(component.pid, signal.SIGKILL)
        self.wait_component_death(number)

    def wait_component_death(self, number: int = 0) -> int:
        """Give the exit status (negative: signal) of a component's process once it ended."""
        component = self.components[number]
        assert select.select([component.pidfd], [], [], DEADLINE_S)[0], "the component did not end"
        _, status = os.waitpid(component.pid, 0)
        os.close(component.pidfd)
        component.pid = component.pidfd = -1
        return os.waitstatus_to_exitcode(status)

    def agent(self, number: int = 0) -> AgentClient:
        """The Extended Agent of a replica."""
        agent = self.components[number].agent
        assert agent is not None
        return agent

    def stand_in(self, name: str) -> PlayedReplica:
        """The component's side of the (first) replica of a component that the test plays."""
        index = next(i for i, row in enumerate(self.plan["components"]) if row["name"] == name)
        number = next(p.number for p in self.layout.places if p.component == index)
        component = self.components[number]
        segment = component.segment
        head = segment.struct("coven_replica")
        copies = component.row["isolation"] == "copy"
        memory = segment if copies else self.segments["pool"]
        end = head.data_offset + head.n_buffers * head.buffer_bytes
        return PlayedReplica(
            segment, head,
            Ring(ffi.addressof(head, "in"), segment.struct("coven_entry", head.in_entry), segment.struct("coven_meta", head.in_meta),
                 segment.struct("coven_meta_ext", head.in_ext), head.ring_size, doorbell=component.bells[0]),
            Ring(ffi.addressof(head, "out"), segment.struct("coven_entry", head.out_entry), segment.struct("coven_meta", head.out_meta),
                 segment.struct("coven_meta_ext", head.out_ext), head.ring_size, doorbell=component.bells[1]),
            component.bells[0], memoryview(memory.memory)[head.data_offset:end], head.buffer_bytes,
        )  # fmt: skip

    def _spawn(self, component: _Component, index: int, replica: int) -> None:
        row = component.row
        source = Source(row["name"], Path(row["source"]), row["entry"])
        artifact = builds.component(Path(row["source"]) / row["entry"]) if row["framework"] == "c" else None
        launch = load(row["framework"]).launch(source, artifact, self.bin_dir)
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        log = os.open(self.folder / f"component-{component.number}.log", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
        state = self.segments[self.layout.states[index].name]
        wanted = [component.bells[0], log, log, far.fileno(), component.segment.fd, state.fd, component.bells[1]]
        if row["isolation"] == "shared":
            wanted.append(self.segments["pool"].fd)
        high = [_lift(fd) for fd in wanted]
        actions = [(os.POSIX_SPAWN_DUP2, fd, to) for to, fd in enumerate(high)]
        component.pid = os.posix_spawn(launch.argv[0], list(launch.argv), self.component_env, file_actions=actions)
        component.pidfd = os.pidfd_open(component.pid)
        for fd in (*high, log):
            os.close(fd)
        far.close()
        component.agent = AgentClient(near, f"component {row['name']}")
        lines = start_lines(row, instance="test", replica=replica, entry=str(launch.entry), options=row.get("options") or {})
        component.agent.ask("start", "", lines, timeout=DEADLINE_S)

    @staticmethod
    def _end(component: _Component) -> None:
        if component.pid > 0:
            os.kill(component.pid, signal.SIGKILL)
            os.waitpid(component.pid, 0)
            os.close(component.pidfd)
        for fd in component.bells:
            os.close(fd)
        component.segment.close()

    # ---- looking ----

    def run(self) -> None:
        """Begin to take packets."""
        self.request(lib.COVEN_CONTROL_RUN)

    def pause(self, deadline_ms: int = 10000) -> int:
        """PAUSE; give how many packets were dropped as `stopped`."""
        return self.request(lib.COVEN_CONTROL_PAUSE, args=(deadline_ms,)).args[0]

    def snapshot(self) -> Snapshot:
        """Ask the worker for a consistent snapshot."""
        raw = ffi.new("struct coven_snapshot *")
        payload = self.request(lib.COVEN_CONTROL_SNAPSHOT).payload
        assert len(payload) == sizeof("coven_snapshot")
        ffi.memmove(raw, payload, len(payload))
        taken = _snapshot(self.plan, list(raw.cell), list(raw.held_by_kind), list(raw.held_by_component))
        assert (taken.rx, taken.created, taken.tx, taken.consumed, taken.dropped, taken.held) == (
            raw.rx, raw.created, raw.tx, raw.consumed, raw.drops, raw.held)  # fmt: skip
        return taken

    def memory(self) -> Snapshot:
        """The same from the segments, for when no worker lives."""
        stats, ledger = self.segments["stats"], self.segments["ledger"]
        cells = ffi.cast("uint64_t *", ffi.from_buffer(stats.memory) + sizeof("coven_stats"))
        n_cells = len(ffi.new("struct coven_snapshot *").cell)
        n_buffers = self.plan["pool"]["buffers"]
        header = sizeof("coven_segment_header")
        offset = int.from_bytes(ledger.memory[header + 8 : header + 16], "little")
        kinds = [0] * 8
        for word in ffi.cast("uint64_t *", ffi.from_buffer(ledger.memory) + offset)[0:n_buffers]:
            kinds[word >> 56] += 1
        return _snapshot(self.plan, list(cells[0:n_cells]), kinds, [0] * lib.COVEN_MAX_COMPONENTS)

    def wait(self, condition: Callable[[Snapshot], bool], what: str = "") -> Snapshot:
        """Take snapshots until the condition holds; each must obey the accounting rule."""
        deadline = time.monotonic() + DEADLINE_S
        pace = select.poll()
        while True:
            taken = self.snapshot().check()
            if condition(taken):
                return taken
            assert time.monotonic() < deadline, f"it did not come to this: {what} {taken}"
            pace.poll(1)

    # ---- end ----

    def stop(self) -> int:
        """EXIT; give the worker's exit status."""
        with contextlib.suppress(WorkerDied):
            self.request(lib.COVEN_CONTROL_EXIT)
        return self.wait_worker_death()

    def close(self) -> None:
        """End everything that was started."""
        if self.worker is not None and self.worker.poll() is None:
            self.worker.kill()
            self.worker.wait(DEADLINE_S)
        for component in self.components.values():
            self._end(component)
        self.components.clear()
        for end in (self._control, self._peer):
            if end is not None:
                end.close()
        for opened in self.ports:
            opened.close()
        for segment in self.segments.values():
            segment.close()

    def __enter__(self) -> Rig:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()


class WorkerDied(Exception):
    """The worker ended instead of answering."""


def _as_fd_3(fd: int) -> Callable[[], None]:
    def place() -> None:
        os.dup2(fd, 3, inheritable=True)

    return place


def _lift(fd: int) -> int:
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 20)


__all__ = [
    "CovenError", "PlayedReplica", "Rig", "Snapshot", "WorkerDied", "c_component", "chain_plan", "gen", "pcap", "played",
    "py_component",
]  # fmt: skip
