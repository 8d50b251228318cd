"""REST calls of the command line, over the agent's Unix socket or by URL and token."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote, urlsplit

from coven.cli import silence
from coven.errors import CovenError
from coven.management.problem import from_body

TIMEOUT_S = 90.0  # longer than the agent lets anybody wait
WAIT_S = 30
SYSTEM_SOCKET = Path("/run/coven/agent.sock")


@dataclass(frozen=True, slots=True)
class Target:
    """Where the agent is: `url`, or the Unix socket if there is none."""

    socket_path: Path
    url: str | None = None
    token: str | None = None
    ca_file: Path | None = None


def default_socket() -> Path:
    """Give the socket of this user's agent, or of the machine's if only that is there."""
    if os.geteuid() == 0:
        return SYSTEM_SOCKET
    runtime = os.environ.get("XDG_RUNTIME_DIR") or f"/tmp/coven-{os.getuid()}"  # noqa: S108 - see _is_ours
    own = Path(runtime) / "coven" / "agent.sock"
    return own if _is_ours(own) or (not SYSTEM_SOCKET.exists() and not own.exists()) else SYSTEM_SOCKET


def _is_ours(path: Path) -> bool:
    """Tell whether a socket is there and was made by us: below /tmp, anybody could have made one."""
    try:
        return path.lstat().st_uid == os.getuid()
    except OSError:
        return False


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=TIMEOUT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Client:
    """Calls to one agent. Errors of the agent are raised as they are."""

    def __init__(self, target: Target) -> None:
        """Nothing is connected yet."""
        self._target = target

    def get(self, path: str) -> Any:
        """Give the JSON of a resource."""
        return self._call("GET", path)

    def post(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """Post a JSON object."""
        data = json.dumps(body or {}).encode()
        return self._call("POST", path, data, "application/json")

    def delete(self, path: str) -> None:
        """Delete a resource."""
        self._call("DELETE", path)

    def upload(self, path: str, archive: Path) -> Any:
        """Post a file, read as it is sent."""
        with archive.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            return self._call("POST", path, file, "application/zip", size)

    def follow(
        self, operation: dict[str, Any], tell: Callable[[dict[str, Any]], None]
    ) -> dict[str, Any]:
        """Wait until an operation has ended, telling each change of it; give it."""
        tell(operation)
        while operation["state"] == "running":
            seen = operation.get("revision", -1)
            path = f"/v1/operations/{operation['id']}?wait={WAIT_S}&seen={seen}"
            operation = self.get(path)
            tell(operation)
        return operation

    def events(self, after: int) -> Iterator[dict[str, Any]]:
        """Give events as they come."""
        while True:
            page = self.get(f"/v1/events?after={after}&wait={WAIT_S}&limit=1000")
            yield from page["events"]
            after = page["next"]

    def _connection(self) -> http.client.HTTPConnection:
        target = self._target
        if target.url is None:
            return _UnixConnection(target.socket_path)
        parts = urlsplit(target.url if "://" in target.url else f"http://{target.url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise CovenError(
                "request.malformed",
                f"'{target.url}' is not the URL of an agent",
                hint="write it as http://127.0.0.1:8440 or https://HOST:PORT",
            )
        if parts.scheme == "http":
            return http.client.HTTPConnection(parts.hostname, parts.port, timeout=TIMEOUT_S)
        context = ssl.create_default_context(cafile=target.ca_file)
        return http.client.HTTPSConnection(
            parts.hostname, parts.port, timeout=TIMEOUT_S, context=context
        )

    def _call(
        self,
        method: str,
        path: str,
        body: bytes | BinaryIO | None = None,
        kind: str | None = None,
        size: int | None = None,
    ) -> Any:
        headers = {"Accept": "application/json"}
        if kind is not None:
            headers["Content-Type"] = kind
        if size is not None:
            headers["Content-Length"] = str(size)
        if self._target.token:
            headers["Authorization"] = f"Bearer {self._target.token}"
        connection = self._connection()
        try:
            # If it is refused while it is being sent, the answer says why.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.request(method, path, body, headers)
            response = connection.getresponse()
            data = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise self._unreachable(error) from None
        finally:
            connection.close()
        document = json.loads(data) if data else None
        if response.status >= 400:
            raise from_body(document if isinstance(document, dict) else {"detail": str(data)})
        return document

    def _unreachable(self, error: Exception) -> CovenError:
        if self._target.url is None and (explained := silence.explain(self._target.socket_path)):
            return explained
        where = self._target.url or str(self._target.socket_path)
        hint = "start it with 'coven agent' (as root for network interfaces)"
        if isinstance(error, ssl.SSLCertVerificationError):
            hint = "give the agent's certificate (tls/certificate.pem of its state folder) with --cacert"
        elif self._target.url is None:
            hint += ", or say where it is with --socket or --url"
        return CovenError("agent.unreachable", f"no agent answers at {where}: {error}", hint=hint)


def segment(text: str) -> str:
    """Give an id as a segment of a path."""
    return quote(text, safe="")
