"""The smallest example in Python: metric, operation, option, flow state."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from coven.dataplane.core import lib
from coven.errors import CovenError
from tests.lib.examples import call, example, tcp
from tests.lib.replica import Sent


def test_counter(tmp_path: Path) -> None:
    with example("python-counter", tmp_path / "log") as replica:
        replica.start()
        frame = tcp(b"hello")
        one = Sent(frame, {"flow": 3, "flow_epoch": 9})
        assert {r.mark for r in replica.through([one] * 5)} == {0}
        assert struct.unpack("QQ", replica.slot(3)[1]) == (5, 5 * len(frame))
        assert call(replica.agent, "set-mark-after", packets=6) == {"packets": "6"}
        assert [r.mark for r in replica.through([one] * 3)] == [0, 1, 1]
        with pytest.raises(CovenError, match="not negative"):
            call(replica.agent, "set-mark-after", packets=-1)
        assert (replica.metric("packets"), replica.metric("flows")) == (8, 1)
        replica.through([Sent(b"", {"flow": 3, "flow_epoch": 9, "kind": lib.COVEN_ENTRY_FLOW_REMOVED})])
        assert replica.metric("flows") == 0
