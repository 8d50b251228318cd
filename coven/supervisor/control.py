"""Control socket of a worker (docs/internals.md, section 3), the asking side."""

from __future__ import annotations

import array
import asyncio
import os
import socket
from collections.abc import Callable, Sequence

from coven.dataplane.core import Control, pack_control, unpack_control
from coven.errors import CovenError, Where

(
    SEGMENT, PORT, CODE, READY, RUN, PAUSE, ATTACH, DETACH, SNAPSHOT, AGENT, EXIT, ATTENTION,
) = range(1, 13)  # fmt: skip
POISON_CLEAR, HALT, NOTIFY = 13, 14, 64
FLOWS, FLOW_EXPORT, FLOW_IMPORT = 16, 17, 18
STILL, HUNG, MOVING, FUSED, VIOLATION = range(1, 6)  # enum coven_notice
REPLY = 0x80000000
DATAGRAM = 65536
TIMEOUT = 5.0  # seconds; a worker looks at its socket at least every 64 loops


class WorkerGone(Exception):
    """The worker died before it answered; whoever restarts it knows."""


class WorkerSilent(CovenError):
    """The worker lives, but did not answer in time."""


class WorkerRefused(CovenError):
    """The worker answered that it cannot."""

    def __init__(self, part: str, text: str, number: int) -> None:
        """text: its words. number: errno."""
        super().__init__("platform.internal", f"{part}: {text}", where=Where(part=part))
        self.text = text
        self.number = number


class WorkerControl:
    """Requests to one worker. The socket is a duplicate of `fd`, which stays the caller's."""

    def __init__(self, fd: int, part: str, on_notice: Callable[[Control], None] = lambda notice: None) -> None:
        """part: name of the worker, for errors. on_notice: called with each NOTIFY, which nobody asked for."""
        self._on_notice = on_notice
        self._sock = socket.socket(fileno=os.dup(fd))
        self._sock.setblocking(False)
        self._part = part
        self._seq = int.from_bytes(os.urandom(3), "big")  # answers to a dead supervisor's requests do not fit
        self._open: dict[int, asyncio.Future[Control]] = {}
        self._sending = asyncio.Lock()
        asyncio.get_running_loop().add_reader(self._sock, self._readable)

    async def request(
        self,
        op: int,
        index: int = 0,
        args: Sequence[int] = (),
        payload: bytes = b"",
        fds: Sequence[int] = (),
        timeout: float = TIMEOUT,
    ) -> Control:
        """Ask and give the answer. Raises WorkerGone, WorkerSilent, or CovenError when refused."""
        self._seq += 1
        seq = self._seq
        future: asyncio.Future[Control] = asyncio.get_running_loop().create_future()
        self._open[seq] = future
        try:
            async with asyncio.timeout(timeout):
                await self._send(pack_control(Control(op, seq, index, 0, tuple(args), payload)), fds)
                answer = await future
        except TimeoutError as error:
            raise WorkerSilent(
                "component.not-answering",
                f"{self._part} did not answer within {timeout:g} s",
                hint="a component that is fused into it may hang; if so, the worker is restarted",
                where=Where(part=self._part),
            ) from error
        except OSError as error:
            raise WorkerGone from error
        finally:
            self._open.pop(seq, None)
        if answer.result < 0:
            text = answer.payload.split(b"\0")[0].decode("utf-8", "replace") or os.strerror(-answer.result)
            raise WorkerRefused(self._part, text, -answer.result)
        return answer

    def close(self) -> None:
        """Close; whoever still waits learns that the worker has gone."""
        if self._sock.fileno() < 0:
            return
        asyncio.get_running_loop().remove_reader(self._sock)
        self._sock.close()
        for future in self._open.values():
            if not future.done():
                future.set_exception(WorkerGone())

    async def _send(self, datagram: bytes, fds: Sequence[int]) -> None:
        control = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        async with self._sending:
            while True:
                try:
                    self._sock.sendmsg([datagram], control)
                    return
                except BlockingIOError:
                    writable = asyncio.Event()
                    asyncio.get_running_loop().add_writer(self._sock, writable.set)
                    try:
                        await writable.wait()
                    finally:
                        asyncio.get_running_loop().remove_writer(self._sock)

    def _readable(self) -> None:
        for _ in range(64):
            try:
                datagram = self._sock.recv(DATAGRAM)
            except BlockingIOError:
                return
            except OSError:
                datagram = b""
            if not datagram:
                asyncio.get_running_loop().remove_reader(self._sock)
                return
            try:
                answer = unpack_control(datagram)
            except CovenError:
                continue
            if answer.op == NOTIFY:
                self._on_notice(answer)
                continue
            future = self._open.get(answer.seq)
            if future is not None and not future.done() and answer.op & REPLY:
                future.set_result(answer)
