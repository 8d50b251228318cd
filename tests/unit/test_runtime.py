"""The runtime of components in C, called as the worker calls it for fused ones."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cffi
import pytest

from coven.agents.client import outcome
from coven.agents.protocol import Request, decode_answer, encode_request, start_lines
from coven.agents.schema import read_result
from coven.dataplane.build import header_declarations
from coven.dataplane.layout import layout
from coven.errors import CovenError, Where
from tests.lib import builds

SOURCES = ("declaration.c", "ea.c", "runtime.c", "runtime_agent.c", "state.c")
WHO = """
#include <coven/component.h>
static int allocate(struct coven_component *self, const struct coven_packet *pkt, void *fs)
{ (void)self; (void)fs; return coven_meta(pkt)->mark == 13 ? -1 : 0; }
static void deallocate(struct coven_component *self, void *fs)
{ coven_gauge(coven_metric(self, "last"), (double)*(uint64_t *)fs); }
static void pkt(struct coven_component *self, struct coven_packet *pkt, void *fs)
{ (void)self; if (fs) coven_meta(pkt)->user[0] = (uint32_t)++*(uint64_t *)fs; if (coven_meta(pkt)->mark == 7) coven_hold(pkt); }
static int who(struct coven_component *self, struct coven_answer *answer)
{ coven_answer(answer, self, "who", NAME); return 0; }
static const struct coven_operation operations[] = {{"who", who}, {NULL, NULL}};
COVEN_COMPONENT(.allocate_new_fs = allocate, .deallocate_fs = deallocate, .process_pkt = pkt,
                .operations = operations);
"""
ROW: dict[str, Any] = {
    "name": "under-test", "isolation": "fused", "operations": [{"name": "who", "help": "", "arguments": []}],
    "metrics": [{"name": "last", "type": "gauge", "unit": "", "help": ""}], "state": {"bytes": 8, "version": 1},
}  # fmt: skip


class Host:
    """The runtime compiled for itself, and a state segment for each component."""

    def __init__(self, folder: Path) -> None:
        path = builds.shared_object(SOURCES)
        self.folder = folder
        self.ffi = cffi.FFI()
        self.ffi.cdef(
            header_declarations(builds.INCLUDE / "coven" / "abi.h")
            + "struct coven_packet { uint8_t *data; struct coven_meta *meta; struct coven_meta_ext *ext;"
            "void *fetch; uint32_t room_front, room_back; };"
            + header_declarations(builds.HERE / "state.h")
            + header_declarations(builds.HERE / "runtime.h")
        )
        self.lib: Any = self.ffi.dlopen(str(path))
        self.kept: list[Any] = []

    def start(self, name: str, fd: int | None = None) -> Any:
        """Start a component that calls itself `name`, from descriptor `fd` when given; raises what it answers."""
        folder = self.folder / name
        folder.mkdir()
        code = os.open(builds.component_of(folder, WHO, f'-DNAME="{name}"'), os.O_RDONLY)
        if fd is not None and code != fd:
            os.dup2(code, fd)
            os.close(code)
            code = fd
        document = {
            "instance": "t", "pool": {"buffers": 8, "buffer_bytes": 2048, "headroom": 256}, "components": [ROW], "ports": [],
            "flows": {"capacity": 8, "idle_timeout_ms": 1000}, "hops": [], "paths": [],
        }  # fmt: skip
        image = layout(document, seed=(1, 2)).states[0]
        state = self.ffi.new("uint64_t[]", image.size // 8)
        self.ffi.buffer(state)[: len(image.head)] = image.head
        lines = start_lines(ROW, instance="t", replica=0, entry="/x", options={})
        text, why = encode_request(Request(1, "start", "", lines)), self.ffi.new("char[512]")
        pointer = self.ffi.cast("struct coven_state *", state)
        runtime = self.lib.coven_runtime_start(code, text, len(text), pointer, 0, why, 512)
        os.close(code)
        assert runtime, self.ffi.string(why)
        self.kept.append((state, runtime))
        return runtime

    def ask(self, runtime: Any, verb: str, name: str = "") -> Any:
        request, answer = encode_request(Request(5, verb, name)), self.ffi.new("char[65536]")
        n = self.lib.coven_runtime_agent(runtime, request, len(request), answer, 65536)
        return outcome(decode_answer(self.ffi.buffer(answer)[:n]), Where())

    def packets(self, *fields: dict[str, int]) -> Any:
        """Give packets with metadata of these fields."""
        packets, metas = self.ffi.new("struct coven_packet[]", len(fields)), self.ffi.new("struct coven_meta[]", len(fields))
        self.kept.append((packets, metas))
        for i, values in enumerate(fields):
            packets[i].meta = self.ffi.addressof(metas, i)
            for name, value in {"flow": 2**32 - 1, "handle": i, **values}.items():
                setattr(metas[i], name, value)
        return packets


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path)
    yield host
    for _, kept in host.kept:
        if "coven_runtime" in str(host.ffi.typeof(kept)):
            host.lib.coven_runtime_stop(kept)


def test_another_object_behind_the_same_descriptor_number(host: Host) -> None:
    """dlopen() would give the first object again, by its name."""
    first = os.open("/dev/null", os.O_RDONLY)
    runtimes = [host.start(name, first) for name in ("anna", "bert", "carl")]
    names = [read_result(host.ask(runtime, "call", "who"))["who"] for runtime in runtimes]
    assert names == ["anna", "bert", "carl"]


def test_a_processed_burst_is_committed(host: Host) -> None:
    runtime = host.start("anna")
    packets = host.packets(*({"flow": flow, "flow_epoch": 1} for flow in (1, 2, 1)))
    host.lib.coven_runtime_process(runtime, packets, 3)
    assert [packets[i].meta.user[0] for i in range(3)] == [1, 1, 2]
    host.lib.coven_runtime_process(runtime, packets, 3)
    assert [packets[i].meta.user[0] for i in range(3)] == [3, 2, 4]
    host.lib.coven_runtime_flow_removed(runtime, packets[0].meta)
    assert host.ask(runtime, "get", "last") == (("value", "last", "4"),)
    host.lib.coven_runtime_process(runtime, packets, 1)
    assert packets[0].meta.user[0] == 1


def test_a_burst_that_is_only_run_leaves_no_trace(host: Host) -> None:
    runtime = host.start("anna")
    packets, words = host.packets({"flow": 1, "flow_epoch": 1}, {}), host.ffi.new("uint32_t[2]")
    host.lib.coven_runtime_run(runtime, packets, 2, words)
    assert words[0] != 0
    assert words[1] == 0
    view = host.ffi.new("struct coven_state_view *")
    state = host.kept[0][0]
    assert host.lib.coven_state_view_open(view, state, host.ffi.sizeof(state)) == 0
    assert not host.lib.coven_state_committed(view, 1, 1, words[0])
    host.lib.coven_runtime_commit(runtime)
    assert host.lib.coven_state_committed(view, 1, 1, words[0])


def test_a_flow_that_is_not_allocated_is_dropped_and_tried_again(host: Host) -> None:
    runtime = host.start("anna")
    packets = host.packets({"flow": 1, "flow_epoch": 1, "mark": 13}, {"flow": 1, "flow_epoch": 1}, {"flow": 2, "flow_epoch": 1})
    host.lib.coven_runtime_process(runtime, packets, 3)
    assert [packets[i].meta.verdict for i in range(3)] == [host.lib.COVEN_DROP, host.lib.COVEN_FORWARD, host.lib.COVEN_FORWARD]
    assert [packets[i].meta.user[0] for i in range(3)] == [0, 1, 1]


def test_a_held_packet_is_forgotten_when_the_owner_takes_it(host: Host) -> None:
    runtime = host.start("anna")
    packets = host.packets({"mark": 7, "handle": 300}, {"mark": 7, "handle": 300 + 256})
    host.lib.coven_runtime_process(runtime, packets, 2)
    assert [packets[i].meta.verdict for i in range(2)] == [host.lib.COVEN_HOLD] * 2
    for i in range(2):
        host.lib.coven_runtime_hold(runtime, host.ffi.addressof(packets, i))
    host.lib.coven_runtime_forget(runtime, 300)
    host.lib.coven_runtime_forget(runtime, 300)
    assert host.lib.coven_runtime_released(runtime, host.ffi.new("struct coven_runtime_release[4]"), 4) == 0


@pytest.mark.parametrize("change", [lambda text: text[:-1], lambda text: b"", lambda text: text + b"what\n"])
def test_a_request_that_is_none_is_answered(host: Host, change: Callable[[bytes], bytes]) -> None:
    runtime = host.start("anna")
    request, answer = change(encode_request(Request(5, "call", "who"))), host.ffi.new("char[65536]")
    n = host.lib.coven_runtime_agent(runtime, request, len(request), answer, 65536)
    assert decode_answer(host.ffi.buffer(answer)[:n]).code == "malformed"


def test_an_answer_that_does_not_fit_is_an_error(host: Host) -> None:
    runtime, answer = host.start("anna"), host.ffi.new("char[64]")
    request = encode_request(Request(5, "list"))
    n = host.lib.coven_runtime_agent(runtime, request, len(request), answer, 24)
    assert 0 < n <= 24
    with pytest.raises(CovenError):
        outcome(decode_answer(host.ffi.buffer(answer)[:n]), Where())
