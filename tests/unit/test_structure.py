"""How the parts of COVEN depend on each other, and what only one of them may touch."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted(path for path in (ROOT / "coven").rglob("*.py"))

# What a part may import, besides itself. Management and command line reach the supervisor by its socket only (that
# the command line reads where a supervisor would put its files is not a call), and nothing below reaches up to them.
COMMON = ("coven.errors", "coven.model", "coven.limits", "coven.suggest", "coven.folders", "coven.priority", "coven.flows", "coven")
ALLOWED = {
    "coven.errors": (),
    "coven.limits": (),
    "coven.suggest": (),
    "coven.folders": (),
    "coven.model": (),
    "coven.priority": ("coven.errors",),
    "coven.flows": ("coven.errors",),
    "coven.dataplane": COMMON,
    "coven.agents": COMMON,
    "coven.network": (*COMMON, "coven.dataplane"),
    "coven.processing": (*COMMON, "coven.dataplane", "coven.agents", "coven.component"),
    "coven.component": (*COMMON, "coven.processing.python"),
    "coven.descriptor": (*COMMON, "coven.processing"),
    "coven.package": (*COMMON, "coven.descriptor", "coven.processing"),
    "coven.forwarder": (*COMMON, "coven.descriptor", "coven.processing"),
    "coven.supervisor": (*COMMON, "coven.forwarder", "coven.network", "coven.processing", "coven.agents", "coven.dataplane"),
    "coven.management": (*COMMON, "coven.forwarder", "coven.package", "coven.descriptor", "coven.agents"),
    "coven.cli": (*COMMON, "coven.package", "coven.descriptor", "coven.management.problem", "coven.management.last_words",
                  "coven.supervisor.config", "coven.demo", "coven.bench"),
    "coven.demo": (*COMMON, "coven.package", "coven.cli"),
    # a whole platform measured from outside: it plans as the agent does, and reads counters where the worker writes them
    "coven.bench": (*COMMON, "coven.package", "coven.descriptor", "coven.forwarder", "coven.dataplane",
                    "coven.management.supervisor_client", "coven.demo", "coven.cli", "coven.component"),
}  # fmt: skip
TOOLS = ("coven", "coven.__main__", "coven.docs_gen")  # see everything: start-up, generated pages
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
PROGRAMS = ("coven.cli", "coven.demo", "coven.bench", "coven.management.__main__", "coven.processing.python.runtime")


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


def above(module: str) -> str:
    """Give the package that a module is in: `from coven.supervisor import config` names both."""
    return module.rpartition(".")[0]


def is_within(module: str, part: str) -> bool:
    return module == part or module.startswith(f"{part}.")


@pytest.mark.parametrize("part", ALLOWED)
def test_dependencies_point_one_way(part: str) -> None:
    found = [
        (name_of(path), module)
        for path in MODULES
        if is_within(name_of(path), part)
        for module in imports(path)
        if is_within(module, "coven") and not any(is_within(module, p) for p in (part, *ALLOWED[part]) if p != "coven")
        and module not in ("coven", "coven.__version__", *(above(p) for p in ALLOWED[part]))
    ]  # fmt: skip
    assert found == []


def test_every_module_belongs_to_a_part() -> None:
    names = {name_of(path) for path in MODULES}
    assert {name for name in names if name not in TOOLS and not any(is_within(name, part) for part in ALLOWED)} == set()
    assert {part for part in ALLOWED if part not in names} == set()


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
