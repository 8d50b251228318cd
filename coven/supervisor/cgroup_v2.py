"""Version 2 of control groups: where this platform may make its groups.

The kernel's rules (Documentation/admin-guide/cgroup-v2.rst) that decide how:

- A controller works in the children of a group once it stands in its `cgroup.subtree_control`, which may name what
  `cgroup.controllers` has. A write with several is all or nothing.
- No internal processes: except for the root of the hierarchy, a group that has processes cannot pass controllers on
  (EBUSY). So our processes go into a leaf of their own first. Strangers in our group are left where they are; then
  the platform's groups are made at the top of what we see of the hierarchy.
- Inside a cgroup namespace the group at the top looks like the root, but is none: the rule holds there as well.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
from collections.abc import Set
from pathlib import Path

log = logging.getLogger(__name__)

ATTEMPTS = 5  # processes may fork while they are moved


def prepare(mount: Path, own: str, platform_id: str, controllers: tuple[str, ...], mine: Set[int]) -> Path | None:
    """Make the platform's folder and enable the controllers in it; None when they are not to be had.

    own: text of /proc/self/cgroup. mine: processes that may be moved to a leaf.
    """
    leaf = f"{platform_id}.platform"
    base = _own(mount, own)
    if base.name == leaf:  # a predecessor moved us
        base = base.parent
    for at in dict.fromkeys((base, mount)):
        try:
            if not set(controllers) <= set((at / "cgroup.controllers").read_text(encoding="ascii").split()):
                continue
            _enable(at, controllers, leaf, mine)
            root = at / platform_id
            root.mkdir(exist_ok=True)
            _enable(root, controllers, leaf, set())
        except OSError as error:
            log.warning("cgroup2=%s not usable: %s", at, error)
        else:
            return root
    return None


def _own(mount: Path, own: str) -> Path:
    for line in own.splitlines():
        path = line.removeprefix("0::").strip()
        if path != line.strip() and ".." not in path.split("/"):  # above what a namespace shows
            return mount / path.lstrip("/")
    return mount


def _enable(folder: Path, controllers: tuple[str, ...], leaf: str, mine: Set[int]) -> None:
    words = " ".join(f"+{controller}" for controller in controllers)
    for attempt in range(ATTEMPTS):
        try:
            (folder / "cgroup.subtree_control").write_text(words, encoding="ascii")
        except OSError as error:
            if error.errno != errno.EBUSY or attempt == ATTEMPTS - 1:
                raise
            _move(folder, folder / leaf, mine)
        else:
            return


def _move(source: Path, target: Path, mine: Set[int]) -> None:
    target.mkdir(exist_ok=True)
    for word in (source / "cgroup.procs").read_text(encoding="ascii").split():
        if int(word) in mine:
            with contextlib.suppress(ProcessLookupError):
                (target / "cgroup.procs").write_text(word, encoding="ascii")


def kill(folder: Path) -> None:
    """Kill every process of a group and below, also those that fork meanwhile; kernels before 5.14 cannot."""
    with contextlib.suppress(OSError):
        fd = os.open(folder / "cgroup.kill", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(fd, b"1")
        finally:
            os.close(fd)
