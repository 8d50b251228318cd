"""What a component declares, and arguments checked against it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coven.agents.protocol import declaration_lines
from coven.agents.schema import (
    argument_lines,
    argument_value,
    read_declarations,
    read_result,
    read_values,
    value_text,
)
from coven.errors import CovenError
from coven.model import Argument, Metric, Operation

OPERATION = Operation(
    "add",
    "adds",
    (
        Argument("name", "string", "its name"),
        Argument("length", "integer", "bytes", required=False, default=72),
        Argument("ratio", "number", "r", required=False),
        Argument("loud", "boolean", "l", required=False, default=False),
        Argument("side", "string", "s", required=False, enum=("client", "server")),
    ),
)


def test_declarations_survive_the_wire() -> None:
    metrics = [{"name": "seen", "type": "counter", "unit": "packets", "help": "looked\tat"}]
    arguments = [
        {
            "name": a.name,
            "type": a.type,
            "help": a.help,
            "required": a.required,
            "default": a.default,
        }
        for a in OPERATION.arguments
    ]
    declared = read_declarations(declaration_lines(metrics, [{"name": "add", "help": "adds", "arguments": arguments}]))
    assert declared.metrics == (Metric("seen", "counter", "packets", "looked\tat"),)
    assert [a.name for a in declared.operations[0].arguments] == [a.name for a in OPERATION.arguments]
    assert [a.default for a in declared.operations[0].arguments] == [a.default for a in OPERATION.arguments]


@pytest.mark.parametrize(
    "lines",
    [
        (("",),), (("value", "a", "1"),), (("metric", "a", "counter", "u"),), (("metric", "A", "counter", "u", "h"),),
        (("metric", "a", "histogram", "u", "h"),), (("metric", "a", "counter", "", ""),) * 2,
        (("argument", "a", "b", "string", "1", "", ""),), (("operation", "a", ""), ("argument", "a", "b", "string", "2", "", "")),
        (("operation", "a", ""), ("argument", "a", "b", "integer", "1", '"x"', "")),
        (("operation", "a", ""), ("argument", "a", "b", "integer", "1", "{", "")),
        (("operation", "a", ""), ("argument", "a", "b", "integer", "1", "[" * 60000, "")),
        tuple(("metric", f"m{i}", "counter", "", "") for i in range(65)),
    ],
)  # fmt: skip
def test_bad_declarations_are_refused(lines: tuple[tuple[str, ...], ...]) -> None:
    with pytest.raises(CovenError) as caught:
        read_declarations(lines)
    assert caught.value.code == "component.answer-malformed"


def test_arguments_get_defaults_and_text_form() -> None:
    assert argument_lines(OPERATION, {"name": "x", "ratio": 0.5, "loud": "true"}) == (
        ("argument", "name", "x"),
        ("argument", "length", "72"),
        ("argument", "ratio", "0.5"),
        ("argument", "loud", "true"),
    )
    assert argument_lines(OPERATION, {"name": "x", "length": "5", "side": "client"})[1] == (
        "argument",
        "length",
        "5",
    )


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ({}, "name"), ({"name": 1}, "name"), ({"name": "x", "nmae": "y"}, "nmae"), ({"name": "x", "length": "five"}, "length"),
        ({"name": "x", "length": 1.5}, "length"), ({"name": "x", "length": True}, "length"), ({"name": "x", "length": 2**63}, "length"),
        ({"name": "x", "ratio": "nan"}, "ratio"), ({"name": "x", "ratio": float("inf")}, "ratio"), ({"name": "x", "loud": 1}, "loud"),
        ({"name": "x", "side": "middle"}, "side"), ({"name": ["x"]}, "name"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_named(given: dict[str, object], word: str) -> None:
    with pytest.raises(CovenError) as caught:
        argument_lines(OPERATION, given)
    assert caught.value.code == "component.argument-invalid"
    assert word in str(caught.value)


def test_all_faults_at_once() -> None:
    with pytest.raises(CovenError) as caught:
        argument_lines(OPERATION, {"length": "x", "loud": "y"})
    assert len(caught.value.findings) == 3


@given(st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_keep_their_value_as_text(number: float) -> None:
    argument = Argument("n", "number", "")
    assert argument_value(argument, value_text(number)) == number


def test_values_and_results() -> None:
    assert read_values((("value", "a", "18446744073709551615"), ("value", "b", "1e-3"))) == {
        "a": 2**64 - 1,
        "b": 0.001,
    }
    assert read_result((("result", "x", "y\tz"),)) == {"x": "y\tz"}
    for lines in (
        (("value", "a", "nan"),),
        (("value", "a", "1"),) * 2,
        (("result", "a"),),
        (("value", "a", "1" * 90),),
    ):
        with pytest.raises(CovenError):
            read_values(lines)
    with pytest.raises(CovenError):
        read_result((("result", "a", "1"),) * 2)
