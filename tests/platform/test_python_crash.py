"""A component in Python killed at every fault point: what is committed is what came out, no more and no less."""

from __future__ import annotations

import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lib import builds
from tests.lib.replica import Replica, Sent

FLOWS, PACKETS = 5, 64
SIGKILL = -9
SOURCE = """
import struct
from coven.component import Component

class Count(Component):
    def process_packet(self, packet):
        n, = struct.unpack_from("Q", packet.state)
        struct.pack_into("Q", packet.state, 0, n + 1)
        packet.mark = n + 1
"""


@pytest.fixture(scope="module")
def core() -> Path:
    return builds.core(*builds.FAULTS)


@pytest.fixture
def replica(tmp_path: Path, core: Path) -> Iterator[Replica]:
    (tmp_path / "main.py").write_text(SOURCE)
    component = {"state": {"bytes": 8, "version": 1}}
    with Replica("python", tmp_path, "main.py", component=component, log=tmp_path / "log") as one:
        one.environment["COVEN_CORE"] = str(core)
        yield one


def packets(n: int, first: int = 0) -> list[Sent]:
    """Give n packets of several flows, in no regular order."""
    return [Sent(bytes(60), {"flow": (i * i + i // 3) % FLOWS, "flow_epoch": 1}) for i in range(first, first + n)]


def committed(replica: Replica) -> Counter[int]:
    """Count packets by flow as the flow state has them."""
    counts = Counter[int]()
    for flow in range(FLOWS):
        slot, state = replica.slot(flow)
        if slot.epoch == 1:
            counts[flow] = struct.unpack("Q", state)[0]
    return counts


POINTS = ["after-dequeue", "after-state-write", "after-staging", "after-commit", "after-counter"]
PASSES = [1, 2, 3, 5, 8, 13, 21, 31, 32, 33]


@pytest.mark.parametrize("point", POINTS)
def test_committed_is_emitted_wherever_it_is_killed(replica: Replica, point: str) -> None:
    emitted = Counter[int]()
    deaths = 0
    for run, passes in enumerate(PASSES):
        # these points are passed once for each burst or for each of its flows, the others for each packet
        rare = {"after-commit": 7, "after-counter": 1}.get(point)
        replica.environment["COVEN_FAULT"] = f"{point}:{min(passes, rare) if rare else passes}"
        replica.attach()
        replica.start()
        replica.send(packets(PACKETS, run * 7))
        status = replica.wait_exit()
        assert status == SIGKILL, replica.log.read_text()
        deaths += 1
        for entry in replica.sweep():
            emitted[entry.meta.flow] += 1
            assert entry.mark == emitted[entry.meta.flow]  # in order, none twice, none left out
        assert committed(replica) == emitted
    assert deaths == len(PASSES)
    del replica.environment["COVEN_FAULT"]
    replica.attach()
    replica.start()
    for entry in replica.through(packets(PACKETS)):
        emitted[entry.meta.flow] += 1
        assert entry.mark == emitted[entry.meta.flow]
    assert committed(replica) == emitted


def test_the_ordinary_core_has_no_fault_points(replica: Replica) -> None:
    del replica.environment["COVEN_CORE"]
    replica.environment["COVEN_FAULT"] = "after-dequeue:1"
    replica.start()
    assert len(replica.through(packets(1))) == 1
