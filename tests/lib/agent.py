"""Starts the Management Agent's real process for a test and finds its listeners."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from tests.lib.rest import Rest


class Agent:
    """`python -m coven.management` with folders of its own."""

    def __init__(self, folder: Path, *arguments: str, listen: tuple[str, ...] = ("none",)) -> None:
        """Nothing is started yet."""
        self.state, self.run = folder / "state", folder / "run"
        self.run.mkdir(parents=True, exist_ok=True)
        self.socket = self.run / "agent.sock"
        self.log = folder / "agent.log"
        self.output: list[str] = []
        self._told = threading.Condition()
        self._ended = False
        self._arguments = [
            *arguments,
            *(part for address in listen for part in ("--listen", address)),
        ]
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        """Start it and wait until it listens everywhere."""
        self.begin()
        wanted = 1 + self._arguments.count("--listen") - self._arguments.count("none")
        with self._told:
            assert self._told.wait_for(lambda: self._ended or self._listening() >= wanted, timeout=20), (
                "the agent does not listen"
            )
        assert self._listening() >= wanted, f"the agent ended: {self.log.read_text()}"

    def _listening(self) -> int:
        return sum(line.startswith("listening") for line in self.output)

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            with self._told:
                self.output.append(line.rstrip("\n"))
                self._told.notify_all()
        with self._told:
            self._ended = True
            self._told.notify_all()

    def begin(self) -> None:
        """Start it without waiting."""
        self.output.clear()
        self._ended = False
        with self.log.open("a") as log:
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "coven.management",
                    "--state-dir",
                    str(self.state),
                    "--run-dir",
                    str(self.run),
                    "--supervisor",
                    str(self.run / "supervisor.sock"),
                    *self._arguments,
                ],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self.process.stdout is not None
        self._reader = threading.Thread(target=self._read, args=(self.process.stdout,))
        self._reader.start()

    @property
    def pid(self) -> int:
        """Process id."""
        assert self.process is not None
        return self.process.pid

    @property
    def token(self) -> str:
        """What the token file holds."""
        return (self.state / "token").read_text().strip()

    def rest(self, *, timeout: float = 60) -> Rest:
        """Give a client over the Unix socket."""
        return Rest(self.socket, timeout=timeout)

    def address(self) -> tuple[str, int]:
        """Give host and port of its TCP listener."""
        line = next(line for line in self.output if "://" in line)
        host, port = line.rsplit("://", 1)[1].rsplit(":", 1)
        return host.strip("[]"), int(port)

    def kill(self) -> None:
        """End it as kill -9 does."""
        self._signal(signal.SIGKILL)

    def stop(self) -> int:
        """End it in order; gives its exit status."""
        return self._signal(signal.SIGTERM)

    def _signal(self, number: signal.Signals) -> int:
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)
        watchdog = threading.Timer(20, self.process.kill)
        watchdog.start()
        status = self.process.wait()
        watchdog.cancel()
        self._reader.join()
        return status


@contextlib.contextmanager
def running(agent: Agent) -> Iterator[Agent]:
    """Start an agent and make sure that it ends."""
    agent.start()
    try:
        yield agent
    finally:
        if agent.process is not None and agent.process.poll() is None:
            assert agent.stop() == 0, "the agent did not end in order"
