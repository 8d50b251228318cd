"""Python's side of the C core: the only module that imports `_core`.

Gives the structures and constants of abi.h and control.h (`ffi`, `lib`), shared-memory segments, rings and
the messages of the worker's control socket. Nothing here is called for each packet.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib
import mmap
import os
from dataclasses import dataclass
from importlib.machinery import ExtensionFileLoader, ModuleSpec
from importlib.util import module_from_spec
from types import ModuleType
from typing import Any, TypeAlias

from coven.errors import CovenError

CORE_VARIABLE = "COVEN_CORE"  # names a folder with another build of `_core`: tests, one with fault points


def _load() -> ModuleType:
    folder = os.environ.get(CORE_VARIABLE)
    if not folder:
        return importlib.import_module("coven.dataplane._core")
    loader = ExtensionFileLoader("coven.dataplane._core", f"{folder}/_core.abi3.so")
    module = module_from_spec(ModuleSpec(loader.name, loader, origin=loader.path))
    loader.exec_module(module)
    return module


try:
    _core: Any = _load()
    ffi, lib = _core.ffi, _core.lib
except ImportError as error:  # pragma: no cover - only in a tree that was not built
    raise CovenError(
        "platform.internal",
        f"the native core cannot be loaded: {error}",
        hint="build it with `pip install -e .`; from a source tree, do not shadow an installed coven",
    ) from error

CPointer: TypeAlias = Any  # a cffi pointer

__all__ = ["Control", "Ring", "Segment", "ffi", "lib", "pack_control", "sizeof", "unpack_control"]

_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def sizeof(name: str) -> int:
    """Give the bytes of `struct <name>`."""
    return int(ffi.sizeof(f"struct {name}"))


def check(result: int, what: str) -> int:
    """Turn a negative errno of the core into an error; give everything else back."""
    if result < 0:
        raise CovenError("platform.internal", f"{what}: {os.strerror(-result)}")
    return result


class Segment:
    """A shared-memory segment: a sealed memfd and a mapping of it.

    The descriptor (`fd`) and the mapping (`memory`) belong to the object until close().
    """

    __slots__ = ("bytes", "fd", "memory", "name")

    def __init__(self, fd: int, name: str = "") -> None:
        """Map the segment behind `fd`, which the object takes over."""
        self.fd = fd
        self.name = name
        self.bytes = os.fstat(fd).st_size
        self.memory = mmap.mmap(fd, self.bytes)

    @classmethod
    def create(cls, name: str, size: int, head: bytes = b"", *, mode: int = 0o600) -> Segment:
        """Make a segment of `size` bytes that begins with `head`, the rest zero, and seal its size.

        Raises CovenError platform.no-resources when there is not enough memory.
        """
        fd = os.memfd_create(f"coven-{name}", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.fchmod(fd, mode)
            os.ftruncate(fd, size)
            if head:
                os.pwrite(fd, head, 0)
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
            return cls(fd, name)
        except OSError as error:
            os.close(fd)
            raise CovenError(
                "platform.no-resources", f"cannot make the segment {name} of {size} bytes: {error}"
            ) from error

    def struct(self, name: str, offset: int = 0) -> CPointer:
        """Give a pointer to `struct <name>` at `offset`; valid until close()."""
        return ffi.cast(f"struct {name} *", ffi.from_buffer(self.memory) + offset)

    def close(self) -> None:
        """Unmap and close. Pointers into the segment must be gone, else the mapping stays until they are."""
        with contextlib.suppress(BufferError):  # a cffi pointer looks into it: unmapped with the last one
            self.memory.close()
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class Ring:
    """One side of a burst ring, for tools and tests; entries are `struct coven_meta`.

    ring, entry, meta, ext: pointers into a mapped segment, which must outlive the object. One thread.
    """

    __slots__ = ("_side",)

    def __init__(
        self,
        ring: CPointer,
        entry: CPointer,
        meta: CPointer,
        ext: CPointer,
        size: int,
        position: int = 0,
        doorbell: int = -1,
    ) -> None:
        """Take a side whose own position is `position`."""
        self._side = ffi.new("struct coven_ring_side *")
        lib.coven_ring_side_init(self._side, ring, entry, meta, ext, size, position, doorbell)

    @property
    def position(self) -> int:
        """Own position: tail of the producer, head of the consumer."""
        return int(self._side.position)

    @property
    def broken(self) -> int:
        """How often the other side's word was impossible."""
        return int(self._side.broken)

    def room(self, wanted: int = 1) -> int:
        """Give how many entries the producer may write."""
        return int(lib.coven_ring_room(self._side, wanted))

    def ready(self) -> int:
        """Give how many entries the consumer may read."""
        return int(lib.coven_ring_ready(self._side))

    def enqueue_burst(self, meta: CPointer, n: int, ext: CPointer = None) -> int:
        """Put up to n entries of a `struct coven_meta[]` in; give how many were taken."""
        return int(lib.coven_ring_enqueue_burst(self._side, meta, ext or ffi.NULL, n))

    def dequeue_burst(self, meta: CPointer, n: int, ext: CPointer = None) -> int:
        """Copy up to n entries out; give how many."""
        return int(lib.coven_ring_dequeue_burst(self._side, meta, ext or ffi.NULL, n))

    def sleep(self) -> bool:
        """Say that the consumer sleeps; False when there is something to read."""
        return bool(lib.coven_ring_sleep(self._side))

    def awake(self) -> None:
        """Take sleep() back."""
        lib.coven_ring_awake(self._side)


@dataclass(frozen=True, slots=True)
class Control:
    """A message of the worker's control socket (docs/internals.md section 3)."""

    op: int
    seq: int
    index: int = 0
    result: int = 0
    args: tuple[int, ...] = ()
    payload: bytes = b""


def pack_control(message: Control) -> bytes:
    """Give the datagram of a message."""
    head = ffi.new("struct coven_control *")
    head.op, head.seq, head.index, head.result = message.op, message.seq, message.index, message.result
    for i, value in enumerate(message.args):
        head.arg[i] = value
    return bytes(ffi.buffer(head)) + message.payload


def unpack_control(datagram: bytes) -> Control:
    """Read a datagram; raises CovenError platform.internal when it is too short."""
    size = sizeof("coven_control")
    if len(datagram) < size:
        raise CovenError("platform.internal", f"control message of {len(datagram)} bytes, needs {size}")
    head = ffi.new("struct coven_control *")
    ffi.memmove(head, datagram, size)
    return Control(head.op, head.seq, head.index, head.result, tuple(head.arg), datagram[size:])
