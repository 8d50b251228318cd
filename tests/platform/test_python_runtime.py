"""Components in Python, each in a real process on a real replica segment."""

from __future__ import annotations

import contextlib
import os
import struct
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coven.agents.protocol import Request, decode_answer, encode_request
from coven.agents.schema import read_declarations, read_result, read_values
from coven.dataplane.core import lib
from coven.errors import CovenError
from tests.lib.replica import DEADLINE_S, HEADROOM, Replica, Sent

Make = Callable[..., Replica]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Give a function that makes a replica from source text; all are ended afterwards."""
    made: list[Replica] = []

    def function(source: str, **kwargs: Any) -> Replica:
        folder = tmp_path / f"component-{len(made)}"
        folder.mkdir()
        text = "from coven.component import *\n" + textwrap.dedent(source)
        (folder / "main.py").write_text(text)
        made.append(Replica("python", folder, "main.py", log=tmp_path / f"log-{len(made)}", **kwargs))
        return made[-1]

    yield function
    for replica in made:
        replica.close()


def wait_until(condition: Callable[[], bool]) -> None:
    """Look until it is so."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        os.sched_yield()


FORWARDER = """
class Pass(Component):
    def process_burst(self, burst):
        pass
"""


@pytest.mark.parametrize("isolation", ["copy", "shared"])
def test_passes_packets_unchanged_and_in_order(make: Make, isolation: str) -> None:
    replica = make(FORWARDER, isolation=isolation)
    replica.start()
    packets = [bytes([i]) * (60 + i) for i in range(200)]
    returned = replica.through(packets)
    assert [r.data for r in returned] == packets
    assert {(r.verdict, r.output) for r in returned} == {(lib.COVEN_FORWARD, 0)}


def test_verdicts(make: Make) -> None:
    replica = make("""
        class Sorter(Component):
            def process_packet(self, packet):
                match packet.data[0]:
                    case 0: packet.drop()
                    case 1: packet.forward(1)
                    case 2: packet.consume()
                    case 3: packet.hold()
                    case 4: packet.drop(); packet.forward()
    """)
    replica.start()
    returned = replica.through([bytes([i]) * 60 for i in range(6)])
    assert [(r.verdict, r.output) for r in returned] == [(1, 0), (0, 1), (3, 0), (2, 0), (0, 0), (0, 0)]


def test_burst_as_a_whole(make: Make) -> None:
    replica = make("""
        class Whole(Component):
            def process_burst(self, burst):
                assert len(burst) == 1 and len(list(burst)) == 1 and burst[-1].length == burst.lengths[0]
                kind = burst[0].data[0]
                if kind == 0: burst.drop()
                if kind == 1: burst.forward(1)
                if kind == 2: burst.consume()
                if kind == 3: burst.set(bytes([FORWARD]), bytes([1]))
                if kind == 4: burst.marks[0] = 7
    """)
    replica.start()
    returned = [replica.through([bytes([i]) * 60])[0] for i in range(5)]
    assert [(r.verdict, r.output, r.mark) for r in returned] == [(1, 0, 0), (0, 1, 0), (3, 0, 0), (0, 1, 0), (0, 0, 7)]


def test_metadata_is_read_and_written(make: Make) -> None:
    replica = make("""
        class Meta(Component):
            def process_packet(self, packet):
                seen = (packet.port, packet.path, packet.hop, packet.flow, packet.flow_seq, packet.direction,
                        packet.timestamp_ns, packet.random, packet.mark, packet.nsh_path, list(packet.user), list(packet.nsh_context))
                expected = (3, 4, 5, None, 6, 1, 7 << 40, 0xffffffff, 8, 0x1234ff, [1, 2, 3, 4], [0, 0, 0, 0])
                assert seen == expected, seen
                packet.mark = 0xdeadbeef
                packet.user[3] = 99
                packet.nsh_path = 0x123401
                packet.nsh_context[2] = 42
    """)
    replica.start()
    meta = {"port": 3, "path": 4, "hop": 5, "flow_seq": 6, "direction": 1, "timestamp_ns": 7 << 40, "random": 2**32 - 1,
            "mark": 8, "nsh_path": 0x1234FF, "user": [1, 2, 3, 4]}  # fmt: skip
    (r,) = replica.through([Sent(bytes(60), meta)])
    assert (r.mark, list(r.meta.user), r.meta.nsh_path) == (0xDEADBEEF, [1, 2, 3, 99], 0x123401)
    assert list(r.ext.nsh_context) == [0, 0, 42, 0]
    assert (r.meta.port, r.meta.timestamp_ns) == (3, 7 << 40)


def test_data_is_the_memory_itself_and_can_be_resized(make: Make) -> None:
    replica = make("""
        class Grow(Component):
            def init(self):
                self.kept = None
            def process_packet(self, packet):
                if self.kept is not None:
                    self.kept[0] = 0xee                      # stale: may hit another packet, never crashes
                packet.resize(front=-4, back=2)
                assert packet.length == 66 and packet.room_front == 252
                packet.data[:4] = b"head"
                packet.data[-2:] = b"ok"
                for wrong in ((-253, 0), (0, 5000), (70, 0), (70, 40), (0, -66)):
                    try:
                        packet.resize(*wrong)
                    except ValueError:
                        pass
                    else:
                        raise AssertionError(wrong)
                if packet.port == 1:
                    packet.replace(b"x" * 1000)
                self.kept = packet.data
    """)
    replica.start()
    (first,) = replica.through([b"a" * 60])
    assert (first.data, first.meta.offset) == (b"head" + b"a" * 60 + b"ok", HEADROOM - 4)
    (second,) = replica.through([Sent(b"a" * 60, {"port": 1})])
    assert second.data == b"x" * 1000


STATEFUL = """
    import struct
    class Flows(Component):
        def process_packet(self, packet):
            state = packet.state
            if state is None:
                packet.mark = 1000
                return
            n, = struct.unpack_from("I", state)
            struct.pack_into("I", state, 0, n + 1)
            packet.mark = n + 1
            if packet.data[0] == 1:
                raise RuntimeError("half way")
        def allocate_new_fs(self, packet, state):
            assert bytes(state) == bytes(len(state))
            struct.pack_into("I", state, 0, 100)
        def deallocate_fs(self, state):
            n, = struct.unpack_from("I", state)
            self.metrics["ended"].add(n)
"""
FLOWS: dict[str, Any] = {
    "state": {"bytes": 12, "version": 3},
    "metrics": [{"name": "ended", "type": "counter", "unit": "packets", "help": "of flows that ended"}],
}


def flow(number: int, epoch: int, first: int = 0, **more: int) -> Sent:
    """Give a packet of a flow."""
    return Sent(bytes([first]) * 60, {"flow": number, "flow_epoch": epoch, **more})


def test_flow_state(make: Make) -> None:
    replica = make(STATEFUL, component=FLOWS)
    replica.start()
    marks = [r.mark for r in replica.through([flow(5, 1), flow(6, 1), flow(5, 1), b"\0" * 60, flow(5, 1)])]
    assert marks == [101, 101, 102, 1000, 103]
    slot, current = replica.slot(5)
    assert (slot.epoch, slot.version, struct.unpack_from("I", current)[0]) == (1, 3, 103)
    # the flow ends, its slot goes to another flow; in one burst with packets of others
    ended = {"kind": lib.COVEN_ENTRY_FLOW_REMOVED, "flow": 5, "flow_epoch": 1}
    returned = replica.through([flow(6, 1), Sent(b"", ended), flow(6, 1)])
    assert [r.mark for r in returned if r.meta.kind == 0] == [102, 103]
    assert replica.metric("ended") == 103
    assert replica.through([flow(5, 2)])[0].mark == 101


def test_state_survives_the_process_and_what_was_not_committed_does_not(make: Make) -> None:
    replica = make(STATEFUL, component=FLOWS)
    replica.start()
    assert replica.through([flow(5, 1)])[0].mark == 101
    replica.send([flow(5, 1, first=1)])
    assert replica.wait_exit() == 1
    assert "main.py" in replica.last_words() and "RuntimeError: half way" in replica.last_words()
    assert "Traceback" in replica.log.read_text()
    assert replica.take() == []
    replica.attach()
    replica.start()
    assert replica.through([flow(5, 1)])[0].mark == 102


HOLDER = """
    class Holder(Component):
        def init(self):
            self.held = []
        def process_packet(self, packet):
            if packet.data[0] == 1:
                self.held.append(packet.hold())
                self.held[-1].data[1] = 0xaa
            elif packet.data[0] == 2:
                packet.hold().forward(1)                   # in the same burst: as if forwarded
            elif packet.data[0] == 3:
                self.release(1)
        def release(self, output):
            for held in self.held:
                assert held.is_held and held.data[0] == 1 and held.data[1] == 0xaa and held.mark == 17
                held.mark = 18
                held.forward(output)
                for act in (held.forward, held.drop, lambda: held.data):
                    try:
                        act()
                    except ReferenceError:
                        continue
                    raise AssertionError
            self.held.clear()
        @operation("let-go")
        def let_go(self):
            self.release(0)
"""
LET_GO = {"operations": [{"name": "let-go", "help": "gives back what is held", "arguments": []}]}


def test_hold_and_release_by_packet_and_by_operation(make: Make) -> None:
    replica = make(HOLDER, component=LET_GO)
    replica.start()
    first = replica.through([Sent(b"\1" * 60, {"mark": 17}), b"\2" * 60])
    assert [(r.verdict, r.output) for r in first] == [(lib.COVEN_HOLD, 0), (lib.COVEN_FORWARD, 1)]
    assert replica.head.held == 1
    replica.send([b"\3" * 60])
    released, passed = sorted(replica.receive(2), key=lambda r: r.data[0])
    assert (released.handle, released.verdict, released.output) == (first[0].handle, lib.COVEN_FORWARD, 1)
    assert (released.mark, released.data, passed.data[0]) == (18, b"\1\xaa" + b"\1" * 58, 3)
    assert replica.head.held == 0
    replica.through([Sent(b"\1" * 60, {"mark": 17}) for _ in range(40)])
    replica.agent.ask("call", "let-go")
    assert [r.output for r in replica.receive(40)] == [0] * 40


def test_held_packets_wait_for_room_in_the_ring(make: Make) -> None:
    replica = make(HOLDER, component={**LET_GO, "ring_size": 64})
    replica.start()
    replica.through([Sent(b"\1" * 60, {"mark": 17}) for _ in range(40)])
    wait_until(lambda: replica.ring_in.ready() == 0)
    replica.send([b"\0" * 60] * 64)  # these fill the ring to the worker, which does not look yet
    wait_until(lambda: replica.ring_out.ready() == 64)
    replica.agent.ask("call", "let-go")
    assert replica.head.held == 40
    returned = replica.receive(104)
    assert [r.data[0] for r in returned] == [0] * 64 + [1] * 40
    assert replica.head.held == 0


def test_hold_taken_back_in_the_same_burst(make: Make) -> None:
    replica = make("""
        class Undecided(Component):
            def init(self):
                self.held = None
            def process_packet(self, packet):
                if self.held is None:
                    self.held = packet.hold()
                    packet.drop()
                else:
                    assert not self.held.is_held
                    packet.mark = 1
    """)
    replica.start()
    assert replica.through([b"\0" * 60])[0].verdict == lib.COVEN_DROP
    assert replica.through([b"\0" * 60])[0].mark == 1


def test_tick_releases(make: Make) -> None:
    replica = make("""
        class Later(Component):
            def init(self):
                self.held = []
                self.ticks = 0
            def process_packet(self, packet):
                self.held.append((packet.hold(), self.ticks))
            def tick(self, now_ns):
                self.ticks += 1
                while self.held and self.held[0][1] + 3 <= self.ticks:
                    self.held.pop(0)[0].drop()
    """)
    replica.start()
    returned = (replica.send([b"\0" * 60]), replica.receive(2))[1]
    assert [r.verdict for r in returned] == [lib.COVEN_HOLD, lib.COVEN_DROP]


ASKED = """
    class Asked(Component):
        def init(self):
            print("options", sorted(self.options.items()), self.name, self.instance, self.replica)
            self.metrics["level"].set(1.5)
        def process_burst(self, burst):
            self.metrics["seen"].add(len(burst))
            self.metrics["level"].add(-0.25)
        @operation("echo")
        def echo(self, *, word, times=2, very_loud=False):
            return {"said": word * times, "loud": very_loud}
        @operation("refuse")
        def refuse(self):
            raise Refused("not today")
        @operation("break")
        def break_(self):
            return 1 / 0
        @operation("long")
        def long(self):
            return "x" * 100000
"""
ASKED_DECLARED: dict[str, Any] = {
    "metrics": [
        {"name": "seen", "type": "counter", "unit": "packets", "help": "packets"},
        {"name": "level", "type": "gauge", "unit": "ratio", "help": "a level"},
    ],
    "operations": [
        {
            "name": "echo",
            "help": "says it again",
            "arguments": [
                {"name": "word", "type": "string", "help": "what"},
                {"name": "times", "type": "integer", "help": "how often", "required": False},
                {"name": "very-loud", "type": "boolean", "help": "or not", "required": False, "default": True},
            ],
        },
        *({"name": name, "help": name, "arguments": []} for name in ("refuse", "break", "long")),
    ],
}


def test_metrics_and_operations(make: Make) -> None:
    replica = make(ASKED, component=ASKED_DECLARED, options={"mark": 1, "text": "ä\t"})
    assert replica.start() == ()
    assert "[('mark', 1), ('text', 'ä\\t')] under-test test 0" in replica.log.read_text()
    replica.through([b"\0" * 60])
    assert (replica.metric("seen"), replica.metric("level")) == (1, 1.25)
    assert replica.values() == {"seen": 1, "level": 1.25}
    assert read_values(replica.agent.ask("get", "level")) == {"level": 1.25}
    declared = read_declarations(replica.agent.ask("list"))
    assert [m.name for m in declared.metrics] == ["seen", "level"]
    assert [a.default for a in declared.operations[0].arguments] == [None, None, True]
    ask = replica.agent.ask
    assert read_result(ask("call", "echo", [("argument", "word", "hi")])) == {"said": "hihi", "loud": "true"}
    lines = [("argument", "word", "a\tb\n"), ("argument", "times", "1"), ("argument", "very-loud", "false")]
    assert read_result(ask("call", "echo", lines)) == {"said": "a\tb\n", "loud": "false"}
    check = read_values(ask("check"))
    assert check["bursts"] == 1 and check["uptime_ns"] > 0


@pytest.mark.parametrize(
    ("verb", "name", "lines", "code", "text"),
    [
        ("call", "refuse", (), "component.operation-failed", "not today"),
        ("call", "break", (), "component.operation-failed", r"main.py:\d+: ZeroDivisionError"),
        ("call", "long", (), "component.operation-failed", "at most 65536"),
        ("call", "nothing", (), "component.operation-unknown", "nothing"),
        ("get", "nothing", (), "component.operation-unknown", "nothing"),
        ("sing", "", (), "component.operation-unknown", "sing"),
        ("call", "echo", (), "component.argument-invalid", "word"),
        (
            "call",
            "echo",
            (("argument", "word", "a"), ("argument", "times", "x")),
            "component.argument-invalid",
            "times",
        ),
        ("call", "echo", (("argument", "wrod", "a"),), "component.argument-invalid", "wrod"),
        ("call", "echo", (("nonsense",),), "component.operation-failed", "argument"),
    ],
)
def test_refused_requests(
    make: Make, verb: str, name: str, lines: tuple[tuple[str, ...], ...], code: str, text: str
) -> None:
    replica = make(ASKED, component=ASKED_DECLARED)
    replica.start()
    with pytest.raises(CovenError, match=text) as caught:
        replica.agent.ask(verb, name, lines)
    assert caught.value.code == code
    assert len(replica.through([b"\0" * 60])) == 1  # and it goes on


def test_garbage_from_the_asker_is_answered(make: Make) -> None:
    replica = make(FORWARDER)
    replica.start()
    replica.socket.setblocking(True)
    for data in (b"\xff", b"7\tget", b"8\tget\t\\q\n"):
        replica.socket.send(data)
        assert b"error\tmalformed" in replica.socket.recv(65537)
    replica.socket.setblocking(False)
    assert replica.agent.ask("check")


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replica]:
    folder = tmp_path_factory.mktemp("asked")
    (folder / "main.py").write_text("from coven.component import *\n" + textwrap.dedent(ASKED))
    with Replica("python", folder, "main.py", component=ASKED_DECLARED, log=folder / "log") as replica:
        replica.start()
        yield replica


FIELDS = st.lists(st.text(max_size=8) | st.sampled_from(["argument", "word", "times", "echo", "seen"]), max_size=4)


def question(verb: str, lines: list[list[str]]) -> bytes:
    """Give a request that is not escaped, and so seldom well-formed."""
    return "\n".join([f"1\t{verb}\t{''.join(lines[0] if lines else '')}", *map("\t".join, lines), ""]).encode()


@given(
    st.binary(min_size=1, max_size=300)
    | st.builds(question, st.sampled_from(["get", "call", "list", "check", "start"]), st.lists(FIELDS, max_size=4))
)
def test_whatever_is_asked_is_answered(asked: Replica, data: bytes) -> None:
    asked.socket.setblocking(True)
    asked.socket.settimeout(DEADLINE_S)
    asked.socket.send(data)
    decode_answer(asked.socket.recv(65537))


def test_an_asker_that_does_not_read_does_not_stop_packets(make: Make) -> None:
    replica = make(ASKED, component=ASKED_DECLARED)
    replica.start()
    request = encode_request(Request(1, "call", "echo", (("argument", "word", "x" * 20000),)))
    for _ in range(300):
        with contextlib.suppress(BlockingIOError):
            replica.socket.send(request)
        assert len(replica.through([b"\0" * 60])) == 1
    assert len(replica.through([b"\0" * 60] * 100)) == 100


BAD_STARTS = {
    "syntax": ("class A(Component)\n    pass", r"main.py:2:19: SyntaxError: expected ':'"),
    "import": ("import nowhere_to_be_found", r"main.py:2: ModuleNotFoundError: No module named 'nowhere_to_be_found'"),
    "raises": ("x = 1\nraise OSError('no luck')", r"main.py:3: OSError: no luck"),
    "exits": ("raise SystemExit(0)", r"main.py:2: SystemExit: 0"),
    "none": ("class A: pass", "exactly one subclass .* there is none"),
    "two": (FORWARDER + FORWARDER.replace("class Pass", "class Other"), "there is 2: Pass, Other"),
    "no process": ("class A(Component): pass", "neither process_burst nor process_packet"),
    "init": (
        "class A(Component):\n    def init(self):\n        {}['x']\n    def process_packet(self, packet): pass",
        r"main.py:4: KeyError: 'x'",
    ),
    "metric": (
        "class A(Component):\n    def init(self):\n        self.metrics['no']\n    def process_packet(self, packet): pass",
        "no metric 'no' in component.yaml",
    ),
}


@pytest.mark.parametrize("case", BAD_STARTS)
def test_what_cannot_start_says_why_and_where(make: Make, case: str) -> None:
    source, text = BAD_STARTS[case]
    replica = make(source)
    with pytest.raises(CovenError, match=text) as caught:
        replica.start()
    assert caught.value.code == "component.bad-code"
    assert replica.wait_exit() == 1


OPERATION_FAULTS = [
    ("", "operation 'echo' is declared in component.yaml, but no method"),
    (
        "@operation('other')\n    def other(self): pass\n    @operation('echo')\n    def e(self, word): pass",
        "'other' is not declared",
    ),
    ("@operation('echo')\n    def e(self): pass", "no parameter for argument 'word'"),
    ("@operation('echo')\n    def e(self, word, more): pass", "parameter 'more' that is not declared"),
]


@pytest.mark.parametrize(("method", "text"), OPERATION_FAULTS)
def test_operations_and_declarations_must_agree(make: Make, method: str, text: str) -> None:
    arguments = [{"name": "word", "type": "string", "help": ""}]
    declared = {"operations": [{"name": "echo", "help": "", "arguments": arguments}]}
    replica = make(
        f"class A(Component):\n    def process_packet(self, packet): pass\n    {method}\n", component=declared
    )
    with pytest.raises(CovenError, match=text) as caught:
        replica.start()
    assert caught.value.code == "component.bad-code"


def test_stop_ends_in_order(make: Make) -> None:
    replica = make(FORWARDER + "    def fini(self):\n        print('good bye')\n")
    replica.start()
    assert replica.agent.ask("stop") == ()
    assert replica.wait_exit() == 0
    assert "good bye" in replica.log.read_text()


def test_end_of_the_socket_ends_in_order(make: Make) -> None:
    replica = make(FORWARDER)
    replica.start()
    replica.socket.close()
    assert replica.wait_exit() == 0
    waiting = make(FORWARDER)
    waiting.spawn()
    waiting.socket.close()
    assert waiting.wait_exit() == 0


def test_own_modules_are_found_and_do_not_shadow_the_runtimes(make: Make) -> None:
    replica = make(
        "import helper\nclass A(Component):\n    def process_packet(self, packet): packet.mark = helper.MARK\n"
    )
    folder = replica.source.folder
    (folder / "helper.py").write_text("MARK = 5\n")
    (folder / "json.py").write_text("raise RuntimeError('shadowed')\n")
    replica.start()
    assert replica.through([b"\0" * 60])[0].mark == 5


def test_scapy_off_the_fast_path(make: Make) -> None:
    replica = make("""
        class Probe(Component):
            def process_packet(self, packet):
                frame = packet.scapy()
                frame["IP"].ttl = 7
                del frame["IP"].chksum
                packet.replace(bytes(frame))
    """)
    replica.start()
    from scapy.layers.inet import IP, UDP
    from scapy.layers.l2 import Ether

    (r,) = replica.through(
        [bytes(Ether(dst="02:00:00:00:00:01", src="02:00:00:00:00:02") / IP(ttl=9) / UDP() / b"hello")]
    )
    assert Ether(r.data)["IP"].ttl == 7
