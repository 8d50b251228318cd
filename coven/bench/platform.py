"""The platform that is measured: keeper and supervisor in folders of their own, asked over the supervisor's socket."""

from __future__ import annotations

import contextlib
import mmap
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import coven
from coven.bench.function import INSTANCE, Function, make_plan
from coven.bench.measure import cores, pin, rest
from coven.dataplane.core import lib, sizeof
from coven.errors import CovenError
from coven.management.supervisor_client import SupervisorClient

BIN = Path(coven.__file__).parent / "bin"
START_S, OPERATION_S = 30.0, 90.0
PORT_BASE = 8  # first cell of port 0: COVEN_CELL_PORT(0, 0)


@dataclass(slots=True)
class Running:
    """A deployed function."""

    platform: Platform
    workers: list[int]
    components: list[int]  # processes of isolated replicas
    cells: list[mmap.mmap]  # of each worker
    ports: list[str]  # by number

    def port(self, name: str, counter: int) -> int:
        """Read a counter of a port from the worker's memory, without asking it."""
        return self._cell(PORT_BASE + 8 * self.ports.index(name) + counter)

    def tx(self) -> int:
        """Give the packets that went out at the port `out`."""
        return self.port("out", lib.COVEN_PORT_TX_PKTS)

    def _cell(self, cell: int) -> int:
        at = sizeof("coven_stats") + 8 * cell
        return sum(int(struct.unpack_from("=Q", cells, at)[0]) for cells in self.cells)

    def snapshot(self) -> dict[str, Any]:
        """Give the counters; raises CovenError when a packet is not accounted for."""
        found = self.platform.ask("snapshot", instance=INSTANCE)
        if not found["accounting"]["balanced"]:
            raise CovenError("platform.internal", f"packets are not accounted for: {found['accounting']}")
        return found

    def moved(self, least: int, seconds: float, deadline_s: float = 20.0) -> None:
        """Let so much time go by, and more until so many packets went out if others had the cores meanwhile."""
        wanted, end = self.tx() + least, time.monotonic() + deadline_s
        rest(seconds)
        while self.tx() < wanted:
            if time.monotonic() > end:
                raise CovenError("platform.internal", f"nothing moves: {self.snapshot()['accounting']}")
            rest(seconds / 4)


def _mapped(name: str) -> mmap.mmap:
    """Map a stats segment by its POSIX name, to read."""
    fd = os.open(f"/dev/shm{name}", os.O_RDONLY | os.O_CLOEXEC)  # noqa: S108 - shm_open(3)
    try:
        return mmap.mmap(fd, os.fstat(fd).st_size, prot=mmap.PROT_READ)
    finally:
        os.close(fd)


class Platform:
    """Keeper and supervisor, for as long as the `with` lasts."""

    def __init__(self, *, enter: Sequence[str] = (), bin_dir: Path | None = None) -> None:
        """enter: words that run a command in the namespace to work in. bin_dir: other executables."""
        self.folder = Path(tempfile.mkdtemp(prefix="coven-bench-"))
        self.folder.chmod(0o755)  # packages are read by the components' own users
        self._bin = bin_dir or BIN
        options = ["--state-dir", str(self.folder / "state"), "--run-dir", str(self.folder / "run")]
        supervisor = [sys.executable, "-m", "coven.supervisor", *options, "--bin-dir", str(self._bin), "--no-agent"]
        self._command = [*enter, str(self._bin / "coven-keeper"), "--", *supervisor]
        self._client = SupervisorClient(self.folder / "run" / "supervisor.sock", patience_s=START_S)
        self._operations = 0
        self._packages = 0
        self.keeper: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Platform:
        """Start, and return when the supervisor answers."""
        with (self.folder / "log").open("wb") as log:
            self.keeper = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        self.ask("hello")
        return self

    def __exit__(self, *_: object) -> None:
        """End everything, in order, else by force."""
        if self.keeper is not None:
            self.keeper.terminate()
            try:
                self.keeper.wait(30)
            except subprocess.TimeoutExpired:
                self._kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _kill(self) -> None:
        from coven.demo.hosts import end_processes, identity

        if self.keeper is not None:
            end_processes(identity(self.keeper.pid))
            self.keeper.wait()

    def ask(self, op: str, **arguments: Any) -> dict[str, Any]:
        """Ask the supervisor."""
        try:
            return self._client.request(op, **arguments)
        except CovenError as error:
            if self.keeper is not None and self.keeper.poll() is not None:
                tail = (self.folder / "log").read_text(errors="replace")[-2000:]
                raise CovenError("platform.unavailable", f"the platform ended; its log ends:\n{tail}") from error
            raise

    def execute(self, verb: str, **more: Any) -> None:
        """Carry out a verb on the instance to its end."""
        self._operations += 1
        name = f"bench-{self._operations}"
        operation = self.ask("execute", operation=name, verb=verb, instance=INSTANCE, **more)
        end = time.monotonic() + OPERATION_S
        while operation["ended"] is None:
            if time.monotonic() > end:
                raise CovenError("platform.internal", f"{verb} did not end within {OPERATION_S:.0f} s")
            operation = self.ask("operation", operation=name, wait_ms=5000)
        if operation["state"] != "succeeded":
            raise CovenError.from_json(operation["error"] or {"message": f"{verb} failed"})

    @contextlib.contextmanager
    def deployed(self, function: Function, *, start: bool = True) -> Iterator[Running]:
        """Deploy a function, workers and components bound to their cores, for as long as the `with` lasts.

        start: whether packets are taken from the ports already; else `execute("start")` is the caller's.
        """
        self._packages += 1
        root = self.folder / "state" / "packages" / f"measured-{self._packages}"
        root.mkdir(parents=True)
        made = make_plan(function, root, cores())
        self.execute("instantiate", plan=made.to_json())
        try:
            instance = self._instance()
            replicas = [replica for row in instance["components"] for replica in row["replicas"]]
            isolated = [int(replica["pid"]) for replica in replicas if replica["pid"]]
            for pid in isolated:
                pin(pid, cores()[0 if function.beside_worker else 1])
            with contextlib.ExitStack() as undo:
                names = [row["stats_name"] for row in instance["workers"]]
                cells = [undo.enter_context(_mapped(name)) for name in names]
                running = Running(self, [], isolated, cells, [port.name for port in made.ports])
                if start:
                    self.start(running)
                yield running
        finally:
            self.execute("terminate", force=True)
            shutil.rmtree(root, ignore_errors=True)

    def start(self, running: Running) -> None:
        """Open the ports and let the worker take packets."""
        self.execute("start")
        running.workers = [int(row["pid"]) for row in self._instance()["workers"] if row["pid"]]
        for number, pid in enumerate(running.workers):
            pin(pid, cores()[number % 2])

    def _instance(self) -> dict[str, Any]:
        found: dict[str, Any] = self.ask("state")["instances"][INSTANCE]
        return found
