"""The ledger without a worker: intents that are interrupted anywhere are finished by the next process."""

from __future__ import annotations

import subprocess
from pathlib import Path

from coven.dataplane.build import HERE
from coven.dataplane.core import lib
from coven.dataplane.layout import cell_count, drop_reasons, layout
from tests.lib import builds
from tests.lib.dataplane import chain_plan, gen, played


def test_interrupted_intents() -> None:
    source = Path(__file__).parent / "c" / "ledger_replay.c"
    program = builds.program(source, ("ledger.c", *builds.FLOW_PARTS), *builds.FAULTS, *builds.SANITIZERS)
    done = subprocess.run([program], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


def test_the_list_of_reasons_is_that_of_the_header() -> None:
    labels = [reason.label for reason in drop_reasons()]
    assert labels[0] == "component-verdict"
    assert len(labels) == len(set(labels)) <= lib.COVEN_MAX_REASONS
    text = (HERE / "drop_reasons.def").read_text()
    assert text.count("DROP(") - 1 == len(labels)  # one more in the comment
    assert cell_count() == 6344


def test_sizes_of_segments() -> None:
    parts = [played("one", "copy", replicas=2, ring_size=64, copy_buffers=96), played("two", "shared", ring_size=64, state={"bytes": 20})]
    made = layout(chain_plan([gen("in"), gen("out")], parts), seed=(1, 2))
    assert [(p.number, p.component, p.replica) for p in made.places] == [(0, 0, 0), (1, 0, 1), (2, 1, 0)]
    assert made.replicas[0].size == made.replicas[1].size > 96 * 2048 > made.replicas[2].size
    assert made.pool.size == 4096 + 2048 * 2048
    assert made.states[1].size > 1024 * 128 > made.states[0].size
