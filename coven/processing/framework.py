"""What a framework is, and which ones there are.

A framework is a subpackage of `coven.processing` with two files: `framework.yaml` (what can be said without code)
and `framework.py` with a constant `FRAMEWORK` that satisfies the protocol below. Adding one touches no other
file. Nothing here runs code of a component: frameworks give commands as data, the supervisor runs them through
coven-launch as the component's user.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import jsonschema
import yaml

from coven.errors import CovenError, Where
from coven.model import Isolation

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True, slots=True)
class FrameworkInfo:
    """framework.yaml: what a framework is, readable without importing it."""

    name: str
    summary: str
    modes: tuple[Isolation, ...]  # the ways its components can be kept apart
    entry_suffixes: tuple[str, ...]  # of the file that component.yaml names as `entry`
    build: Mapping[str, Any]  # JSON Schema of component.yaml's `build`

    @property
    def can_fuse(self) -> bool:
        """Whether its components can run inside the worker."""
        return Isolation.FUSED in self.modes


@dataclass(frozen=True, slots=True)
class Source:
    """A component as its package gives it: everything a framework needs to build and launch it."""

    component: str  # name, for messages
    folder: Path  # absolute; read only for whoever builds or runs it
    entry: str  # file within the folder
    build: Mapping[str, Any] = field(
        default_factory=dict
    )  # of component.yaml, valid by FrameworkInfo.build

    @property
    def where(self) -> str:
        """The part of an error about this component."""
        return f"component {self.component}"


@dataclass(frozen=True, slots=True)
class Build:
    """Commands that turn a source folder into an artifact: run in order, each must end with status 0.

    To be run in the sandbox, as the component's user, in `source.folder` (read only), with `output` writable
    and all of `read` visible; standard error goes to Framework.findings().
    """

    commands: tuple[tuple[str, ...], ...]  # argv, the program by absolute path
    output: Path  # folder, exists and is empty
    artifact: Path  # file in `output` that is there afterwards
    read: tuple[
        Path, ...
    ] = ()  # files and folders needed besides the source folder and the system's own
    key: str = ""  # digest of all that the artifact depends on; the same key, the same artifact


@dataclass(frozen=True, slots=True)
class Launch:
    """How an isolated component is started; descriptors and environment are those of the launch contract."""

    argv: tuple[str, ...]  # the program by absolute path
    entry: Path  # goes into the `start` message: what the process is to load
    read: tuple[Path, ...] = ()  # as in Build


class Framework(Protocol):
    """What each framework gives. All methods are pure but for reading files."""

    def check(self, source: Source) -> tuple[CovenError, ...]:
        """Look at a component's folder without running anything; give all faults found."""

    def toolchain(self) -> tuple[CovenError, ...]:
        """Say which programs are missing or too old (component.toolchain-missing), with what to install."""

    def build(self, source: Source, output: Path) -> Build | None:
        """Say how to build it into the folder `output`; None when it runs as it is.

        Raises CovenError (component.toolchain-missing).
        """

    def findings(self, source: Source, stderr: str) -> tuple[CovenError, ...]:
        """Turn what a failed build wrote into findings with file (relative to the folder), line and column."""

    def launch(self, source: Source, artifact: Path | None, bin_dir: Path) -> Launch:
        """Say how to start it in a process of its own.

        artifact: of the build, None without one. bin_dir: where the programs of COVEN are.
        """

    def fused(self, source: Source, artifact: Path | None) -> Path:
        """Give the shared object that the worker loads. Only asked when FrameworkInfo.can_fuse."""


@functools.cache
def names() -> tuple[str, ...]:
    """Give the names of all frameworks, in alphabetical order."""
    return tuple(sorted(path.parent.name for path in HERE.glob("*/framework.yaml")))


@functools.cache
def information(name: str) -> FrameworkInfo:
    """Read what a framework says of itself. Raises CovenError (descriptor.unknown-framework)."""
    if name not in names():
        raise CovenError(
            "descriptor.unknown-framework",
            f"there is no framework {name!r}",
            hint=f"frameworks are: {', '.join(names())}",
        )
    document = yaml.safe_load((HERE / name / "framework.yaml").read_text(encoding="utf-8"))
    return FrameworkInfo(
        name=name,
        summary=document["summary"],
        modes=tuple(Isolation(mode) for mode in document["modes"]),
        entry_suffixes=tuple(document["entry_suffixes"]),
        build=document["build"],
    )


@functools.cache
def load(name: str) -> Framework:
    """Give a framework by name. Raises CovenError (descriptor.unknown-framework)."""
    information(name)
    framework: Framework = importlib.import_module(f"coven.processing.{name}.framework").FRAMEWORK
    return framework


def check(name: str, source: Source) -> tuple[CovenError, ...]:
    """Check a component's `build`, entry and folder without running anything; give all faults found."""
    info = information(name)
    validator = jsonschema.Draft202012Validator(dict(info.build))
    faults = [
        CovenError(
            "descriptor.invalid",
            f"{'.'.join(('build', *map(str, error.absolute_path)))}: {error.message}",
            where=Where(file="component.yaml", part=source.where),
        )
        for error in validator.iter_errors(dict(source.build))
    ]
    fault = file_fault(source, source.entry, "entry")
    if fault:
        faults.append(fault)
    elif not source.entry.endswith(info.entry_suffixes):
        faults.append(
            CovenError(
                "descriptor.invalid",
                f"the entry of a {name} component ends with {' or '.join(info.entry_suffixes)}, "
                f"not {source.entry!r}",
                where=Where(file="component.yaml", part=source.where),
            )
        )
    return tuple(faults) if faults else load(name).check(source)


def file_fault(source: Source, name: str, key: str) -> CovenError | None:
    """Check that `name` is a file inside the component's folder; `key` is what names it in component.yaml."""
    where = Where(file="component.yaml", part=source.where)
    path = source.folder / name
    if not path.resolve().is_relative_to(source.folder.resolve()):
        return CovenError(
            "package.unsafe-path", f"{key}: {name!r} is outside the component's folder", where=where
        )
    if not path.is_file():
        return CovenError(
            "package.missing-file",
            f"{key}: there is no file {name!r} in the component's folder",
            hint="add the file or correct component.yaml",
            where=where,
        )
    return None


def build_failed(name: str, source: Source, stderr: str) -> CovenError:
    """Give the error of a build that failed, with all the findings in what it wrote."""
    findings = load(name).findings(source, stderr)
    first = findings[0].message if findings else stderr.strip()[-400:] or "no output"
    return CovenError(
        "component.compile-failed",
        f"component {source.component} does not compile: {first}",
        hint="correct the source; all findings are listed" if findings else None,
        where=findings[0].where if findings else Where(part=source.where),
        findings=findings,
    )
