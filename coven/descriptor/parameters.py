"""Parameters of a function and the `${parameter}` references to them in component options."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from coven.descriptor.option_schema import check_value
from coven.errors import CovenError, Where
from coven.model import Parameter
from coven.suggest import near_miss

# `$${` stands for a literal `${`; what follows `${` up to `}` is a name, right or wrong.
REFERENCE = re.compile(r"\$(\$\{)|\$\{([^}]*)\}")

MAX_SHOWN = 200  # faults of one error

Location = tuple[str | int, ...]


def references(value: object, location: Location = ()) -> Iterator[tuple[Location, str]]:
    """Give each reference within a value: where it stands and the name it has."""
    if isinstance(value, str):
        for match in REFERENCE.finditer(value):
            if match[1] is None:
                yield location, match[2]
    elif isinstance(value, Mapping):
        for key, element in value.items():
            yield from references(element, (*location, key))
    elif isinstance(value, list):
        for index, element in enumerate(value):
            yield from references(element, (*location, index))


def substitute(value: Any, values: Mapping[str, Any]) -> Any:
    """Give `value` with each reference replaced.

    A text that is one reference and nothing else becomes the parameter's value with its type; within a
    longer text the value is written as text (numbers and booleans as in JSON). A name that `values` lacks
    raises KeyError: callers check the names first.
    """
    if isinstance(value, str):
        whole = REFERENCE.fullmatch(value)
        if whole and whole[1] is None:
            return values[whole[2]]
        return REFERENCE.sub(lambda match: "${" if match[1] else _as_text(values[match[2]]), value)
    if isinstance(value, Mapping):
        return {key: substitute(element, values) for key, element in value.items()}
    if isinstance(value, list):
        return [substitute(element, values) for element in value]
    return value


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def resolve(parameters: tuple[Parameter, ...], given: Mapping[str, Any]) -> dict[str, Any]:
    """Give the value of each parameter: what was given, checked, or its default.

    Raises CovenError with code `parameter.unknown`, `parameter.missing` or `parameter.invalid`; several
    faults at once are in its findings.
    """
    faults: list[CovenError] = []
    known = {parameter.name: parameter for parameter in parameters}
    for name in given:
        if name not in known:
            faults.append(_unknown(str(name), known))
    values: dict[str, Any] = {}
    for name, parameter in known.items():
        where = Where(part=f"parameter {name}")
        if name not in given:
            if parameter.required:
                faults.append(
                    CovenError("parameter.missing", f"parameter {name} has no default and was not given",
                               hint=_describe(parameter), where=where)
                )  # fmt: skip
            values[name] = parameter.default
            continue
        values[name] = given[name]
        faults.extend(
            CovenError("parameter.invalid", f"parameter {name}{place}: {message}",
                       hint=_describe(parameter), where=where)
            for place, message in check_value(parameter.schema, given[name])
        )  # fmt: skip
    raise_all(faults, "the parameters")
    return values


def _unknown(name: str, known: Mapping[str, Parameter]) -> CovenError:
    hint = near_miss(name, known) or (
        f"parameters are: {', '.join(sorted(known))}" if known else "the function has no parameters"
    )
    return CovenError("parameter.unknown", f"the function has no parameter {name!r}", hint=hint,
                      where=Where(part=f"parameter {name}"))  # fmt: skip


def _describe(parameter: Parameter) -> str | None:
    description = parameter.schema.get("description")
    return f"{parameter.name}: {description}" if isinstance(description, str) else None


def raise_all(faults: list[CovenError], what: str, where: Where | None = None) -> None:
    """Raise nothing, the one fault, or an error that has them (the first of very many) as findings."""
    if len(faults) == 1:
        raise faults[0]
    if faults:
        more = "" if len(faults) <= MAX_SHOWN else f", the first {MAX_SHOWN} are shown"
        raise CovenError(
            faults[0].code, f"{what} with {len(faults)} faults{more}", where=where, findings=tuple(faults[:MAX_SHOWN])
        )
