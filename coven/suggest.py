"""Near misses: what somebody may have meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def near_miss(word: str, known: Iterable[object]) -> str | None:
    """Give a hint that names the nearest known word, or None when nothing is near."""
    candidates = [str(candidate) for candidate in known]
    close = difflib.get_close_matches(word[:64].lower(), candidates, n=1, cutoff=0.6)
    return f"did you mean {close[0]!r}?" if close else None
