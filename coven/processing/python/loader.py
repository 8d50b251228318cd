"""From a `start` message to a component: what was declared, its class, its operations; every disagreement by name.

Uses os.path and imports traceback late: pathlib and traceback cost more time than loading a component.
"""

from __future__ import annotations

import json
import os.path
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import CodeType, FunctionType, ModuleType
from typing import Any

from coven.agents.protocol import Line
from coven.agents.schema import read_argument
from coven.component import Component
from coven.errors import CovenError, Where
from coven.model import Argument

_FIELDS = {"component": 2, "instance": 2, "replica": 2, "entry": 2, "option": 3, "metric": 5, "operation": 3}
_FIELDS["argument"] = 7


@dataclass(frozen=True, slots=True)
class Start:
    """A `start` message."""

    component: str
    instance: str
    replica: int
    entry: str  # absolute path
    options: Mapping[str, Any]
    metrics: tuple[Line, ...]  # name, type, unit, help
    operations: Mapping[str, Mapping[str, Argument]]
    declarations: tuple[Line, ...]  # as they came: the answer to `list`


def read_start(lines: tuple[Line, ...]) -> Start:
    """Read the lines of `start`. Raises CovenError (request.malformed)."""
    single: dict[str, str] = {}
    options: dict[str, Any] = {}
    operations: dict[str, dict[str, Argument]] = {}
    for line in lines:
        if _FIELDS.get(line[0]) != len(line):
            raise CovenError("request.malformed", f"unexpected line in start: {line[0][:40]!r}")
        if line[0] == "option":
            try:
                options[line[1]] = json.loads(line[2])
            except ValueError as error:
                raise CovenError("request.malformed", f"option {line[1]!r} is no JSON value") from error
        elif line[0] == "operation":
            operations[line[1]] = {}
        elif line[0] == "argument":
            operations.setdefault(line[1], {})[line[2]] = read_argument(*line[2:])
        elif line[0] != "metric":
            single[line[0]] = line[1]
    if not single.keys() >= {"component", "instance", "replica", "entry"} or not single["replica"].isdecimal():
        raise CovenError("request.malformed", "start needs component, instance, replica and entry")
    return Start(
        single["component"],
        single["instance"],
        int(single["replica"]),
        single["entry"],
        options,
        tuple(line[1:] for line in lines if line[0] == "metric"),
        operations,
        tuple(line for line in lines if line[0] in ("metric", "operation", "argument")),
    )


def load(start: Start) -> Component:
    """Run the entry file and make its component. Raises CovenError (component.bad-code), or what the file raises."""
    folder, file_name = os.path.split(start.entry)
    try:
        with open(start.entry, "rb") as file:  # noqa: PTH123
            code = compile(file.read(), start.entry, "exec")
    except OSError as error:
        text = f"{file_name} cannot be read: {error.strerror}"
        raise CovenError("component.bad-code", text) from error
    except (SyntaxError, ValueError) as error:
        raise CovenError("component.bad-code", describe(error)) from error
    sys.path.insert(0, folder)
    return find_class(code, f"coven_component_{file_name.removesuffix('.py')}", file_name)()


def find_class(code: CodeType, module_name: str, file_name: str) -> type[Component]:
    """Run a component's file and give its class.

    Raises CovenError (component.bad-code) unless there is exactly one, or whatever the file raises.
    """
    module = ModuleType(module_name)
    module.__file__ = code.co_filename
    sys.modules[module_name] = module
    exec(code, module.__dict__)  # noqa: S102 - the component's own process: this is what it is for
    classes: list[type[Component]] = []
    for value in module.__dict__.values():
        is_own = isinstance(value, type) and issubclass(value, Component) and value.__module__ == module_name
        if is_own and value not in classes:  # two names of one class are one class
            classes.append(value)
    if len(classes) != 1:
        found = f"{len(classes)}: {', '.join(c.__name__ for c in classes)}" if classes else "none"
        raise CovenError(
            "component.bad-code",
            f"{file_name}: exactly one subclass of coven.component.Component is needed, there is {found}",
        )
    (component,) = classes
    if not overrides(component, "process_burst") and not overrides(component, "process_packet"):
        raise CovenError(
            "component.bad-code", f"{file_name}: {component.__name__} has neither process_burst nor process_packet"
        )
    return component


def operations(start: Start, component: Component) -> dict[str, tuple[Mapping[str, Argument], Callable[..., object]]]:
    """Pair declared operations with methods. Raises CovenError (component.bad-code) when they differ."""
    methods: dict[str, FunctionType] = {}
    for class_ in reversed(type(component).__mro__):
        for value in class_.__dict__.values():
            name = getattr(value, "coven_operation", None)
            if isinstance(value, FunctionType) and isinstance(name, str):
                methods[name] = value
    faults = [f"operation {name!r} is declared in component.yaml, but no method has @operation({name!r})"
              for name in start.operations if name not in methods]  # fmt: skip
    for name, method in methods.items():
        if name not in start.operations:
            faults.append(f"{_place(method)}: operation {name!r} is not declared in component.yaml")
        else:
            faults += _signature_faults(name, method, start.operations[name])
    if faults:
        raise CovenError("component.bad-code", "; ".join(faults))
    return {name: (start.operations[name], method.__get__(component)) for name, method in methods.items()}


def _signature_faults(name: str, method: FunctionType, declared: Mapping[str, Argument]) -> list[str]:
    """Compare a method's parameters with the declared arguments."""
    code = method.__code__
    positional = code.co_varnames[1 : code.co_argcount]
    keyword = code.co_varnames[code.co_argcount : code.co_argcount + code.co_kwonlyargcount]
    optional = {*positional[len(positional) - len(method.__defaults__ or ()) :], *(method.__kwdefaults__ or {})}
    parameters = {*positional, *keyword}
    wanted = {argument.replace("-", "_"): argument for argument in declared}
    place = f"{_place(method)}: operation {name!r}"
    if len(wanted) < len(declared):
        return [f"{place} has arguments whose names differ only in - and _"]
    faults = [f"{place} has no parameter for argument {wanted[p]!r}" for p in wanted if p not in parameters]
    faults += [
        f"{place} has a parameter {p!r} that is not declared" for p in sorted(parameters - optional - set(wanted))
    ]
    faults += [
        f"{place}: argument {a!r} may be missing, but parameter {p!r} has no default"
        for p, a in wanted.items()
        if p in parameters and p not in optional and not declared[a].required and declared[a].default is None
    ]
    return faults


def overrides(component: Component | type[Component], method: str) -> bool:
    """Whether a component has its own version of a method."""
    class_ = component if isinstance(component, type) else type(component)
    return getattr(class_, method) is not getattr(Component, method)


def describe(error: BaseException) -> str:
    """Say on one line what was raised and where in the component, in the language's own words."""
    import traceback

    text = traceback.format_exception_only(error)[-1].strip()
    if isinstance(error, SyntaxError) and error.filename:
        column = f":{error.offset}" if error.offset else ""
        return f"{_file_name(error.filename)}:{error.lineno}{column}: {text}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if _is_components(frame.filename)]
    if not own:
        return text
    return f"{_file_name(own[-1].filename)}:{own[-1].lineno}: {text}"


def print_traceback() -> None:
    """Write the exception being handled to standard error, which is the component's log."""
    import traceback

    traceback.print_exc()


def _is_components(filename: str) -> bool:
    folder = sys.path[0]
    return filename.startswith(f"{folder}/") and "site-packages" not in filename[len(folder) :]


def _file_name(path: str) -> str:
    return path.rpartition("/")[2]


def _place(method: FunctionType) -> Where:
    return Where(file=_file_name(method.__code__.co_filename), line=method.__code__.co_firstlineno)
