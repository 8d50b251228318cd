"""Bursts and packets as a component in Python sees them: views of shared memory, made once and used again.

Nothing is copied and, unless a component looks at packets one by one, nothing is made for each packet. Every access
is a bounds-checked view of memory that stays mapped until the process ends: a view kept too long shows other packets'
bytes, never more.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from typing import Any

from coven.dataplane.client import ReplicaClient
from coven.dataplane.core import ffi, lib

FORWARD: int = lib.COVEN_FORWARD
DROP: int = lib.COVEN_DROP
HOLD: int = lib.COVEN_HOLD
CONSUME: int = lib.COVEN_CONSUME

NO_FLOW: int = lib.COVEN_NO_FLOW
BURST: int = lib.COVEN_BURST
_PACKET: int = lib.COVEN_ENTRY_PACKET
_META: int = ffi.sizeof("struct coven_meta")
_EXT: int = ffi.sizeof("struct coven_meta_ext")


def _at(field: str) -> int:
    return int(ffi.offsetof("struct coven_meta", field))


# Places of the fields within a line, in units of the field's own size.
_OFFSET, _LENGTH, _PORT = _at("offset") // 2, _at("length") // 2, _at("port") // 2
_PATH, _HOP = _at("path") // 2, _at("hop") // 2
_VERDICT, _OUTPUT, _DIRECTION, _KIND = _at("verdict"), _at("output"), _at("direction"), _at("kind")
_HANDLE, _MARK, _FLOW, _FLOW_SEQ = _at("handle") // 4, _at("mark") // 4, _at("flow") // 4, _at("flow_seq") // 4
_RANDOM, _NSH_PATH, _USER = _at("random") // 4, _at("nsh_path") // 4, _at("user") // 4
_USER_END = _USER + lib.COVEN_USER_WORDS
_TIMESTAMP = _at("timestamp_ns") // 8
_NSH_CONTEXT = ffi.offsetof("struct coven_meta_ext", "nsh_context") // 4


def _check_output(client: ReplicaClient, output: int) -> None:
    if not 0 <= output < client.outputs:
        raise ValueError(f"there is no output {output}; the component has {client.outputs}, the first is 0")


class _Lines:
    """The metadata lines of `n` packets as views by field size."""

    __slots__ = ("bytes", "context", "halves", "longs", "words")

    def __init__(self, meta: Any, ext: Any, n: int) -> None:
        self.bytes = memoryview(ffi.buffer(meta, n * _META)).cast("B")
        self.halves = self.bytes.cast("H")
        self.words = self.bytes.cast("I")
        self.longs = self.bytes.cast("Q")
        self.context = memoryview(ffi.buffer(ext, n * _EXT)).cast("B").cast("I")


class _Metadata:
    """What a packet's metadata line says. Line `_i` of `_lines`."""

    __slots__ = ("_client", "_i", "_lines")

    _client: ReplicaClient
    _lines: _Lines
    _i: int

    @property
    def length(self) -> int:
        """Bytes of the packet, Ethernet header first, without FCS."""
        return self._lines.halves[self._i * (_META // 2) + _LENGTH]

    @property
    def port(self) -> int:
        """Number of the ingress port."""
        return self._lines.halves[self._i * (_META // 2) + _PORT]

    @property
    def path(self) -> int:
        """Number of the service path."""
        return self._lines.halves[self._i * (_META // 2) + _PATH]

    @property
    def hop(self) -> int:
        """Place in the plan's hop table."""
        return self._lines.halves[self._i * (_META // 2) + _HOP]

    @property
    def direction(self) -> int:
        """0: as the flow's first packet, 1: the other way."""
        return self._lines.bytes[self._i * _META + _DIRECTION]

    @property
    def timestamp_ns(self) -> int:
        """Wall time of reception; the recorded time when it came from a capture."""
        return self._lines.longs[self._i * (_META // 8) + _TIMESTAMP]

    @property
    def random(self) -> int:
        """32 random bits drawn at reception: decide by them and a replay decides alike."""
        return self._lines.words[self._i * (_META // 4) + _RANDOM]

    @property
    def flow(self) -> int | None:
        """Number of the packet's flow, None when it belongs to none."""
        flow = self._lines.words[self._i * (_META // 4) + _FLOW]
        return None if flow == NO_FLOW else flow

    @property
    def flow_seq(self) -> int:
        """Number of this packet within its flow and direction, from 0."""
        return self._lines.words[self._i * (_META // 4) + _FLOW_SEQ]

    @property
    def mark(self) -> int:
        """32 bits that later components see."""
        return self._lines.words[self._i * (_META // 4) + _MARK]

    @mark.setter
    def mark(self, value: int) -> None:
        self._lines.words[self._i * (_META // 4) + _MARK] = value

    @property
    def user(self) -> memoryview:
        """4 words of 32 bits that components pass to each other; writable."""
        at = self._i * (_META // 4)
        return self._lines.words[at + _USER : at + _USER_END]

    @property
    def nsh_path(self) -> int:
        """SPI << 8 | SI (RFC 8300 section 2.3); 0 without NSH."""
        return self._lines.words[self._i * (_META // 4) + _NSH_PATH]

    @nsh_path.setter
    def nsh_path(self, value: int) -> None:
        self._lines.words[self._i * (_META // 4) + _NSH_PATH] = value

    @property
    def nsh_context(self) -> memoryview:
        """The 4 words of an MD type 1 context (RFC 8300 section 2.4); kept only for packets with NSH."""
        at = self._i * (_EXT // 4) + _NSH_CONTEXT
        return self._lines.context[at : at + 4]

    def _start(self) -> int:
        """Offset of the first byte in the packet memory."""
        raise NotImplementedError

    @property
    def data(self) -> memoryview:
        """The packet's bytes in shared memory, writable. Take it once and keep it in a local variable."""
        start = self._start()
        return self._client.memory[start : start + self.length]

    @property
    def room_front(self) -> int:
        """Bytes before the packet that it may grow into."""
        return self._lines.halves[self._i * (_META // 2) + _OFFSET]

    @property
    def room_back(self) -> int:
        """Bytes behind the packet that it may grow into."""
        return self._client.buffer_bytes - self.room_front - self.length

    def resize(self, front: int = 0, back: int = 0) -> None:
        """Move the first byte by `front` (negative: grow into the headroom) and the end by `back`.

        Raises ValueError, with nothing changed, when there is no room or nothing would be left. Ask for `data` again.
        """
        at = self._i * (_META // 2)
        offset, length = self._lines.halves[at + _OFFSET] + front, self.length - front + back
        fits = offset >= 0 and offset + length <= self._client.buffer_bytes
        if not fits or front > self.length or not 1 <= length <= 0xFFFF:
            raise ValueError(f"no room to move the packet's ends by {front} and {back}")
        self._lines.halves[at + _OFFSET] = offset
        self._lines.halves[at + _LENGTH] = length

    def replace(self, content: bytes | bytearray | memoryview) -> None:
        """Make the packet consist of these bytes. Raises ValueError when there is no room."""
        self.resize(back=len(content) - self.length)
        self.data[:] = content

    def scapy(self) -> Any:
        """Give a copy of the packet as scapy's Ether; `replace(bytes(...))` puts it back.

        Slow, and slower at the first time, when scapy is imported: off the fast path only.
        """
        from scapy.layers import inet, inet6, l2  # noqa: F401 - inet and inet6 tell l2 what follows it

        return l2.Ether(bytes(self.data))


class Packet(_Metadata):
    """One packet of a burst. The same object stands for another packet in the next burst: keep nothing but `hold()`."""

    __slots__ = ("_burst",)

    def __init__(self, burst: Burst, i: int) -> None:
        """Made by the runtime: entry i of the client's burst."""
        self._burst = burst
        self._client = burst._client
        self._lines = burst._lines
        self._i = i

    def _start(self) -> int:
        return self._burst._buffers[self._i] + self._lines.halves[self._i * (_META // 2) + _OFFSET]

    @property
    def verdict(self) -> int:
        """FORWARD, DROP, HOLD or CONSUME."""
        return self._lines.bytes[self._i * _META + _VERDICT]

    @property
    def output(self) -> int:
        """The output it is forwarded to."""
        return self._lines.bytes[self._i * _META + _OUTPUT]

    def forward(self, output: int = 0) -> None:
        """Send it on. Raises ValueError for an output that the component does not have."""
        _check_output(self._client, output)
        self._lines.bytes[self._i * _META + _VERDICT] = FORWARD
        self._lines.bytes[self._i * _META + _OUTPUT] = output

    def drop(self) -> None:
        """Drop it; counted as component-verdict."""
        self._lines.bytes[self._i * _META + _VERDICT] = DROP

    def consume(self) -> None:
        """Take it for the function itself: neither a drop nor a loss."""
        self._lines.bytes[self._i * _META + _VERDICT] = CONSUME

    def hold(self) -> Held:
        """Keep it; give it back through what this returns, within the limits of component.yaml."""
        self._lines.bytes[self._i * _META + _VERDICT] = HOLD
        return Held(self._burst, self._lines.words[self._i * (_META // 4) + _HANDLE], self._i)

    @property
    def state(self) -> memoryview | None:
        """The flow's state, changeable until the burst ends; None without flow or when none is declared.

        What is written becomes visible together with the packet, or not at all if the process dies first.
        """
        state = self._client.state(self._i)
        if state is not None and self._client.burst.fresh[self._i]:
            self._burst._allocate(self, state)
        return state


class Held(_Metadata):
    """A packet that the component keeps until it gives it back, once."""

    __slots__ = ("_burst", "_handle", "_serial")

    def __init__(self, burst: Burst, handle: int, i: int) -> None:
        """Made by Packet.hold()."""
        self._burst = burst
        self._client = burst._client
        self._handle = handle
        self._serial = burst.serial
        self._lines = burst._lines
        self._i = i
        burst._held[handle] = self
        burst._newly_held.append(self)

    @property
    def is_held(self) -> bool:
        """Whether it can still be given back."""
        return self._burst._held.get(self._handle) is self

    def keep(self) -> None:
        """The runtime's side: the burst ended, from now on the metadata is the client's copy."""
        meta, ext = self._client.held_meta(self._handle)
        if meta == ffi.NULL:  # something else was decided after hold()
            del self._burst._held[self._handle]
        else:
            self._lines, self._i = _Lines(meta, ext, 1), 0

    def _start(self) -> int:
        if self._serial == self._burst.serial:
            return self._burst._buffers[self._i] + self.room_front
        start = self._client.held_data(self._handle) if self.is_held else None
        if start is None:
            raise ReferenceError("the packet is not held any more")
        return start

    def forward(self, output: int = 0) -> None:
        """Send it on. Raises ReferenceError when it was given back before."""
        _check_output(self._client, output)
        self._give_back(FORWARD, output)

    def drop(self) -> None:
        """Drop it. Raises ReferenceError when it was given back before."""
        self._give_back(DROP, 0)

    def consume(self) -> None:
        """Take it for the function itself. Raises ReferenceError when it was given back before."""
        self._give_back(CONSUME, 0)

    def _give_back(self, verdict: int, output: int) -> None:
        if not self.is_held:
            raise ReferenceError("the packet is not held any more")
        del self._burst._held[self._handle]
        if self._serial == self._burst.serial:
            self._lines.bytes[self._i * _META + _VERDICT] = verdict
            self._lines.bytes[self._i * _META + _OUTPUT] = output
        else:
            self._burst.give_back(self._handle, verdict, output)


class Burst:
    """1 to 32 packets. Iterate over it, index it, or use its columns, which are views of the metadata lines."""

    def __init__(self, client: ReplicaClient, allocate: Callable[[Packet, memoryview], None]) -> None:
        """Made once by the runtime. allocate: the component's allocate_new_fs."""
        self.serial = 0  # grows with each burst
        self._client = client
        self._lines = _Lines(client.burst.meta, client.burst.ext, BURST)
        self._buffers = memoryview(ffi.buffer(client.burst.buffer)).cast("B").cast("Q")
        self._kinds = self._lines.bytes[_KIND::_META]
        self._packets = [Packet(self, i) for i in range(BURST)]
        self._first, self._end = 0, 0
        self._allocate_new_fs = allocate
        self._allocated: set[int] = set()
        self._held: dict[int, Held] = {}
        self._newly_held: list[Held] = []
        self._waiting: list[tuple[int, int, int]] = []  # given back, but the ring had no room

    def __len__(self) -> int:
        """Count the packets."""
        return self._end - self._first

    def __iter__(self) -> Iterator[Packet]:
        """Give the packets in order."""
        return iter(self._packets[self._first : self._end])

    def __getitem__(self, i: int) -> Packet:
        """Give packet i, negative from the end."""
        return self._packets[range(self._first, self._end)[i]]

    def forward(self, output: int = 0) -> None:
        """Send all on."""
        _check_output(self._client, output)
        self._fill(FORWARD, output)

    def drop(self) -> None:
        """Drop all."""
        self._fill(DROP, 0)

    def consume(self) -> None:
        """Take all for the function itself."""
        self._fill(CONSUME, 0)

    def set(self, verdicts: bytes, outputs: bytes | None = None) -> None:
        """Give each packet its verdict (and output) from one byte each; HOLD only through Packet.hold()."""
        if outputs is not None:
            _check_output(self._client, max(outputs, default=0))
            self._column(_OUTPUT)[:] = outputs
        if any(verdict not in (FORWARD, DROP, CONSUME) for verdict in verdicts):
            raise ValueError("a verdict is one of FORWARD, DROP and CONSUME")
        self._column(_VERDICT)[:] = verdicts

    @property
    def marks(self) -> memoryview:
        """The marks; writable."""
        return self._lines.words[_MARK :: _META // 4][self._first : self._end]

    @property
    def lengths(self) -> memoryview:
        """Bytes of each packet; change them by Packet.resize() only."""
        return self._lines.halves[_LENGTH :: _META // 2][self._first : self._end]

    @property
    def ports(self) -> memoryview:
        """Ingress ports."""
        return self._lines.halves[_PORT :: _META // 2][self._first : self._end]

    @property
    def paths(self) -> memoryview:
        """Service paths."""
        return self._lines.halves[_PATH :: _META // 2][self._first : self._end]

    @property
    def flows(self) -> memoryview:
        """Flow numbers, 0xffffffff for packets that have none."""
        return self._lines.words[_FLOW :: _META // 4][self._first : self._end]

    @property
    def timestamps_ns(self) -> memoryview:
        """Wall times of reception."""
        return self._lines.longs[_TIMESTAMP :: _META // 8][self._first : self._end]

    # ---- the runtime's side ----

    def run(self, n: int, process: Callable[[Burst], None], ending: Callable[[int], None]) -> None:
        """Let `process` handle the n entries received, in order; `ending` is told of entries that end a flow."""
        self.serial += 1
        if self._allocated:
            self._allocated.clear()
        kinds = self._kinds[:n].tobytes()
        if kinds.count(_PACKET) == n:
            self._first, self._end = 0, n
            process(self)
        else:
            self._run_mixed(kinds, process, ending)
        self._first = self._end = 0

    def _run_mixed(self, kinds: bytes, process: Callable[[Burst], None], ending: Callable[[int], None]) -> None:
        """Call `process` for each stretch of packets between entries that are something else."""
        self._first = 0
        for i, kind in enumerate((*kinds, None)):
            if kind == _PACKET:
                continue
            self._end = i
            if self._end > self._first:
                process(self)
            if kind == lib.COVEN_ENTRY_FLOW_REMOVED:
                ending(i)
            self._first = i + 1

    def close(self) -> None:
        """The burst is finished: nothing of it is the component's any more, but for what it holds."""
        self.serial += 1
        if self._newly_held:
            for held in self._newly_held:
                if held.is_held:
                    held.keep()
            self._newly_held.clear()

    def give_back(self, handle: int, verdict: int, output: int) -> None:
        """Release a held packet now or, when the ring is full, as soon as there is room."""
        if self._waiting or self._client.release(handle, verdict, output) == -errno.EAGAIN:
            self._waiting.append((handle, verdict, output))

    def settle(self) -> bool:
        """Give back what waits for room; false when some still does."""
        while self._waiting and self._client.release(*self._waiting[0]) != -errno.EAGAIN:
            del self._waiting[0]
        return not self._waiting

    def _allocate(self, packet: Packet, state: memoryview) -> None:
        flow = packet.flow
        if flow is not None and flow not in self._allocated:
            self._allocated.add(flow)
            self._allocate_new_fs(packet, state)

    def _column(self, field: int) -> memoryview:
        return self._lines.bytes[field::_META][self._first : self._end]

    def _fill(self, verdict: int, output: int) -> None:
        n = self._end - self._first
        self._column(_VERDICT)[:] = bytes((verdict,)) * n
        self._column(_OUTPUT)[:] = bytes((output,)) * n
