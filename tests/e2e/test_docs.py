"""Every command that a page shows in a `console` block is run, in order, on a machine of its own.

That machine is this one with its own process, mount and network namespaces: default directories, ports and interface
names can be used as the page has them, and everything is gone at the end.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.lib.net import unavailable

ROOT = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```console\n(.*?)^```", re.MULTILINE | re.DOTALL)
PAGES = sorted(path for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")] if BLOCK.search(path.read_text("utf-8")))
MACHINE = """
set -eu
mount -t tmpfs tmpfs /run
mkdir -p /var/lib/coven /run/lock
mount -t tmpfs tmpfs /var/lib/coven
case "$1" in /tmp/*) ;; *) mount -t tmpfs -o mode=1777 tmpfs /tmp ;; esac
ip link set lo up
cd "$1"
bash -eu -o pipefail -c "$2"
while pgrep -x coven-keeper >/dev/null; do sleep 0.05; done  # `coven off` is answered before all is away; we are its init
"""



def in_chroot() -> bool:
    """Tell whether / is no mount point."""
    lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    return "/" not in [line.split()[4] for line in lines]


pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(unavailable() is not None, reason=f"namespaces: {unavailable()}"),
    pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare"),
    pytest.mark.skipif(in_chroot(), reason="in a chroot `ip netns exec`, which pages show, cannot mount"),
]


def commands(page: str) -> list[str]:
    """Give the commands of a page: lines that begin with `$ `, and those that continue them with `> `."""
    found: list[str] = []
    for block in BLOCK.findall(page):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append(line[2:])
            elif line.startswith("> ") and found:
                found[-1] += "\n" + line[2:]
    return found


def test_commands_are_found_in_order() -> None:
    page = "x\n```console\n$ one\noutput\n$ two \\\n> three\n```\n```sh\n$ not this\n```\n```console\n$ four\n```\n"
    assert commands(page) == ["one", "two \\\nthree", "four"]


def test_a_page_has_commands() -> None:
    assert ROOT / "docs" / "quickstart.md" in PAGES


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_commands_of_a_page_work(page: Path) -> None:
    script = "\n".join(f"echo {'$ ' + line!r} >&2\n{line}" for line in commands(page.read_text("utf-8")))
    isolated = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc"]
    command = [*isolated, "sh", "-c", MACHINE, "machine", str(ROOT), script]
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=environment)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
