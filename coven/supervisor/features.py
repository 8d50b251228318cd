"""What of the isolation this host has, found out by trying (coven-launch --probe)."""

from __future__ import annotations

import logging
import subprocess
from dataclasses import dataclass
from pathlib import Path

log = logging.getLogger(__name__)

TIMEOUT = 10.0


@dataclass(frozen=True, slots=True)
class Features:
    """One for each word of the probe. Nothing, until somebody has asked."""

    user: bool = False  # a user namespace for each process
    root: bool = False  # private roots and network namespaces
    filter: bool = False  # seccomp
    tell: bool = False  # and a listener that says what was refused
    scope: bool = False  # signals that stay within the process's own family (Landlock)

    def missing(self) -> list[str]:
        """Say what could not be had, for `degraded`."""
        said = (
            (self.user, "no user namespaces: components run in the host's, without capabilities"),
            (self.root, "no private root and network namespace for components"),
            (self.filter, "no system call filter (seccomp): components may ask the kernel for anything their user may"),
            (self.tell or not self.filter, "system calls of components are refused, but not told by name"),
        )
        return [text for here, text in said if not here]


def probe(launcher: str) -> Features:
    """Try everything once; some 20 ms. Nothing works where not even the launcher does."""
    try:
        done = subprocess.run(
            [str(Path(launcher)), "--probe"], capture_output=True, text=True, check=True, timeout=TIMEOUT, env={}
        )
    except (OSError, subprocess.SubprocessError) as error:
        log.error("what isolation this host has cannot be found out: %s", error)
        return Features()
    words = set(done.stdout.split())
    return Features(**{name: name in words for name in Features.__dataclass_fields__})
