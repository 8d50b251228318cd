"""libFuzzer on everything that reads packets and capture files: short here, $COVEN_FUZZ_SECONDS by `make fuzz`."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.fuzz import corpus
from tests.lib.ports import DATAPLANE

HERE = Path(__file__).resolve().parent
SECONDS = int(os.environ.get("COVEN_FUZZ_SECONDS", "3"))
CLANG = shutil.which("clang")
TARGETS = {
    "fuzz_parse": (["parse.c"], corpus.packets, 2048),
    "fuzz_offload": (["offload.c", "parse.c"], corpus.super_frames, 70000),
    "fuzz_capture": (["capture.c", "port_pcap.c", "port_rx.c", "offload.c", "parse.c"], corpus.captures, 4096),
}


@pytest.mark.skipif(CLANG is None, reason="needs clang with libFuzzer")
@pytest.mark.parametrize("target", TARGETS)
def test_fuzz(tmp_path: Path, target: str) -> None:
    sources, seeds, longest = TARGETS[target]
    program = tmp_path / target
    command = [
        str(CLANG), "-std=gnu11", "-g", "-O1", "-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=undefined",
        "-Wall", "-Wextra", "-I", str(DATAPLANE), "-I", str(DATAPLANE / "include"), "-o", str(program),
        str(HERE / f"{target}.c"), *(str(DATAPLANE / name) for name in sources),
    ]  # fmt: skip
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    if built.returncode != 0 and "fuzzer" in built.stderr and "cannot find" in built.stderr:
        pytest.skip("clang here has no libFuzzer")
    assert built.returncode == 0, built.stderr
    folder = corpus.write(tmp_path / "corpus", seeds())
    run = subprocess.run(
        [str(program), f"-max_total_time={SECONDS}", f"-max_len={longest}", "-timeout=10", "-rss_limit_mb=1024",
         f"-artifact_prefix={tmp_path}/", str(folder)],
        capture_output=True, text=True, check=False, timeout=SECONDS + 60,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-6000:]
    assert "DONE" in run.stderr
