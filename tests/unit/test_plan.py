"""Planning: what is computed from a function and what the operator gives, and the strict way to JSON and back."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coven import limits
from coven.dataplane.layout import layout
from coven.errors import CODES, CovenError
from coven.forwarder.instance_plan import HopPlan, InstancePlan, Next
from coven.forwarder.plan import plan
from coven.model import Isolation, Vnf
from tests.lib.functions import FIRST, VNF, edited
from tests.unit.test_descriptor import parse, paths

BINDINGS: dict[str, Any] = {"lan": "eth1", "wan": "eth2"}


def make(vnf: Vnf | None = None, **changes: Any) -> InstancePlan:
    given: dict[str, Any] = {
        "bindings": BINDINGS, "parameters": {}, "grants": {}, "instance": "fw-1", "package_root": "/packages/fw-1.0.0",
        "interfaces": {"eth1": {"mtu": 1500, "up": True}, "eth2": {"mtu": 1500, "up": True}},
    } | changes  # fmt: skip
    return plan(vnf or parse(), **given)


def fault(**changes: Any) -> CovenError:
    with pytest.raises(CovenError) as caught:
        make(**changes)
    return caught.value


def test_a_plan() -> None:
    planned = make()
    assert (planned.package.id, planned.pool.buffers, planned.pool.buffer_bytes) == ("fw-1.0.0", 16384, 4096)
    lan, wan = planned.ports
    assert (lan.tool, lan.interface, lan.mtu, lan.path, lan.first) == ("auto", "eth1", 1500, 0, Next(hop=0))
    assert (wan.path, wan.first) == (1, Next(hop=2))
    assert planned.hops == (
        HopPlan(0, 0, (Next(hop=1), None)), HopPlan(1, 0, (Next(port=1),)),
        HopPlan(0, 1, (Next(hop=3), None)), HopPlan(1, 1, (Next(port=0),)),
    )  # fmt: skip
    first, second = planned.components
    assert first.source == "/packages/fw-1.0.0/vnfc/first"
    assert first.options == {"mode": "drop", "limit": 5}
    assert second.limits.memory_bytes == 64 << 20
    assert planned.flows.capacity == 65536


def test_without_flow_state_there_is_no_flow_table() -> None:
    assert make(parse(first=edited(FIRST, "state: {bytes: 64}", ""))).flows.capacity == 0


@pytest.mark.parametrize(
    ("asked", "grants", "granted"),
    [
        ("fused", {}, "copy"), ("fused", {"*": "fused"}, "fused"), ("fused", {"first": "shared"}, "shared"),
        ("fused", {"*": "fused", "first": "copy"}, "copy"), ("shared", {"*": "fused"}, "shared"),
        ("shared", {}, "copy"), ("copy", {"*": "fused"}, "copy"),
    ],
)  # fmt: skip
def test_grants(asked: str, grants: dict[str, str], granted: str) -> None:
    first = make(parse(edited(VNF, "fused", asked)), grants=grants).components[0]
    assert (first.isolation_asked, first.isolation) == (Isolation(asked), Isolation(granted))


def test_what_cannot_be_fused_is_shared() -> None:
    vnf = parse(first=edited(FIRST, "framework: c", "framework: python"))
    assert make(vnf, grants={"*": "fused"}).components[0].isolation is Isolation.SHARED


def test_a_fused_component_has_one_replica() -> None:
    whole = parse()
    vnf = replace(whole, components=(replace(whole.components[0], replicas=3), *whole.components[1:]))
    assert make(vnf).components[0].replicas == 3
    assert make(vnf, grants={"*": "fused"}).components[0].replicas == 1


def test_options_left_out_have_their_defaults() -> None:
    assert make(parse(edited(VNF, ", limit: 5", ""))).components[0].options == {"mode": "drop", "limit": 7}


def test_a_default_is_no_reference() -> None:
    first = edited(FIRST, "default: 7}", "default: 7}\n    text: {type: string, default: '${gone} $${x}'}")
    assert make(parse(first=first)).components[0].options["text"] == "${gone} $${x}"


def test_parameters_keep_their_type() -> None:
    text = edited(edited(VNF, "limit: 5", 'limit: "${limit}"'), "parameters:\n", "parameters:\n  limit: {type: integer}\n")
    assert make(parse(text), parameters={"limit": 9, "mode": "count"}).components[0].options == {"mode": "count", "limit": 9}


def test_parameters_within_text_and_plain_dollars() -> None:
    first = edited(FIRST, "mode: {type: string, enum: [drop, count], default: drop}", "mode: {type: string}")
    text = edited(VNF, '"${mode}"', '"a ${mode} $${mode} $5"')
    assert make(parse(text, first)).components[0].options["mode"] == "a drop ${mode} $5"


@pytest.mark.parametrize(
    ("mtu", "bytes_"), [(576, 4096), (1500, 4096), (3500, 4096), (9000, 16384), (65535, 131072)]
)  # fmt: skip
def test_buffers_hold_the_largest_packet(mtu: int, bytes_: int) -> None:
    planned = make(interfaces={"eth1": {"mtu": 68}, "eth2": {"mtu": mtu}})
    assert planned.pool.buffer_bytes == bytes_
    assert planned.pool.headroom + 14 + 8 + mtu <= bytes_


def test_bindings_get_their_full_form() -> None:
    planned = make(bindings={"lan": {"tool": "pcap", "in": "/a"}, "wan": {"tool": "gen", "packets": 5}})
    lan, wan = planned.ports
    assert lan.options == {"in": "/a", "out": None, "paced": False, "nanosecond": False, "loop": False, "skip_cut": False}
    assert (lan.interface, lan.mtu, planned.pool.buffer_bytes) == (None, 0, 16384)
    assert wan.options == {"packets": 5, "bytes": 64, "rate": 0, "flows": 1}


def test_a_missing_interface_is_the_supervisors_business() -> None:
    assert [port.mtu for port in make(interfaces={"eth1": {}}).ports] == [1500, 1500]


FAULTS: dict[str, tuple[dict[str, Any], str, str]] = {
    "not-bound": ({"bindings": {"lan": "eth1"}}, "binding.missing", "port wan is not bound"),
    "unknown-port": ({"bindings": {**BINDINGS, "wna": "eth3"}}, "binding.unknown", "did you mean 'wan'?"),
    "one-interface": ({"bindings": {"lan": "eth1", "wan": "eth1"}}, "binding.invalid", "bound to port lan already"),
    "unknown-tool": ({"bindings": {"lan": {"tool": "pacp"}, "wan": "x"}}, "port.unknown-tool", "did you mean 'pcap'?"),
    "no-interface": ({"bindings": {"lan": {"tool": "tap"}, "wan": "x"}}, "binding.invalid", "no name of an interface"),
    "interface-name": ({"bindings": {"lan": "../x", "wan": "x"}}, "binding.invalid", "no name of an interface"),
    "interface-pattern": ({"bindings": {"lan": {"tool": "tap", "interface": "t%d"}, "wan": "x"}}, "binding.invalid", "no name of an"),
    "interface-ascii": ({"bindings": {"lan": "\u00e9th0", "wan": "x"}}, "binding.invalid", "no name of an interface"),
    "interface-for-pcap": ({"bindings": {"lan": {"tool": "pcap", "interface": "x"}, "wan": "x"}}, "binding.invalid", "has no interface"),
    "option": ({"bindings": {"lan": {"tool": "pcap", "inn": "/x"}, "wan": "x"}}, "binding.invalid", "did you mean 'in'?"),
    "relative-file": ({"bindings": {"lan": {"tool": "pcap", "in": "x"}, "wan": "x"}}, "binding.invalid", "absolute path"),
    "number-as-flag": ({"bindings": {"lan": {"tool": "pcap", "paced": 1}, "wan": "x"}}, "binding.invalid", "true or false"),
    "binding-type": ({"bindings": {"lan": 5, "wan": "x"}}, "binding.invalid", "neither a name nor a mapping"),
    "parameter-unknown": ({"parameters": {"moed": "drop"}}, "parameter.unknown", "did you mean 'mode'?"),
    "parameter-invalid": ({"parameters": {"mode": "x"}}, "parameter.invalid", '"x" is not one of "drop", "count"'),
    "grant-component": ({"grants": {"frist": "fused"}}, "grant.invalid", "did you mean 'first'?"),
    "grant-isolation": ({"grants": {"first": "fuse"}}, "grant.invalid", "did you mean 'fused'?"),
    "instance": ({"instance": "A b"}, "request.invalid", "no instance id"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_fault(name: str) -> None:
    changes, code, words = FAULTS[name]
    error = fault(**changes)
    assert error.code == code
    assert words in str(error)


def test_a_parameter_without_default_must_be_given() -> None:
    vnf = parse(edited(VNF, ", default: drop}", "}"))
    assert fault(vnf=vnf).code == "parameter.missing"
    assert make(vnf, parameters={"mode": "count"}).components[0].options["mode"] == "count"


def test_options_are_checked_again_with_parameters_in_them() -> None:
    vnf = parse(edited(VNF, "enum: [drop, count], ", ""))
    error = fault(vnf=vnf, parameters={"mode": "other"})
    assert (error.code, str(error.where)) == ("parameter.invalid", "component first")


def test_all_faults_at_once() -> None:
    error = fault(bindings={"lna": "eth1", "wan": 5})
    assert [each.code for each in error.findings] == ["binding.unknown", "binding.missing", "binding.invalid"]


def test_too_long_options_are_refused() -> None:
    first = edited(FIRST, "mode: {type: string, enum: [drop, count], default: drop}", "mode: {type: array}")
    vnf = parse(edited(edited(VNF, "type: string, enum: [drop, count]", "type: array"), "default: drop", "default: []"), first)
    assert "longer than" in str(fault(vnf=vnf, parameters={"mode": ["x" * 4000] * 10}))


def test_a_plan_survives_json() -> None:
    planned = make(grants={"*": "fused"}, bindings={"lan": {"tool": "gen"}, "wan": {"tool": "tap", "interface": "t0"}})
    assert InstancePlan.from_json(json.loads(json.dumps(planned.to_json()))) == planned


BREAKS: dict[str, tuple[list[Any], Any, str]] = {
    "version": (["version"], 2, "plans of version 1"),
    "unknown-key": (["extra"], 1, "unknown key 'extra'"),
    "instance": (["instance"], "../x", "does not match"),
    "buffer-bytes": (["pool", "buffer_bytes"], 5000, "power of two"),
    "buffers": (["pool", "buffers"], 1 << 40, "not within"),
    "boolean-as-number": (["pool", "buffers"], True, "type int"),
    "text-as-number": (["pool", "buffers"], "16384", "type int"),
    "not-a-list": (["ports"], {}, "must be a list"),
    "no-ports": (["ports"], [], "number"),
    "hop-back": (["hops", 1, "next", 0], {"hop": 0}, "not within"),
    "hop-itself": (["hops", 1, "next", 0], {"hop": 1}, "not within"),
    "hop-other-path": (["hops", 1, "next", 0], {"hop": 2}, "another path"),
    "hop-outside": (["hops", 0, "next", 0], {"hop": 99}, "not within"),
    "port-outside": (["hops", 1, "next", 0], {"port": 2}, "not within"),
    "port-negative": (["hops", 1, "next", 0], {"port": -1}, "not within"),
    "both": (["hops", 1, "next", 0], {"port": 1, "hop": 1}, '{"hop": number}'),
    "outputs": (["hops", 0, "next"], [None], "each output"),
    "component": (["hops", 0, "component"], 2, "not within"),
    "first-without-path": (["ports", 0, "path"], None, "go together"),
    "first-elsewhere": (["ports", 0, "first"], {"hop": 2}, "another path"),
    "path-elsewhere": (["ports", 0, "path"], 1, "begins at another port"),
    "source-outside": (["components", 0, "source"], "/etc", "outside the package"),
    "source-dots": (["components", 0, "source"], "/packages/fw-1.0.0/../x", "without .."),
    "root-relative": (["package", "root"], "packages", "absolute path"),
    "entry-dots": (["components", 0, "entry"], "../x", "within the component's folder"),
    "entry-absolute": (["components", 0, "entry"], "/bin/sh", "within the component's folder"),
    "nearer": (["components", 1, "isolation"], "fused", "nearer to the worker"),
    "isolation": (["components", 1, "isolation"], "none", "must be one of"),
    "replicas": (["components", 1, "replicas"], 129, "not within"),
    "ring": (["components", 1, "ring_size"], 1000, "power of two"),
    "twice": (["components", 1, "name"], "first", "one name twice"),
    "interface": (["ports", 0, "interface"], "a/b", "does not match"),
    "port-options": (["ports", 0, "options"], {"in": "/x"}, "no option 'in'"),
    "tool": (["ports", 0, "tool"], "dpdk", "must be one of"),
    "infinite": (["components", 0, "limits", "cpu"], float("inf"), "finite"),
    "nul": (["components", 0, "options"], {"a": "\0"}, "without NUL"),
    "surrogate": (["components", 0, "options"], {"a": "\ud800"}, "UTF-8"),
    "metric": (["components", 0, "metrics", 0, "type"], "text", "counter or gauge"),
    "state": (["components", 0, "state", "bytes"], 0, "not within"),
    "flows": (["flows", "capacity"], 0, "not within"),
    "core": (["worker", "cores"], [-1], "not within"),
}  # fmt: skip


@pytest.mark.parametrize("name", BREAKS)
def test_a_changed_plan_is_refused(name: str) -> None:
    place, value, words = BREAKS[name]
    document = copy.deepcopy(make().to_json())
    part: Any = document
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    with pytest.raises(CovenError, match=r"\[plan.invalid\]") as caught:
        InstancePlan.from_json(document)
    assert words in str(caught.value)


def keys(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Give the place of everything within a JSON document."""
    found = [place] if place else []
    elements = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, element in elements:
        found += keys(element, (*place, key))
    return found


WHOLE = make(grants={"*": "fused"}).to_json()
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=6,
)


@given(st.sampled_from(keys(WHOLE)), JSON, st.booleans())
@settings(max_examples=500, deadline=None)
def test_any_change_is_a_plan_or_refused(place: tuple[Any, ...], value: Any, removes: bool) -> None:
    document = copy.deepcopy(WHOLE)
    part: Any = document
    for key in place[:-1]:
        part = part[key]
    if removes:
        del part[place[-1]]
    else:
        part[place[-1]] = value
    try:
        decoded = InstancePlan.from_json(document)
    except CovenError as error:
        assert error.code == "plan.invalid"
    else:
        assert InstancePlan.from_json(decoded.to_json()) == decoded


@given(JSON)
def test_any_document_is_refused(document: Any) -> None:
    with pytest.raises(CovenError, match=r"\[plan\.invalid\]"):
        InstancePlan.from_json(document)


@st.composite
def functions(draw: st.DrawFn) -> str:
    """A valid descriptor: ports, components of two outputs, and on each path a random graph without loops."""
    ports = [f"p{n}" for n in range(draw(st.integers(2, 6)))]
    components = [f"c{n}" for n in range(draw(st.integers(1, 10)))]
    ways = []
    for number, ingress in enumerate(draw(st.lists(st.sampled_from(ports), min_size=1, unique=True))):
        chosen = components if number == 0 else draw(st.lists(st.sampled_from(components), unique=True, max_size=8))
        chosen = draw(st.permutations(chosen))
        egress = draw(st.sampled_from(ports))
        branches, counts = [], dict.fromkeys(chosen, 1)
        for place, name in enumerate(chosen):
            if draw(st.booleans()):
                target = draw(st.sampled_from([*chosen[place + 1 :], *ports]))
                counts[target] = counts.get(target, 0) + 1
                branches.append(f'"{name}.1 -> {target}"')
        joins = [name for name in chosen if counts[name] > 1]
        turns = "" if branches or number else f"\n    bidirectional: {draw(st.sampled_from(['false', 'same-order']))}"
        if turns.endswith("order") and (ingress == egress or len(ways) == 0):
            turns = ""
        ways.append(f"  w{number}:\n    hops: [{', '.join([ingress, *chosen, egress])}]\n    branches: [{', '.join(branches)}]"
                    f"\n    joins: [{', '.join(joins)}]{turns}")  # fmt: skip
    used = {word.strip(' "') for way in ways for part in way.split("[")[1:] for item in part.split("]")[0].split(",") for word in item.split("->")}
    lines = ["coven: 1", "name: f", 'version: "1"', "ports:", *(f"  {port}:" for port in ports if port in used)]
    lines += ["components:", *(f"  {name}: {{source: vnfc/first}}" for name in components), "paths:", *ways]
    return "\n".join(lines)


@given(functions())
@settings(max_examples=150, deadline=None)
def test_every_valid_function_plans(text: str) -> None:
    vnf = parse(text)
    planned = make(vnf, bindings={port.name: {"tool": "gen"} for port in vnf.ports})
    assert InstancePlan.from_json(planned.to_json()) == planned
    assert layout(planned, seed=(1, 2))
    names = [component.name for component in vnf.components]
    ports = [port.name for port in vnf.ports]
    found = set()
    for number, hop in enumerate(planned.hops):
        for output, step in enumerate(hop.next):
            if step is not None:
                assert step.hop is None or step.hop > number
                target = names[planned.hops[step.hop].component] if step.hop is not None else ports[step.port or 0]
                found.add((planned.paths[hop.path].name, names[hop.component], output, target))
    wanted = {(p.name, link.source, link.output, link.target) for p in vnf.paths for link in p.links if link.source in names}
    assert found == wanted


def test_a_path_without_components_goes_from_port_to_port() -> None:
    vnf = parse(edited(paths("inspect:\n    hops: [lan, first, second, wan]"), "parameters:", "  back: {hops: [wan, lan]}\nparameters:"))
    assert make(vnf).ports[1].first == Next(port=0)


def test_the_limits_are_those_of_the_shared_memory() -> None:
    core = pytest.importorskip("coven.dataplane._core")
    for name in ("PORTS", "COMPONENTS", "REPLICAS", "HOPS", "PATHS", "OUTPUTS", "METRICS"):
        assert getattr(limits, f"MAX_{name}") == getattr(core.lib, f"COVEN_MAX_{name}"), name


def test_every_code_of_planning_is_known() -> None:
    assert {code for _, code, _ in FAULTS.values()} <= set(CODES)


def test_what_can_be_planned_can_be_read_back_however_deep() -> None:
    first = edited(FIRST, "mode: {type: string, enum: [drop, count], default: drop}", "mode: {type: array}")
    vnf = parse(edited(edited(VNF, "type: string, enum: [drop, count]", "type: array"), "default: drop", "default: []"), first)
    value: list[Any] = []
    for depth in range(1, 40):
        value = [value]
        try:
            planned = make(vnf, parameters={"mode": value})
        except CovenError as error:
            assert (error.code, depth > 10) == ("parameter.invalid", True)
            return
        assert InstancePlan.from_json(planned.to_json()) == planned
    pytest.fail("a value may be nested without end")
