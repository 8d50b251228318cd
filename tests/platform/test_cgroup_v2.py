"""Control groups of version 2 on a real hierarchy, with a controller that version 1 has not taken."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from coven.supervisor import cgroup, cgroup_v2
from tests.lib.platform import wait_gone

PLATFORM = f"cvtest{os.getpid()}"


def hierarchy() -> tuple[Path, str] | None:
    """Give a mounted hierarchy of version 2 and a controller that it has to give away."""
    for line in Path("/proc/mounts").read_text().splitlines():
        _, mount, kind, *_ = line.split()
        if kind == "cgroup2":
            controllers = (Path(mount) / "cgroup.controllers").read_text().split()
            if controllers and os.access(mount, os.W_OK):
                return Path(mount), next((c for c in ("hugetlb", "pids", "memory") if c in controllers), controllers[0])
    return None


FOUND = hierarchy() if os.geteuid() == 0 else None
pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(FOUND is None, reason="needs root and a hierarchy of version 2 with a free controller"),
]


class Tree:
    """A group of our own below the mount, and processes in it."""

    def __init__(self) -> None:
        assert FOUND is not None
        self.mount, self.controller = FOUND
        self.control = self.mount / "cgroup.subtree_control"
        self.had = self.controller in self.control.read_text().split()
        self.control.write_text(f"+{self.controller}")
        self.group = self.mount / f"{PLATFORM}-unit"
        self.group.mkdir()
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, group: Path, *command: str) -> int:
        process = subprocess.Popen(command or ("/bin/sleep", "1000"), stdout=subprocess.PIPE)
        self.processes.append(process)
        (group / "cgroup.procs").write_text(str(process.pid))
        return process.pid

    def prepare(self, mine: set[int], own: str | None = None) -> Path | None:
        text = f"1:cpu:/\n0::{own or '/' + self.group.name}\n"
        return cgroup_v2.prepare(self.mount, text, PLATFORM, (self.controller,), mine)

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
        for top in (self.group, self.mount / PLATFORM, self.mount / f"{PLATFORM}.platform"):
            for folder in sorted((p for p in top.rglob("*") if p.is_dir()), reverse=True):
                folder.rmdir()
            with contextlib.suppress(FileNotFoundError):
                top.rmdir()
        if not self.had:
            self.control.write_text(f"-{self.controller}")


@pytest.fixture
def tree() -> Iterator[Tree]:
    made = Tree()
    try:
        yield made
    finally:
        made.close()


def pids(folder: Path) -> set[int]:
    return set(map(int, (folder / "cgroup.procs").read_text().split()))


def test_the_kernel_refuses_internal_processes(tree: Tree) -> None:
    """The rule that all this is about; if it did not hold, the tests below would show nothing."""
    tree.start(tree.group)
    with pytest.raises(OSError, match="busy"):
        (tree.group / "cgroup.subtree_control").write_text(f"+{tree.controller}")


def test_our_processes_go_into_a_leaf(tree: Tree) -> None:
    mine = {tree.start(tree.group), tree.start(tree.group)}
    root = tree.prepare(mine)
    assert root == tree.group / PLATFORM
    assert pids(tree.group / f"{PLATFORM}.platform") == mine
    assert (root / "cgroup.subtree_control").read_text().split() == [tree.controller]
    (root / "one").mkdir()
    assert (root / "one" / "cgroup.controllers").read_text().split() == [tree.controller]
    # A successor starts in the leaf and finds the same folder.
    assert tree.prepare(mine, f"/{tree.group.name}/{PLATFORM}.platform") == root
    assert pids(tree.group / f"{PLATFORM}.platform") == mine


def test_strangers_stay_where_they_are(tree: Tree) -> None:
    mine, stranger = tree.start(tree.group), tree.start(tree.group)
    assert tree.prepare({mine}) == tree.mount / PLATFORM
    assert pids(tree.group) == {stranger}


@pytest.mark.parametrize("own", ["/", "/../../elsewhere"])
def test_the_top_of_what_is_seen(own: str, tree: Tree) -> None:
    assert tree.prepare(set(), own) == tree.mount / PLATFORM


def test_a_controller_that_is_not_there(tree: Tree) -> None:
    assert cgroup_v2.prepare(tree.mount, f"0::/{tree.group.name}\n", PLATFORM, ("nonsense",), set()) is None


def test_a_group_that_forks_is_killed_whole(tree: Tree) -> None:
    group = tree.group / "one"
    group.mkdir()
    tree.start(group, "/bin/sh", "-c", "while :; do /bin/sleep 1000 & wait $! & done")
    poller = 0
    while len(pids(group)) < 20:
        poller += 1
        assert poller < 1_000_000, "it does not fork"
    members = pids(group)
    asyncio.run(cgroup.remove((group,)))
    assert not group.exists()
    for pid in members:
        wait_gone(pid)
