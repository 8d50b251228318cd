"""Listeners: TCP (with TLS beyond loopback) and a Unix socket, on cheroot's threaded server.

Differences from the stock server, all because callers are not trusted: a connection takes a thread only once
it has sent something, so silent ones stall nobody; the TLS handshake is done by that thread; a request's head
has a deadline as a whole; what the server itself refuses is an RFC 9457 problem, too; and an idle server
waits without waking up.
"""

from __future__ import annotations

import logging
import os
import socket
import ssl
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from cheroot import connections, makefile, server, wsgi
from cheroot.ssl import Adapter

from coven.errors import CovenError
from coven.management import problem

log = logging.getLogger(__name__)

MAX_HEAD_BYTES = 32 * 1024
HEAD_DEADLINE_S = 5.0
IDLE_S = 30.0  # without a byte, on a connection kept open or within a body
MAX_CONNECTIONS = 200
LINGER_S = 1.0
DRAIN_BYTES = 64 * 1024  # of an unread body, before the connection is given up instead

# What cheroot refuses by itself, as errors of ours.
REFUSALS = {
    400: "request.malformed",
    405: "request.malformed",
    408: "request.incomplete",
    413: "request.too-large",
    414: "request.too-large",
    501: "request.malformed",
    503: "platform.unavailable",
    505: "request.malformed",
}


class _Wake:
    """The selector's entry that is written to end a wait."""

    last_used = float("inf")

    def __init__(self) -> None:
        self.fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def close(self) -> None:
        os.close(self.fd)


class _Connections(connections.ConnectionManager):  # type: ignore[misc]
    """Hands a connection to a thread when there is something to read."""

    def __init__(self, owner: Server) -> None:
        super().__init__(owner)
        self._wake = _Wake()
        self._selector.register(self._wake.fd, 1, data=self._wake)
        self._reading: dict[Any, float] = {}  # connection -> deadline of its request's head
        self._guard = threading.Lock()

    def await_thread(self, connection: Any) -> None:
        """Note a connection that waits for a thread: that others are slow is not its fault."""
        with self._guard:
            self._reading[connection] = float("inf")

    def begin_head(self, connection: Any) -> None:
        with self._guard:
            self._reading[connection] = time.monotonic() + HEAD_DEADLINE_S

    def end_head(self, connection: Any) -> None:
        with self._guard:
            self._reading.pop(connection, None)

    def put(self, conn: Any) -> None:
        super().put(conn)
        os.eventfd_write(self._wake.fd, 1)

    def _from_server_socket(self, server_socket: Any) -> None:
        connection = super()._from_server_socket(server_socket)
        if connection is None:
            return
        if self._num_connections >= MAX_CONNECTIONS:
            self._close_quietest()
        super().put(connection)

    def _close_quietest(self) -> None:
        """Close the connection that has said nothing for longest, so that silent ones keep nobody out."""
        idle = [(conn.last_used, fd, conn) for fd, conn in self._selector.connections if conn is not self.server]
        idle = [found for found in idle if found[2] is not self._wake]
        if idle:
            _, fd, conn = min(idle, key=lambda found: found[0])
            self._selector.unregister(fd)
            conn.close()

    def _run(self, expiration_interval: float) -> None:
        while not self._stop_requested:
            # Nobody there: wait for somebody. Else look once a second for those who take too long.
            with self._guard:
                quiet = not self._reading and self._num_connections <= 0
            for fd, conn in list(self._selector.select(timeout=None if quiet else 1.0)):
                if conn is self.server:
                    self._from_server_socket(self.server.socket)
                elif conn is self._wake:
                    with suppress(BlockingIOError):
                        os.eventfd_read(fd)
                else:
                    self._selector.unregister(fd)
                    self.await_thread(conn)
                    self.server.process_conn(conn)
            self._expire(threshold=time.time() - IDLE_S)
            self._cut_slow_heads()

    def _cut_slow_heads(self) -> None:
        now = time.monotonic()
        with self._guard:
            late = [conn for conn, deadline in self._reading.items() if deadline < now]
            for conn in late:
                del self._reading[conn]
        for conn in late:
            with suppress(OSError):
                # The thread that reads from it sees the end of the stream.
                socket.socket.shutdown(conn.socket, socket.SHUT_RD)

    def stop(self) -> None:
        self._stop_requested = True
        os.eventfd_write(self._wake.fd, 1)
        super().stop()

    @property
    def _num_connections(self) -> int:
        return len(self._selector) - 2


class _Request(server.HTTPRequest):  # type: ignore[misc]
    """A request whose head has a deadline, and whose refusals are problems."""

    def parse_request(self) -> None:
        try:
            super().parse_request()
        finally:
            self.conn.server._connections.end_head(self.conn)

    def read_request_headers(self) -> bool:
        if not super().read_request_headers():
            return False
        length = self.inheaders.get(b"Content-Length")
        if length is not None and (not length.isdigit() or b"Transfer-Encoding" in self.inheaders):
            # RFC 9112 section 6.1: a message with both, or with a length that is none, is a trap.
            self.simple_response("400 Bad Request", "Content-Length is not valid")
            return False
        return True

    def simple_response(self, status: str, msg: str = "") -> None:
        number = int(str(status)[:3])
        error = CovenError(REFUSALS.get(number, "platform.internal"), msg or str(status)[4:] or "refused")
        body = problem.encode(error)
        fields = {
            **problem.headers(error),
            "Content-Length": str(len(body)),
            "Connection": "close",
        }
        self.close_connection = True
        head = f"HTTP/1.1 {error.status} {str(status)[4:]}\r\n" + "".join(
            f"{name}: {value}\r\n" for name, value in fields.items()
        )
        self.conn.linger_for_unread = True
        with suppress(OSError):
            self.conn.wfile.write(head.encode("latin-1") + b"\r\n" + body)

    def send_headers(self) -> None:
        left = getattr(self.rfile, "remaining", 0)
        if left > DRAIN_BYTES or (self.chunked_read and not self.rfile.closed):
            # Not read to its end, and not to be: stock cheroot would read all of it into memory.
            self.close_connection = True
        if self.close_connection and (left or self.chunked_read):
            self.conn.linger_for_unread = True
        super().send_headers()


class _Connection(server.HTTPConnection):  # type: ignore[misc]
    RequestHandlerClass = _Request
    linger_for_unread = False

    def communicate(self) -> bool:
        self.server._connections.begin_head(self)
        try:
            return bool(super().communicate())
        except (ssl.SSLError, OSError):
            return False
        finally:
            self.server._connections.end_head(self)

    def close(self) -> None:
        if self.linger_for_unread:
            self._drain()
        with suppress(OSError):
            super().close()

    def _drain(self) -> None:
        """Read what is still coming, for a moment, so that the kernel does not throw our answer away."""
        deadline = time.monotonic() + LINGER_S
        with suppress(OSError, ValueError):
            self.wfile.flush()
            socket.socket.shutdown(self.socket, socket.SHUT_WR)
            while (left := deadline - time.monotonic()) > 0:
                self.socket.settimeout(left)
                if not socket.socket.recv(self.socket, 65536):
                    break


class _Gateway(wsgi.Gateway_10):  # type: ignore[misc]
    def get_environ(self) -> dict[str, Any]:
        environ: dict[str, Any] = super().get_environ()
        if isinstance(self.req.server.bind_addr, str):
            environ["coven.peer_uid"] = int(environ["X_REMOTE_UID"])
        return environ


class _Tls(Adapter):  # type: ignore[misc]
    """TLS whose handshake happens at the first read, in the thread that serves the connection."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.context = context

    def bind(self, sock: socket.socket) -> socket.socket:
        return sock

    def wrap(self, sock: socket.socket) -> tuple[ssl.SSLSocket, dict[str, str]]:
        wrapped = self.context.wrap_socket(
            sock, server_side=True, do_handshake_on_connect=False, suppress_ragged_eofs=True
        )
        return wrapped, self.get_environ()

    def get_environ(self) -> dict[str, str]:
        return {"wsgi.url_scheme": "https", "HTTPS": "on"}

    def makefile(self, sock: Any, mode: str = "r", bufsize: int = -1) -> Any:
        return makefile.MakeFile(sock, mode, bufsize)


class Server(wsgi.Server):  # type: ignore[misc]
    """One listener with its threads."""

    ConnectionClass = _Connection
    _connections: _Connections
    max_request_header_size = MAX_HEAD_BYTES
    keep_alive_conn_limit = MAX_CONNECTIONS

    def __init__(
        self,
        address: tuple[str, int] | str,
        application: Callable[..., Any],
        threads: int,
        context: ssl.SSLContext | None = None,
    ) -> None:
        """address: host and port, or the path of a Unix socket. context: TLS."""
        super().__init__(
            address,
            application,
            numthreads=threads,
            server_name="coven",
            request_queue_size=256,
            timeout=IDLE_S,
            shutdown_timeout=2,
        )
        self.gateway = _Gateway
        self.software = "coven"
        self.peercreds_enabled = True
        self.stats["Enabled"] = True
        if context is not None:
            self.ssl_adapter = _Tls(context)

    def prepare(self) -> None:
        """Bind and begin to listen."""
        super().prepare()
        self._connections.close()
        self._connections = _Connections(self)

    def bind_unix_socket(self, bind_addr: str) -> None:
        """Bind a Unix socket in place of the one that a dead agent left.

        The mode lets everybody connect: who may ask is decided by the peer's credentials, with a reason.
        """
        path = Path(bind_addr)
        path.unlink(missing_ok=True)
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self.socket.bind(str(path))
        path.chmod(0o666)

    def error_log(self, msg: str = "", level: int = 20, traceback: bool = False) -> None:
        """Send cheroot's words to the log."""
        if level >= logging.ERROR:
            log.log(level, msg, exc_info=traceback)
        else:
            log.debug(msg)  # clients that vanish, or speak no TLS: no news

    def served(self) -> dict[str, int]:
        """Give bytes read and written by REST so far."""
        threads = list(self.stats["Worker Threads"].values())
        return {
            "rx_bytes": sum(_counted(entry["Bytes Read"], entry) for entry in threads),
            "tx_bytes": sum(_counted(entry["Bytes Written"], entry) for entry in threads),
        }

    def listening_at(self) -> str:
        """Give where the server listens, as a URL or path."""
        address = self.bind_addr
        if isinstance(address, str):
            return f"unix:{address}"
        host, port = self.socket.getsockname()[:2]
        scheme = "https" if self.ssl_adapter is not None else "http"
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"


def _counted(value: Any, entry: Any) -> int:
    try:
        return int(value(entry) if callable(value) else value)
    except (AttributeError, TypeError):
        return 0  # the thread gave its connection back meanwhile
