"""The supervisor with a wish: it dies by SIGKILL at the n-th effect on the world, n being in the file $COVEN_TEST_KILL_AT.

Effects are what a successor must cope with having happened or not: lines of the journal, the manifest, descriptors
given to the keeper or taken back, processes started. An even n dies before effect n / 2, an odd one after it. The
file is removed by the death, so the successor lives.
"""

from __future__ import annotations

import functools
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
    if passed == int(KILL_AT.read_text()):
        KILL_AT.unlink()
        os.kill(os.getpid(), signal.SIGKILL)
    passed += 1


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

if __name__ == "__main__":
    sys.exit(main())
