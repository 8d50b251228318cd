"""libFuzzer on everything that reads packets and capture files."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fuzz import corpus
from tests.fuzz.target import has_time, needs_clang, run

TARGETS = {
    "fuzz_parse": (["parse.c", "priority.c"], corpus.packets, 2048),
    "fuzz_offload": (["offload.c", "parse.c"], corpus.super_frames, 70000),
    "fuzz_capture": (["capture.c", "port_pcap.c", "port_rx.c", "priority.c", "offload.c", "parse.c"], corpus.captures, 4096),
}


@needs_clang
@has_time
@pytest.mark.parametrize("target", TARGETS)
def test_fuzz(tmp_path: Path, target: str) -> None:
    sources, seeds, longest = TARGETS[target]
    run(tmp_path, target, sources, seeds(), longest)
