"""Why no agent answers at a Unix socket: is there a platform beside it, and what did its agent say when it ended."""

from __future__ import annotations

import json
import os
import socket
import stat
from pathlib import Path

from coven.errors import CovenError
from coven.management.last_words import FILE, MOST_BYTES

AGAIN = "the platform starts it again every few seconds; all it says is where 'coven agent' writes to"


def platform_is_there(run_dir: Path) -> bool:
    """Tell whether a supervisor listens in a run directory."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.settimeout(5)
        try:
            asking.connect(str(run_dir / "supervisor.sock"))
        except PermissionError:
            return True  # of another user: who may not ask it can still be told of it
        except OSError:
            return False
    return True


def last_words(run_dir: Path) -> CovenError | None:
    """Give the error that the agent ended with; only from a folder of ours or root's, and only what can be shown."""
    try:
        if run_dir.stat().st_uid not in (0, os.getuid()):
            return None
        fd = os.open(run_dir / FILE, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(fd, "rb") as file:
            text = file.read(MOST_BYTES) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
        document = json.loads(text)
        message, hint = str(document["message"]), document.get("hint")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return CovenError("agent.unreachable", _shown(message), hint=_shown(str(hint)) if hint else None)


def explain(socket_path: Path) -> CovenError | None:
    """Give the error to show for an agent that does not answer although its platform runs; None when none does."""
    run_dir = socket_path.parent
    if not platform_is_there(run_dir):
        return None
    reason = last_words(run_dir)
    if reason is None:
        return CovenError(
            "agent.unreachable",
            f"no agent answers at {socket_path}, but its platform runs",
            hint=f"try again at once; if it stays so, {AGAIN}",
        )
    hint = f"{reason.hint}; {AGAIN}" if reason.hint else AGAIN
    return CovenError("agent.unreachable", f"the agent of {socket_path} cannot start: {reason.message}", hint=hint)


def _shown(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)
