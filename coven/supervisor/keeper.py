"""The supervisor's descriptors and the keeper that holds copies of them (docs/internals.md, section 7).

`Keeper` is the one owner of descriptors that must outlive the supervisor: `put` registers them under a name and
sends copies, `drop` closes both. When the keeper dies, a replacement gets everything.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Callable, Sequence

from coven.supervisor.config import Settings

log = logging.getLogger(__name__)

SOCKET_FD = 3
MAX_FDS = 16
MESSAGE_BYTES = 512
REPLACEMENTS = 5  # attempts to get a keeper again before going on without one


class Keeper:
    """Client of the keeper, and the table of named descriptors."""

    def __init__(self, settings: Settings, sock: socket.socket | None = None) -> None:
        """sock: to the keeper; by default descriptor 3."""
        self._settings = settings
        self._sock = sock or socket.socket(fileno=SOCKET_FD)
        self._sock.set_inheritable(False)
        self.pid = settings.keeper_pid
        self._fds: dict[str, tuple[int, ...]] = {}
        self._reaped: dict[int, int] = {}
        self._waiting: dict[int, Callable[[int], None]] = {}
        self._lost = 0

    # ---- descriptors ----------------------------------------------------------------------------

    def load(self) -> None:
        """Take over all descriptors that the keeper has. Blocks; called once, at the start."""
        self._sock.setblocking(True)
        self._sock.settimeout(10)
        self._sock.send(b"list")
        while True:
            text, fds = self._receive()
            if text == "end":
                return
            word, _, name = text.partition(" ")
            if word == "fd":
                self._fds[name] = fds
            elif word == "reaped":
                self._note_reaped(name)
            elif not text:
                raise ConnectionError("the keeper has gone")

    def names(self, prefix: str = "") -> list[str]:
        """Give the names that begin with prefix, in the order they were stored."""
        return [name for name in self._fds if name.startswith(prefix)]

    def get(self, name: str) -> tuple[int, ...]:
        """Give the descriptors of a name; they stay the keeper's. Empty if there is no such name."""
        return self._fds.get(name, ())

    def put(self, name: str, fds: Sequence[int]) -> None:
        """Become the owner of descriptors, in the place of what had this name before."""
        self._close(name)
        self._fds[name] = tuple(fds)
        self._send(f"store {name}", fds)

    def drop(self, name: str) -> None:
        """Close the descriptors of a name, here and in the keeper. No harm if there are none."""
        if name in self._fds:
            self._close(name)
            self._send(f"drop {name}")

    def _close(self, name: str) -> None:
        for fd in self._fds.pop(name, ()):
            with contextlib.suppress(OSError):
                os.close(fd)

    # ---- the keeper -----------------------------------------------------------------------------

    def watch(self) -> None:
        """Listen to the keeper from now on."""
        self._sock.setblocking(True)
        asyncio.get_running_loop().add_reader(self._sock, self._readable)

    def end(self) -> None:
        """Ask the keeper to end when this process has ended."""
        self._send("exit")

    def on_reaped(self, pid: int, tell: Callable[[int], None]) -> None:
        """Call `tell` with the wait status of a process that is no child of ours, now or once the keeper says it."""
        status = self._reaped.pop(pid, None)
        if status is not None:
            tell(status)
        else:
            self._waiting[pid] = tell

    def _receive(self, flags: int = 0) -> tuple[str, tuple[int, ...]]:
        fds = array.array("i")
        size = socket.CMSG_SPACE(MAX_FDS * fds.itemsize)
        data, ancillary, _, _ = self._sock.recvmsg(MESSAGE_BYTES, size, socket.MSG_CMSG_CLOEXEC | flags)
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds.frombytes(payload[: len(payload) - len(payload) % fds.itemsize])
        return data.decode("utf-8", "replace"), tuple(fds)

    def _send(self, text: str, fds: Sequence[int] = ()) -> None:
        control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            self._sock.sendmsg([text.encode()], control)
        except OSError as error:
            # The loop sees the closed socket as well and starts a replacement, which is given the whole table.
            log.warning("keeper=%d message=%r lost: %s", self.pid, text, error)

    def _readable(self) -> None:
        try:
            text, fds = self._receive(socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError:
            text, fds = "", ()
        for fd in fds:
            os.close(fd)
        if not text:
            self._replace()
            return
        word, _, rest = text.partition(" ")
        if word == "reaped":
            self._note_reaped(rest)

    def _note_reaped(self, text: str) -> None:
        fields = text.split()
        if len(fields) != 2 or not all(x.lstrip("-").isdigit() for x in fields):
            return
        pid, status = int(fields[0]), int(fields[1])
        tell = self._waiting.pop(pid, None)
        if tell is not None:
            tell(status)
            return
        self._reaped[pid] = status
        while len(self._reaped) > 256:  # what nobody asked about
            self._reaped.pop(next(iter(self._reaped)))

    def _replace(self) -> None:
        """Start another keeper and give it everything."""
        asyncio.get_running_loop().remove_reader(self._sock)
        self._sock.close()
        self._lost += 1
        log.error("keeper=%d died; starting another", self.pid)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        base = theirs.fileno() + 100
        program = str(self._settings.bin_dir / "coven-keeper")
        arguments = [program, "--supervisor", str(os.getpid()), "--fd", str(base), "--", *self._settings.argv]
        try:
            self.pid = os.posix_spawn(
                program,
                arguments,
                os.environ,
                file_actions=[(os.POSIX_SPAWN_DUP2, theirs.fileno(), base)],
                setsid=True,
            )
        except OSError as error:
            log.error("no keeper: %s", error)
            self.pid = 0
        theirs.close()
        self._sock = ours
        for name, fds in self._fds.items():
            self._send(f"store {name}", fds)
        if self._lost <= REPLACEMENTS and self.pid:
            self.watch()
