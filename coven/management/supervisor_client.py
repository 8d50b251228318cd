"""Asks the supervisor over its Unix socket (docs/internals.md, section 7).

Each request has a connection of its own while it lasts, taken from a small stock, so a component that is slow
to answer holds up nobody else. A supervisor that is being replaced is waited for.
"""

from __future__ import annotations

import itertools
import json
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from coven.errors import CovenError

MAX_MESSAGE = 8 * 1024 * 1024
STOCK = 8
HINT = "the functions go on running; the keeper starts the supervisor again, try again soon"
# Requests that may be sent again when the connection broke before the answer.
REPEATABLE = frozenset({"hello", "state", "execute", "operation", "snapshot", "metrics", "flows", "logs", "subscribe"})


class OutcomeUnknown(CovenError):
    """platform.unavailable, after the request may have been read: it may have been done or not."""


class _Broken(Exception):
    """The connection ended."""


class _Connection:
    """One connection; used by one thread at a time."""

    def __init__(self, path: Path, timeout: float | None) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self.socket.settimeout(5)
            self.socket.connect(str(path))
            self.socket.settimeout(timeout)
        except OSError:
            self.socket.close()
            raise
        self._numbers = itertools.count(1)

    def is_stale(self) -> bool:
        """Tell whether the other end has closed (an idle connection has nothing to read)."""
        poll = select.poll()
        poll.register(self.socket, select.POLLIN)
        return bool(poll.poll(0))

    def send(self, message: dict[str, Any]) -> int:
        number = next(self._numbers)
        data = json.dumps({"id": number, **message}).encode()
        if len(data) > MAX_MESSAGE:
            raise CovenError("request.too-large", "the request to the supervisor is too large")
        try:
            self.socket.sendall(struct.pack(">I", len(data)) + data)
        except OSError as error:
            raise _Broken from error
        return number

    def receive(self) -> dict[str, Any]:
        (length,) = struct.unpack(">I", self._exactly(4))
        if length > MAX_MESSAGE:
            raise _Broken
        message = json.loads(self._exactly(length))
        if not isinstance(message, dict):
            raise _Broken
        return message

    def _exactly(self, length: int) -> bytes:
        data = bytearray()
        while len(data) < length:
            try:
                part = self.socket.recv(min(length - len(data), 1 << 20))
            except TimeoutError:
                raise
            except OSError as error:
                raise _Broken from error
            if not part:
                raise _Broken
            data += part
        return bytes(data)

    def close(self) -> None:
        self.socket.close()


class SupervisorClient:
    """Requests to the supervisor, from any thread."""

    def __init__(self, path: Path, *, patience_s: float = 5.0) -> None:
        """patience_s: how long an absent supervisor is waited for."""
        self.path = path
        self._patience_s = patience_s
        self._lock = threading.Lock()
        self._stock: list[_Connection] = []

    def request(self, op: str, *, timeout_s: float = 15.0, **arguments: Any) -> dict[str, Any]:
        """Ask and give the `result`; raises the supervisor's error, or platform.unavailable."""
        deadline = time.monotonic() + self._patience_s
        while True:
            connection = self._take(deadline)
            try:
                connection.socket.settimeout(timeout_s)
                number = connection.send({"op": op, **arguments})
                answer = connection.receive()
                while answer.get("id") != number:
                    answer = connection.receive()
            except _Broken:
                connection.close()
                if op in REPEATABLE and time.monotonic() < deadline:
                    continue
                raise OutcomeUnknown(
                    "platform.unavailable",
                    "the supervisor went away before it answered",
                    hint=HINT,
                ) from None
            except TimeoutError:
                connection.close()
                raise OutcomeUnknown(
                    "platform.unavailable",
                    f"the supervisor did not answer '{op}' in time",
                    hint=HINT,
                ) from None
            except BaseException:
                connection.close()
                raise
            self._give_back(connection)
            if "error" in answer:
                raise CovenError.from_json(answer["error"])
            result: dict[str, Any] = answer.get("result") or {}
            return result

    def events(self, ready: Callable[[], None]) -> Iterator[dict[str, Any]]:
        """Subscribe and give events until the connection ends.

        ready: called once the subscription stands, so nothing falls between a look at the state and the
        first event. Raises OSError when there is no supervisor.
        """
        connection = _Connection(self.path, None)
        try:
            number = connection.send({"op": "subscribe"})
            early: list[dict[str, Any]] = []
            while (answer := connection.receive()).get("id") != number:
                early.append(answer)
            ready()
            for message in early:
                if isinstance(message.get("event"), dict):
                    yield message["event"]
            while True:
                message = connection.receive()
                if isinstance(message.get("event"), dict):
                    yield message["event"]
        except _Broken:
            return
        finally:
            connection.close()

    def _take(self, deadline: float) -> _Connection:
        with self._lock:
            while self._stock:
                connection = self._stock.pop()
                if not connection.is_stale():
                    return connection
                connection.close()
        pause = 0.02
        while True:
            try:
                return _Connection(self.path, None)
            except OSError as error:
                if time.monotonic() + pause > deadline:
                    raise CovenError(
                        "platform.unavailable",
                        f"no supervisor at {self.path}: {error}",
                        hint=HINT,
                    ) from None
            # There is nothing to wait on for a socket that another process is about to make again.
            time.sleep(pause)
            pause = min(pause * 2, 0.2)

    def _give_back(self, connection: _Connection) -> None:
        with self._lock:
            if len(self._stock) < STOCK:
                self._stock.append(connection)
                return
        connection.close()
