"""A flow moves away only when no component has packets of it any more: else what they add to its state is lost."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from coven.dataplane.core import Control, lib
from coven.flows import RECORD, FlowFilter, describe
from tests.lib.dataplane import Rig, chain_plan, gen, played

N = 32


def export(rig: Rig, name: bytes, fd: int) -> Control:
    """Ask for the flow to be moved; raises AssertionError with the worker's words when it refuses."""
    return rig.request(lib.COVEN_CONTROL_FLOW_EXPORT, args=(lib.COVEN_FLOW_EXPORT_MOVE,), payload=name, fds=(fd,))


def name_of_the_flow(rig: Rig) -> bytes:
    answer = rig.request(lib.COVEN_CONTROL_FLOWS, args=(0, 10), payload=FlowFilter().pack())
    assert len(answer.payload) == RECORD.size
    return bytes(RECORD.unpack(answer.payload)[0])


@pytest.mark.parametrize("isolation", ["shared", "copy"])
@pytest.mark.parametrize("where", ["in the ring", "taken", "held"])
def test_a_flow_waits_for_its_packets_in_an_isolated_component(where: str, isolation: str, tmp_path: Path) -> None:
    slow = played("slow", isolation, ring_size=128, state={"bytes": 8, "version": 1}, hold={"packets": 64, "ms": 60_000})
    fd = os.memfd_create("blob", os.MFD_CLOEXEC)
    with Rig(chain_plan([gen("in", N), gen("out")], [slow], buffers=512), tmp_path) as rig:
        rig.start()
        rig.wait(lambda s: s.rx == N)
        component, name = rig.stand_in("slow"), name_of_the_flow(rig)
        entries = component.take(N) if where != "in the ring" else []
        if where == "held":
            for entry in entries:
                entry.verdict = lib.COVEN_HOLD
            component.give(entries)
            rig.wait(lambda _: component.tx.room(128) == 128, "they are not held")
        with pytest.raises(AssertionError, match="has packets of the flow still"):
            export(rig, name, fd)
        entries = entries or component.take(N)
        for entry in entries:
            entry.verdict = lib.COVEN_FORWARD
        component.give(entries)
        rig.wait(lambda s: s.tx == N)
        assert describe(os.pread(fd, export(rig, name, fd).args[0], 0))["states"] == []
        assert rig.snapshot().check().held == 0
    os.close(fd)
