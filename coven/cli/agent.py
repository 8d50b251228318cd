"""`coven agent`: becomes the keeper, which starts the supervisor, which starts the Management Agent."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from coven.cli import silence
from coven.cli.client import Client, Target
from coven.cli.options import Commands, Context
from coven.errors import CovenError


def register(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "agent",
        help="start COVEN on this machine",
        description="Start COVEN on this machine: keeper, supervisor and Management Agent. Runs until "
        "'coven off'. As root it can use network interfaces and gives each component a user of its own; "
        "without, it says what cannot be had.",
    )
    parser.add_argument(
        "--listen",
        action="append",
        metavar="HOST:PORT",
        help="TCP address of the REST interface, may be given again; 'none' for the Unix socket only "
        "(127.0.0.1:8440)",
    )
    parser.add_argument("--state-dir", type=Path, help="what must outlive a reboot (/var/lib/coven)")
    parser.add_argument("--run-dir", type=Path, help="sockets and pid files (/run/coven)")
    parser.add_argument("--agent-socket", type=Path, help="the agent's Unix socket (RUN_DIR/agent.sock)")
    parser.add_argument("--bin-dir", type=Path, help="folder of coven-keeper, coven-launch and coven-worker")
    parser.add_argument("--uid-base", type=int, help="first of the numeric users")
    parser.add_argument(
        "--files",
        action="append",
        type=Path,
        metavar="DIR",
        help="as root, let ports read and write capture files below DIR; may be given again",
    )
    parser.add_argument("--max-upload-mb", type=int, help="largest package (512)")
    parser.set_defaults(run=run)


def run(_: Context, arguments: argparse.Namespace) -> None:
    """Become the keeper; comes back only with an error. The agent says where it listens, and its token once."""
    from coven.supervisor import config

    settings = config.parse_arguments(_supervisor_arguments(arguments))
    keeper = settings.bin_dir / "coven-keeper"
    if not os.access(keeper, os.X_OK):
        raise CovenError(
            "platform.internal",
            f"{keeper} is missing",
            hint="install the package with pip, which builds it with the C compiler",
        )
    socket_path = (arguments.agent_socket or settings.run_dir / "agent.sock").absolute()
    if _answers(socket_path):
        raise CovenError(
            "agent.running",
            f"an agent answers at {socket_path} already",
            hint="'coven status' shows it, 'coven off' ends it; another one needs its own --state-dir and --run-dir",
        )
    if silence.platform_is_there(settings.run_dir):
        # Another keeper would sweep away what runs, as what a dead one left.
        reason = silence.last_words(settings.run_dir)
        raise CovenError(
            "agent.running",
            f"a platform runs in {settings.run_dir} already, but its agent does not answer"
            + (f": {reason.message}" if reason else ""),
            hint=f"{reason.hint}; {silence.AGAIN}" if reason and reason.hint else silence.AGAIN,
        )
    if not settings.privileged:
        print("coven: not root: network interfaces, users of their own for components and resource limits "
              "cannot be had; files ('pcap') and 'gen' ports can", file=sys.stderr)  # fmt: skip
    os.execv(keeper, [str(keeper), "--", *settings.argv])  # noqa: S606 - no shell wanted


def _supervisor_arguments(arguments: argparse.Namespace) -> list[str]:
    own: list[str] = []
    for name in ("state_dir", "run_dir", "bin_dir", "uid_base"):
        if (given := getattr(arguments, name)) is not None:
            own += [f"--{name.replace('_', '-')}", str(given)]
    own += [part for folder in arguments.files or [] for part in ("--files", str(folder.absolute()))]
    agent = [part for address in arguments.listen or [] for part in ("--listen", address)]
    if arguments.agent_socket is not None:
        agent += ["--socket", str(arguments.agent_socket.absolute())]
    if arguments.max_upload_mb is not None:
        agent += ["--max-upload-mb", str(arguments.max_upload_mb)]
    return [*own, "--", *agent] if agent else own


def _answers(socket_path: Path) -> bool:
    if not socket_path.exists():
        return False
    try:
        Client(Target(socket_path)).get("/v1")
    except CovenError as error:
        return error.code != "agent.unreachable"
    return True
