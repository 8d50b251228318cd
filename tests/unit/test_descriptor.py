"""Descriptors: what they mean, and what each fault says, with its place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coven.descriptor.option_schema import check_schema, check_value, pattern_fault
from coven.descriptor.vnf import load_component_type, load_vnf, parse_vnf
from coven.errors import CODES, CovenError
from coven.model import Isolation, Link, OnFailure, Vnf
from tests.lib.functions import FIRST, SECOND, VNF, edited, write


def parse(vnf: str | bytes = VNF, first: str = FIRST, second: str = SECOND) -> Vnf:
    files = {"vnf.yaml": vnf, "vnfc/first/component.yaml": first, "vnfc/second/component.yaml": second}

    def read(name: str) -> bytes:
        if name not in files:
            raise FileNotFoundError(name)
        content = files[name]
        return content if isinstance(content, bytes) else content.encode()

    return parse_vnf(read)


def fault(**files: str | bytes) -> CovenError:
    with pytest.raises(CovenError) as caught:
        parse(**files)  # type: ignore[arg-type]
    return caught.value


def test_a_function_is_read(tmp_path: Path) -> None:
    vnf = load_vnf(write(tmp_path))
    assert (vnf.name, vnf.version, [port.name for port in vnf.ports]) == ("fw", "1.0.0", ["lan", "wan"])
    first, second = vnf.components
    assert (first.isolation, first.options) == (Isolation.FUSED, {"mode": "${mode}", "limit": 5})
    assert first.type.state is not None and first.type.state.bytes == 64
    assert (second.on_failure, second.limits.memory_bytes, second.limits.pids) == (OnFailure.BYPASS, 64 << 20, 8)
    there, back = vnf.paths
    assert (there.name, there.ingress, back.name, back.ingress) == ("inspect", "lan", "inspect-back", "wan")
    assert there.links == (Link("lan", 0, "first"), Link("first", 0, "second"), Link("second", 0, "wan"))
    assert back.links == (Link("wan", 0, "first"), Link("first", 0, "second"), Link("second", 0, "lan"))
    assert load_component_type(tmp_path / "vnfc/first") == first.type


def test_reverse_order_mirrors_the_path() -> None:
    back = parse(edited(VNF, "same-order", "reverse-order")).paths[1]
    assert back.links == (Link("wan", 0, "second"), Link("second", 0, "first"), Link("first", 0, "lan"))


def test_branches_meet_at_a_declared_join() -> None:
    paths = "hops: [lan, first, second, wan]\n    branches: ['first.1 -> second']\n    joins: [second]"
    vnf = parse(edited(VNF, "hops: [lan, first, second, wan]\n    bidirectional: same-order", paths))
    assert Link("first", 1, "second") in vnf.paths[0].links


def paths(text: str) -> str:
    return edited(VNF, "inspect:\n    hops: [lan, first, second, wan]\n    bidirectional: same-order", text)


# name: (file, text, code, line, column, words)
FAULTS: dict[str, tuple[str, str | bytes, str, int, int, str]] = {
    "not-yaml": ("vnf", edited(VNF, "name: fw", "name: [fw"), "descriptor.bad-yaml", 3, 8, "did not find"),
    "empty": ("vnf", "# nothing\n", "descriptor.bad-yaml", 1, 1, "empty"),
    "not-a-mapping": ("vnf", "- a\n", "descriptor.invalid", 1, 1, "must be a mapping, not a list"),
    "not-utf-8": ("vnf", VNF.encode() + b"x: \xff", "descriptor.bad-yaml", 25, 4, "not UTF-8"),
    "two-documents": ("vnf", VNF + "---\na: b\n", "descriptor.bad-yaml", 25, 1, "second document"),
    "tag": ("vnf", edited(VNF, "name: fw", "name: !!python/name:os.system fw"), "descriptor.bad-yaml", 2, 7, "tag"),
    "key-not-text": ("vnf", edited(VNF, "name: fw", "1: fw"), "descriptor.bad-yaml", 2, 1, "a key must be text"),
    "large-number": ("vnf", edited(VNF, "limit: 5", "limit: " + "9" * 5000), "descriptor.bad-yaml", 13, 39, "64 bits"),
    "infinite": ("vnf", edited(VNF, "limit: 5", "limit: 1e999"), "descriptor.bad-yaml", 13, 39, "too large a number"),
    "recursive-alias": ("vnf", edited(VNF, "name: fw", "name: &a [*a]"), "descriptor.bad-yaml", 2, 11, "alias"),
    "same-component": ("vnf", edited(VNF, "  second:\n", "  first:\n"), "descriptor.duplicate-name", 14, 3,
                       "components.first is there twice, first in line 10"),
    "unknown-key": ("vnf", edited(VNF, "isolation: fused", "isolatoin: fused"), "descriptor.unknown-key", 12, 5,
                    "did you mean 'isolation'?"),
    "unknown-key-at-top": ("vnf", edited(VNF, "provider", "porvider"), "descriptor.unknown-key", 4, 1, "'provider'"),
    "unknown-isolation": ("vnf", edited(VNF, "fused", "fuse"), "descriptor.invalid", 12, 16, "did you mean 'fused'?"),
    "version-number": ("vnf", edited(VNF, '"1.0.0"', "1.0"), "descriptor.invalid", 3, 10, "put it in quotes"),
    "other-form": ("vnf", edited(VNF, "coven: 1", "coven: 2"), "descriptor.invalid", 1, 8, "must be 1, not 2"),
    "missing-key": ("vnf", edited(VNF, "name: fw\n", ""), "descriptor.invalid", 1, 1, "'name' is missing"),
    "missing-source": ("vnf", edited(VNF, "    source: vnfc/first\n", ""), "descriptor.invalid", 10, 3, "'source' is missing"),
    "bad-name": ("vnf", edited(VNF, "name: fw", "name: Fw"), "descriptor.invalid", 2, 7, "lower-case letters"),
    "newline-in-name": ("vnf", edited(VNF, "name: fw", 'name: "fw\\n"'), "descriptor.invalid", 2, 7, "lower-case"),
    "bad-port-name": ("vnf", edited(VNF, "  wan:\n", "  WAN:\n"), "descriptor.invalid", 8, 3, '"WAN" is no name'),
    "source-outside": ("vnf", edited(VNF, "vnfc/first", "../first"), "descriptor.invalid", 11, 13, "does not match"),
    "source-missing": ("vnf", edited(VNF, "vnfc/first", "vnfc/third"), "package.missing-file", 11, 13, "vnfc/third/component.yaml"),
    "little-memory": ("vnf", edited(VNF, "64M", "64K"), "descriptor.invalid", 18, 22, "within 1M"),
    "option-type": ("vnf", edited(VNF, "limit: 5", "limit: x"), "descriptor.invalid", 13, 39, "must be an integer, not text"),
    "option-range": ("vnf", edited(VNF, "limit: 5", "limit: 0"), "descriptor.invalid", 13, 39, "at least 1"),
    "replicas": ("vnf", edited(VNF, "isolation: fused", "isolation: fused\n    replicas: 3"), "descriptor.invalid", 13, 15, "asks for 3 replicas, but packets cannot be divided"),
    "no-replica": ("vnf", edited(VNF, "isolation: fused", "isolation: fused\n    replicas: 0"), "descriptor.invalid", 13, 15, "at least 1"),
    "unknown-option": ("vnf", edited(VNF, "limit: 5", "limti: 5"), "descriptor.unknown-key", 13, 32, "did you mean 'limit'?"),
    "unknown-parameter": ("vnf", edited(VNF, "${mode}", "${moed}"), "descriptor.unknown-name", 13, 21, "did you mean 'mode'?"),
    "parameter-default": ("vnf", edited(VNF, "default: drop", "default: dorp"), "descriptor.invalid", 24, 54, "does not fit"),
    "parameter-schema": ("vnf", edited(VNF, "enum: [drop", "enmu: [drop"), "descriptor.unknown-key", 24, 24, "'enum'"),
    "port-like-component": ("vnf", edited(VNF, "  wan:\n", "  wan:\n  first:\n"), "descriptor.duplicate-name", 11, 3, "both called first"),
    "unused-port": ("vnf", edited(VNF, "  wan:\n", "  wan:\n  dmz:\n"), "descriptor.bad-path", 9, 3, "no path uses port dmz"),
    "unused-component": ("vnf", edited(VNF, "[lan, first, second, wan]", "[lan, first, wan]"), "descriptor.bad-path", 14, 3, "no path uses component second"),
    "path-unknown": ("vnf", paths("inspect:\n    hops: [lan, first, secnod, wan]"), "descriptor.unknown-name", 21, 24, "did you mean 'second'?"),
    "path-loop": ("vnf", paths("inspect:\n    hops: [lan, first, second, first, wan]"), "descriptor.loop", 21, 32, "loops: first -> second -> first"),
    "path-begins": ("vnf", paths("inspect:\n    hops: [first, second, wan]"), "descriptor.bad-path", 21, 12, "begins at component first"),
    "path-ends": ("vnf", paths("inspect:\n    hops: [lan, first, second]"), "descriptor.bad-path", 21, 24, "ends at component second"),
    "path-through-port": ("vnf", paths("inspect:\n    hops: [lan, first, wan, second, wan]"), "descriptor.bad-path", 21, 24, "goes through port wan"),
    "path-output": ("vnf", paths("inspect:\n    hops: [lan, first.2, second, wan]"), "descriptor.bad-path", 21, 17, "has no output 2"),
    "port-output": ("vnf", paths("inspect:\n    hops: [lan.1, first, second, wan]"), "descriptor.bad-path", 21, 12, "is no output of a component"),
    "branch-loop": ("vnf", paths("inspect:\n    hops: [lan, first, wan]\n    branches: [first.1 -> second -> first]\n    joins: [first]"), "descriptor.loop", 22, 37, "loops: first -> second -> first"),
    "branch-back": ("vnf", paths("inspect:\n    hops: [lan, second, first, wan]\n    branches: [first.1 -> second]\n    joins: [second]"), "descriptor.loop", 22, 27, "loops: second -> first -> second"),
    "branch-undeclared": ("vnf", paths("inspect:\n    hops: [lan, first, second, wan]\n    branches: [first.1 -> second]"), "descriptor.bad-path", 22, 27, "2 ways meet"),
    "branch-no-output": ("vnf", paths("inspect:\n    hops: [lan, first, second, wan]\n    branches: [first -> lan]"), "descriptor.bad-path", 22, 16, "write first.1"),
    "branch-taken": ("vnf", paths("inspect:\n    hops: [lan, first, second, wan]\n    branches: [first.0 -> lan]"), "descriptor.bad-path", 22, 16, "leads to second already"),
    "branch-empty": ("vnf", paths("inspect:\n    hops: [lan, first, second, wan]\n    branches: ['first.1 -> -> lan']"), "descriptor.bad-path", 22, 16, "empty step"),
    "branch-short": ("vnf", paths("inspect:\n    hops: [lan, first, second, wan]\n    branches: [first.1]"), "descriptor.bad-path", 22, 16, "leads nowhere"),
    "branch-end": ("vnf", paths("inspect:\n    hops: [lan, first, second, wan]\n    branches: [first.1 -> second.0]"), "descriptor.bad-path", 22, 27, "ends at an output"),
    "branch-through-port": ("vnf", paths("inspect:\n    hops: [lan, first, second, wan]\n    branches: [first.1 -> wan -> lan]"), "descriptor.bad-path", 22, 27, "goes through port wan"),
    "branch-dead-end": ("vnf", paths("inspect:\n    hops: [lan, first, wan]\n    branches: [second.0 -> lan]"), "descriptor.bad-path", 22, 28, "nothing leads to component second"),
    "join-for-nothing": ("vnf", paths("inspect:\n    hops: [lan, first, second, wan]\n    joins: [second]"), "descriptor.bad-path", 22, 13, "nothing joins"),
    "join-unknown": ("vnf", paths("inspect:\n    hops: [lan, first, second, wan]\n    joins: [secnod]"), "descriptor.unknown-name", 22, 13, "did you mean 'second'?"),
    "bypass-nowhere": ("vnf", paths("inspect:\n    hops: [lan, second, first.1, wan]").replace("isolation: fused", "on_failure: bypass"), "descriptor.bad-path", 21, 11, "output 0 leads nowhere"),
    "both-ways-branched": ("vnf", edited(VNF, "    bidirectional", "    branches: [first.1 -> lan]\n    bidirectional"), "descriptor.bad-path", 23, 20, "has branches and is bidirectional"),
    "both-ways-long-name": ("vnf", edited(VNF, "inspect", "i" * 27), "descriptor.bad-path", 20, 3, "at most 26 characters"),
    "both-ways-one-port": ("vnf", edited(VNF, "second, wan]", "second, lan]"), "descriptor.bad-path", 22, 20, "needs no way back"),
    "two-paths-begin": ("vnf", edited(VNF, "parameters:", "  other: {hops: [lan, wan]}\nparameters:"), "descriptor.bad-path", 23, 3, "where path inspect begins already"),
    "path-name-taken": ("vnf", edited(VNF, "parameters:", "  inspect-back: {hops: [dmz, wan]}\nparameters:").replace("  wan:\n", "  wan:\n  dmz:\n"), "descriptor.duplicate-name", 24, 3, "two paths are called"),
    "unknown-framework": ("first", edited(FIRST, "framework: c", "framework: pyhton"), "descriptor.unknown-framework", 3, 12, "did you mean 'python'?"),
    "component-key": ("first", edited(FIRST, "outputs", "output"), "descriptor.unknown-key", 5, 1, "did you mean 'outputs'?"),
    "outputs": ("first", edited(FIRST, "outputs: 2", "outputs: 9"), "descriptor.invalid", 5, 10, "at most 8"),
    "metric-type": ("first", edited(FIRST, "type: counter", "type: count"), "descriptor.invalid", 11, 24, "did you mean 'counter'?"),
    "metric-twice": ("first", edited(FIRST, "operations:", "  - {name: seen, type: gauge, help: again}\noperations:"), "descriptor.duplicate-name", 12, 12, "'seen' twice"),
    "metrics": ("first", edited(FIRST, "metrics:\n", "metrics:\n" + "".join(f"  - {{name: m{n}, type: gauge, help: h}}\n" for n in range(64))), "descriptor.invalid", 11, 3, "at most 64"),
    "argument-default": ("first", edited(FIRST, "help: the mode,", "help: the mode, default: 5,"), "descriptor.invalid", 16, 61, "is no string"),
    "argument-choice": ("first", edited(FIRST, "help: the mode,", "help: the mode, default: x,"), "descriptor.invalid", 16, 61, "not among"),
    "argument-enum": ("first", edited(FIRST, "type: string, help", "type: integer, help"), "descriptor.invalid", 16, 59, "type string only"),
    "argument-required": ("first", edited(FIRST, "help: the mode,", "help: m, default: drop, required: true,"), "descriptor.invalid", 16, 70, "contradicts"),
    "option-default": ("first", edited(FIRST, "default: 7", "default: 0"), "descriptor.invalid", 9, 49, "does not fit"),
    "option-required": ("first", edited(FIRST, "options:\n", "options:\n  required: [mdoe]\n"), "descriptor.invalid", 7, 13, "not among the properties"),
    "option-reference": ("first", edited(FIRST, "{type: integer,", '{$ref: "http://localhost/", type: integer,'), "descriptor.unknown-key", 9, 13, "unknown key '$ref'"),
    "option-pattern": ("first", edited(FIRST, "enum: [drop, count]", 'pattern: "("'), "descriptor.invalid", 8, 35, "no regular expression"),
    "slow-pattern": ("first", edited(FIRST, "enum: [drop, count]", 'pattern: "^(a+)+$"'), "descriptor.invalid", 8, 35, "itself a repetition"),
    "state-bytes": ("first", edited(FIRST, "bytes: 64", "bytes: 0"), "descriptor.invalid", 17, 16, "at least 1"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_fault(name: str) -> None:
    file, text, code, line, column, words = FAULTS[name]
    error = fault(**{file: text})
    found = error.findings or (error,)
    match = [each for each in found if words in str(each)]
    assert match, str(error)
    where = match[0].where
    assert where is not None
    shown = "vnf.yaml" if file == "vnf" else f"vnfc/{file}/component.yaml"
    assert (match[0].code, where.file, where.line, where.column) == (code, shown, line, column), str(error)
    assert str(match[0]).startswith(f"{shown}:{line}:{column}")


def test_all_faults_are_found_at_once_in_order() -> None:
    text = VNF.replace("provider", "porvider").replace("fused", "fuse").replace("limits", "limit")
    error = fault(vnf=text, first=edited(FIRST, "outputs: 2", "outputs: 0"))
    lines = [(each.where.file, each.where.line) for each in error.findings if each.where]
    assert lines == [("vnf.yaml", 4), ("vnf.yaml", 12), ("vnf.yaml", 18), ("vnfc/first/component.yaml", 5)]


def test_bounds_of_the_yaml_reader() -> None:
    assert "nested more than" in str(fault(vnf="[" * 5000))
    assert "nodes" in str(fault(vnf="[" + "a," * 30000 + "]"))
    assert "bytes" in str(fault(vnf="# " + "x" * 300_000))
    lines = ["a0: &a0 [x,x,x,x,x,x,x,x,x,x]"] + [f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    assert "aliases count" in str(fault(vnf="\n".join(lines)))


def test_very_many_faults_are_not_all_shown() -> None:
    error = fault(vnf=VNF + "".join(f"k{n}: 1\n" for n in range(5000)))
    assert "5000 faults, the first 200 are shown" in str(error)
    assert len(error.findings) == 200
    listed = edited(FIRST, "limit: {type: integer, minimum: 1, default: 7}", "limit: {type: array, items: {type: string}}")
    assert len(fault(vnf=edited(VNF, "limit: 5", "limit: [" + "1," * 9000 + "]"), first=listed).findings) == 100


def test_too_many_hops() -> None:
    ports = "\n".join(f"  p{n}:" for n in range(10))
    used = "\n".join(f"  c{n}: {{source: vnfc/second}}" for n in range(30))
    chain = ", ".join(f"c{n}" for n in range(30))
    ways = "\n".join(f"  w{n}: {{hops: [p{n}, {chain}, p{(n + 1) % 10}]}}" for n in range(10))
    text = f'coven: 1\nname: x\nversion: "1"\nports:\n{ports}\ncomponents:\n{used}\npaths:\n{ways}\n'
    assert "300 hops together, at most 256" in str(fault(vnf=text))


@pytest.mark.parametrize("pattern", ["^[a-z]{1,9}$", "^([0-9a-f]{2})*$", "a|b", r"^\d+\.\d+$", "^x?y?z?$"])
def test_a_harmless_pattern(pattern: str) -> None:
    assert pattern_fault(pattern) is None


@pytest.mark.parametrize(
    "pattern", ["(a+)+$", "(a|aa)*", r"(a)\1", "(?=a)", "a*a*a*", ".*.*.*x", "^a*a*a*$", "(x{1,9}){1,9}", "[", "a" * 201]
)
def test_a_pattern_that_may_take_long_is_refused(pattern: str) -> None:
    assert pattern_fault(pattern) is not None


WORDS = st.sampled_from(
    ["coven", "1", "name", "fw", "ports", "lan", "wan", "paths", "hops", "[lan, wan]", "null", "x", "&a", "*a", "!t", "- ", ": ",
     "\n", "\n  ", "{", "}", "[", "]", "'", '"', "components", "source", "a.1 -> b", "${x}", "#", ",", "|\n", "? ", "-1e5", "\t"]
)  # fmt: skip


@given(st.one_of(st.binary(max_size=300), st.lists(WORDS, max_size=60).map(lambda words: "".join(words).encode())))
@settings(max_examples=400, deadline=None)
def test_random_text_raises_nothing_else(content: bytes) -> None:
    try:
        parse(content)
    except CovenError as error:
        assert error.code in CODES


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=6)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=6), inner, max_size=3)),
    max_leaves=8,
)


@given(st.sampled_from(["vnf", "first"]), st.integers(0, 22), JSON)
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_value_anywhere_raises_nothing_else(file: str, line: int, value: object) -> None:
    lines = {"vnf": VNF, "first": FIRST}[file].splitlines()
    line %= len(lines)
    key, _, _ = lines[line].partition(":")
    lines[line] = f"{key}: {json.dumps(value)}"
    try:
        parse(**{file: "\n".join(lines)})
    except CovenError as error:
        assert error.code in CODES


SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(allow_nan=False, allow_infinity=False), st.text(max_size=8))
SCHEMAS = st.fixed_dictionaries(
    {"type": st.sampled_from(["string", "integer", "number", "boolean", "array", "object"])},
    optional={
        "enum": st.lists(SCALARS, min_size=1, max_size=3), "minimum": st.floats(allow_nan=False, allow_infinity=False),
        "exclusiveMaximum": st.integers(-9, 9), "multipleOf": st.floats(min_value=5e-324, max_value=1e308),
        "minLength": st.integers(0, 3), "maxLength": st.integers(0, 3), "maxItems": st.integers(0, 2), "default": SCALARS,
        "pattern": st.sampled_from(["^[a-z]*$", "a|b", "x$", "^a{1,3}b?$"]), "items": st.just({"type": "integer"}),
        "properties": st.just({"a": {"type": "string", "default": "x"}}), "required": st.just(["a"]),
    },
)  # fmt: skip


@given(SCHEMAS, st.recursive(SCALARS, lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from("ab"), inner, max_size=2))))
@settings(max_examples=500, deadline=None)
def test_any_value_is_held_against_any_schema(schema: dict[str, object], value: object) -> None:
    json.dumps([list(check_value(schema, value)), [message for _, message in check_schema(schema)]])


def test_a_value_nested_beyond_measure() -> None:
    value: object = 1
    for _ in range(5000):
        value = [value]
    assert [message for _, message in check_value({"type": "array"}, value)] == ["is nested too deeply"]
