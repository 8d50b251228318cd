"""Ends what a test run leaves running when it is killed, and so cannot end it itself.

    python -m tests.lib.aftermath PID TOKEN

tests/conftest.py starts it beside each run. It sleeps until process PID has ended. Then keepers that carry the run's
mark (`Watch` of tests.lib.leftovers) are told to end their platforms in order, what else carries it is killed with
everything below, and the run's network namespaces and links are removed. After a run that ended in order there is
nothing to do.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator

from tests.lib import leftovers

ORDERLY_S = 30.0  # for a platform to end; its keeper forces the supervisor after 20 s
ROUNDS = 100  # of looking for what was started while others were killed


def start(token: str) -> None:
    """Begin to watch over this process; token: its mark."""
    environment = {name: value for name, value in os.environ.items() if name != leftovers.MARKER}
    environment["PYTHONPATH"] = str(leftovers.ROOT)
    # in a session of its own: what is sent to the run's process group does not reach it
    subprocess.Popen(
        [sys.executable, "-m", "tests.lib.aftermath", str(os.getpid()), token],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment, cwd="/",
        start_new_session=True,
    )  # fmt: skip


def main(pid: int, token: str) -> None:
    """Wait for the end of a run, then clean up."""
    _wait(pid)
    marked = list(_marked(token))
    for keeper in [one for one in marked if b"/coven-keeper" in leftovers.command_of(one).split(b" ")[0]]:
        _orderly(keeper)
    for _ in range(ROUNDS):
        # what coven-launch started has no mark, so it is found below what has one
        marked = list(_marked(token))
        if not marked:
            break
        _kill({*marked, *(child for one in marked for child in leftovers.descendants(one))})
    _remove_network(pid)


def _wait(pid: int) -> None:
    with contextlib.suppress(OSError):
        fd = os.pidfd_open(pid)
        if os.getppid() == pid:  # else it has ended already, and the number may be another's
            select.select([fd], [], [])
        os.close(fd)


def _marked(token: str) -> Iterator[int]:
    mark = f"{leftovers.MARKER}={token}".encode()
    return (pid for pid in leftovers.all_processes() if mark in leftovers.environment_of(pid))


def _orderly(keeper: int) -> None:
    with contextlib.suppress(OSError):
        fd = os.pidfd_open(keeper)
        signal.pidfd_send_signal(fd, signal.SIGCONT)
        signal.pidfd_send_signal(fd, signal.SIGTERM)
        select.select([fd], [], [], ORDERLY_S)
        os.close(fd)


def _kill(pids: Iterable[int]) -> None:
    fds = []
    for pid in pids:
        with contextlib.suppress(OSError):
            fds.append(os.pidfd_open(pid))
            signal.pidfd_send_signal(fds[-1], signal.SIGKILL)
    for fd in fds:
        select.select([fd], [], [], 1)
        os.close(fd)


def _remove_network(maker: int) -> None:
    for name in leftovers.all_namespaces_and_links():
        match = leftovers.MAKERS.match(name)
        if match and int(match[1]) == maker:
            for command in (["ip", "netns", "del", name], ["ip", "link", "del", name]):
                subprocess.run(command, capture_output=True, check=False)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
