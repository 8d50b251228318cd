"""Components in Python behind a real worker: the case study on its capture, and kills at every fault point."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest

from coven.dataplane.core import ffi, lib
from tests.lib import builds
from tests.lib.dataplane import Rig, c_component, chain_plan, gen, pcap, py_component
from tests.lib.examples import DATA, EXAMPLES, capture, described

SKYPE = DATA / "captures" / "skype.pcap"
FAULT_POINTS = ["after-dequeue", "after-state-write", "after-staging", "after-commit", "after-counter"]
COUNT = """
import struct
from coven.component import Component

class Count(Component):
    def process_packet(self, packet):
        n, = struct.unpack_from("Q", packet.state)
        struct.pack_into("Q", packet.state, 0, n + 1)
"""


def row(name: str, isolation: str, **options: Any) -> dict[str, Any]:
    """Give the row of an example component in a plan."""
    component, defaults = described(EXAMPLES / name)
    more = {key: component[key] for key in ("metrics", "operations", "state") if key in component}
    make = py_component if component["framework"] == "python" else c_component
    return make(name, EXAMPLES / name / component["entry"], isolation, options={**defaults, **options}, **more)


@pytest.mark.data
@pytest.mark.parametrize("isolation", ["copy", "shared"])
def test_the_case_study_on_its_capture(tmp_path: Path, isolation: str) -> None:
    if not SKYPE.exists():
        pytest.skip(f"no test data at {SKYPE}")
    out = tmp_path / "out.pcap"
    components = [row("analyzer", isolation, ring_size=4096), row("filter", "fused")]
    components[0] |= {"ring_size": 4096, "copy_buffers": 4096}
    with Rig(chain_plan([pcap("in", read=SKYPE), pcap("out", write=out)], components, buffers=8192), tmp_path) as rig:
        rig.start()
        done = rig.wait(lambda s: s.rx == 3284 and s.held == 0, "all packets through")
        assert (done.tx, done.drops) == (3249, {("component filter", "component-verdict"): 35})
        assert rig.stop() == 0
    sent = list(capture(SKYPE))
    forwarded = list(capture(out))
    dropped = [frame for frame in sent if frame not in set(forwarded)]
    assert forwarded == [frame for frame in sent if frame not in set(dropped)]
    assert (len(forwarded), len(dropped)) == (3249, 35)


def counted(rig: Rig) -> int:
    """Sum what the flow states count."""
    segment = rig.segments["state-count"]
    state = segment.struct("coven_state")
    total = 0
    for flow in range(state.n_slots):
        slot = segment.struct("coven_slot", state.slots_offset + flow * state.slot_bytes)
        if slot.epoch:
            at = state.slots_offset + flow * state.slot_bytes + 32 + (slot.commit & 1) * state.half_bytes
            total += struct.unpack("Q", segment.memory[at : at + 8])[0]
    return total


@pytest.mark.parametrize("isolation", ["copy", "shared"])
@pytest.mark.parametrize("point", FAULT_POINTS)
def test_killed_at_a_fault_point_nothing_is_lost_twice(tmp_path: Path, point: str, isolation: str) -> None:
    (tmp_path / "count.py").write_text(COUNT)
    component = py_component("count", tmp_path / "count.py", isolation, state={"bytes": 8, "version": 1})
    plan = chain_plan([gen("in", packets=2**40, rate=20000, flows=7), gen("out")], [component])
    with Rig(plan, tmp_path, component_env={"COVEN_CORE": str(builds.core(*builds.FAULTS))}) as rig:
        rig.component_env["COVEN_FAULT"] = f"{point}:1"
        rig.start()
        for passes in (2, 5, 13, 33, 0):
            assert rig.wait_component_death() == -9
            rig.detach(0)
            taken = rig.snapshot().check()
            assert counted(rig) == taken.tx  # what state says is what went out, no packet more or less
            rig.component_env["COVEN_FAULT"] = f"{point}:{passes}"  # 0: never
            rig.start_component(0)
        before = rig.snapshot().tx
        rig.wait(lambda s: s.tx > before + 100, "packets go through again")
        rig.pause()
        taken = rig.snapshot().check()
        assert taken.held == 0
        assert counted(rig) == taken.tx
        assert set(reason for _, reason in taken.drops) <= {"component-crash", "component-down", "ring-full"}
        assert taken.component(0, lib.COVEN_COMPONENT_VIOLATIONS) == 0


HOLD = """
from coven.component import Component, operation

class Hold(Component):
    def init(self):
        self.held = []
    def process_packet(self, packet):
        self.held.append(packet.hold())
    @operation("release")
    def release(self):
        for held in self.held:
            held.forward()
        return len(self.held)
"""


@pytest.mark.parametrize("isolation", ["copy", "shared"])
def test_held_packets_are_bounded_and_late_ones_harmless(tmp_path: Path, isolation: str) -> None:
    """What is taken back counts once, whenever the component gives it back; the rest goes out."""
    (tmp_path / "hold.py").write_text(HOLD)
    operations = [{"name": "release", "help": "gives all back", "arguments": []}]
    component = py_component(
        "hold", tmp_path / "hold.py", isolation, hold={"packets": 20, "ms": 60000}, operations=operations
    )
    with Rig(chain_plan([gen("in", packets=100), gen("out")], [component]), tmp_path) as rig:
        rig.start()
        taken = rig.wait(lambda s: s.rx == 100 and s.drop("hold-limit") == 80, "the limit")
        assert (taken.held, taken.tx) == (20, 0)
        assert rig.agent().ask("call", "release") == (("result", "result", "100"),)
        done = rig.wait(lambda s: s.tx == 20, "what was held goes out")
        assert (done.held, done.quarantine, done.dropped) == (0, 0, 80)


def test_held_too_long(tmp_path: Path) -> None:
    (tmp_path / "hold.py").write_text(HOLD)
    operations = [{"name": "release", "help": "gives all back", "arguments": []}]
    component = py_component(
        "hold", tmp_path / "hold.py", "copy", hold={"packets": 50, "ms": 20}, operations=operations
    )
    with Rig(chain_plan([gen("in", packets=10), gen("out")], [component]), tmp_path) as rig:
        rig.start()
        assert rig.wait(lambda s: s.drop("hold-timeout") == 10).held == 0


def test_an_exception_costs_its_burst_and_says_why(tmp_path: Path) -> None:
    source = "from coven.component import Component\nclass Bad(Component):\n    def process_packet(self, packet):\n"
    (tmp_path / "bad.py").write_text(
        source + "        if packet.length == 100:\n            raise ValueError('a hundred')\n"
    )
    component = py_component("bad", tmp_path / "bad.py", "shared")
    with Rig(chain_plan([gen("in", packets=7, size=100), gen("out")], [component]), tmp_path) as rig:
        rig.start()
        assert rig.wait_component_death() == 1
        words = ffi.string(rig.components[0].segment.struct("coven_replica").last_words).decode()
        assert words == "bad.py:5: ValueError: a hundred"
        rig.detach(0)
        done = rig.wait(lambda s: s.rx == 7 and s.held == 0)
        assert done.drop("component-crash") >= 1
        assert done.drop("component-crash") + done.drop("component-down") == 7
        assert "ValueError: a hundred" in (tmp_path / "component-0.log").read_text()
