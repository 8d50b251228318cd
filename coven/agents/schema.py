"""What a component may declare, and whether values fit it. Pure: text and values in, values or CovenError out."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from coven.agents.protocol import Line
from coven.errors import CovenError, Where
from coven.model import Argument, Metric, Operation

NAME = re.compile(r"[a-z][a-z0-9_-]{0,30}")
METRIC_TYPES = ("counter", "gauge")
ARGUMENT_TYPES = ("string", "integer", "number", "boolean")
MAX_METRICS = 64  # COVEN_MAX_METRICS: the metric cells of one replica
MAX_OPERATIONS = 64
MAX_ARGUMENTS = 32  # of one operation
MIN_INTEGER, MAX_INTEGER = -(2**63), 2**63 - 1  # what every language of a component can hold

Value = str | int | float | bool
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Declared:
    """The answer to `list`."""

    metrics: tuple[Metric, ...]
    operations: tuple[Operation, ...]


def read_declarations(lines: Iterable[Line]) -> Declared:
    """Read the lines of an answer to `list`. Raises CovenError (component.answer-malformed)."""
    metrics: dict[str, Metric] = {}
    operations: dict[str, tuple[str, dict[str, Argument]]] = {}
    for line in lines:
        match line:
            case ("metric", name, kind, unit, text):
                _expect(kind in METRIC_TYPES, f"unknown metric type {kind[:40]!r}")
                _add(metrics, name, Metric(name, kind, unit, text), MAX_METRICS, "metric")
            case ("operation", name, text):
                _add(operations, name, (text, {}), MAX_OPERATIONS, "operation")
            case ("argument", name, argument, kind, required, default, text):
                _expect(
                    name in operations,
                    f"an argument of operation {name[:40]!r}, which was not declared before",
                )
                value = read_argument(argument, kind, required, default, text)
                _add(operations[name][1], argument, value, MAX_ARGUMENTS, "argument")
            case _:
                raise _malformed(f"unexpected line {line[0][:40]!r} in an answer to list")
    return Declared(
        tuple(metrics.values()),
        tuple(Operation(name, text, tuple(arguments.values())) for name, (text, arguments) in operations.items()),
    )


def read_argument(name: str, kind: str, required: str, default: str, text: str) -> Argument:
    """Read the fields of an `argument` line behind the operation's name."""
    _expect(kind in ARGUMENT_TYPES, f"unknown argument type {kind[:40]!r}")
    _expect(required in ("0", "1"), "`required` of an argument is neither 0 nor 1")
    value: Value | None = None
    if default:
        try:
            loaded = json.loads(default)
        except (ValueError, RecursionError) as error:
            raise _malformed(f"the default of argument {name[:40]!r} is no JSON value") from error
        argument = Argument(name, kind, text)
        fitting = _fitting(argument, loaded)
        if fitting is None or isinstance(loaded, str) != (kind == "string"):
            raise _malformed(f"the default of argument {name[:40]!r} is no {kind}")
        value = fitting
    return Argument(name, kind, text, required == "1", value)


def read_values(lines: Iterable[Line]) -> dict[str, int | float]:
    """Read the `value` lines of an answer to `get` or `check`. Raises CovenError (component.answer-malformed)."""
    values: dict[str, int | float] = {}
    for line in lines:
        if len(line) != 3 or line[0] != "value":
            raise _malformed(f"unexpected line {line[0][:40]!r} where values belong")
        number = _number(line[2])
        _expect(number is not None, f"value of {line[1][:40]!r} is no number")
        _expect(line[1] not in values, f"two values of {line[1][:40]!r}")
        values[line[1]] = number if number is not None else 0
    return values


def read_result(lines: Iterable[Line]) -> dict[str, str]:
    """Read the `result` lines of an answer to `call`. Raises CovenError (component.answer-malformed)."""
    result: dict[str, str] = {}
    for line in lines:
        if len(line) != 3 or line[0] != "result":
            raise _malformed(f"unexpected line {line[0][:40]!r} where results belong")
        _expect(line[1] not in result, f"two results of the name {line[1][:40]!r}")
        result[line[1]] = line[2]
    return result


def argument_lines(operation: Operation, given: Mapping[str, object]) -> tuple[Line, ...]:
    """Check the arguments of a call and give them as lines of the request, defaults filled in.

    given: values as JSON has them, or as text. Raises CovenError (component.argument-invalid) that names every fault.
    """
    declared = {argument.name: argument for argument in operation.arguments}
    part = f"operation {operation.name}"
    faults = [
        _invalid(part, f"has no argument {str(name)[:40]!r}", f"it has: {', '.join(declared) or 'none'}")
        for name in given
        if name not in declared
    ]
    lines: list[Line] = []
    for name, argument in declared.items():
        value = given.get(name)
        if value is None:
            value = argument.default
        if value is None:
            if argument.required:
                faults.append(_invalid(part, f"argument {name!r} is missing", argument.help or None))
            continue
        fitting = _fitting(argument, value)
        if fitting is None:
            faults.append(_invalid(part, f"argument {name!r} is not of type {argument.type}: {str(value)[:80]!r}"))
        elif argument.enum and fitting not in argument.enum:
            faults.append(
                _invalid(
                    part,
                    f"argument {name!r} cannot be {str(value)[:80]!r}",
                    f"one of: {', '.join(argument.enum)}",
                )
            )
        else:
            lines.append(("argument", name, value_text(fitting)))
    if len(faults) == 1:
        raise faults[0]
    if faults:
        raise CovenError(
            "component.argument-invalid",
            f"{len(faults)} arguments are wrong",
            where=Where(part=part),
            findings=tuple(faults),
        )
    return tuple(lines)


def argument_value(argument: Argument, text: str) -> Value:
    """Give the typed value of an argument that arrived as text. Raises CovenError (component.argument-invalid)."""
    value = _fitting(argument, text)
    if value is None:
        raise CovenError(
            "component.argument-invalid",
            f"argument {argument.name!r} is not of type {argument.type}",
        )
    return value


def value_text(value: Value) -> str:
    """Give a value as the protocol writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, str) else repr(value)


def _fitting(argument: Argument, value: object) -> Value | None:
    """Give the value in the declared type, None if it does not fit. Text is read as the type it is to be."""
    if argument.type == "string":
        return value if isinstance(value, str) else None
    if argument.type == "boolean":
        return (
            value
            if isinstance(value, bool)
            else {"true": True, "false": False}.get(value if isinstance(value, str) else "")
        )
    if isinstance(value, bool):
        return None
    number = _number(value) if isinstance(value, str) else value
    if not isinstance(number, int | float) or (isinstance(number, float) and not math.isfinite(number)):
        return None
    if argument.type == "number":
        return number
    if isinstance(number, float):
        if isinstance(value, str) or not number.is_integer():
            return None
        number = int(number)
    return number if MIN_INTEGER <= number <= MAX_INTEGER else None


def _number(text: str) -> int | float | None:
    if not re.fullmatch(r"-?[0-9]{1,40}(\.[0-9]{1,40})?([eE][-+]?[0-9]{1,3})?", text, re.ASCII):
        return None
    number = int(text) if re.fullmatch(r"-?[0-9]+", text) else float(text)
    return number if isinstance(number, int) or math.isfinite(number) else None


def _add(known: dict[str, T], name: str, value: T, limit: int, what: str) -> None:
    _expect(NAME.fullmatch(name) is not None, f"{what} name {name[:40]!r} is not allowed")
    _expect(name not in known, f"{what} {name!r} is declared twice")
    _expect(len(known) < limit, f"more than {limit} declarations of one kind ({what})")
    known[name] = value


def _expect(condition: bool, message: str) -> None:
    if not condition:
        raise _malformed(message)


def _malformed(message: str) -> CovenError:
    return CovenError("component.answer-malformed", message)


def _invalid(part: str, message: str, hint: str | None = None) -> CovenError:
    return CovenError("component.argument-invalid", message, hint=hint, where=Where(part=part))
