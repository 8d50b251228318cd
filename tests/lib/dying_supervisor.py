"""The supervisor with a wish: it dies by SIGKILL at the n-th effect on the world, n being in the file $COVEN_TEST_KILL_AT.

Effects are what a successor must cope with having happened or not: lines of the journal, the manifest, descriptors
given to the keeper or taken back, processes started. An even n dies before effect n / 2, an odd one after it. The
file is removed by the death, so the successor lives. A name in the file instead of a number: it dies after the effect of that name;
with the word `keeper` behind it the keeper dies first.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from coven.network import tools
from coven.supervisor.journal import Journal
from coven.supervisor.keeper import Keeper
from coven.supervisor.main import main
from coven.supervisor.platform import Platform

KILL_AT = Path(os.environ["COVEN_TEST_KILL_AT"])
passed = 0


def point() -> None:
    """Pass one point, or do not."""
    global passed
    if not KILL_AT.exists():
        passed = 0
        return
    if KILL_AT.read_text() == str(passed):
        die()
    passed += 1


def die() -> None:
    """Die once."""
    words = KILL_AT.read_text().split()
    KILL_AT.unlink()
    supervisor, keeper = os.getpid(), os.getppid()
    if "keeper" in words and os.fork() == 0:  # its death must not be seen by another thread of ours
        os.kill(supervisor, signal.SIGSTOP)
        tasks = Path(f"/proc/{supervisor}/task")
        while any((task / "stat").read_text().rpartition(")")[2].split()[0] not in "TZ" for task in tasks.iterdir()):
            pass
        os.kill(keeper, signal.SIGKILL)
        os.kill(supervisor, signal.SIGKILL)
        os._exit(0)
    if "keeper" not in words:
        os.kill(supervisor, signal.SIGKILL)
    signal.pause()


def named(effect: Callable[..., Any]) -> Callable[..., Any]:
    """Die after the effect when its name is in the file."""

    @functools.wraps(effect)
    def wrapped(*arguments: Any, **more: Any) -> Any:
        result = effect(*arguments, **more)
        if KILL_AT.exists() and effect.__name__ in KILL_AT.read_text().split():
            die()
        return result

    return wrapped


def deadly(effect: Callable[..., Any]) -> Callable[..., Any]:
    """Put a point before and one behind."""

    @functools.wraps(effect)
    def wrapped(*arguments: Any, **more: Any) -> Any:
        point()
        result = effect(*arguments, **more)
        point()
        return result

    return wrapped


for holder, name in (
    (Journal, "write"),
    (Keeper, "put"),
    (Keeper, "drop"),
    (Platform, "save"),
    (os, "posix_spawn"),
):
    setattr(holder, name, deadly(getattr(holder, name)))
for name in ("change", "raise_shield", "open_output"):
    setattr(tools, name, named(getattr(tools, name)))

if __name__ == "__main__":
    sys.exit(main())
