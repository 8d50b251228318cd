"""Ports, parser and offload code driven from Python without a worker (port_driver.c)."""

from __future__ import annotations

import functools
import importlib.util
import mmap
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cffi

from coven.network.opened import OpenedPort
from tests.lib import builds

HERE = Path(__file__).resolve().parent
DATAPLANE = HERE.parents[1] / "coven" / "dataplane"
SENT = 0xFF
BURST = 32
BOOK_ONLY = 2


def _struct(header: str, name: str) -> str:
    """Give the text of one structure of a header of the data plane."""
    text = re.sub(r"/\*.*?\*/", "", (DATAPLANE / header).read_text(), flags=re.DOTALL)
    found = re.search(rf"struct {name} {{.*?^}};", text, re.DOTALL | re.MULTILINE)
    assert found, f"{header} has no struct {name}"
    return found[0]


@functools.cache
def build() -> Any:
    """Compile the driver with the ports and give the module (`ffi`, `lib`)."""
    driver = (HERE / "port_driver.h").read_text()
    ffi = cffi.FFI()
    ffi.cdef(driver[driver.index("/* cffi */") : driver.index("/* end of cffi */")])
    ffi.cdef(_struct("parse.h", "coven_parsed"))
    ffi.cdef(_struct("offload.h", "coven_frame") + _struct("offload.h", "coven_split"))
    ffi.cdef(
        """
        void coven_parse(const uint8_t *data, uint32_t length, struct coven_parsed *out);
        void coven_parse_ip(const uint8_t *data, uint32_t length, uint32_t offset, uint16_t ether_type,
                            struct coven_parsed *out);
        void coven_frame_set_vnet(struct coven_frame *frame, const uint8_t *vnet);
        int coven_split_plan(const struct coven_frame *frame, struct coven_split *split);
        uint32_t coven_split_bytes(const struct coven_frame *frame, const struct coven_split *split, uint32_t i);
        void coven_split_write(const struct coven_frame *frame, const struct coven_split *split, uint32_t i,
                               uint8_t *out);
        int64_t coven_capture_check(int fd, char *why, size_t why_bytes);
        void coven_partial_complete(uint8_t *data, uint32_t length);
        """
    )
    names = ["parse", "offload", "capture", "port", "port_rx", "priority", "port_afpacket", "port_pcap", "port_tap", "port_gen",
             "port_afxdp", "port_afxdp_tx", "partial"]
    sources = [HERE / "port_driver.c", *(DATAPLANE / f"{name}.c" for name in names)]
    name = "_coven_ports"
    sanitizers = os.environ.get("COVEN_TEST_SANITIZERS", "").split()
    ffi.set_source(
        name,
        '#include "port_driver.h"\n#include "parse.h"\n#include "offload.h"\n#include "capture.h"\n#include "partial.h"\n',
        sources=[str(path) for path in sources],
        include_dirs=[str(HERE), str(DATAPLANE), str(DATAPLANE / "include")],
        extra_compile_args=["-std=gnu11", "-O1", "-g", "-fno-strict-aliasing", *sanitizers],
        extra_link_args=sanitizers,
    )
    inputs = [*sources, HERE / "port_driver.h", HERE / "ports.py"]
    folder = builds.made_once("ports", inputs, sanitizers, lambda folder: ffi.compile(tmpdir=str(folder)))
    (path,) = folder.glob(f"{name}.*.so")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@functools.cache
def reasons() -> dict[str, int]:
    """Give the numbers of the drop reasons by label."""
    text = (DATAPLANE / "drop_reasons.def").read_text()
    return {label: number for number, label in enumerate(re.findall(r'^DROP\(\w+, "([a-z-]+)"', text, re.MULTILINE))}


class Driver:
    """One port. Counters and position live in memory that a forked child shares."""

    def __init__(self, opened: OpenedPort, *, buffer_bytes: int = 4096, shared: mmap.mmap | None = None) -> None:
        """opened: descriptors and plan fields; shared: of an earlier driver of the port, to go on where it was."""
        module = build()
        self.ffi, self.lib = module.ffi, module.lib
        plan = self.ffi.new("struct driver_plan *")
        for key, value in opened.plan_fields.items():
            if key != "mtu":
                setattr(plan, key, value)
        plan.buffer_bytes = buffer_bytes
        plan.rx_fd, plan.tx_fd = opened.fds
        self.memory = shared or mmap.mmap(-1, self.ffi.sizeof("struct driver_shared"))
        self.shared = self.ffi.cast("struct driver_shared *", self.ffi.from_buffer(self.memory))
        why = self.ffi.new("char[200]")
        self.handle = self.lib.driver_open(plan, self.shared, why)
        if not self.handle:
            raise ValueError(self.ffi.string(why).decode())

    def close(self) -> None:
        """Detach; descriptors stay open."""
        if self.handle:
            self.lib.driver_close(self.handle)
            self.handle = None

    def receive(self, most: int = BURST, *, book: int = True) -> list[bytes]:
        """Take one burst. book: BOOK_ONLY leaves the slots unreleased, as a kill at that point does."""
        n = self.lib.driver_rx(self.handle, most, book)
        return [
            bytes(self.ffi.buffer(self.lib.driver_data(self.handle, i), self.lib.driver_length(self.handle, i)))
            for i in range(n)
        ]

    def receive_until(self, wanted: int, deadline_polls: int = 250) -> list[bytes]:
        """Take bursts until there are as many packets as wanted; gives what came when none follow any more."""
        packets: list[bytes] = []
        due = self.ffi.new("uint64_t *")
        import select

        for _ in range(deadline_polls):
            packets += self.receive()
            if len(packets) >= wanted:
                break
            fd = self.lib.driver_wait(self.handle, due)
            if fd >= 0:
                select.select([fd], [], [], 0.02)
        return packets

    def send(self, packet: bytes, *, cut: int = 0, timestamp_ns: int = 0, book: bool = True) -> int:
        """Send one packet; give 0xff or the drop reason."""
        return int(self.lib.driver_tx(self.handle, packet, len(packet), cut, timestamp_ns, book))

    def drops(self) -> dict[str, int]:
        """Give the drops of both directions by label."""
        return {
            label: self.shared.rx_drops[n] + self.shared.tx_drops[n]
            for label, n in reasons().items()
            if self.shared.rx_drops[n] + self.shared.tx_drops[n]
        }


@contextmanager
def forwarding(a: Driver, b: Driver) -> Iterator[None]:
    """Forward between two ports, in a thread, while the block runs."""
    stop = a.ffi.new("int *")
    thread = threading.Thread(target=a.lib.driver_forward, args=(a.handle, b.handle, stop))
    thread.start()
    try:
        yield
    finally:
        stop[0] = 1
        thread.join()


def fork_forwarder(a: OpenedPort, b: OpenedPort, a_memory: mmap.mmap, b_memory: mmap.mmap) -> int:
    """Start a process that forwards between two ports until it is killed; give its pid."""
    build()
    pid = os.fork()
    if pid == 0:
        try:
            one, other = Driver(a, shared=a_memory), Driver(b, shared=b_memory)
            one.lib.driver_forward(one.handle, other.handle, one.ffi.new("int *"))
        finally:
            os._exit(1)
    return pid


def capinfo(path: Path) -> list[tuple[int, int, int, bytes]]:
    """Give (seconds, fraction, original length, bytes) of each packet of a classic capture, by an own reader."""
    import struct

    data = path.read_bytes()
    order = "<" if data[:4] in (b"\xd4\xc3\xb2\xa1", b"\x4d\x3c\xb2\xa1") else ">"
    packets, at = [], 24
    while at < len(data):
        seconds, fraction, captured, original = struct.unpack_from(f"{order}4I", data, at)
        packets.append((seconds, fraction, original, data[at + 16 : at + 16 + captured]))
        at += 16 + captured
    return packets


def run(*command: str) -> str:
    """Run a command to its end; its output."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout
