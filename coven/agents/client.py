"""Ask a component, with a deadline. The component is untrusted: it may be silent, late, or talk nonsense.

Each question has an id of its own. An answer counts only if it carries the id of a question that still waits, so
what comes late is ignored; so is what carries no id at all, and it is mentioned if no answer comes.
"""

from __future__ import annotations

import asyncio
import contextlib
import select
import socket
import time
from collections.abc import Iterable

from coven.agents.protocol import (
    MAX_BYTES,
    Answer,
    Line,
    Request,
    decode_answer,
    encode_request,
    request_id,
)
from coven.errors import CovenError, Where

# A component that floods its socket is read no further than this at once.
MAX_DATAGRAMS_AT_ONCE = 64

# What an error answer of a component means to the one who asked.
_ERRORS = {
    "unknown-verb": "component.operation-unknown",
    "unknown-name": "component.operation-unknown",
    "bad-argument": "component.argument-invalid",
    "failed": "component.operation-failed",
    "bad-code": "component.bad-code",
    "malformed": "component.operation-failed",
}


def outcome(answer: Answer, where: Where) -> tuple[Line, ...]:
    """Give the lines of an answer, however it came. Raises CovenError when it is an error."""
    if answer.code is None:
        return answer.lines
    raise CovenError(_ERRORS[answer.code], answer.message or "the component gave no reason", where=where)


class _Exchange:
    """Ids, and which answers count; what both clients share."""

    def __init__(self, sock: socket.socket, part: str) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.where = Where(part=part)
        self.ignored = 0  # datagrams that answered nothing, since the last answer that did
        self._last_id = 0

    def request(self, verb: str, name: str, lines: Iterable[Line]) -> tuple[int, bytes]:
        self._last_id += 1
        return self._last_id, encode_request(Request(self._last_id, verb, name, tuple(lines)))

    def receive(self) -> bytes | None:
        """Give one datagram, None if there is none now. Raises CovenError when the component has hung up."""
        try:
            data = self.sock.recv(MAX_BYTES + 1)
        except (BlockingIOError, InterruptedError):
            return None
        except OSError as error:
            raise self.gone() from error
        if not data and self._is_hung_up():  # an empty datagram looks the same as the end
            raise self.gone()
        return data

    def _is_hung_up(self) -> bool:
        poller = select.poll()
        poller.register(self.sock, select.POLLRDHUP)
        return any(events & (select.POLLHUP | select.POLLRDHUP | select.POLLERR) for _, events in poller.poll(0))

    def outcome(self, answer: Answer) -> tuple[Line, ...]:
        """Give the lines of an answer. Raises CovenError when it is an error."""
        return outcome(answer, self.where)

    def gone(self) -> CovenError:
        return CovenError("component.not-running", "the component has closed its agent socket", where=self.where)

    def silent(self, verb: str, seconds: float) -> CovenError:
        also = f"; {self.ignored} messages that answer no open question were ignored" if self.ignored else ""
        return CovenError(
            "component.not-answering",
            f"no answer to `{verb}` within {seconds:g} s{also}",
            hint="look at the component's log; `check` tells whether its loop still turns",
            where=self.where,
        )


class AgentClient:
    """Ask and wait. One thread at a time."""

    def __init__(self, sock: socket.socket, part: str = "component") -> None:
        """sock: SOCK_SEQPACKET, becomes non-blocking, stays the caller's. part: who it is, for messages."""
        self._exchange = _Exchange(sock, part)

    def ask(self, verb: str, name: str = "", lines: Iterable[Line] = (), *, timeout: float = 4.0) -> tuple[Line, ...]:
        """Give the lines of the answer. timeout: seconds. Raises CovenError as the component or its silence demands."""
        exchange = self._exchange
        deadline = time.monotonic() + timeout
        number, data = exchange.request(verb, name, lines)
        while True:
            try:
                exchange.sock.send(data)
                break
            except (BlockingIOError, InterruptedError):
                self._wait(select.POLLOUT, deadline, verb, timeout)
            except OSError as error:
                raise exchange.gone() from error
        while True:
            received = exchange.receive()
            if received is None:
                self._wait(select.POLLIN, deadline, verb, timeout)
            elif request_id(received) == number:
                exchange.ignored = 0
                return exchange.outcome(decode_answer(received))
            else:
                exchange.ignored += 1
                if time.monotonic() >= deadline:
                    raise exchange.silent(verb, timeout)

    def _wait(self, events: int, deadline: float, verb: str, timeout: float) -> None:
        poller = select.poll()
        poller.register(self._exchange.sock, events)
        left = deadline - time.monotonic()
        if left <= 0 or not poller.poll(left * 1000):
            raise self._exchange.silent(verb, timeout)


class AsyncAgentClient:
    """Ask from an asyncio loop; several questions may be open at once. Reads only while one is."""

    def __init__(self, sock: socket.socket, part: str = "component") -> None:
        """sock: SOCK_SEQPACKET, becomes non-blocking, stays the caller's. part: who it is, for messages."""
        self._exchange = _Exchange(sock, part)
        self._open: dict[int, asyncio.Future[Answer]] = {}
        self._sending = asyncio.Lock()

    async def ask(
        self, verb: str, name: str = "", lines: Iterable[Line] = (), *, timeout: float = 4.0
    ) -> tuple[Line, ...]:
        """Give the lines of the answer. timeout: seconds. Raises CovenError as the component or its silence demands."""
        loop = asyncio.get_running_loop()
        number, data = self._exchange.request(verb, name, lines)
        future: asyncio.Future[Answer] = loop.create_future()
        if not self._open:
            loop.add_reader(self._exchange.sock, self._readable)
        self._open[number] = future
        try:
            async with asyncio.timeout(timeout):
                await self._send(loop, data)
                answer = await future
        except TimeoutError as error:
            raise self._exchange.silent(verb, timeout) from error
        except OSError as error:
            raise self._exchange.gone() from error
        finally:
            self._close(number)
        return self._exchange.outcome(answer)

    async def _send(self, loop: asyncio.AbstractEventLoop, data: bytes) -> None:
        """Send one datagram as a whole, waiting while the component does not read."""
        sock = self._exchange.sock
        async with self._sending:
            while True:
                try:
                    sock.send(data)
                    return
                except (BlockingIOError, InterruptedError):
                    writable = asyncio.Event()
                    loop.add_writer(sock, writable.set)
                    try:
                        await writable.wait()
                    finally:
                        loop.remove_writer(sock)

    def _readable(self) -> None:
        """Take what is there, but not without end: other readers of the loop want their turn."""
        for _ in range(MAX_DATAGRAMS_AT_ONCE):
            try:
                data = self._exchange.receive()
            except CovenError as error:
                self._fail_all(error)
                return
            if data is None:
                return
            self._take(data)

    def _take(self, data: bytes) -> None:
        number = request_id(data)
        future = self._open.get(number) if number is not None else None
        if future is None or future.done():
            self._exchange.ignored += 1
            return
        self._exchange.ignored = 0
        try:
            future.set_result(decode_answer(data))
        except CovenError as error:
            future.set_exception(error)

    def _fail_all(self, error: CovenError) -> None:
        asyncio.get_running_loop().remove_reader(self._exchange.sock)
        for future in self._open.values():
            if not future.done():
                future.set_exception(error)

    def _close(self, number: int) -> None:
        self._open.pop(number, None)
        if not self._open:
            with contextlib.suppress(OSError, ValueError):  # the owner may have closed the socket meanwhile
                asyncio.get_running_loop().remove_reader(self._exchange.sock)
