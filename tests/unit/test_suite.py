"""What tests/conftest.py promises of every run: it ends, and nothing is left behind."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.lib.platform import BIN, PlatformUnderTest

ROOT = Path(__file__).resolve().parents[2]
HANGING = """
import threading

import pytest

@pytest.mark.deadline(1)
def test_hanging():
    threading.Event().wait()
"""
LEAVING = """
import os
import subprocess
from pathlib import Path

def test_leaving():
    subprocess.Popen(["sleep", "60"])
    for _ in range(40):
        os.open("/dev/null", os.O_RDONLY)
    Path(f"/dev/shm/coven-{os.getpid()}-left").touch()
"""

STANDING = """
import threading
from pathlib import Path

from tests.lib.hostile import two_paths
from tests.lib.platform import PlatformUnderTest

def test_standing(tmp_path):
    with PlatformUnderTest(tmp_path) as platform:
        platform.deploy(two_paths(platform, "COVEN_COMPONENT(.process_pkt = process, .allocate_new_fs = allocate);", "copy"))
        Path("READY").write_text("ready")
        threading.Event().wait()
"""
ENDING_S = 60.0  # for a platform to end and its watch to see to it


def command(folder: Path, text: str) -> list[str]:
    """Give the command that runs tests under the same conftest."""
    (folder / "test_made.py").write_text(text)
    return [sys.executable, "-m", "pytest", "-q", "-c", str(ROOT / "setup.cfg"), "-p", "tests.conftest", "-p", "no:cacheprovider",
            "--basetemp", str(folder / "base"), str(folder)]  # fmt: skip


def run(folder: Path, text: str) -> tuple[int, str]:
    """Run tests; give pytest's status and output."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command(folder, text), capture_output=True, text=True, check=False, env=environment)
    return done.returncode, done.stdout + done.stderr


def test_a_hanging_test_fails_with_its_stack(tmp_path: Path) -> None:
    status, output = run(tmp_path, HANGING)
    assert status == 1, output
    assert "not done within 1 s" in output and "in test_hanging" in output, output


def test_a_run_that_leaves_something_fails(tmp_path: Path) -> None:
    status, output = run(tmp_path, LEAVING)
    for name in Path("/dev/shm").glob("coven-*-left"):
        name.unlink()
    assert status == 1 and "1 passed" in output, output
    found = output[output.index("left behind by this run") :]
    pid = next(line for line in found.splitlines() if line.endswith(": sleep 60")).split()[1].rstrip(":")
    os.kill(int(pid), 9)
    assert "shared memory coven-" in found and " open descriptors, " in found, found


@pytest.mark.skipif(not (BIN / "coven-worker").exists(), reason="the programs are not built")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_is_ended_in_the_middle_leaves_no_platform(number: signal.Signals, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    os.mkfifo(ready)
    fd = os.open(ready, os.O_RDONLY | os.O_NONBLOCK)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    inner = command(tmp_path, STANDING.replace("READY", str(ready)))
    with (tmp_path / "output").open("wb") as output, subprocess.Popen(inner, env=environment, stdout=output) as child:
        came = select.select([fd], [], [], ENDING_S)[0]
        os.close(fd)
        child.send_signal(number)
        status = child.wait(ENDING_S)
    assert came, (tmp_path / "output").read_text()
    assert status == {signal.SIGTERM: 128 + number, signal.SIGKILL: -number}[number], (tmp_path / "output").read_text()
    made = PlatformUnderTest(tmp_path / "base" / "test_standing0")
    end = time.monotonic() + (ENDING_S if number == signal.SIGKILL else 0)
    while left := made.leftovers():
        assert time.monotonic() < end, left
        select.select([], [], [], 0.1)


def test_a_tidy_run_passes(tmp_path: Path) -> None:
    status, output = run(tmp_path, "def test_nothing():\n    pass\n")
    assert status == 0, output
