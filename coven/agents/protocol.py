"""Form of Extended Agent messages (docs/internals.md, section 5): bytes to values and back, strictly.

Both sides are untrusted to each other: whatever is not exactly a message raises CovenError, nothing is guessed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from coven.errors import CovenError

MAX_BYTES = 65536  # of one datagram
MAX_ID = 2**63 - 1

VERBS = ("start", "list", "get", "call", "check", "stop")
ERROR_CODES = ("unknown-verb", "unknown-name", "bad-argument", "failed", "bad-code", "malformed")

Line = tuple[str, ...]

_ESCAPES = {"\\": "\\", "t": "\t", "n": "\n"}


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked of a component."""

    id: int
    verb: str
    name: str = ""
    lines: tuple[Line, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """What the component says to the request with the same id. `code` is None for `ok`."""

    id: int
    lines: tuple[Line, ...] = ()
    code: str | None = None
    message: str = ""


def encode_request(request: Request) -> bytes:
    """Give the datagram of a request. Raises CovenError (request.too-large, request.invalid)."""
    return _encode(((str(request.id), request.verb, request.name), *request.lines))


def encode_answer(answer: Answer) -> bytes:
    """Give the datagram of an answer. Raises CovenError (request.too-large, request.invalid)."""
    if answer.code is None:
        return _encode(((str(answer.id), "ok"), *answer.lines))
    return _encode(((str(answer.id), "error", answer.code, answer.message),))


def decode_request(data: bytes) -> Request:
    """Read a request. Raises CovenError (request.malformed). The verb may be one that nobody knows."""
    first, *rest = _decode(data, "request.malformed")
    if len(first) != 3 or not first[1]:
        raise CovenError("request.malformed", "a request begins with id, verb and name")
    return Request(_decode_id(first[0], "request.malformed"), first[1], first[2], tuple(rest))


def decode_answer(data: bytes) -> Answer:
    """Read an answer. Raises CovenError (component.answer-malformed)."""
    code = "component.answer-malformed"
    first, *rest = _decode(data, code)
    if len(first) == 2 and first[1] == "ok":
        return Answer(_decode_id(first[0], code), tuple(rest))
    if len(first) == 4 and first[1] == "error" and not rest:
        if first[2] not in ERROR_CODES:
            raise CovenError(code, f"no such error code: {first[2][:40]!r}")
        return Answer(_decode_id(first[0], code), code=first[2], message=first[3])
    raise CovenError(code, "an answer begins with id and ok, or is one line of id, error, code and message")


def request_id(data: bytes) -> int | None:
    """Give the id a message claims in its first field, or None; works for messages that are otherwise broken."""
    try:
        return _decode_id(data[:20].split(b"\t", 1)[0].decode("ascii"), "request.malformed")
    except (UnicodeDecodeError, CovenError):
        return None


def start_lines(
    component: Mapping[str, Any],
    *,
    instance: str,
    replica: int,
    entry: str,
    options: Mapping[str, Any],
) -> tuple[Line, ...]:
    """Give the lines of a `start` request.

    component: one of `components` of an InstancePlan as JSON (docs/internals.md, section 6): name, metrics and
    operations are taken from it. entry: absolute path of what is loaded. options: final values.
    """
    lines: list[Line] = [
        ("component", str(component["name"])),
        ("instance", instance),
        ("replica", str(replica)),
        ("entry", entry),
    ]
    lines += [("option", name, json.dumps(value)) for name, value in options.items()]
    return (
        *lines,
        *declaration_lines(component.get("metrics") or (), component.get("operations") or ()),
    )


def declaration_lines(
    metrics: Iterable[Mapping[str, Any]], operations: Iterable[Mapping[str, Any]]
) -> tuple[Line, ...]:
    """Give the lines that say what a component declares, as `start` and the answer to `list` carry them."""
    lines: list[Line] = [("metric", m["name"], m["type"], m.get("unit", ""), m.get("help", "")) for m in metrics]
    for operation in operations:
        lines.append(("operation", operation["name"], operation.get("help", "")))
        for argument in operation.get("arguments") or ():
            default = argument.get("default")
            lines.append(
                (
                    "argument",
                    operation["name"],
                    argument["name"],
                    argument["type"],
                    "1" if argument.get("required", True) else "0",
                    "" if default is None else json.dumps(default),
                    argument.get("help", ""),
                )
            )
    return tuple(lines)


def _encode(lines: Iterable[Line]) -> bytes:
    text = "".join("\t".join(map(_escape, line)) + "\n" for line in lines)
    try:
        data = text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise CovenError("request.invalid", f"not encodable as UTF-8: {error}") from error
    if len(data) > MAX_BYTES:
        raise CovenError("request.too-large", f"a message has at most {MAX_BYTES} bytes, this one {len(data)}")
    return data


def _escape(field: str) -> str:
    if "\0" in field:
        raise CovenError("request.invalid", "a field cannot contain a NUL character")
    return field.replace("\\", "\\\\").replace("\t", "\\t").replace("\n", "\\n")


def _decode(data: bytes, code: str) -> list[Line]:
    if len(data) > MAX_BYTES:
        raise CovenError(code, f"longer than {MAX_BYTES} bytes")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CovenError(code, f"not UTF-8 at byte {error.start}") from error
    if not text.endswith("\n"):
        raise CovenError(code, "the last line does not end")
    if "\0" in text:
        raise CovenError(code, "contains a NUL character")
    lines = text[:-1].split("\n")
    if "\\" not in text:
        return [tuple(line.split("\t")) for line in lines]
    return [tuple(_unescape(field, code) for field in line.split("\t")) for line in lines]


def _unescape(field: str, code: str) -> str:
    head, *pieces = field.split("\\")
    if not pieces:
        return field
    out = [head]
    i = 0
    while i < len(pieces):
        piece = pieces[i]
        if piece == "" and i + 1 < len(pieces):  # two backslashes in a row: one, and the piece behind is plain
            out.append("\\" + pieces[i + 1])
            i += 2
            continue
        if piece[:1] not in ("t", "n"):
            raise CovenError(code, f"unknown sequence \\{piece[:1]}")
        out.append(_ESCAPES[piece[0]] + piece[1:])
        i += 1
    return "".join(out)


def _decode_id(text: str, code: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 19 or (text[0] == "0" and text != "0"):
        raise CovenError(code, "the id is not a decimal number")
    number = int(text)
    if number > MAX_ID:
        raise CovenError(code, "the id is too large")
    return number
