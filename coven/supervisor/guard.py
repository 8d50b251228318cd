"""What the system call filter of a component holds back: answered with EPERM at once, and told to the operator by name.

coven-launch sends the filter's listener (seccomp user notification) when it starts a component, and the user namespace
that everything stays in which the component starts. Both are with the keeper, so a call that is made while no
supervisor runs waits for the next one. A component that makes such calls without end makes itself wait: only so many
are answered in a second.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import fcntl
import os
import select
import socket
import struct
from collections.abc import Callable
from errno import EPERM

from coven.dataplane.core import ffi, lib
from coven.supervisor.keeper import Keeper

# linux/seccomp.h: struct seccomp_notif, struct seccomp_notif_resp and their ioctls; alike on all architectures.
NOTICE = struct.Struct("=QIIiIQ6Q")
ANSWER = struct.Struct("=QqiI")
RECEIVE, SEND = 0xC0502100, 0xC0182101
AT_ONCE, PAUSE = 32, 0.1  # calls answered in one go, seconds until the next ones
TELL_EVERY = 1.0  # seconds between two events of one component
OTHER_ARCHITECTURE = "a call of another architecture"


class Guard:
    """Listens to the filter of one replica, through all its starts."""

    def __init__(self, keeper: Keeper, name: str, tell: Callable[[int, dict[str, int]], None]) -> None:
        """name: of the descriptors in the keeper. tell: gets the last thread that called, and how often which call."""
        self._keeper, self._name, self._tell = keeper, name, tell
        self.total: dict[str, int] = {}  # by call, since the instance exists
        self._untold: dict[str, int] = {}
        self._pid = 0
        self._reading: list[int | socket.socket] = []
        self._timers: dict[str, asyncio.TimerHandle] = {}

    # ---- life -----------------------------------------------------------------------------------

    def expect(self) -> socket.socket:
        """Be ready for a start; give the end of the socket that goes to coven-launch. The caller closes it."""
        self.stop()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)
        self._read(ours, lambda: self._greeted(ours))
        return theirs

    def follow(self) -> None:
        """Listen to what the keeper has of a process that runs already."""
        held = self._keeper.get(f"{self._name}.filter")
        if held:
            self._read(held[0], lambda: self._called(held[0]))

    def stop(self) -> None:
        """Let go of everything; what was not told yet is told."""
        for what in list(self._reading):
            self._unread(what)
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
        self._report()
        self._keeper.drop(f"{self._name}.filter")
        self._keeper.drop(f"{self._name}.user")

    @property
    def namespace(self) -> int | None:
        """Number of the user namespace; nobody else has it as long as we hold its descriptor."""
        held = self._keeper.get(f"{self._name}.user")
        return os.fstat(held[0]).st_ino if held else None

    def _read(self, what: int | socket.socket, ready: Callable[[], None]) -> None:
        self._reading.append(what)
        asyncio.get_running_loop().add_reader(what, ready)

    def _unread(self, what: int | socket.socket) -> None:
        if what not in self._reading:
            return
        self._reading.remove(what)
        asyncio.get_running_loop().remove_reader(what)
        if isinstance(what, socket.socket):
            what.close()

    def _greeted(self, sock: socket.socket) -> None:
        """Take what coven-launch sends; it is still ours then, not the component."""
        fds = array.array("i")
        try:
            text, ancillary, _, _ = sock.recvmsg(64, socket.CMSG_SPACE(2 * fds.itemsize), socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return
        except OSError:
            text, ancillary = b"", []
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
        for word, fd in zip(text.decode("ascii", "replace").split(), fds, strict=False):
            self._keeper.put(f"{self._name}.{word}", [fd])
        self._unread(sock)
        self.follow()

    # ---- calls ----------------------------------------------------------------------------------

    def _called(self, fd: int) -> None:
        """Answer what waits. A listener whose processes are all gone says so for ever."""
        for _ in range(AT_ONCE):
            events = _poll(fd)
            if not events & select.POLLIN:
                if events:
                    self._unread(fd)
                return
            self._answer(fd)
        self._unread(fd)
        self._later("calls", PAUSE, self.follow)

    def _answer(self, fd: int) -> None:
        notice = bytearray(NOTICE.size)
        # It does not block: what was announced can be taken once, though the caller may be dead by now (ENOENT).
        with contextlib.suppress(OSError):
            fcntl.ioctl(fd, RECEIVE, notice)
            identity, pid, _, number, architecture, *_ = NOTICE.unpack(notice)
            self._count(pid, _name(architecture, number))
            fcntl.ioctl(fd, SEND, bytearray(ANSWER.pack(identity, 0, -EPERM, 0)))

    def _count(self, pid: int, call: str) -> None:
        self._pid = pid
        self.total[call] = self.total.get(call, 0) + 1
        self._untold[call] = self._untold.get(call, 0) + 1
        if "report" not in self._timers:
            self._later("report", 0, self._report_and_wait)

    def _report_and_wait(self) -> None:
        if self._report():
            self._later("report", TELL_EVERY, self._report_and_wait)

    def _report(self) -> bool:
        calls, self._untold = self._untold, {}
        if calls:
            self._tell(self._pid, calls)
        return bool(calls)

    def _later(self, name: str, seconds: float, what: Callable[[], object]) -> None:
        def act() -> None:
            self._timers.pop(name, None)
            what()

        self._timers[name] = asyncio.get_running_loop().call_later(seconds, act)


def _poll(fd: int) -> int:
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return next((events for _, events in poller.poll(0)), 0)


def _name(architecture: int, number: int) -> str:
    found = lib.coven_syscall_name(architecture, number & 0xFFFFFFFF)
    return ffi.string(found).decode("ascii") if found else OTHER_ARCHITECTURE
