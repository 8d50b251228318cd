"""The platform that the demo starts for itself, and how it waits for it.

All requests go over the agent's Unix socket, where who asks is known; the same requests work over TCP with the token.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from coven.cli.client import Client, Target
from coven.cli.options import outcome
from coven.errors import CovenError

START_SECONDS = 20.0


def follow(rest: Client, operation: dict[str, Any], note: Callable[[str], None]) -> dict[str, Any]:
    """Wait for an operation's end and note each step as it is done; raises the error of one that failed."""
    shown: set[str] = set()

    def tell(now: dict[str, Any]) -> None:
        for step in now["steps"]:
            if step["state"] == "done" and step["name"] not in shown:
                shown.add(step["name"])
                note(f"{step['name']}: {step['ms']:.0f} ms")

    operation = rest.follow(operation, tell)
    if operation["state"] != "succeeded":
        raise outcome(operation)
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

    def __init__(self, folder: Path, files: Sequence[Path] = (), enter: Sequence[str] = ()) -> None:
        """folder: exists; state, run and log go below it. files: where ports may use capture files.

        enter: words that run a command in the network namespace to work in.
        """
        self.folder = folder
        self.files = files
        self.enter = enter
        self.socket = folder / "run" / "agent.sock"
        self.rest = Client(Target(self.socket))
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> int:
        """Start `coven agent` and wait until it answers; gives its process id."""
        self.spawn()
        self.wait()
        return self.pid

    def spawn(self) -> None:
        """Start `coven agent`."""
        command = [*self.enter, sys.executable, "-m", "coven", "agent"]
        command += ["--state-dir", str(self.folder / "state"), "--run-dir", str(self.folder / "run")]
        command += ["--listen", "127.0.0.1:0"]  # a port that is free: another agent may have the usual one
        command += [part for folder in self.files for part in ("--files", str(folder))]
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
            with contextlib.suppress(CovenError):
                self.rest.get("/v1")
                return
            if self.process is None or self.process.poll() is not None or time.monotonic() > end:
                tail = (self.folder / "agent.log").read_text(errors="replace")[-2000:]
                raise CovenError("platform.unavailable", f"`coven agent` does not answer; its log ends:\n{tail}")
            threading.Event().wait(0.02)

    def stop(self) -> bool:
        """Turn the platform off over REST; tells whether its process ended by itself."""
        self.rest.post("/v1/agent/off", {"force": True})
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
