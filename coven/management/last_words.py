"""What the agent ends with when it cannot start, kept in the run directory: the command line gets no answer from it."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from pathlib import Path

from coven.errors import CovenError

FILE = "agent.error"
MOST_BYTES = 8192
MOST_CHARACTERS = 1000  # of each text


def keep(run_dir: Path, error: Exception) -> None:
    """Write the error down, whole or not at all. A disk that is full costs the note, nothing else."""
    message = error.message if isinstance(error, CovenError) else f"{type(error).__name__}: {error}"
    hint = error.hint if isinstance(error, CovenError) else None
    document = {"message": message[:MOST_CHARACTERS], "hint": hint and hint[:MOST_CHARACTERS]}
    draft = run_dir / f".{FILE}.{secrets.token_hex(8)}"
    with contextlib.suppress(OSError):
        try:
            fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            with os.fdopen(fd, "w", encoding="ascii") as file:
                json.dump(document, file)
            draft.replace(run_dir / FILE)
        finally:
            draft.unlink(missing_ok=True)


def clear(run_dir: Path) -> None:
    """It has started: what an earlier one said is past."""
    with contextlib.suppress(OSError):
        (run_dir / FILE).unlink(missing_ok=True)
