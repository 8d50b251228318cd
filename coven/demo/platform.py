"""The platform that the demo starts for itself, and the REST calls it makes to it.

All requests go over the agent's Unix socket, where who asks is known; the same requests work over TCP with the token.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from coven.demo.report import Report
from coven.errors import CovenError

START_SECONDS = 20.0
OPERATION_SECONDS = 60.0


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=30)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket instead of a port."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class Rest:
    """Calls of the Management Agent."""

    def __init__(self, path: Path) -> None:
        """path: of the agent's Unix socket."""
        self.path = path

    def call(self, method: str, path: str, body: object = None, *, archive: bytes | None = None) -> Any: # JSON
        """Make one call and give the decoded answer; a problem body becomes a CovenError."""
        headers, data = {}, archive
        if archive is not None:
            headers["Content-Type"] = "application/zip"
        elif body is not None:
            headers["Content-Type"] = "application/json"
            data = json.dumps(body).encode()
        with contextlib.closing(_UnixConnection(self.path)) as connection:
            connection.request(method, path, body=data, headers=headers)
            answer = connection.getresponse()
            text = answer.read()
        document = json.loads(text) if text else {}
        if answer.status >= 400:
            raise CovenError.from_json({"message": document.get("detail") or document.get("title"), **document})
        return document

    def get(self, path: str) -> Any: # JSON
        """Read a resource."""
        return self.call("GET", path)

    def follow(self, operation: dict[str, Any], report: Report) -> dict[str, Any]:
        """Wait for an operation's end and note each step as it is done; a failed one is raised."""
        shown = 0
        end = time.monotonic() + OPERATION_SECONDS
        while True:
            done = [step for step in operation["steps"] if step["state"] == "done"]
            for step in done[shown:]:
                report.note(f"{step['name']}: {step['ms']:.0f} ms")
            shown = len(done)
            if operation["state"] != "running":
                break
            if time.monotonic() > end:
                what = f"{operation['verb']} did not end in {OPERATION_SECONDS:.0f} s"
                raise CovenError("operation.interrupted", what)
            operation = self.get(f"/v1/operations/{operation['id']}?wait=1")
        if operation["state"] != "succeeded":
            raise CovenError.from_json(operation["error"] or {"message": f"{operation['verb']} {operation['state']}"})
        return operation


def wait_until(what: str, condition: Callable[[], bool], seconds: float) -> None:
    """Return when a condition holds; CovenError after the deadline."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise CovenError("platform.unavailable", f"{what}: not within {seconds:.0f} s")
        threading.Event().wait(0.02)


class Platform:
    """One running COVEN in folders of its own."""

    def __init__(self, folder: Path) -> None:
        """folder: exists; state, run and log go below it."""
        self.folder = folder
        self.socket = folder / "run" / "agent.sock"
        self.rest = Rest(self.socket)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> int:
        """Start `coven agent` and wait until it answers; gives its process id."""
        self.spawn()
        self.wait()
        return self.pid

    def spawn(self) -> None:
        """Start `coven agent`."""
        command = [sys.executable, "-m", "coven", "agent"]
        command += ["--state-dir", str(self.folder / "state"), "--run-dir", str(self.folder / "run")]
        command += ["--listen", "127.0.0.1:0"]  # a port that is free: another agent may have the usual one
        with (self.folder / "agent.log").open("wb") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd=self.folder
            )

    @property
    def pid(self) -> int:
        """Give the process id of `coven agent`."""
        if self.process is None:
            raise CovenError("platform.unavailable", "`coven agent` was not started")
        return self.process.pid

    def wait(self) -> None:
        """Return when the agent answers."""
        end = time.monotonic() + START_SECONDS
        while True:
            with contextlib.suppress(OSError, http.client.HTTPException, CovenError):
                self.rest.get("/v1")
                return
            if self.process is None or self.process.poll() is not None or time.monotonic() > end:
                tail = (self.folder / "agent.log").read_text(errors="replace")[-2000:]
                raise CovenError("platform.unavailable", f"`coven agent` does not answer; its log ends:\n{tail}")
            threading.Event().wait(0.02)

    def stop(self) -> bool:
        """Turn the platform off over REST; tells whether its process ended by itself."""
        self.rest.call("POST", "/v1/agent/off", {"force": True})
        if self.process is None:
            return True
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.process.wait(timeout=10) is not None
        return False


@contextlib.contextmanager
def running(command: list[str], *, ready: bool = True, **options: Any) -> Iterator[subprocess.Popen[str]]:
    """Run a peer for as long as the `with` lasts; it has said that it is ready."""
    child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, **options)
    try:
        if ready and child.stdout and child.stdout.readline().strip() != "ready":
            raise CovenError("platform.internal", f"{' '.join(command)} did not start")
        yield child
    finally:
        child.kill()
        child.wait()
        for stream in (child.stdin, child.stdout):
            if stream:
                stream.close()
