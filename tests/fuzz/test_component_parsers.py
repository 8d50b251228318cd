"""libFuzzer on what components and their hosts read: flows of packets, Extended Agent messages, shared memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from coven.dataplane.build import HERE
from coven.flows import FlowName
from tests.fuzz import corpus
from tests.fuzz.target import has_time, needs_clang, run
from tests.lib import builds

START = (
    b'1\tstart\tx\ncomponent\tx\nentry\t/x.so\noption\ta\t"b\\\\u00e9"\nmetric\tm\tcounter\tu\th\n'
    b"operation\to\th\nargument\to\ta\tinteger\t0\t3\th\n"
)


def flows() -> list[bytes]:
    """Give runs of packets as fuzz_flow takes them: what to do, how long, the packet."""
    each = [bytes((3, len(packet))) + packet for packet in corpus.packets()]
    end_all, recover = b"\x08\xff" * 8, b"\x02\x00"
    return [b"".join(each), b"".join(each) + end_all + b"".join(each), b"".join(each) + recover + b"".join(each)]


def messages() -> list[bytes]:
    """Give messages and JSON strings."""
    return [START, b'"a\\ud83d\\ude00\\n"', b"1\tget\t\n", b"9\tcall\tset-mode\nargument\tmode\tdrop\\n\n"]


def exported() -> list[bytes]:
    """Give exported flows, whole and without state, with the byte before them that asks for a sum."""
    name = FlowName.parse("udp 10.0.0.1:1000 10.0.0.2:80").pack()
    state = b"counter".ljust(32, b"\0") + (1).to_bytes(4, "little") + (24).to_bytes(4, "little") + bytes(range(24))
    heads = [bytes(10) + n.to_bytes(2, "little") + bytes(4) + name + bytes(20) for n in range(3)]
    return [b"\1" + heads[0], b"\1" + heads[1] + state, b"\1" + heads[2] + state + state, b"\0" + heads[1] + state]


def turns() -> list[bytes]:
    """Give steps of a component that does what it should, in each isolation, with and without flow state."""
    turn = b"\0\0\0\0" + b"\4\20\0\0" + b"\4\20\1\0" + b"\6\0\0\0"
    return [bytes((options,)) + turn * 4 + b"\7\377\3\0" + turn for options in (0, 1, 4, 5)]


CORE = [path.name for path in HERE.glob("*.c") if path.name != "_core.c"]
TARGETS = {
    "fuzz_replica": (sorted(CORE), turns, 512),
    "fuzz_flow_import": ([*builds.FLOW_PARTS, "flow_export.c", "state.c", "segment.c"], exported, 1024),
    "fuzz_flow": (builds.FLOW_PARTS, flows, 4096),
    "fuzz_ea": (["ea.c", "declaration.c"], messages, 4096),
    "fuzz_client": (["client.c", "client_burst.c", "client_wait.c", "ring.c", "segment.c", "state.c"], lambda: [b"\x01\x2c\x01", b"\x80\x40\x02"], 1024),
}


@needs_clang
@has_time
@pytest.mark.parametrize("target", TARGETS)
def test_fuzz(tmp_path: Path, target: str) -> None:
    sources, seeds, longest = TARGETS[target]
    run(tmp_path, target, sources, seeds(), longest)
