"""How the parts of COVEN depend on each other, and what only one of them may touch."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted(path for path in (ROOT / "coven").rglob("*.py"))

# What a part may not import. Management and command line reach the supervisor by its socket only, and
# nothing below reaches up to them.
FORBIDDEN = {
    "coven.management": ("coven.cli", "coven.demo"),
    "coven.supervisor": ("coven.management", "coven.cli", "coven.demo"),
    "coven.forwarder": ("coven.management", "coven.supervisor", "coven.network", "coven.cli", "coven.demo"),
    "coven.network": ("coven.management", "coven.supervisor", "coven.cli", "coven.demo"),
    "coven.processing": ("coven.management", "coven.supervisor", "coven.forwarder", "coven.network", "coven.cli", "coven.demo"),
    "coven.agents": ("coven.management", "coven.supervisor", "coven.forwarder", "coven.network", "coven.cli", "coven.demo"),
    "coven.dataplane": ("coven.management", "coven.supervisor", "coven.network", "coven.processing", "coven.agents", "coven.cli", "coven.demo"),
    "coven.errors": ("coven",),
    "coven.model": ("coven",),
    "coven.limits": ("coven",),
}  # fmt: skip
# Parts of the pure planner: no files, no processes, no sockets, no clock.
PURE = ("coven.forwarder.plan", "coven.forwarder.plan_check", "coven.forwarder.instance_plan", "coven.forwarder.bindings",
        "coven.descriptor.parameters", "coven.descriptor.paths", "coven.descriptor.option_schema", "coven.model", "coven.limits", "coven.errors")  # fmt: skip
IMPURE_MODULES = {
    "os",
    "socket",
    "subprocess",
    "time",
    "shutil",
    "tempfile",
    "asyncio",
    "threading",
    "random",
    "secrets",
}
# These are programs: what they print goes to a person or to a log.
PROGRAMS = ("coven.cli", "coven.demo", "coven.management.__main__", "coven.processing.python.runtime")


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> Iterator[str]:
    """Give the modules that a file imports, wherever in it."""
    package = name_of(path) if path.name == "__init__.py" else name_of(path).rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def is_within(module: str, part: str) -> bool:
    return module == part or module.startswith(f"{part}.")


@pytest.mark.parametrize("part", FORBIDDEN)
def test_dependencies_point_one_way(part: str) -> None:
    found = [
        (name_of(path), module)
        for path in MODULES
        if is_within(name_of(path), part)
        for module in imports(path)
        if any(is_within(module, forbidden) for forbidden in FORBIDDEN[part])
    ]
    assert found == []


def test_planning_is_pure() -> None:
    for path in MODULES:
        if name_of(path) in PURE:
            assert not set(imports(path)) & IMPURE_MODULES, path
            text = path.read_text(encoding="utf-8")
            assert not any(word in text for word in ("open(", "read_text(", "read_bytes(", "write_text(")), path
    assert set(PURE) <= {name_of(path) for path in MODULES}


def test_only_core_touches_the_binding() -> None:
    touching = {name_of(path) for path in MODULES if any(is_within(m, "coven.dataplane._core") for m in imports(path))}
    assert touching <= {"coven.dataplane.core"}


def test_the_library_does_not_print() -> None:
    for path in MODULES:
        if any(is_within(name_of(path), program) for program in PROGRAMS):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id != "print", f"{path}:{node.lineno}"


def test_every_module_says_what_it_is() -> None:
    for path in MODULES:
        if path.name != "_core.py":
            assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path
