"""component.yaml: what a component is, read into ComponentType."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coven.descriptor.option_schema import check_schema
from coven.descriptor.parameters import raise_all
from coven.descriptor.schema_check import check, in_order
from coven.descriptor.yaml_source import Document, describe, parse
from coven.errors import CovenError, Where
from coven.model import Argument, ComponentType, FlowState, Hold, Metric, Operation
from coven.processing import framework
from coven.suggest import near_miss

COMPONENT_FILE = "component.yaml"
PYTHON_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,), "integer": (int,), "number": (int, float), "boolean": (bool,)
}  # fmt: skip


def parse_component_type(content: bytes, file: str) -> ComponentType:
    """Make a ComponentType of the text of a component.yaml; `file` is its name for messages.

    Raises CovenError `descriptor.*`; several faults are in its findings.
    """
    document = parse(content, file)
    faults = check(document, "component")
    if not faults:
        faults = in_order([*_framework_faults(document), *_name_faults(document), *_option_faults(document),
                           *_argument_faults(document)])  # fmt: skip
    raise_all(faults, "a component", Where(file))
    return _component_type(document.data)


def _component_type(data: Mapping[str, Any]) -> ComponentType:
    state = data.get("state")
    hold = data.get("hold") or {}
    return ComponentType(
        name=data["name"],
        summary=data.get("summary", ""),
        framework=data["framework"],
        entry=data["entry"],
        outputs=data.get("outputs", 1),
        options={"type": "object", "properties": {}, **data.get("options", {}), "additionalProperties": False},
        metrics=tuple(
            Metric(metric["name"], metric["type"], metric.get("unit", ""), metric["help"])
            for metric in data.get("metrics", ())
        ),
        operations=tuple(
            Operation(
                operation["name"],
                operation["help"],
                tuple(_argument(argument) for argument in operation.get("arguments", ())),
            )
            for operation in data.get("operations", ())
        ),
        state=None
        if state is None
        else FlowState(
            state["bytes"], state.get("version", 1), state.get("scope", "flow"), state.get("class", "critical")
        ),
        hold=Hold(hold.get("packets", 256), hold.get("ms", 1000)),
        build=data.get("build", {}),
    )


def _argument(data: Mapping[str, Any]) -> Argument:
    return Argument(
        name=data["name"],
        type=data["type"],
        help=data["help"],
        required=data.get("required", "default" not in data),
        default=data.get("default"),
        enum=tuple(data.get("enum", ())),
    )


def _framework_faults(document: Document) -> list[CovenError]:
    name = document.data["framework"]
    if name in framework.names():
        return []
    return [
        CovenError("descriptor.unknown-framework", f"there is no framework {name!r}",
                   hint=near_miss(name, framework.names()) or f"frameworks are: {', '.join(framework.names())}",
                   where=document.where(("framework",)))
    ]  # fmt: skip


def _name_faults(document: Document) -> list[CovenError]:
    """Find names used twice. `-` and `_` count as one, since metrics are shown to systems that know `_` only."""
    lists: list[tuple[str | int, ...]] = [("metrics",), ("operations",)]
    lists += [("operations", index, "arguments") for index in range(len(document.data.get("operations", ())))]
    faults = []
    for location in lists:
        elements: Any = document.data
        for part in location:
            elements = elements[part] if isinstance(part, int) else elements.get(part, [])
        seen: set[str] = set()
        for index, element in enumerate(elements):
            name = element["name"].replace("-", "_")
            if name in seen:
                faults.append(
                    CovenError("descriptor.duplicate-name", f"{describe(location)} has {element['name']!r} twice",
                               where=document.where((*location, index, "name")))
                )  # fmt: skip
            seen.add(name)
    return faults


def _option_faults(document: Document) -> list[CovenError]:
    return [
        CovenError("descriptor.invalid", f"{describe(('options', *inner))}: {message}",
                   where=document.where(("options", *inner)))
        for inner, message in check_schema(document.data.get("options"))
    ]  # fmt: skip


def _argument_faults(document: Document) -> list[CovenError]:
    """Find defaults and choices of arguments that do not fit their type."""
    faults = []
    for number, operation in enumerate(document.data.get("operations", ())):
        for index, argument in enumerate(operation.get("arguments", ())):
            location = ("operations", number, "arguments", index)
            default, choices = argument.get("default"), argument.get("enum")
            wanted = PYTHON_TYPES[argument["type"]]
            if default is not None and (
                not isinstance(default, wanted) or (isinstance(default, bool) and bool not in wanted)
            ):
                faults.append(_fault(document, (*location, "default"), f"is no {argument['type']}"))
            elif choices is not None and argument["type"] != "string":
                faults.append(_fault(document, (*location, "enum"), "goes with type string only"))
            elif choices is not None and default is not None and default not in choices:
                faults.append(_fault(document, (*location, "default"), "is not among `enum`"))
            if default is not None and argument.get("required"):
                faults.append(_fault(document, (*location, "required"), "contradicts the default"))
    return faults


def _fault(document: Document, location: tuple[str | int, ...], message: str) -> CovenError:
    return CovenError("descriptor.invalid", f"{describe(location)} {message}", where=document.where(location))
