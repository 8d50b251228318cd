"""One isolated component in a process of its own, with the test as its worker and supervisor."""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from coven.agents.client import AgentClient
from coven.agents.protocol import Line, start_lines
from coven.agents.schema import read_values
from coven.dataplane.core import Ring, Segment, ffi, lib
from coven.dataplane.layout import SegmentImage, layout
from coven.processing.framework import Source, load

DEADLINE_S = 20.0
HEADROOM = 256
BIN = Path(__file__).resolve().parents[2] / "coven" / "bin"


@dataclass(frozen=True, slots=True)
class Sent:
    """A packet for the component, with what its metadata says."""

    data: bytes
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Returned:
    """An entry that came back."""

    handle: int
    verdict: int
    output: int
    mark: int
    data: bytes
    meta: Any  # struct coven_meta, a copy
    ext: Any


class Replica:
    """A component process and the other ends of everything it has.

    component: its row of an instance plan; name, outputs, metrics, operations, state, hold are used.
    """

    def __init__(
        self,
        framework: str,
        folder: Path,
        entry: str,
        *,
        component: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        environment: Mapping[str, str] | None = None,
        isolation: str = "copy",
        artifact: Path | None = None,
        bin_dir: Path = BIN,
        log: Path,
    ) -> None:
        self.component = {
            "name": "under-test",
            "outputs": 2,
            "isolation": isolation,
            "ring_size": 256,
            "copy_buffers": 512,
        }
        self.component.update(component or {})
        self.options = options or {}
        self.source = Source(self.component["name"], folder, entry)
        self.launch = load(framework).launch(self.source, artifact, bin_dir)
        self.environment = {"PATH": os.defpath, "LANG": "C.UTF-8", "HOME": "/tmp", **(environment or {})}  # noqa: S108
        self.log = log
        self._make_memory()
        self.to_component = os.eventfd(0, os.EFD_CLOEXEC)
        self.pid = -1
        self.segment: Any = None
        self.socket: Any = None
        self.attach()

    def _make_memory(self) -> None:
        document = {
            "instance": "test",
            "pool": {"buffers": 512, "buffer_bytes": 2048, "headroom": HEADROOM},
            "flows": {"capacity": 64, "idle_timeout_ms": 1000},
            "ports": [],
            "components": [self.component],
            "hops": [],
            "paths": [],
        }
        self.layout = layout(document, seed=(1, 2))
        self.state = _segment(self.layout.states[0])
        self.pool = _segment(self.layout.pool)

    def attach(self) -> None:
        """Make a new replica segment, as for each start of a component."""
        self._detach()
        self.segment = _segment(self.layout.replicas[0])
        self.head = self.segment.struct("coven_replica")
        self.to_worker = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        size = self.head.ring_size
        head = self.head
        self.ring_in = Ring(
            ffi.addressof(head, "in"), self._lines("coven_entry", head.in_entry), self._lines("coven_meta", head.in_meta),
            self._lines("coven_meta_ext", head.in_ext), size, doorbell=self.to_component,
        )  # fmt: skip
        self.ring_out = Ring(
            ffi.addressof(head, "out"), self._lines("coven_entry", head.out_entry), self._lines("coven_meta", head.out_meta),
            self._lines("coven_meta_ext", head.out_ext), size,
        )  # fmt: skip
        self.sent: dict[int, Any] = {}
        self.free = list(range(head.n_buffers - 1, -1, -1))
        memory = self.segment if self.component["isolation"] == "copy" else self.pool
        start = head.data_offset
        self.buffers = memoryview(memory.memory)[start : start + head.n_buffers * head.buffer_bytes]
        self.buffer_bytes = head.buffer_bytes

    def _lines(self, name: str, offset: int) -> Any:
        return self.segment.struct(name, offset)

    # ---- process ----

    def spawn(self) -> None:
        """Start the process with the launch contract's descriptors."""
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        output = os.open(self.log, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o600)
        wanted = [(self.to_component, 0), (output, 1), (output, 2), (far.fileno(), 3), (self.segment.fd, 4),
                  (self.state.fd, 5), (self.to_worker, 6)]  # fmt: skip
        if self.component["isolation"] == "shared":
            wanted.append((self.pool.fd, 7))
        lifted = [os.dup(fd) for fd, _ in wanted]
        high = [_lift(fd) for fd in lifted]
        actions = [(os.POSIX_SPAWN_DUP2, fd, to) for fd, (_, to) in zip(high, wanted, strict=True)]
        argv = self.launch.argv
        self.pid = os.posix_spawn(argv[0], list(argv), self.environment, file_actions=actions)
        self.pidfd = os.pidfd_open(self.pid)
        for fd in (*high, output):
            os.close(fd)
        far.close()
        self.socket = near
        self.agent = AgentClient(near, "component under-test")

    def start(self) -> tuple[Line, ...]:
        """Start the process and the component; raises what `start` answers."""
        self.spawn()
        lines = start_lines(
            self.component, instance="test", replica=0, entry=str(self.launch.entry), options=self.options
        )
        return self.agent.ask("start", "", lines, timeout=DEADLINE_S)

    def wait_exit(self) -> int:
        """Give the exit status (negative: signal) once the process has ended."""
        readable, _, _ = select.select([self.pidfd], [], [], DEADLINE_S)
        assert readable, f"the component did not end; its log:\n{self.log.read_text()}"
        _, status = os.waitpid(self.pid, 0)
        os.close(self.pidfd)
        self.pid = -1
        return os.waitstatus_to_exitcode(status)

    def last_words(self) -> str:
        """What the component left in its segment."""
        return ffi.string(self.head.last_words).decode()

    def kill(self) -> None:
        """End the process, if there is one; the component can be attached and started again."""
        if self.pid > 0:
            os.kill(self.pid, signal.SIGKILL)
            self.wait_exit()

    def close(self) -> None:
        """End the process, however it is, and give all descriptors back."""
        self.kill()
        self._detach()
        if self.to_component >= 0:
            os.close(self.to_component)
        self.to_component = -1
        for segment in (self.state, self.pool):
            segment.close()

    def _detach(self) -> None:
        if self.segment is not None:
            self.buffers.release()
            self.segment.close()
            os.close(self.to_worker)
        if self.socket is not None:
            self.socket.close()
        self.segment = self.socket = None

    def __enter__(self) -> Replica:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    # ---- packets ----

    def send(self, packets: Sequence[Sent | bytes]) -> list[int]:
        """Put packets into the in-ring as the worker does; their handles."""
        metas = ffi.new("struct coven_meta[]", max(len(packets), 1))
        handles = []
        for i, packet in enumerate(packets):
            sent = packet if isinstance(packet, Sent) else Sent(packet)
            meta = metas[i]
            meta.flow, meta.verdict = lib.COVEN_NO_FLOW, 0
            meta.offset, meta.length = HEADROOM, len(sent.data)
            for name, value in sent.meta.items():
                setattr(meta, name, value)
            if meta.kind == lib.COVEN_ENTRY_PACKET:
                meta.handle = self.free.pop()
                at = meta.handle * self.buffer_bytes + meta.offset
                self.buffers[at : at + len(sent.data)] = sent.data
            else:
                meta.handle = lib.COVEN_NO_HANDLE
            handles.append(meta.handle)
            self.sent[meta.handle] = ffi.new("struct coven_meta *", meta)
        assert self.ring_in.enqueue_burst(metas, len(packets)) == len(packets)
        return handles

    def receive(self, n: int) -> list[Returned]:
        """Wait for n entries of the out-ring."""
        got: list[Returned] = []
        deadline = time.monotonic() + DEADLINE_S
        while len(got) < n:
            got += self.take()
            if len(got) < n and self.ring_out.sleep():
                left = deadline - time.monotonic()
                readable, _, _ = select.select([self.to_worker, self.pidfd], [], [], max(left, 0))
                assert self.to_worker in readable or self.ring_out.ready(), (
                    f"{len(got)} of {n} packets came back; log:\n{self.log.read_text()}"
                )
                if self.to_worker in readable:
                    os.eventfd_read(self.to_worker)
                self.ring_out.awake()
        return got

    def take(self) -> list[Returned]:
        """Give what is in the out-ring now."""
        metas = ffi.new("struct coven_meta[]", 32)
        exts = ffi.new("struct coven_meta_ext[]", 32)
        position = self.ring_out.position
        n = self.ring_out.dequeue_burst(metas, 32, exts)
        return [self._returned(position + i, metas[i], exts[i]) for i in range(n)]

    def _entry(self, position: int) -> Any:
        """Give the out-ring's entry at a position."""
        return self._lines("coven_entry", self.head.out_entry)[position % self.head.ring_size]

    def _returned(self, position: int, meta: Any, ext: Any) -> Returned:
        """Give what came back as the worker sees it: the entry, and its line only if that was changed."""
        entry = self._entry(position)
        changed = entry.flags & lib.COVEN_ENTRY_CHANGED
        copy = ffi.new("struct coven_meta *", meta if changed else self.sent[entry.handle][0])
        for name in ("handle", "offset", "length", "verdict", "output", "kind"):
            setattr(copy, name, getattr(entry, name))
        copied_ext = ffi.new("struct coven_meta_ext *", ext)
        data = b""
        if copy.kind == lib.COVEN_ENTRY_PACKET:
            at = copy.handle * self.buffer_bytes + copy.offset
            data = bytes(self.buffers[at : at + copy.length])
            if copy.verdict != lib.COVEN_HOLD:
                self.free.append(copy.handle)
        return Returned(copy.handle, copy.verdict, copy.output, copy.mark, data, copy, copied_ext)

    def receive_or_death(self, n: int) -> tuple[list[Returned], bool]:
        """Wait for n entries; give what came and whether the process died instead."""
        got: list[Returned] = []
        deadline = time.monotonic() + DEADLINE_S
        while len(got) < n:
            got += self.take()
            if len(got) == n or not self.ring_out.sleep():
                continue
            left = deadline - time.monotonic()
            readable, _, _ = select.select([self.to_worker, self.pidfd], [], [], max(left, 0))
            assert readable, f"{len(got)} of {n} packets came back; log:\n{self.log.read_text()}"
            self.ring_out.awake()
            if self.to_worker in readable:
                os.eventfd_read(self.to_worker)
            if self.pidfd in readable:
                while more := self.take():
                    got += more
                return got, True
        readable, _, _ = select.select([self.pidfd], [], [], 0)
        return got, bool(readable)

    def sweep(self) -> list[Returned]:
        """Take what a dead component published, then what it staged and committed, as the worker does."""
        got = []
        while more := self.take():
            got += more
        view = ffi.new("struct coven_state_view *")
        base = ffi.from_buffer(self.state.memory)
        assert lib.coven_state_view_open(view, base, self.state.bytes) == 0
        metas = self._lines("coven_meta", self.head.out_meta)
        exts = self._lines("coven_meta_ext", self.head.out_ext)
        position = self.head.out.tail
        size = self.head.ring_size
        for _ in range(64):
            entry = self._entry(position)
            if (entry.flags & lib.COVEN_ENTRY_LAP) != (0 if position & size else lib.COVEN_ENTRY_LAP):
                break
            sent = self.sent.get(entry.handle)
            if sent and lib.coven_state_committed(view, sent.flow, sent.flow_epoch, entry.commit):
                got.append(self._returned(position, metas[position % size], exts[position % size]))
            position = (position + 1) % 2**32
        return got

    def through(self, packets: Sequence[Sent | bytes]) -> list[Returned]:
        """Send packets and wait for as many entries."""
        self.send(packets)
        return self.receive(len(packets))

    # ---- what the platform reads ----

    def metric(self, name: str) -> int | float:
        """Read a metric's cell in the state segment, without asking the component."""
        names = [metric["name"] for metric in self.component["metrics"]]
        i = names.index(name)
        offset = self.state.struct("coven_state").metrics_offset + 8 * i
        kind = "double" if self.component["metrics"][i]["type"] == "gauge" else "uint64_t"
        value: int | float = ffi.cast(f"{kind} *", ffi.from_buffer(self.state.memory) + offset)[0]
        return value

    def values(self) -> dict[str, int | float]:
        """All metrics as the component says them."""
        return read_values(self.agent.ask("get"))

    def slot(self, flow: int) -> tuple[Any, bytes]:
        """Header and current half of a flow's slot."""
        state = self.state.struct("coven_state")
        offset = state.slots_offset + flow * state.slot_bytes
        slot = self.state.struct("coven_slot", offset)
        at = offset + ffi.sizeof("struct coven_slot") + (slot.commit & 1) * state.half_bytes
        return slot, bytes(self.state.memory[at : at + state.half_bytes])


def _segment(image: SegmentImage) -> Segment:
    return Segment.create(image.name, image.size, image.head)


def _lift(fd: int) -> int:
    """Move a descriptor out of the way of the numbers 0 to 7."""
    import fcntl

    high: int = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 20)
    os.close(fd)
    return high
