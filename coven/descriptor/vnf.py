"""vnf.yaml of a function and, through it, component.yaml of each of its components, read into model.py's types.

Everything in them is untrusted. All faults that can be found are found at once, each with file, line and
column. Nothing of a package is run. Called by coven.package, the command line and tests.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from coven import priority
from coven.descriptor.component import COMPONENT_FILE, parse_component_type
from coven.descriptor.option_schema import check_schema, check_value, place_of
from coven.descriptor.parameters import raise_all, references, substitute
from coven.descriptor.paths import read_paths
from coven.descriptor.schema_check import check, in_order
from coven.descriptor.yaml_source import MAX_BYTES, Document, Location, describe, parse
from coven.errors import CovenError, Where
from coven.model import Component, ComponentType, Isolation, Limits, OnFailure, Parameter, Port, Vnf
from coven.suggest import near_miss

VNF_FILE = "vnf.yaml"

ReadFile = Callable[[str], bytes]  # path within the package -> content; FileNotFoundError if there is none


def load_vnf(folder: Path) -> Vnf:
    """Read `vnf.yaml` in a folder and the component.yaml of every component it names.

    Raises CovenError `descriptor.*` or `package.missing-file`; several faults are in its findings.
    """
    return parse_vnf(lambda name: read_file(folder / name))


def load_component_type(folder: Path) -> ComponentType:
    """Read `component.yaml` in a folder. Raises CovenError as load_vnf does."""
    try:
        content = read_file(folder / COMPONENT_FILE)
    except OSError as error:
        raise _missing(COMPONENT_FILE, "every component has one", error) from None
    return parse_component_type(content, COMPONENT_FILE)


def read_file(path: Path) -> bytes:
    """Read a regular file, one byte beyond the limit at most. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise FileNotFoundError(f"{path.name} is no regular file")
        return file.read(MAX_BYTES + 1)


def _missing(name: str, hint: str, error: OSError, where: Where | None = None) -> CovenError:
    reason = "" if isinstance(error, FileNotFoundError) else f" ({error.strerror})"
    return CovenError("package.missing-file", f"{name} cannot be read{reason}" if reason else f"{name} is missing",
                      hint=hint, where=where or Where(name))  # fmt: skip


def parse_vnf(read: ReadFile) -> Vnf:
    """Make a Vnf of what `read` gives: vnf.yaml first, then `<source>/component.yaml` for each component."""
    try:
        content = read(VNF_FILE)
    except OSError as error:
        raise _missing(VNF_FILE, "it stands at the top of every package", error) from None
    document = parse(content, VNF_FILE)
    faults = check(document, "vnf")
    if faults:
        # Names, counts and shapes are not what the steps below rely on; component.yaml files still are worth a look.
        faults += _component_faults(document, read)
        raise_all(in_order(faults), "a descriptor", Where(VNF_FILE))
    ports = {name: Port(name, (port or {}).get("summary", "")) for name, port in document.data["ports"].items()}
    parameters = _parameters(document, faults)
    components = _components(document, read, parameters, faults)
    _check_priority(document, faults)
    for name in components:
        if name in ports:
            faults.append(
                CovenError("descriptor.duplicate-name", f"a port and a component are both called {name}",
                           hint="paths could not tell them apart",
                           where=document.where(("components", name), key=True))
            )  # fmt: skip
    paths = read_paths(document, ports, components, faults)
    if not faults:
        _check_used(document, ports, components, paths, faults)
    raise_all(in_order(faults), "a descriptor", Where(VNF_FILE))
    return _vnf(document.data, ports, components, paths, parameters)


def _check_priority(document: Document, faults: list[CovenError]) -> None:
    """Check the kinds of packets that have priority, one by one and all together."""
    names = document.data.get("priority") or []
    found = len(faults)
    for index, name in enumerate(names):
        try:
            priority.parse(name)
        except CovenError as error:
            faults.append(CovenError(error.code, f"priority[{index}]: {error.message}", hint=error.hint,
                                     where=document.where(("priority", index))))  # fmt: skip
    if len(faults) == found:
        try:
            priority.rules(names)
        except CovenError as error:
            faults.append(CovenError(error.code, error.message, where=document.where(("priority",), key=True)))


def _vnf(
    data: Mapping[str, Any],
    ports: Mapping[str, Port],
    components: Mapping[str, Component],
    paths: tuple[Any, ...],
    parameters: Mapping[str, Parameter],
) -> Vnf:
    flows = data.get("flows") or {}
    pool = data.get("pool") or {}
    workers = data.get("workers") or {}
    return Vnf(
        name=data["name"],
        version=data["version"],
        provider=data.get("provider", "unknown"),
        summary=data.get("summary", ""),
        ports=tuple(ports.values()),
        components=tuple(components.values()),
        paths=paths,
        parameters=tuple(parameters.values()),
        flow_capacity=flows.get("capacity", 65536),
        flow_idle_timeout_s=float(flows.get("idle_timeout", 120)),
        flow_when_full=flows.get("when_full", "idle"),
        pool_buffers=pool.get("buffers", 16384),
        pool_buffer_bytes=pool.get("buffer_bytes"),
        priority=tuple(data.get("priority") or ()),
        workers=workers.get("count", 1),
        profile=workers.get("profile", "balanced"),
    )


def _component_faults(document: Document, read: ReadFile) -> list[CovenError]:
    """Give the faults in the component.yaml files that a faulty vnf.yaml names well enough to find them."""
    faults: list[CovenError] = []
    described = document.data.get("components") if isinstance(document.data, dict) else None
    for component in (described if isinstance(described, dict) else {}).values():
        source = component.get("source") if isinstance(component, dict) else None
        if isinstance(source, str) and "components" in document.data and _is_inside(source):
            file = f"{source}/{COMPONENT_FILE}"
            try:
                parse_component_type(read(file), file)
            except CovenError as error:
                faults.extend(error.findings or (error,))
            except (OSError, ValueError):
                continue
    return faults


def _is_inside(source: str) -> bool:
    return not source.startswith("/") and ".." not in source.split("/") and "\x00" not in source


def _parameters(document: Document, faults: list[CovenError]) -> dict[str, Parameter]:
    parameters = {}
    for name, schema in (document.data.get("parameters") or {}).items():
        location: Location = ("parameters", name)
        faults.extend(
            CovenError("descriptor.invalid", f"{describe((*location, *inner))}: {message}",
                       where=document.where((*location, *inner)))
            for inner, message in check_schema(schema)
        )  # fmt: skip
        rest = {key: value for key, value in schema.items() if key != "default"}
        parameters[name] = Parameter(name, rest, "default" not in schema, schema.get("default"))
    return parameters


def _components(
    document: Document, read: ReadFile, parameters: Mapping[str, Parameter], faults: list[CovenError]
) -> dict[str, Component]:
    """Read all components; one whose component.yaml has faults is left out."""
    components: dict[str, Component] = {}
    types: dict[str, ComponentType | None] = {}
    for name, description in (document.data.get("components") or {}).items():
        source = description["source"]
        if source not in types:
            types[source] = _type(document, read, name, source, faults)
        component_type = types[source]
        if component_type is None:
            continue
        given = description.get("options") or {}
        _check_options(document, ("components", name, "options"), given, component_type, parameters, faults)
        resources = description.get("limits") or {}
        components[name] = Component(
            name=name,
            type=component_type,
            source=source,
            isolation=Isolation(description.get("isolation", Isolation.COPY)),
            on_failure=OnFailure(description.get("on_failure", OnFailure.DROP)),
            hang_ms=description.get("hang_ms", 1000),
            options=given,
            limits=Limits(
                memory_bytes=_memory(document, name, resources.get("memory", "256M"), faults),
                cpu=float(resources.get("cpu", 1.0)),
                pids=resources.get("pids", 32),
            ),
            replicas=_replicas(document, name, description.get("replicas", 1), faults),
        )
    return components


def _replicas(document: Document, name: str, replicas: int, faults: list[CovenError]) -> int:
    """Refuse several: without a key that divides packets among them, all but the first would stand idle."""
    if replicas > 1:
        faults.append(
            CovenError("descriptor.invalid", f"component {name} asks for {replicas} replicas, "
                       "but packets cannot be divided among several yet",
                       hint="leave `replicas` out", where=document.where(("components", name, "replicas")))
        )  # fmt: skip
    return replicas


def _type(document: Document, read: ReadFile, name: str, source: str, faults: list[CovenError]) -> ComponentType | None:
    """Read a component's type; None after a fault."""
    file = f"{source}/{COMPONENT_FILE}"
    try:
        return parse_component_type(read(file), file)
    except OSError as error:
        where = document.where(("components", name, "source"))
        faults.append(_missing(file, f"component {name} has its source there", error, where))
    except CovenError as error:
        faults.extend(error.findings or (error,))
    return None


def _memory(document: Document, name: str, value: int | str, faults: list[CovenError]) -> int:
    """Give bytes for a number or a text such as 256M."""
    if isinstance(value, str):
        factor = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(value[-1], 1)
        value = int(value.rstrip("KMG")) * factor
    if not 1 << 20 <= value <= 1 << 42:
        faults.append(
            CovenError("descriptor.invalid", f"component {name}: {value} bytes of memory are not within 1M and 4096G",
                       where=document.where(("components", name, "limits", "memory")))
        )  # fmt: skip
    return value


def _check_options(
    document: Document,
    location: Location,
    given: Mapping[str, Any],
    component_type: ComponentType,
    parameters: Mapping[str, Parameter],
    faults: list[CovenError],
) -> None:
    """Check options against their component's schema, as far as it can be said before parameters are given.

    References are replaced by the defaults of their parameters; where one has no default, the option is
    checked when the instance is planned.
    """
    unknown = False
    undecided: set[Location] = set()
    for inner, name in references(given):
        if name not in parameters:
            unknown = True
            hint = near_miss(name, parameters) or "declare it under `parameters`; `$${` writes a plain `${`"
            faults.append(
                CovenError("descriptor.unknown-name", f"{describe(location)}: there is no parameter {name!r}",
                           hint=hint, where=document.where((*location, *inner)))
            )  # fmt: skip
        elif parameters[name].required:
            undecided.add(inner[:1])
    if unknown:
        return
    schema = component_type.options or {"type": "object", "additionalProperties": False}
    values = {name: parameter.default for name, parameter in parameters.items()}
    checked = substitute({key: value for key, value in given.items() if (key,) not in undecided}, values)
    known = schema.get("properties", {})
    for key in given:
        if key not in known:
            hint = near_miss(key, known) or f"options are: {', '.join(sorted(known)) or 'none'}"
            faults.append(
                CovenError("descriptor.unknown-key", f"component type {component_type.name} has no option {key!r}",
                           hint=hint, where=document.where((*location, key), key=True))
            )  # fmt: skip
            checked.pop(key, None)
    for name in schema.get("required", ()):
        if name not in given and "default" not in known.get(name, {}):
            faults.append(
                CovenError("descriptor.invalid", f"{describe(location)}: option {name!r} is missing",
                           hint=known.get(name, {}).get("description"),
                           where=document.where(location, key=True))
            )  # fmt: skip
    for key, value in checked.items():
        found = list(check_value(known[key], value))
        places = _places(document, (*location, key)) if found else {}
        faults.extend(
            CovenError("descriptor.invalid", f"{describe((*location, key))}{place}: {message}",
                       where=document.where(places.get(place, (*location, key))))
            for place, message in found
        )  # fmt: skip


def _places(document: Document, location: Location) -> dict[str, Location]:
    """Give the locations of everything within a value by its place as messages write it."""
    length = len(location)
    return {place_of(each[length:]): each for each in document.values if each[:length] == location}


def _check_used(
    document: Document,
    ports: Mapping[str, Port],
    components: Mapping[str, Component],
    paths: tuple[Any, ...],
    faults: list[CovenError],
) -> None:
    """Refuse what no path reaches, since it would silently do nothing."""
    used = {link.target for path in paths for link in path.links} | {path.ingress for path in paths}
    for kind, names in (("ports", ports), ("components", components)):
        faults.extend(
            CovenError("descriptor.bad-path", f"no path uses {kind[:-1]} {name}",
                       hint="put it on a path or leave it out", where=document.where((kind, name), key=True))
            for name in names
            if name not in used
        )  # fmt: skip
