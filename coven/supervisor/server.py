"""The supervisor's socket (docs/internals.md, section 7): framing, peer credentials, dispatch.

Everything that arrives is untrusted: the agent that may talk here has no privileges of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Any

from coven.errors import CovenError
from coven.supervisor.context import Context

log = logging.getLogger(__name__)

MAX_MESSAGE = 8 << 20
MAX_CONNECTIONS = 64
MAX_OPEN = 64  # requests of one connection at the same time
MAX_UNSENT = 16 << 20  # a subscriber that does not read is cut off
LISTEN_NAME = "platform/server"

Handler = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]


def listen(context: Context) -> socket.socket:
    """Give the listening socket: the predecessor's, so that nobody is refused meanwhile, or a new one."""
    fds = context.keeper.get(LISTEN_NAME)
    if fds:
        return socket.socket(fileno=os.dup(fds[0]))
    path = context.settings.socket_path
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    previous = os.umask(0o177)
    try:
        sock.bind(str(path))
    finally:
        os.umask(previous)
    if context.settings.privileged:
        os.chown(path, context.settings.agent_uid, context.settings.agent_uid)
    sock.listen(64)
    context.keeper.put(LISTEN_NAME, [os.dup(sock.fileno())])
    return sock


class Server:
    """Serves all connections."""

    def __init__(self, context: Context, handlers: dict[str, Handler]) -> None:
        """handlers: what answers each `op`; raises CovenError."""
        self._context, self._handlers = context, handlers
        self._allowed = {0, os.geteuid(), context.settings.agent_uid}
        self._connections = 0
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Accept connections."""
        sock = listen(self._context)
        sock.setblocking(False)
        self._server = await asyncio.start_unix_server(self._serve, sock=sock)

    def close(self) -> None:
        """Accept no more."""
        if self._server is not None:
            self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = Connection(self._context, self._handlers, reader, writer)
        if self._peer(writer) not in self._allowed or self._connections >= MAX_CONNECTIONS:
            writer.close()
            return
        self._connections += 1
        try:
            await connection.serve()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self._connections -= 1
            connection.close()

    @staticmethod
    def _peer(writer: asyncio.StreamWriter) -> int:
        sock = writer.get_extra_info("socket")
        _, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        return int(uid)


class Connection:
    """One client."""

    def __init__(
        self,
        context: Context,
        handlers: dict[str, Handler],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        """Take over the streams."""
        self._context, self._handlers, self._reader, self._writer = context, handlers, reader, writer
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        """Read requests until the client hangs up; each is answered when it is ready."""
        while True:
            (length,) = struct.unpack(">I", await self._reader.readexactly(4))
            if length > MAX_MESSAGE:
                self._send({"id": None, "error": CovenError("request.too-large", "the message is too large").to_json()})
                return
            data = await self._reader.readexactly(length)
            if len(self._tasks) >= MAX_OPEN:
                await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
            task = asyncio.create_task(self._answer(data))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def close(self) -> None:
        """Hang up."""
        with contextlib.suppress(ValueError):
            self._context.listeners.remove(self._event)
        for task in self._tasks:
            task.cancel()
        self._writer.close()

    async def _answer(self, data: bytes) -> None:
        number: Any = None
        try:
            request = _decode(data)
            number = request.get("id")
            if not isinstance(number, int | str | None):
                raise CovenError("request.malformed", "`id` must be a number or text")
            op = request.get("op")
            if op == "subscribe":
                if self._event not in self._context.listeners:
                    self._context.listeners.append(self._event)
                self._send({"id": number, "result": {}})
                return
            handler = self._handlers.get(op) if isinstance(op, str) else None
            if handler is None:
                known = ", ".join([*self._handlers, "subscribe"])
                raise CovenError("request.malformed", f"there is no op {str(op)[:40]!r}", hint=f"ops are: {known}")
            self._send({"id": number, "result": await handler(request)})
        except CovenError as error:
            self._send({"id": number, "error": error.to_json()})
        except ConnectionError:
            pass
        except Exception as error:
            log.exception("request failed")
            fault = CovenError("platform.internal", f"{type(error).__name__}: {error}", hint="see the supervisor's log")
            self._send({"id": number, "error": fault.to_json()})

    def _event(self, event: dict[str, Any]) -> None:
        self._send({"event": event})

    def _send(self, message: dict[str, Any]) -> None:
        transport = self._writer.transport
        if transport.is_closing():
            return
        if transport.get_write_buffer_size() > MAX_UNSENT:
            transport.abort()
            return
        data = json.dumps(message, separators=(",", ":")).encode()
        self._writer.write(struct.pack(">I", len(data)) + data)


def _decode(data: bytes) -> dict[str, Any]:
    try:
        request = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise CovenError("request.malformed", "the message is no JSON") from error
    if not isinstance(request, dict):
        raise CovenError("request.malformed", "the message is no JSON object")
    return request


def text(request: dict[str, Any], key: str, default: str | None = None) -> str:
    """Give a text of a request. Raises CovenError request.invalid."""
    value = request.get(key, default)
    if not isinstance(value, str) or len(value) > 256:
        raise CovenError("request.invalid", f"`{key}` must be text")
    return value


def number(request: dict[str, Any], key: str, default: int, most: int) -> int:
    """Give a number of a request, from 0 to `most`. Raises CovenError request.invalid."""
    value = request.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise CovenError("request.invalid", f"`{key}` must be a number from 0 to {most}")
    return value
