"""How a component is run, and what its own code says when it refuses to start."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import Any

from coven.errors import CovenError, Where

PLACE = re.compile(r"(?P<file>[\w./-]+\.\w+):(?P<line>\d+): ")  # in front of what a component says of its code
ERRNO = re.compile(r"init returned -(\d{1,3})\b")


@dataclass(frozen=True, slots=True)
class Program:
    """How a component is run: found out when it is built, kept in the manifest."""

    argv: tuple[str, ...]
    entry: str
    read: tuple[str, ...] = ()
    folder: str = "/"  # the component's own, without links on the way

    def to_json(self) -> dict[str, Any]:
        """Give the manifest's form."""
        return {"argv": list(self.argv), "entry": self.entry, "read": list(self.read), "folder": self.folder}

    @classmethod
    def from_json(cls, document: dict[str, Any]) -> Program:
        """Read the manifest's form."""
        return cls(tuple(document["argv"]), document["entry"], tuple(document["read"]), document["folder"])


def refused(part: str, error: CovenError) -> CovenError:
    """Give what the component's own code said while it started, with its place and what it means."""
    place = PLACE.match(error.message)
    where = Where(place["file"], int(place["line"]), part=part) if place else Where(part=part)
    number = ERRNO.search(error.message)
    meaning = f" ({os.strerror(int(number[1]))})" if number else ""
    return CovenError(
        "component.bad-code",
        error.message + meaning,
        hint=error.hint or "the component's code said so while it started: correct it, or the options it is given",
        where=where,
    )
