"""Builds and runs one libFuzzer target with ASan and UBSan; $COVEN_FUZZ_SECONDS by `make fuzz`, else short."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from coven.dataplane.build import HERE as DATAPLANE
from coven.dataplane.build import INCLUDE
from tests.fuzz import corpus

HERE = Path(__file__).resolve().parent
SECONDS = int(os.environ.get("COVEN_FUZZ_SECONDS", "3"))
CLANG = shutil.which("clang")

needs_clang = pytest.mark.skipif(CLANG is None, reason="needs clang with libFuzzer")
has_time = pytest.mark.deadline(SECONDS + 240)


def run(tmp_path: Path, target: str, sources: Sequence[str], seeds: list[bytes], longest: int) -> None:
    """Fuzz `<target>.c` of this folder, linked with files of the core, from seeds of up to `longest` bytes."""
    program = tmp_path / target
    command = [
        str(CLANG), "-std=gnu11", "-g", "-O1", "-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=undefined",
        "-Wall", "-Wextra", "-I", str(DATAPLANE), "-I", str(INCLUDE), "-o", str(program),
        str(HERE / f"{target}.c"), *(str(DATAPLANE / name) for name in sources),
    ]  # fmt: skip
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if built.returncode != 0 and "fuzzer" in built.stderr and "cannot find" in built.stderr:
        pytest.skip("clang here has no libFuzzer")
    assert built.returncode == 0, built.stderr
    folder = corpus.write(tmp_path / "corpus", seeds)
    done = subprocess.run(
        [str(program), f"-max_total_time={SECONDS}", f"-max_len={longest}", "-timeout=10", "-rss_limit_mb=1024",
         f"-artifact_prefix={tmp_path}/", str(folder)],
        capture_output=True, text=True, errors="replace", check=False, timeout=SECONDS + 60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-6000:]
    assert "DONE" in done.stderr
