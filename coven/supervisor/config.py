"""What the supervisor was started with, and what the host lets it do."""

from __future__ import annotations

import argparse
import hashlib
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

from coven.supervisor.features import Features

UID_BASE = 1900000000
WORKER_UID = 1  # above the base
REPLICA_UID = 1000  # above the base: first of the pool for component replicas
PACKAGE = Path(__file__).resolve().parent.parent  # the folder of `coven`


@dataclass(frozen=True, slots=True)
class Settings:
    """Command line of the supervisor; `argv` starts the same one again."""

    state_dir: Path
    run_dir: Path
    bin_dir: Path
    uid_base: int
    with_agent: bool
    agent_arguments: tuple[str, ...]
    files: tuple[Path, ...]  # folders whose capture files ports may use; only asked when privileged
    start_timeout: float  # seconds a component has from its launch to being ready
    argv: tuple[str, ...]
    keeper_pid: int
    privileged: bool = field(default_factory=lambda: os.geteuid() == 0)
    features: Features = Features()  # noqa: RUF009 - frozen; `main` asks the host

    @property
    def platform_id(self) -> str:
        """Name that no other platform on this host has, for cgroups and shared memory."""
        return "coven-" + hashlib.sha256(os.fsencode(self.run_dir)).hexdigest()[:10]

    @property
    def agent_uid(self) -> int:
        """User of the Management Agent."""
        return self.uid_base if self.privileged else os.geteuid()

    @property
    def worker_uid(self) -> int:
        """User of workers."""
        return self.uid_base + WORKER_UID if self.privileged else os.geteuid()

    @property
    def journal_dir(self) -> Path:
        """Folder of the operations' journals."""
        return self.run_dir / "journal"

    @property
    def logs_dir(self) -> Path:
        """Folder of the last lines that components and workers wrote."""
        return self.run_dir / "logs"

    @property
    def manifest_path(self) -> Path:
        """The runtime manifest."""
        return self.run_dir / "supervisor.json"

    @property
    def socket_path(self) -> Path:
        """Where the supervisor listens."""
        return self.run_dir / "supervisor.sock"

    @property
    def packages_dir(self) -> Path:
        """Folder that every source of a component must be below."""
        return self.state_dir / "packages"

    @property
    def build_dir(self) -> Path:
        """Folder of compiled components."""
        return self.state_dir / "build"

    @property
    def launcher(self) -> str:
        """Path of coven-launch."""
        return str(self.bin_dir / "coven-launch")


def default_dirs(privileged: bool) -> tuple[Path, Path]:
    """Give state and run directory for this user."""
    if privileged:
        return Path("/var/lib/coven"), Path("/run/coven")
    runtime = os.environ.get("XDG_RUNTIME_DIR") or fallback_dir()
    return Path.home() / ".local" / "share" / "coven", Path(runtime) / "coven"


def fallback_dir() -> Path:
    """Give the folder that stands for XDG_RUNTIME_DIR; whoever uses it checks whose it is."""
    return Path(f"/tmp/coven-{os.getuid()}")  # noqa: S108


def parse_arguments(arguments: list[str]) -> Settings:
    """Read the command line. What comes behind `--` is passed to the Management Agent."""
    state, run = default_dirs(os.geteuid() == 0)
    parser = argparse.ArgumentParser(prog="python -m coven.supervisor")
    parser.add_argument("--state-dir", type=Path, default=state)
    parser.add_argument("--run-dir", type=Path, default=run)
    parser.add_argument("--bin-dir", type=Path, default=PACKAGE / "bin")
    parser.add_argument("--uid-base", type=int, default=UID_BASE)
    parser.add_argument(
        "--start-timeout", type=float, default=15.0, metavar="SECONDS", help="for a component to become ready"
    )
    parser.add_argument("--no-agent", action="store_true", help="do not start the Management Agent")
    parser.add_argument(
        "--files",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="as root, ports may read and write capture files below DIR (the agent's user must not own it)",
    )
    parser.add_argument("--keeper-pid", type=int, default=0, help=argparse.SUPPRESS)
    own, agent = arguments, []
    if "--" in arguments:
        cut = arguments.index("--")
        own, agent = arguments[:cut], arguments[cut + 1 :]
    options = parser.parse_args(own)
    return Settings(
        state_dir=options.state_dir.absolute(),
        run_dir=options.run_dir.absolute(),
        bin_dir=options.bin_dir.absolute(),
        uid_base=options.uid_base,
        with_agent=not options.no_agent,
        agent_arguments=tuple(agent),
        files=tuple(path.absolute() for path in options.files),
        start_timeout=options.start_timeout,
        argv=(sys.executable, "-m", "coven.supervisor", *_without_keeper_pid(own), *(["--", *agent] if agent else [])),
        keeper_pid=options.keeper_pid or os.getppid(),
    )


def _without_keeper_pid(arguments: list[str]) -> list[str]:
    """A successor finds its keeper anew; only a re-exec is told."""
    if "--keeper-pid" not in arguments:
        return arguments
    at = arguments.index("--keeper-pid")
    return arguments[:at] + arguments[at + 2 :]
