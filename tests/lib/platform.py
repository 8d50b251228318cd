"""A whole platform for tests: keeper, supervisor and, if wanted, the Management Agent, in folders of its own.

    with PlatformUnderTest(tmp_path) as platform:
        source = platform.package("demo", {"counter/component.yaml": "...", "counter/main.py": "..."})
        plan = platform.plan("fw-1", components=[...], ports=[...])
        operation = platform.deploy(plan)           # waits, raises OperationFailed
        platform.request("snapshot", instance="fw-1")
        platform.kill(platform.supervisor_pid)      # SIGKILL, and wait until it is gone
        platform.wait_supervisor(other_than=pid)    # the successor answers

`host`: a Host of tests.lib.net to run in. Nothing is left at the end, and `leftovers()` says so.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import coven
from coven.errors import CovenError
from tests.lib import leftovers
from tests.lib.leftovers import descendants

BIN = Path(coven.__file__).parent / "bin"
DEADLINE = 20.0
UID_BASE = 1900000000


class OperationFailed(AssertionError):
    """An operation did not succeed; `operation` is its last state."""

    def __init__(self, operation: dict[str, Any]) -> None:
        super().__init__(json.dumps(operation.get("error"), indent=1))
        self.operation = operation

    @property
    def code(self) -> str:
        return str((self.operation["error"] or {}).get("code"))


class Client:
    """One connection to the supervisor; events that arrive meanwhile are kept."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(DEADLINE)
        self.socket.connect(str(path))
        self.events: list[dict[str, Any]] = []
        self._numbers = itertools.count(1)

    def request(self, op: str, **arguments: Any) -> dict[str, Any]:
        number = next(self._numbers)
        self.send({"id": number, "op": op, **arguments})
        while True:
            message = self.receive()
            if "event" in message:
                self.events.append(message["event"])
            elif message.get("id") == number:
                if "error" in message:
                    raise CovenError.from_json(message["error"])
                return dict(message["result"])

    def send(self, message: object) -> None:
        data = json.dumps(message).encode()
        self.socket.sendall(struct.pack(">I", len(data)) + data)

    def receive(self) -> dict[str, Any]:
        (length,) = struct.unpack(">I", self._exactly(4))
        return dict(json.loads(self._exactly(length)))

    def _exactly(self, number: int) -> bytes:
        data = b""
        while len(data) < number:
            part = self.socket.recv(number - len(data))
            if not part:
                raise ConnectionError("the supervisor hung up")
            data += part
        return data

    def wait_event(self, wanted: Callable[[dict[str, Any]], bool], deadline: float = DEADLINE) -> dict[str, Any]:
        """Give the first event that fits, of those kept and those to come. `subscribe` must have been asked."""
        end = time.monotonic() + deadline
        at = 0
        while True:
            while at < len(self.events):
                if wanted(self.events[at]):
                    return self.events[at]
                at += 1
            left = end - time.monotonic()
            if left <= 0 or not select.select([self.socket], [], [], left)[0]:
                raise TimeoutError(f"no such event; there were {[e['type'] for e in self.events]}")
            message = self.receive()
            if "event" in message:
                self.events.append(message["event"])

    def close(self) -> None:
        self.socket.close()


class PlatformUnderTest:
    """Keeper and supervisor in temporary folders; the agent with `agent=True`."""

    def __init__(
        self,
        folder: Path,
        *,
        agent: bool = False,
        agent_arguments: tuple[str, ...] = (),
        host: Any = None,
        bin_dir: Path | None = None,
        files: tuple[Path, ...] | None = None,
        environment: Mapping[str, str] | None = None,
        arguments: tuple[str, ...] = (),
        program: tuple[str, ...] = ("-m", "coven.supervisor"),
        user: int | None = None,
    ) -> None:
        """folder: to work in. files: folders for capture files, by default `folder`. host: of tests.lib.net.

        program: of the supervisor, for Python. environment: added to ours. user: to run as, who owns `folder`.
        """
        self.folder = folder
        self.state_dir, self.run_dir = folder / "state", folder / "run"
        self.log_path = folder / "platform.log"
        self.host = host
        self.bin_dir = bin_dir or BIN
        self.keeper: subprocess.Popen[bytes] | None = None
        self._user = user
        self._environment = {**os.environ, **(environment or {})}
        options = ["--state-dir", str(self.state_dir), "--run-dir", str(self.run_dir), "--bin-dir", str(self.bin_dir)]
        options += [] if agent else ["--no-agent"]
        for path in (folder,) if files is None else files:
            options += ["--files", str(path)]
        options += [*arguments, "--", *agent_arguments] if agent_arguments else list(arguments)
        supervisor = [sys.executable, *program, *options]
        self.command = [str(self.bin_dir / "coven-keeper"), "--", *supervisor]
        self._client: Client | None = None
        self._operations = itertools.count(1)

    # ---- life -----------------------------------------------------------------------------------

    def __enter__(self) -> PlatformUnderTest:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            print(self.log())
        self.stop()

    def start(self) -> None:
        """Start, and return when the supervisor answers."""
        command = self.host.command(*self.command) if self.host is not None else self.command
        with self.log_path.open("ab") as log:
            self.keeper = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
                user=self._user,
                group=self._user,
                extra_groups=None if self._user is None else [],
            )
        self.wait_supervisor()

    def stop(self, deadline: float = 30) -> None:
        """End in order; by force after the deadline. No harm when nothing runs."""
        self._hang_up()
        keeper, self.keeper = self.keeper, None
        if keeper is None:
            return
        keeper.terminate()
        try:
            keeper.wait(deadline)
        except subprocess.TimeoutExpired:
            self.keeper = keeper
            self.kill_all()
            raise AssertionError(f"the platform did not end in order\n{self.log()}") from None

    def kill_keeper_and_supervisor(self) -> None:
        """SIGKILL to these two at once; what they started goes on, watched by nobody."""
        keeper, supervisor = self.keeper, self.supervisor_pid
        assert keeper is not None
        os.kill(supervisor, signal.SIGSTOP)  # it would start another keeper
        self.keeper = None
        keeper.kill()
        keeper.wait()
        os.kill(supervisor, signal.SIGKILL)
        wait_gone(supervisor)

    def kill_all(self) -> None:
        """SIGKILL to keeper, supervisor and everything below: a host that lost its platform at once."""
        self._hang_up()
        keeper, self.keeper = self.keeper, None
        if keeper is None:
            return
        # All are stopped before one dies: a supervisor that sees its keeper die starts another one.
        pids: list[int] = []
        while new := [pid for pid in (keeper.pid, *descendants(keeper.pid)) if pid not in pids]:
            for pid in new:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGSTOP)
            pids += new
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        keeper.wait()
        for pid in pids:
            wait_gone(pid)

    def log(self) -> str:
        """What the platform's processes wrote."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    # ---- talking --------------------------------------------------------------------------------

    @property
    def socket_path(self) -> Path:
        return self.run_dir / "supervisor.sock"

    def connect(self) -> Client:
        """A connection of the test's own, closed by the test."""
        return Client(self.socket_path)

    def request(self, op: str, **arguments: Any) -> dict[str, Any]:
        """Ask the supervisor; waits for one that is just being replaced."""
        end = time.monotonic() + DEADLINE
        while True:
            try:
                if self._client is None:
                    self._client = self.connect()
                return self._client.request(op, **arguments)
            except (ConnectionError, FileNotFoundError):
                self._hang_up()
                if time.monotonic() > end:
                    raise
                self._pause()

    def _hang_up(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    def _pause(self) -> None:
        """There is no event for a socket that is about to be made: look again soon, unless the keeper is gone."""
        if self.keeper is not None and self.keeper.poll() is not None:
            raise AssertionError(f"the keeper ended with {self.keeper.returncode}\n{self.log()}")
        select.select([], [], [], 0.01)

    def wait_supervisor(self, other_than: int | None = None) -> dict[str, Any]:
        """Give `hello` of a supervisor that is not the process `other_than`."""
        end = time.monotonic() + DEADLINE
        while True:
            with contextlib.suppress(ConnectionError, FileNotFoundError):
                hello = self.request("hello")
                if hello["pid"] != other_than:
                    return hello
                self._hang_up()
            if time.monotonic() > end:
                raise TimeoutError(f"no supervisor\n{self.log()}")
            self._pause()

    def wait_for(self, condition: Callable[[], Any], what: str, deadline: float = DEADLINE) -> Any:
        """Give the first true value of a condition; it is looked at anew after each event and now and then."""
        client = self.connect()
        try:
            client.request("subscribe")
            end = time.monotonic() + deadline
            while True:
                found = condition()
                if found:
                    return found
                left = end - time.monotonic()
                if left <= 0:
                    raise TimeoutError(f"{what}\n{self.log()}")
                with contextlib.suppress(ConnectionError, OSError):
                    if select.select([client.socket], [], [], min(left, 0.05))[0]:
                        client.receive()
        finally:
            client.close()

    @property
    def supervisor_pid(self) -> int:
        return int(self.request("hello")["pid"])

    # ---- verbs ----------------------------------------------------------------------------------

    def begin(self, verb: str, instance: str, **more: Any) -> str:
        """Begin an operation; give its id."""
        name = f"op-{os.getpid()}-{next(self._operations)}"
        self.request("execute", operation=name, verb=verb, instance=instance, **more)
        return name

    def wait_operation(self, name: str, deadline_ms: int = 60_000) -> dict[str, Any]:
        """Give an operation that has ended, however; across supervisors."""
        end = time.monotonic() + deadline_ms / 1000
        while True:
            operation = self.request("operation", operation=name, wait_ms=5000)
            if operation["ended"] is not None:
                return operation
            if time.monotonic() > end:
                raise TimeoutError(f"{operation}\n{self.log()}")

    def execute(self, verb: str, instance: str, **more: Any) -> dict[str, Any]:
        """Carry out a verb. Raises OperationFailed unless it succeeds."""
        operation = self.wait_operation(self.begin(verb, instance, **more))
        if operation["state"] != "succeeded":
            raise OperationFailed(operation)
        return operation

    def deploy(self, plan: Mapping[str, Any]) -> dict[str, Any]:
        """Instantiate and start."""
        return self.execute("deploy", str(plan["instance"]), plan=plan)

    def instance(self, name: str) -> dict[str, Any]:
        """Give an instance as the protocol shows it."""
        return dict(self.request("state")["instances"][name])

    def replica(self, instance: str, component: str, replica: int = 0) -> dict[str, Any]:
        """Give a replica as the protocol shows it."""
        found = next(c for c in self.instance(instance)["components"] if c["name"] == component)
        return dict(found["replicas"][replica])

    def wait_ready(self, instance: str, component: str, other_than: int | None = None) -> dict[str, Any]:
        """Give a replica once it is ready (again), as another process than `other_than`."""

        def ready() -> dict[str, Any] | None:
            found = self.replica(instance, component)
            return found if found["state"] == "ready" and found["pid"] not in (None, other_than) else None

        return dict(self.wait_for(ready, f"{component} is not ready"))

    def wait_worker(self, instance: str, state: str = "running", other_than: int | None = None) -> dict[str, Any]:
        """Give the worker once it is in a state, as another process than `other_than`."""

        def there() -> dict[str, Any] | None:
            found = self.instance(instance)["workers"][0]
            return found if found["state"] == state and found["pid"] != other_than else None

        return dict(self.wait_for(there, f"the worker is not {state}"))

    def kill(self, pid: int) -> None:
        """SIGKILL one process and wait until it is gone."""
        os.kill(pid, signal.SIGKILL)
        wait_gone(pid)

    # ---- packages and plans ---------------------------------------------------------------------

    def package(self, name: str, files: Mapping[str, str | bytes]) -> Path:
        """Put an unpacked package into the state directory; give its root."""
        root = self.state_dir / "packages" / name
        for path, content in files.items():
            target = root / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content.encode() if isinstance(content, str) else content)
        for path in (root, *root.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        return root

    def copy_package(self, folder: Path, name: str) -> Path:
        """Put a package's source folder into the state directory; give its root."""
        root = self.state_dir / "packages" / name
        shutil.copytree(folder, root)
        for path in (root, *root.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)
        return root

    # ---- leftovers ------------------------------------------------------------------------------

    @property
    def platform_id(self) -> str:
        from coven.supervisor.config import parse_arguments

        return parse_arguments(["--run-dir", str(self.run_dir)]).platform_id

    def leftovers(self) -> list[str]:
        """Say what this platform has left on the host: processes, cgroups, shared memory, mounts."""
        found = [f"shm {name}" for name in leftovers.all_shared_memory() if name.startswith(self.platform_id)]
        found += [f"cgroup {path}" for path in leftovers.all_cgroups() if self.platform_id in path.parts[:-1]]
        found += [f"mount {point}" for point in leftovers.all_mounts() if str(self.folder) in point]
        marker = os.fsencode(self.folder)
        for pid in leftovers.all_processes():
            command = leftovers.command_of(pid)
            if marker in command:
                found.append(f"process {pid} {command[:200]!r}")
        return found


def is_running(pid: int) -> bool:
    """Whether a process lives; a zombie does not."""
    from coven.supervisor.process import start_time

    return start_time(pid) is not None


def wait_gone(pid: int, deadline: float = DEADLINE) -> None:
    """Return when a process has ended."""
    try:
        fd = os.pidfd_open(pid)
    except OSError:
        return
    try:
        if not select.select([fd], [], [], deadline)[0]:
            raise TimeoutError(f"process {pid} still runs")
    finally:
        os.close(fd)
