"""A worker that dies between the kernel's tx and its own books, on a port that cannot tell what went out."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.lib import builds
from tests.lib.dataplane import Rig, WorkerDied, chain_plan, gen

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(os.geteuid() != 0 or not Path("/dev/net/tun").exists(), reason="needs root and /dev/net/tun"),
]
N = 320


@pytest.mark.parametrize(("point", "outside"), [("worker-before-tx", 64), ("worker-after-tx", 96)])
def test_the_burst_is_counted_as_uncertain(point: str, outside: int, tmp_path: Path) -> None:
    """The third burst is named in the ledger when the worker dies: only the tap knows whether it left."""
    name = f"cv{os.getpid() % 10**6}"
    tap: dict[str, Any] = {"name": "out", "tool": "tap", "interface": name, "options": {}, "mtu": 1500}
    plan = chain_plan([gen("in", N), tap], [])
    rig_of = Rig(plan, tmp_path, bin_dir=builds.executables(*builds.FAULTS), env={"COVEN_FAULT": f"{point}:3"})
    with rig_of as rig, socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)) as sink:
        sink.bind((name, 3))
        with contextlib.suppress(WorkerDied):
            rig.start()
        assert rig.wait_worker_death() == -9
        assert received(sink) == outside
        answer = rig.restart_worker()
        assert answer.args[3] == 32
        end = rig.wait(lambda s: s.tx == N - 32)
        # the host may have sent something into the tap by itself: that comes in where no path begins
        assert set(end.drops) <= {("port out", "tx-uncertain"), ("port out", "no-path")}
        assert end.drop("tx-uncertain") == 32
        assert received(sink) == N - 96


def received(sink: socket.socket) -> int:
    """Count what the generator's packets look like; the host's own are not UDP of 60 bytes."""
    sink.settimeout(0.2)
    n = 0
    with contextlib.suppress(TimeoutError):
        while True:
            data = sink.recv(2048)
            n += data[12:14] == b"\x08\x00" and data[23] == 17 and len(data) in (60, 64)
    return n
