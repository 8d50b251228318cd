"""The tests of parser, offloads and capture files again, with address and undefined-behaviour sanitizers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
TESTS = ["test_parse.py", "test_offload.py", "test_pcap.py"]
MISUSE = """
from tests.lib.ports import build
core = build()
core.lib.coven_parse(core.ffi.new("uint8_t[4]"), 60, core.ffi.new("struct coven_parsed *"))
"""


def run(*command: str) -> subprocess.CompletedProcess[str]:
    found = subprocess.run(["gcc", "-print-file-name=libasan.so"], capture_output=True, text=True, check=False)
    library = found.stdout.strip()
    if not Path(library).is_absolute():
        pytest.skip("gcc here has no address sanitizer")
    environment = {
        **os.environ,
        "LD_PRELOAD": library,
        "COVEN_TEST_SANITIZERS": "-fsanitize=address,undefined -fno-sanitize-recover=undefined",
        "ASAN_OPTIONS": "detect_leaks=0",  # the interpreter's own are not ours
        "PYTHONMALLOC": "malloc",
    }
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, check=False, env=environment, cwd=HERE.parents[1],
        timeout=300,
    )  # fmt: skip


def test_with_sanitizers() -> None:
    done = run("-m", "pytest", "-q", "-p", "no:cacheprovider", *(str(HERE / name) for name in TESTS))
    assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]


def test_the_sanitizers_see_something() -> None:
    done = run("-c", MISUSE)
    assert done.returncode != 0 and "AddressSanitizer" in done.stderr
