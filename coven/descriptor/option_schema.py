"""The subset of JSON Schema in which components and parameters describe their values.

Schemas and values both come from outside, so the subset leaves out what can reach other documents or take
unbounded time (references, combinators, uniqueItems), and patterns are checked before they are compiled.
schemas/component.schema.json says which keywords there are.
"""

from __future__ import annotations

import functools
import itertools
import json
import re
from collections.abc import Iterator, Mapping
from re import _constants as sre  # type: ignore[attr-defined]
from re import _parser  # type: ignore[attr-defined]
from typing import Any

import jsonschema
import referencing

MAX_PATTERN = 200  # characters
MAX_TEXT = 4096  # characters of a value
MAX_FINDINGS = 100  # of one value
MAX_STEPS = 1 << 24  # a match may try at most so many ways

JSON_TYPES = {dict: "a mapping", list: "a list", str: "text", bool: "true or false", int: "an integer",
              float: "a number", type(None): "empty"}  # fmt: skip
TYPE_WORDS = {"object": "a mapping", "array": "a list", "string": "text", "boolean": "true or false",
              "integer": "an integer", "number": "a number", "null": "empty"}  # fmt: skip

Finding = tuple[str, str]  # place within the value ("" or ".a[0]"), what is wrong


def _pattern(
    _validator: object, pattern: str, instance: object, _schema: object
) -> Iterator[jsonschema.ValidationError]:
    """Keyword `pattern` with `$` at the end of the text only; Python's also matches before a last newline."""
    if isinstance(instance, str):
        strict = pattern[:-1] + r"\Z" if pattern.endswith("$") and not pattern.endswith(r"\$") else pattern
        if not re.search(strict, instance):
            yield jsonschema.ValidationError(f"{instance!r} does not match {pattern!r}")


@functools.cache
def validator_class() -> type[jsonschema.Draft202012Validator]:
    """Give the class of all validators here."""
    extended: type[jsonschema.Draft202012Validator] = jsonschema.validators.extend(  # type: ignore[no-untyped-call]
        jsonschema.Draft202012Validator, {"pattern": _pattern}
    )
    return extended


def validator(schema: Any) -> jsonschema.Draft202012Validator:
    """Give a validator that never reaches for another document."""
    return validator_class()(schema, registry=referencing.Registry())


def word_for(value: object) -> str:
    """Give the word for the type of a value."""
    return JSON_TYPES.get(type(value), type(value).__name__)


def show(value: object) -> str:
    """Give a value as text for a message, cut short."""
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def place_of(path: tuple[str | int, ...]) -> str:
    """Give a place within a value as it is written in messages."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)


def explain(error: Any) -> str:
    """Give one sentence for what the validator found (a jsonschema.ValidationError)."""
    value, limit = error.instance, error.validator_value
    match error.validator:
        case "type":
            wanted = limit if isinstance(limit, list) else [limit]
            return f"must be {' or '.join(TYPE_WORDS.get(w, str(w)) for w in wanted)}, not {word_for(value)}"
        case "enum":
            return f"{show(value)} is not one of {', '.join(show(x) for x in limit)}"
        case "const":
            return f"must be {show(limit)}, not {show(value)}"
        case "pattern":
            return f"{show(value)} does not match {limit}"
        case "minimum" | "exclusiveMinimum":
            return f"{show(value)} is too small: {'at least' if error.validator == 'minimum' else 'more than'} {limit}"
        case "maximum" | "exclusiveMaximum":
            return f"{show(value)} is too large: {'at most' if error.validator == 'maximum' else 'less than'} {limit}"
        case "minLength" | "minItems" | "minProperties":
            return f"is too short: at least {limit}"
        case "maxLength" | "maxItems" | "maxProperties":
            return f"is too long: at most {limit}"
        case "multipleOf":
            return f"{show(value)} is no multiple of {limit}"
        case _:
            return str(error.message)[:200]


def check_value(schema: Mapping[str, Any], value: object) -> Iterator[Finding]:
    """Give what is wrong with a value (the first of very many), nothing if it fits the schema."""
    too_long = _too_long(value)
    if too_long:
        yield too_long
        return
    for error in itertools.islice(validator(schema).iter_errors(value), MAX_FINDINGS):
        path = tuple(error.absolute_path)
        if error.validator == "additionalProperties":
            known = error.schema.get("properties", {})
            for key in sorted(set(error.instance) - set(known)):
                yield place_of(path), f"has no {key!r}; there is: {', '.join(sorted(known)) or 'nothing'}"
        elif error.validator == "required":
            for key in sorted(set(error.validator_value) - set(error.instance)):
                yield place_of(path), f"{key!r} is missing"
            continue
        else:
            yield place_of(path), explain(error)


def _too_long(value: object, path: tuple[str | int, ...] = ()) -> Finding | None:
    """Find text too long to be matched, and numbers that JSON cannot carry."""
    if isinstance(value, str) and len(value) > MAX_TEXT:
        return place_of(path), f"is too long: at most {MAX_TEXT} characters"
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return place_of(path), "must be a finite number"
    if isinstance(value, int) and not -(2**63) <= value < 2**64:
        return place_of(path), "does not fit 64 bits"
    if len(path) > 16:
        return place_of(path[:4]), "is nested too deeply"
    elements: Iterator[tuple[Any, Any]] = iter(())
    if isinstance(value, Mapping):
        elements = iter(value.items())
    elif isinstance(value, list):
        elements = iter(enumerate(value))
    for key, element in elements:
        found = _too_long(element, (*path, key))
        if found:
            return found
    return None


def fill_defaults(schema: Mapping[str, Any], value: Mapping[str, Any]) -> dict[str, Any]:
    """Give `value` with the defaults of the schema for what is left out, also in nested mappings."""
    filled = dict(value)
    for name, part in schema.get("properties", {}).items():
        if name not in filled and "default" in part:
            filled[name] = part["default"]
        if isinstance(filled.get(name), Mapping) and part.get("type") == "object":
            filled[name] = fill_defaults(part, filled[name])
    return filled


def check_schema(schema: object, path: tuple[str | int, ...] = ()) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """Give what is wrong in a schema beyond its form: defaults that do not fit, patterns, lost requirements.

    The form (keywords and their types) has been checked by component.schema.json before.
    """
    if not isinstance(schema, Mapping):
        return
    if "pattern" in schema:
        fault = pattern_fault(schema["pattern"])
        if fault:
            yield (*path, "pattern"), fault
            return
    properties = schema.get("properties", {})
    before = False
    for name, part in properties.items():
        for finding in check_schema(part, (*path, "properties", name)):
            before = True
            yield finding
    for finding in check_schema(schema.get("items"), (*path, "items")):
        before = True
        yield finding
    for name in schema.get("required", ()):
        if name not in properties:
            yield (*path, "required"), f"{name!r} is required but not among the properties"
    if "default" in schema and not before:
        rest = {key: value for key, value in schema.items() if key != "default"}
        for place, message in check_value(rest, schema["default"]):
            yield (*path, "default"), f"the default{place} does not fit: {message}"


def pattern_fault(pattern: str) -> str | None:
    """Say why a regular expression may not be used, or None.

    Python's matcher goes back and tries again; a pattern from outside could keep it busy for years. So no
    repetition of something of varying length or of alternatives, no references back, and not too many
    varying repetitions one after the other.
    """
    if len(pattern) > MAX_PATTERN:
        return f"the pattern is too long: at most {MAX_PATTERN} characters"
    try:
        parsed = _parser.parse(pattern)
    except (_parser.error, RecursionError, OverflowError) as error:
        return f"is no regular expression: {error}"
    try:
        steps = _steps(parsed, within_repeat=False)
    except ValueError as error:
        return str(error)
    anchored = (
        len(parsed) > 0 and parsed[0][0] is sre.AT and parsed[0][1] in (sre.AT_BEGINNING, sre.AT_BEGINNING_STRING)
    )
    if steps * (1 if anchored else MAX_TEXT) > MAX_STEPS:
        return "the pattern could take too long: fewer repetitions, and ^ at its beginning"
    return None


def _steps(parsed: Any, *, within_repeat: bool) -> int:
    """Bound the ways a pattern can be tried at one place. Raises ValueError with the reason to refuse it."""
    steps = 1
    for operator, argument in parsed:
        if operator in (sre.MAX_REPEAT, sre.MIN_REPEAT):
            low, high, inner = argument
            varies = low != high
            if within_repeat and varies:
                raise ValueError("the pattern repeats something that is itself a repetition of varying length")
            steps *= _steps(inner, within_repeat=high > 1)
            if varies:
                steps *= min(int(high), MAX_TEXT) - int(low) + 1
        elif operator is sre.SUBPATTERN:
            steps *= _steps(argument[3], within_repeat=within_repeat)
        elif operator is sre.BRANCH:
            if within_repeat:
                raise ValueError("the pattern repeats alternatives (a|b); write a set [ab] or no repetition")
            steps *= sum(_steps(branch, within_repeat=False) for branch in argument[1])
        elif operator not in (sre.LITERAL, sre.NOT_LITERAL, sre.IN, sre.ANY, sre.AT):
            raise ValueError("the pattern uses something other than characters, sets, groups and repetition")
        if steps > MAX_STEPS:
            raise ValueError("the pattern could take too long: fewer repetitions")
    return max(steps, 1)
