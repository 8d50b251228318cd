"""Holds a parsed descriptor against its JSON Schema and makes sentences with places of what it finds."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from importlib import resources
from typing import Any

import jsonschema
import referencing

from coven.descriptor.option_schema import explain, show, validator_class
from coven.descriptor.yaml_source import Document, Location, describe
from coven.errors import CovenError
from coven.limits import KEY_PATTERN, NAME_PATTERN
from coven.suggest import near_miss

PATTERN_WORDS = {
    NAME_PATTERN: "a name has lower-case letters, digits and dashes, begins with a letter, and is at most 31 long",
    KEY_PATTERN: "a name here has lower-case letters, digits, dashes and underscores, begins with a letter, "
    "and is at most 31 long",
}
NEW_KEY_HINT = "known here: {}"


@functools.cache
def schema(name: str) -> Any:
    """Give a schema of coven/descriptor/schemas by its short name, `vnf` or `component`."""
    text = resources.files("coven.descriptor").joinpath(f"schemas/{name}.schema.json").read_text(encoding="utf-8")
    return json.loads(text)


@functools.cache
def _validator(name: str) -> jsonschema.Draft202012Validator:
    registry: referencing.Registry[Any] = referencing.Registry().with_resources(
        (schema(each)["$id"], referencing.Resource.from_contents(schema(each))) for each in ("vnf", "component")
    )
    return validator_class()(schema(name), registry=registry)


def check(document: Document, name: str) -> list[CovenError]:
    """Give all faults of a document against a schema, in the order of the file."""
    faults: list[CovenError] = []
    for error in _validator(name).iter_errors(document.data):
        faults.extend(_faults(document, error))
    return in_order(faults)


def in_order(faults: list[CovenError]) -> list[CovenError]:
    """Sort faults by file, line and column."""

    def place(fault: CovenError) -> tuple[str, int, int]:
        where = fault.where
        return ((where.file or "", where.line or 0, where.column or 0)) if where else ("", 0, 0)

    return sorted(faults, key=place)


def _faults(document: Document, error: Any) -> Iterator[CovenError]:
    location: Location = tuple(error.absolute_path)
    if "propertyNames" in list(error.absolute_schema_path)[-3:]:
        inner = (*location, str(error.instance))
        yield CovenError("descriptor.invalid", f"{show(error.instance)} is no name", hint=_hint(error),
                         where=document.where(inner, key=True))  # fmt: skip
    elif error.validator == "additionalProperties":
        known = sorted(error.schema.get("properties", {}))
        for key in error.instance:
            if key not in known:
                hint = near_miss(key, known) or NEW_KEY_HINT.format(", ".join(known) or "nothing")
                yield CovenError("descriptor.unknown-key", f"{_at(location)}unknown key {key!r}", hint=hint,
                                 where=document.where((*location, key), key=True))  # fmt: skip
    elif error.validator == "required":
        # The validator gives one error for each missing key; the message names it first.
        key = error.message.split("'")[1]
        part = error.schema.get("properties", {}).get(key, {})
        yield CovenError("descriptor.invalid", f"{_at(location)}{key!r} is missing",
                         hint=part.get("description"),
                         where=document.where(location, key=True))  # fmt: skip
    else:
        yield CovenError("descriptor.invalid", f"{_at(location)}{explain(error)}", hint=_hint(error),
                         where=document.where(location))  # fmt: skip


def _at(location: Location) -> str:
    return f"{describe(location)}: " if location else ""


def _hint(error: Any) -> str | None:
    if error.validator == "pattern":
        return PATTERN_WORDS.get(error.validator_value) or error.schema.get("description")
    if error.validator == "enum" and isinstance(error.instance, str):
        return near_miss(error.instance, error.validator_value)
    wanted = error.validator_value if isinstance(error.validator_value, list) else [error.validator_value]
    is_plain = isinstance(error.instance, (int, float, bool)) or error.instance is None
    if error.validator == "type" and "string" in wanted and is_plain:
        return "put it in quotes"
    return None
