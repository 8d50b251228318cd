"""Extended Agent messages: round trip, refusal of everything that is not one."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from coven.agents.protocol import (
    ERROR_CODES,
    MAX_BYTES,
    MAX_ID,
    Answer,
    Request,
    declaration_lines,
    decode_answer,
    decode_request,
    encode_answer,
    encode_request,
    request_id,
    start_lines,
)
from coven.errors import CovenError

FIELD = st.text(st.characters(exclude_characters="\0", codec="utf-8"), max_size=30) | st.text("\\tn\t\n", max_size=9)
LINES = st.lists(st.lists(FIELD, min_size=1, max_size=5).map(tuple), max_size=6).map(tuple)
ID = st.integers(0, MAX_ID)


@given(ID, FIELD.filter(bool), FIELD, LINES)
def test_request_round_trip(number: int, verb: str, name: str, lines: tuple[tuple[str, ...], ...]) -> None:
    request = Request(number, verb, name, lines)
    assert decode_request(encode_request(request)) == request


@given(ID, LINES, st.none() | st.sampled_from(ERROR_CODES), FIELD)
def test_answer_round_trip(number: int, lines: tuple[tuple[str, ...], ...], code: str | None, message: str) -> None:
    answer = Answer(number, lines) if code is None else Answer(number, code=code, message=message)
    assert decode_answer(encode_answer(answer)) == answer


@given(st.binary(max_size=200) | st.text("0123\\\tnt\nokerr", max_size=60).map(str.encode))
@example(b"1\tok\n\\\\t\n")
def test_whatever_is_read_is_written_the_same(data: bytes) -> None:
    """Strict: no two datagrams mean the same, so a message that decodes encodes to its own bytes."""
    for decode, encode in ((decode_request, encode_request), (decode_answer, encode_answer)):
        try:
            message = decode(data)
        except CovenError:
            continue
        assert encode(message) == data  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\n", b"1\tok", b"1\tok\n\0\n", b"x\tok\n", b"-1\tok\n", b"01\tok\n", b"1 \tok\n", b"\tok\n",
        b"99999999999999999999\tok\n", b"9999999999999999999\tok\n", b"1\tyes\n", b"1\n", b"1\tok\textra\n", b"1\terror\n",
        b"1\terror\tfailed\n", b"1\terror\tnobody-knows\tx\n", b"1\terror\tfailed\tx\nmore\n", b"1\tok\n\\x\n", b"1\tok\n\\\n",
        b"1\tok\n\xff\n", b"1\tok\n" + b"a" * MAX_BYTES + b"\n", "\u0661\tok\n".encode(),
    ],
)  # fmt: skip
def test_malformed_answer_is_refused(data: bytes) -> None:
    with pytest.raises(CovenError) as caught:
        decode_answer(data)
    assert caught.value.code == "component.answer-malformed"


@pytest.mark.parametrize("data", [b"1\tget\n", b"1\t\t\n", b"1\tget\ta\tb\n", b"get\t\n", b"1\tget\tx\\q\n"])
def test_malformed_request_is_refused(data: bytes) -> None:
    with pytest.raises(CovenError) as caught:
        decode_request(data)
    assert caught.value.code == "request.malformed"


def test_too_large_is_refused_when_written() -> None:
    with pytest.raises(CovenError) as caught:
        encode_answer(Answer(1, (("result", "x", "y" * MAX_BYTES),)))
    assert caught.value.code == "request.too-large"
    with pytest.raises(CovenError) as caught:
        encode_request(Request(1, "call", "a\0b"))
    assert caught.value.code == "request.invalid"


@pytest.mark.parametrize(
    ("data", "number"),
    [(b"12\tgarbage\xff", 12), (b"x", None), (b"", None), (b"\xff\xfe", None), (b"7", 7)],
)
def test_claimed_id(data: bytes, number: int | None) -> None:
    assert request_id(data) == number


def test_start_carries_all_that_is_declared() -> None:
    component = {
        "name": "filter",
        "metrics": [{"name": "seen", "type": "counter", "unit": "packets", "help": "looked at"}],
        "operations": [
            {
                "name": "set-mode",
                "help": "switch",
                "arguments": [
                    {
                        "name": "mode",
                        "type": "string",
                        "help": "m",
                        "required": False,
                        "default": "drop",
                    }
                ],
            }
        ],
    }
    lines = start_lines(
        component,
        instance="fw-1",
        replica=0,
        entry="/x/filter.so",
        options={"mark": 1, "mode": "a b"},
    )
    assert lines == (
        ("component", "filter"),
        ("instance", "fw-1"),
        ("replica", "0"),
        ("entry", "/x/filter.so"),
        ("option", "mark", "1"),
        ("option", "mode", '"a b"'),
        ("metric", "seen", "counter", "packets", "looked at"),
        ("operation", "set-mode", "switch"),
        ("argument", "set-mode", "mode", "string", "0", '"drop"', "m"),
    )
    assert lines[6:] == declaration_lines(component["metrics"], component["operations"])  # type: ignore[arg-type]
