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
from tests.lib import builds

HERE = Path(__file__).resolve().parent
SECONDS = int(os.environ.get("COVEN_FUZZ_SECONDS", "3"))
CLANG = shutil.which("clang")


def _why_not() -> str | None:
    if CLANG is None:
        return "needs clang"
    found = subprocess.run([CLANG, "-print-runtime-dir"], capture_output=True, text=True, check=False).stdout.strip()
    return None if [*Path(found).glob("libclang_rt.fuzzer*")] else "needs libFuzzer (Debian: libclang-rt-14-dev)"


needs_clang = pytest.mark.skipif(bool(_why_not()), reason=str(_why_not()))
has_time = pytest.mark.deadline(SECONDS + 240)


def run(tmp_path: Path, target: str, sources: Sequence[str], seeds: list[bytes], longest: int) -> None:
    """Fuzz `<target>.c` of this folder, linked with files of the core, from seeds of up to `longest` bytes."""
    flags = ("-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=undefined")
    inputs = [HERE / f"{target}.c", *(DATAPLANE / name for name in sources)]

    def make(output: Path) -> None:
        builds.run([str(CLANG), "-std=gnu11", "-g", "-O1", *flags, "-Wall", "-Wextra", f"-I{DATAPLANE}", f"-I{INCLUDE}", *inputs,
                    "-o", output / target])  # fmt: skip

    program = builds.made_once(target, inputs, [str(CLANG), *flags], make) / target
    folder = corpus.write(tmp_path / "corpus", seeds)
    done = subprocess.run(
        [str(program), f"-max_total_time={SECONDS}", f"-max_len={longest}", "-timeout=10", "-rss_limit_mb=1024",
         f"-artifact_prefix={tmp_path}/", str(folder)],
        capture_output=True, text=True, errors="replace", check=False, timeout=SECONDS + 60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-6000:]
    assert "DONE" in done.stderr
