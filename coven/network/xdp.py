"""XDP without a library: the program that hands packets to AF_XDP sockets, and those sockets.

The program is a dozen instructions assembled here, so that an appliance needs neither clang nor libxdp. It is attached
by a BPF link: the kernel takes it off when the last descriptor of the link is closed, whoever died how.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import socket
import struct
from dataclasses import dataclass
from pathlib import Path

from coven.network.assembler import Program, find_function

# linux/bpf.h
SYS_BPF = 321  # x86-64
BPF_MAP_CREATE, BPF_MAP_UPDATE_ELEM, BPF_PROG_LOAD, BPF_LINK_CREATE, BPF_LINK_DETACH = 0, 2, 5, 28, 34
BPF_MAP_TYPE_XSKMAP, BPF_PROG_TYPE_XDP, BPF_XDP = 17, 6, 37
BPF_F_XDP_DEV_BOUND_ONLY = 1 << 6
FUNC_XDP_ADJUST_HEAD, FUNC_REDIRECT_MAP = 44, 51
XDP_DROP = 1
VLAN_FUNCTION = "bpf_xdp_metadata_rx_vlan_tag"

# linux/if_link.h
XDP_FLAGS_SKB_MODE, XDP_FLAGS_DRV_MODE = 1 << 1, 1 << 2

# linux/if_xdp.h
AF_XDP, SOL_XDP = 44, 283
XDP_RX_RING, XDP_TX_RING, XDP_UMEM_REG, XDP_UMEM_FILL_RING, XDP_UMEM_COMPLETION_RING = 2, 3, 4, 5, 6
XDP_OPTIONS, XDP_OPTIONS_ZEROCOPY = 8, 1
XDP_COPY, XDP_ZEROCOPY, XDP_USE_NEED_WAKEUP = 2, 4, 8

# asm-generic/socket.h
SO_BUSY_POLL, SO_PREFER_BUSY_POLL, SO_BUSY_POLL_BUDGET = 46, 69, 70
SO_SNDBUFFORCE = 32
BUSY_POLL_US, BUSY_POLL_PACKETS = 20, 64

NEEDS_ROOT = "AF_XDP needs root"
SEND_BYTES = 16 << 20  # in copy mode each packet on its way is a socket buffer charged to the socket

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Pool:
    """Packet memory as the segment has it. fd: of the segment; the first buffer begins at `offset`."""

    fd: int
    offset: int
    buffers: int
    buffer_bytes: int


def _bpf(command: int, attributes: bytes) -> int:
    """Make a bpf() call; give its result. Raises OSError."""
    given = ctypes.create_string_buffer(attributes, max(len(attributes), 128))
    result = _libc.syscall(SYS_BPF, command, given, len(given))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return int(result)


def make_map(queues: int) -> int:
    """Make the map from queue number to socket; gives its descriptor."""
    return _bpf(BPF_MAP_CREATE, struct.pack("=7I16s", BPF_MAP_TYPE_XSKMAP, 4, 4, queues, 0, 0, 0, b"coven_queues"))


def put_socket(map_fd: int, queue: int, socket_fd: int) -> None:
    """Let packets of a receive queue go to a socket."""
    key = ctypes.create_string_buffer(struct.pack("=I", queue))
    value = ctypes.create_string_buffer(struct.pack("=I", socket_fd))
    _bpf(
        BPF_MAP_UPDATE_ELEM,
        struct.pack("=IIQQQ", map_fd, 0, ctypes.addressof(key), ctypes.addressof(value), 0),
    )


def load_program(map_fd: int, *, vlan_on: int | None) -> int:
    """Load the program; gives its descriptor. Raises OSError.

    vlan_on: index of an interface whose driver tells the tag that it took off a frame; the program puts it back.
    """
    code = redirect(map_fd) if vlan_on is None else redirect_with_tag(map_fd)
    instructions = ctypes.create_string_buffer(code, len(code))
    license_text = ctypes.create_string_buffer(b"Dual MIT/GPL")
    log = ctypes.create_string_buffer(1 << 16)
    flags, index = (BPF_F_XDP_DEV_BOUND_ONLY, vlan_on) if vlan_on is not None else (0, 0)
    attributes = struct.pack(
        "=IIQQIIQII16sII", BPF_PROG_TYPE_XDP, len(code) // 8, ctypes.addressof(instructions),
        ctypes.addressof(license_text), 1, len(log), ctypes.addressof(log), 0, flags, b"coven_redirect", index, BPF_XDP,
    )  # fmt: skip
    return _bpf(BPF_PROG_LOAD, attributes)


def attach(program: int, index: int, *, native: bool) -> int:
    """Attach a program to an interface; gives the link, which detaches when it is closed. Raises OSError."""
    mode = XDP_FLAGS_DRV_MODE if native else XDP_FLAGS_SKB_MODE
    return _bpf(BPF_LINK_CREATE, struct.pack("=4I", program, index, BPF_XDP, mode))


def detach(link: int) -> None:
    """Take the program of a link off its interface now, whoever else still holds the link. Raises OSError."""
    _bpf(BPF_LINK_DETACH, struct.pack("=I", link))


def redirect(map_fd: int) -> bytes:
    """Assemble: give the packet to the socket of its queue, or drop it."""
    program = Program()
    program.mov(6, 1)
    _to_the_socket(program, map_fd)
    return program.assemble()


def redirect_with_tag(map_fd: int) -> bytes:
    """Assemble the same, after the tag that the driver took off has been put back into the frame."""
    program = Program()
    program.mov(6, 1)
    program.store_zero(10, -8)
    program.mov(2, 10)
    program.add(2, -8)  # place of the protocol, network byte order
    program.mov(3, 10)
    program.add(3, -4)  # place of the tag, host byte order
    program.call_kernel(find_function(VLAN_FUNCTION))
    program.jump_if_not_zero(0, "redirect")
    program.mov(1, 6)
    program.set(2, -4)
    program.call(FUNC_XDP_ADJUST_HEAD)
    program.jump_if_not_zero(0, "drop")
    program.load(4, 1, 6, 0)  # xdp_md.data
    program.load(4, 2, 6, 4)  # xdp_md.data_end
    program.mov(3, 1)
    program.add(3, 18)
    program.jump_if_greater(3, 2, "drop")
    for at in (0, 4, 8):  # both addresses move to the front
        program.load(4, 3, 1, at + 4)
        program.store(4, 1, 3, at)
    program.load(2, 3, 10, -8)
    program.store(2, 1, 3, 12)
    program.load(2, 3, 10, -4)
    program.to_network16(3)
    program.store(2, 1, 3, 14)
    program.label("redirect")
    _to_the_socket(program, map_fd)
    program.label("drop")
    program.set(0, XDP_DROP)
    program.exit()
    return program.assemble()


def _to_the_socket(program: Program, map_fd: int) -> None:
    program.load(4, 2, 6, 16)  # xdp_md.rx_queue_index
    program.load_map(1, map_fd)
    program.set(3, XDP_DROP)  # what happens when the queue has no socket
    program.call(FUNC_REDIRECT_MAP)
    program.exit()


class Memory:
    """The pool's buffers, mapped for as long as sockets are made that register them."""

    def __init__(self, pool: Pool) -> None:
        """Map them. Raises OSError."""
        self.pool = pool
        self.bytes = pool.buffers * pool.buffer_bytes
        self._map = mmap.mmap(pool.fd, self.bytes, offset=pool.offset)
        anchor = ctypes.c_char.from_buffer(self._map)
        self.address = ctypes.addressof(anchor)
        self._anchor: ctypes.c_char | None = anchor

    def close(self) -> None:
        """Unmap; what sockets have registered stays theirs."""
        if self._anchor is not None:
            self._anchor = None
            self._map.close()


def make_socket(memory: Memory, *, rx: int, tx: int, busy_poll: bool) -> socket.socket:
    """Make an AF_XDP socket with its rings, the pool registered as its memory. Raises OSError.

    rx, tx: entries of the rings, powers of two; the fill ring has rx, the completion ring tx.
    """
    made = socket.socket(AF_XDP, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
    try:
        made.setblocking(False)
        region = struct.pack("=QQIIII", memory.address, memory.bytes, memory.pool.buffer_bytes, 0, 0, 0)
        made.setsockopt(SOL_XDP, XDP_UMEM_REG, region)
        rings = ((XDP_UMEM_FILL_RING, rx), (XDP_UMEM_COMPLETION_RING, tx), (XDP_RX_RING, rx), (XDP_TX_RING, tx))
        for ring, entries in rings:
            made.setsockopt(SOL_XDP, ring, entries)
        with contextlib.suppress(PermissionError):
            made.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, SEND_BYTES)
        if busy_poll:
            made.setsockopt(socket.SOL_SOCKET, SO_PREFER_BUSY_POLL, 1)
            made.setsockopt(socket.SOL_SOCKET, SO_BUSY_POLL, BUSY_POLL_US)
            made.setsockopt(socket.SOL_SOCKET, SO_BUSY_POLL_BUDGET, BUSY_POLL_PACKETS)
    except OSError:
        made.close()
        raise
    return made


def bind(made: socket.socket, index: int, queue: int, *, zero_copy: bool) -> None:
    """Bind a socket to a queue of an interface. Raises OSError: EOPNOTSUPP where the driver has no zero-copy."""
    flags = XDP_USE_NEED_WAKEUP | (XDP_ZEROCOPY if zero_copy else XDP_COPY)
    address = struct.pack("=HHIII", AF_XDP, flags, index, queue, 0)
    if _libc.bind(made.fileno(), address, len(address)) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def unavailable() -> str | None:
    """Say why this kernel or this user cannot have AF_XDP sockets, or give None."""
    try:
        socket.socket(AF_XDP, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0).close()
    except PermissionError:
        return NEEDS_ROOT
    except OSError as error:
        return f"this kernel has no AF_XDP ({error.strerror})"
    if os.uname().machine != "x86_64":
        return f"the XDP program is loaded on x86-64 only, this is {os.uname().machine}"
    try:
        os.close(make_map(1))
    except OSError as error:
        return f"this kernel lets nobody load XDP programs ({error.strerror})"
    return None


def knows_tags() -> bool:
    """Whether the kernel has the function by which a driver tells an XDP program the tag it took off."""
    return Path("/sys/kernel/btf/vmlinux").exists() and find_function(VLAN_FUNCTION) != 0
