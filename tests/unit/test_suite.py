"""What tests/conftest.py promises of every run: it ends, and nothing is left behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

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


def run(folder: Path, text: str) -> tuple[int, str]:
    """Run tests under the same conftest; give pytest's status and output."""
    (folder / "test_made.py").write_text(text)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "pytest", "-q", "-c", str(ROOT / "setup.cfg"), "-p", "tests.conftest", "-p", "no:cacheprovider",
               "--basetemp", str(folder / "base"), str(folder)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
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


def test_a_tidy_run_passes(tmp_path: Path) -> None:
    status, output = run(tmp_path, "def test_nothing():\n    pass\n")
    assert status == 0, output
