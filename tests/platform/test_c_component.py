"""Components in C in coven-component-host, on real replica segments, with the test as worker."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from coven.agents.schema import read_declarations, read_result, read_values
from coven.dataplane.core import lib
from coven.errors import CovenError
from tests.lib.builds import FAULTS, SANITIZERS, component_of, executables
from tests.lib.examples import built
from tests.lib.replica import Replica, Returned, Sent

FLOW_STATE = struct.Struct("<QQII")  # of the example `counter`
Make = Callable[..., Replica]


@pytest.fixture
def make_faulty(tmp_path: Path) -> Iterator[Make]:
    """Makes replicas whose host has fault points."""
    yield from maker(tmp_path, executables(*FAULTS))


@pytest.fixture(params=["plain", "sanitized"])
def make(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Make]:
    """Makes replicas, also with a host that has the sanitizers in."""
    yield from maker(tmp_path, executables(*FAULTS, *(SANITIZERS if request.param == "sanitized" else ())))


def maker(folder: Path, bin_dir: Path) -> Iterator[Make]:
    made: list[Replica] = []

    def build(code: Path, row: Mapping[str, Any] | None = None, **more: Any) -> Replica:
        replica = Replica("c", code.parent, code.name, component=row, log=folder / "log", bin_dir=bin_dir, **more)
        made.append(replica)
        return replica

    yield build
    for replica in made:
        replica.close()


def start_error(replica: Replica) -> str:
    with pytest.raises(CovenError) as caught:
        replica.start()
    assert replica.wait_exit() == 1
    return caught.value.message


# ---- verdicts, options, metrics, operations ---------------------------------------------------------


@pytest.mark.parametrize("isolation", ["copy", "shared"])
def test_filter_drops_what_is_marked(make: Make, isolation: str) -> None:
    code, row = built("filter")
    replica = make(code, row, options={"mode": "drop"}, isolation=isolation)
    replica.start()
    sent = [Sent(bytes([i]) * (60 + i), {"mark": mark}) for i, mark in enumerate([0, 1, 2, 0, 7, 1])]
    got = replica.through(sent)
    assert [x.verdict for x in got] == [
        lib.COVEN_FORWARD, lib.COVEN_DROP, lib.COVEN_DROP, lib.COVEN_FORWARD, lib.COVEN_DROP, lib.COVEN_DROP,
    ]  # fmt: skip
    assert [x.data for x in got] == [x.data for x in sent]
    names = ("seen", "marked", "dropped", "dropped_mark_1", "dropped_mark_2", "dropped_mark_other")
    assert [replica.metric(name) for name in names] == [6, 4, 4, 2, 1, 1]
    assert read_values(replica.agent.ask("get")) == {name: replica.metric(name) for name in names}
    assert read_values(replica.agent.ask("get", "marked")) == {"marked": 4}


def test_filter_switches_to_counting(make: Make) -> None:
    code, row = built("filter")
    replica = make(code, row, options={"mode": "drop"})
    replica.start()
    assert read_result(replica.agent.ask("call", "set-mode", (("argument", "mode", "count"),))) == {"mode": "count"}
    (got,) = replica.through([Sent(b"x" * 60, {"mark": 5})])
    assert got.verdict == lib.COVEN_FORWARD
    assert (replica.metric("marked"), replica.metric("dropped")) == (1, 0)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ((), "needs the argument mode"),
        ((("argument", "mode", "sideways"),), "drop or count"),
        ((("argument", "tempo", "x"),), "no argument tempo"),
        ((("nonsense",),), "lines `argument`"),
    ],
)
def test_a_wrong_call_is_refused(make: Make, lines: tuple[tuple[str, ...], ...], words: str) -> None:
    code, row = built("filter")
    replica = make(code, row, options={"mode": "drop"})
    replica.start()
    with pytest.raises(CovenError, match=words):
        replica.agent.ask("call", "set-mode", lines)
    assert replica.through([b"x" * 60])[0].verdict == lib.COVEN_FORWARD


@pytest.mark.parametrize(
    ("verb", "name", "words"),
    [("call", "fly", "no operation fly"), ("get", "weight", "no metric weight"), ("sing", "", "no verb sing")],
)
def test_an_unknown_name_is_refused(make: Make, verb: str, name: str, words: str) -> None:
    code, row = built("filter")
    replica = make(code, row, options={"mode": "drop"})
    replica.start()
    with pytest.raises(CovenError, match=words):
        replica.agent.ask(verb, name)


def test_list_gives_what_was_declared(make: Make) -> None:
    code, row = built("filter")
    replica = make(code, row, options={"mode": "drop"})
    replica.start()
    listed = read_declarations(replica.agent.ask("list"))
    assert [metric.name for metric in listed.metrics] == [metric["name"] for metric in row["metrics"]]
    (operation,) = listed.operations
    assert operation.name == "set-mode"
    assert [argument.name for argument in operation.arguments] == ["mode"]


def test_check_is_answered_by_the_loop(make: Make) -> None:
    code, row = built("null")
    replica = make(code, row)
    replica.start()
    before = read_values(replica.agent.ask("check"))
    replica.through([b"x" * 60])
    after = read_values(replica.agent.ask("check"))
    assert after["bursts"] == before["bursts"] + 1
    assert after["uptime_ns"] > before["uptime_ns"]


def test_stop_ends_with_status_0(make: Make) -> None:
    code, row = built("null")
    replica = make(code, row)
    replica.start()
    replica.agent.ask("stop")
    assert replica.wait_exit() == 0


def test_a_closed_agent_socket_ends_it(make: Make) -> None:
    code, row = built("null")
    replica = make(code, row)
    replica.start()
    replica.socket.close()
    assert replica.wait_exit() == 0


def test_order_is_kept_over_many_bursts(make: Make) -> None:
    code, row = built("null")
    replica = make(code, row)
    replica.start()
    for round_ in range(20):
        sent = [struct.pack(">II", round_, i) * 8 for i in range(200)]
        assert [x.data for x in replica.through(sent)] == sent


def test_a_position_that_wraps_is_an_ordinary_one(make: Make) -> None:
    code, row = built("null")
    replica = make(code, row)
    start = 2**32 - 40
    for ring, name in ((replica.ring_in, "in"), (replica.ring_out, "out")):
        shared = getattr(replica.head, name)
        shared.head = shared.tail = start
        ring._side.position = ring._side.peer = start
    replica.start()
    sent = [struct.pack(">I", i) * 16 for i in range(100)]
    assert [x.data for x in replica.through(sent)] == sent


# ---- what cannot be started -------------------------------------------------------------------------

HEAD = """
#include <coven/component.h>
static void burst(struct coven_component *self, struct coven_packet *pkts, uint16_t n)
{ (void)self; (void)pkts; (void)n; }
static int op(struct coven_component *self, struct coven_answer *answer) { (void)self; (void)answer; return 0; }
static const struct coven_operation operations[] = {{"go", op}, {NULL, NULL}};
static inline void use(void) { (void)operations; (void)burst; }
"""
OPERATION = {"name": "go", "help": "goes", "arguments": ()}


@pytest.mark.parametrize(
    ("text", "row", "words"),
    [
        ("int nothing;", {}, "no symbol coven_component_entry"),
        (HEAD + "COVEN_COMPONENT(.process_burst = burst, .abi_version = 99);", {}, "ABI version 99"),
        (HEAD + "COVEN_COMPONENT(.private_bytes = 1);", {}, "neither process_burst nor process_pkt"),
        (HEAD + "COVEN_COMPONENT(.process_burst = burst);", {"operations": (OPERATION,)}, "operation go, but the code"),
        (HEAD + "COVEN_COMPONENT(.process_burst = burst, .operations = operations);", {}, "does not declare it"),
        (HEAD + "COVEN_COMPONENT(.process_burst = burst);", {"state": {"bytes": 8, "version": 1}}, "no process_pkt"),
        (HEAD + 'static int init(struct coven_component *self) { coven_log(self, "no fuel"); return -5; }'
         "COVEN_COMPONENT(.process_burst = burst, .init = init);", {}, "init returned -5: no fuel"),
        (HEAD + "extern int missing(void); static int init(struct coven_component *self)"
         "{ (void)self; return missing(); } COVEN_COMPONENT(.process_burst = burst, .init = init);", {}, "missing"),
    ],
)  # fmt: skip
def test_start_says_what_is_wrong(
    make: Make, tmp_path: Path, text: str, row: Mapping[str, Any], words: str
) -> None:
    replica = make(component_of(tmp_path, text, "-Wno-override-init"), row)
    message = start_error(replica)
    assert words in message
    assert words[:40] in replica.last_words()
    assert words in replica.log.read_text()


def test_a_file_that_is_no_object_is_refused(make: Make, tmp_path: Path) -> None:
    (tmp_path / "text.so").write_text("hello")
    assert "cannot be loaded" in start_error(make(tmp_path / "text.so", {}))


def test_a_missing_file_is_refused(make: Make, tmp_path: Path) -> None:
    assert "No such file" in start_error(make(tmp_path / "gone.so", {}))


def test_a_start_that_is_none_is_refused(make: Make) -> None:
    code, row = built("null")
    replica = make(code, row)
    replica.spawn()
    replica.socket.send(b"7\tstart\t\nnonsense\n")
    assert replica.wait_exit() == 1
    assert replica.socket.recv(65536).startswith(b"7\terror\tmalformed\t")


def test_options_are_plain_text(make: Make, tmp_path: Path) -> None:
    text = HEAD + """
static int init(struct coven_component *self)
{
    const char *names[] = {"text", "number", "flag", "gone"};
    for (int i = 0; i < 4; i++)
        coven_log(self, coven_option(self, names[i]) ? coven_option(self, names[i]) : "(null)");
    return 0;
}
COVEN_COMPONENT(.process_burst = burst, .init = init);
"""
    replica = make(component_of(tmp_path, text), {}, options={"text": 'a"\\b\n\u00e9\U0001f600', "number": 1.5, "flag": True})
    replica.start()
    assert replica.log.read_text() == "".join(
        f"under-test: {line}\n" for line in ('a"\\b\n\u00e9\U0001f600', "1.5", "true", "(null)")
    )


# ---- hold -------------------------------------------------------------------------------------------

HOLDER = """
#include <coven/component.h>
/* Holds every packet; lets the oldest go with each further one beyond two, and all of them by tick when told. */
struct holder { uint32_t handles[64]; int n; int letting_go; };
static void burst(struct coven_component *self, struct coven_packet *pkts, uint16_t n)
{
    struct holder *h = coven_private(self);
    for (int i = 0; i < n; i++) {
        coven_hold(&pkts[i]);
        h->handles[h->n++] = pkts[i].meta->handle;
    }
}
static void tick(struct coven_component *self, uint64_t now_ns)
{
    struct holder *h = coven_private(self);
    (void)now_ns;
    for (int i = 0; h->letting_go && i < h->n; i++) {
        struct coven_packet pkt;
        if (self->services->held(self, h->handles[i], &pkt) == 0)
            pkt.data[0] = 'R';
        coven_release(self, h->handles[i], i % 2 ? COVEN_DROP : COVEN_FORWARD, 1);
    }
    if (h->letting_go)
        h->n = 0;
}
static int go(struct coven_component *self, struct coven_answer *answer)
{
    struct holder *h = coven_private(self);
    h->letting_go = 1;
    coven_answer(answer, self, "unknown", coven_release(self, 12345678, COVEN_DROP, 0) ? "refused" : "taken");
    return 0;
}
static const struct coven_operation operations[] = {{"go", go}, {NULL, NULL}};
COVEN_COMPONENT(.private_bytes = sizeof(struct holder), .process_burst = burst, .tick = tick,
                .operations = operations);
"""


def test_held_packets_come_back_when_released(make: Make, tmp_path: Path) -> None:
    replica = make(component_of(tmp_path, HOLDER), {"operations": (OPERATION,)})
    replica.start()
    got = replica.through([b"a" * 60, b"b" * 60, b"c" * 60])
    assert [x.verdict for x in got] == [lib.COVEN_HOLD] * 3
    assert replica.head.held == 3
    assert read_result(replica.agent.ask("call", "go")) == {"unknown": "refused"}
    back = replica.receive(3)
    assert [x.handle for x in back] == [x.handle for x in got]
    assert [(x.verdict, x.output) for x in back] == [(lib.COVEN_FORWARD, 1), (lib.COVEN_DROP, 1), (lib.COVEN_FORWARD, 1)]
    assert [x.data[:2] for x in back] == [b"Ra", b"Rb", b"Rc"]
    assert replica.head.held == 0


# ---- flow state -------------------------------------------------------------------------------------


def flow_packet(flow: int, epoch: int = 1, size: int = 60) -> Sent:
    return Sent(b"p" * size, {"flow": flow, "flow_epoch": epoch})


def removed(flow: int, epoch: int = 1) -> Sent:
    return Sent(b"", {"flow": flow, "flow_epoch": epoch, "kind": lib.COVEN_ENTRY_FLOW_REMOVED})


def test_each_flow_has_its_own_state(make: Make) -> None:
    code, row = built("counter")
    replica = make(code, row)
    replica.start()
    got = replica.through([flow_packet(flow) for flow in (3, 4, 3, 3, 4)] + [Sent(b"x" * 60)])
    assert [x.meta.user[0] for x in got] == [1, 1, 2, 3, 2, 0]
    for flow, packets in ((3, 3), (4, 2)):
        slot, data = replica.slot(flow)
        assert FLOW_STATE.unpack(data)[:2] == (packets, packets * 60)
        assert (slot.epoch, slot.flow) == (1, flow)
    assert replica.slot(5)[0].epoch == 0
    assert [replica.metric(x) for x in ("packets", "bytes", "flows_begun", "without_flow")] == [6, 360, 2, 1]


def test_a_removed_flow_is_deallocated_and_begins_anew(make: Make) -> None:
    code, row = built("counter")
    replica = make(code, row)
    replica.start()
    got = replica.through([flow_packet(3), removed(3), removed(9)])
    assert [x.meta.kind for x in got] == [0, 1, 1]
    assert replica.slot(3)[0].epoch == 0
    assert (replica.metric("flows_begun"), replica.metric("flows_ended")) == (1, 1)
    (again,) = replica.through([flow_packet(3, epoch=2)])
    assert again.meta.user[0] == 1


def test_another_epoch_is_another_flow(make: Make) -> None:
    code, row = built("counter")
    replica = make(code, row)
    replica.start()
    got = replica.through([flow_packet(3), flow_packet(3), flow_packet(3, epoch=2)])
    assert [x.meta.user[0] for x in got] == [1, 2, 1]


def test_a_flow_beyond_the_table_has_no_state(make: Make) -> None:
    code, row = built("counter")
    replica = make(code, row)
    replica.start()
    got = replica.through([flow_packet(64), flow_packet(0xFFFFFFFE), flow_packet(1, epoch=0)])
    assert [x.meta.user[0] for x in got] == [0, 0, 0]
    assert replica.metric("without_flow") == 3


def test_reset_begins_a_period_that_survives_a_restart(make: Make) -> None:
    code, row = built("counter")
    replica = make(code, row)
    replica.start()
    replica.through([flow_packet(3), flow_packet(3)])
    assert read_result(replica.agent.ask("call", "reset")) == {"period": "1"}
    assert replica.through([flow_packet(3)])[0].meta.user[0] == 1
    replica.kill()
    replica.attach()
    replica.start()
    assert replica.through([flow_packet(3)])[0].meta.user[0] == 2


# ---- kills at the fault points ----------------------------------------------------------------------

POINTS = ("after-dequeue", "after-state-write", "after-staging", "after-commit", "after-counter")


def until_death(replica: Replica, rounds: int) -> list[Returned]:
    """Send rounds of packets of three flows, each when the last has come back; give all that did until it died."""
    got: list[Returned] = []
    for round_ in range(rounds):
        packets = [flow_packet((round_ + i) % 3) for i in range(round_ % 4 + 1)]
        replica.send(packets)
        back, is_dead = replica.receive_or_death(len(packets))
        got += back
        if is_dead:
            return got
    raise AssertionError("the fault point was not passed that often")


@pytest.mark.parametrize("nth", range(1, 11))
@pytest.mark.parametrize("point", POINTS)
def test_what_was_committed_is_what_was_emitted(make_faulty: Make, point: str, nth: int) -> None:
    code, row = built("counter")
    replica = make_faulty(code, row, environment={"COVEN_FAULT": f"{point}:{nth}"})
    replica.start()
    got = until_death(replica, 60)
    assert replica.wait_exit() == -9
    got += replica.sweep()
    emitted = [sum(x.meta.flow == flow for x in got) for flow in range(3)]
    state = [replica.slot(flow) for flow in range(3)]
    counted = [FLOW_STATE.unpack(data)[0] if slot.epoch == 1 else 0 for slot, data in state]
    assert counted == emitted
    for flow in range(3):  # each count went out exactly once, in order
        numbers = [x.meta.user[0] for x in got if x.meta.flow == flow]
        assert numbers == list(range(1, len(numbers) + 1))
    replica.environment.pop("COVEN_FAULT")
    replica.attach()
    replica.start()
    again = replica.through([flow_packet(flow) for flow in range(3)])
    assert [x.meta.user[0] for x in again] == [n + 1 for n in emitted]
