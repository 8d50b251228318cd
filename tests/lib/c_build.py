"""Compiles components through the framework, and single files of the core with fault points, for tests."""

from __future__ import annotations

import dataclasses
import functools
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from coven.dataplane.build import CFLAGS, INCLUDE
from coven.descriptor.component import COMPONENT_FILE, parse_component_type
from coven.processing.framework import Source, load
from tests.lib.builds import component

ROOT = Path(__file__).resolve().parents[2]
DATAPLANE = ROOT / "coven" / "dataplane"
EXAMPLES = ROOT / "vnfc_examples"

@functools.cache
def scratch() -> Path:
    """Give a folder that is gone when the test process ends."""
    holder = tempfile.TemporaryDirectory(prefix="coven-test-")
    _kept.append(holder)
    return Path(holder.name)


_kept: list[tempfile.TemporaryDirectory[str]] = []


def compile_c(output: Path, sources: list[Path], *flags: str, compiler: str = "cc") -> Path:
    """Compile and link C files with the core's own flags."""
    command = [compiler, *CFLAGS, f"-I{INCLUDE}", f"-I{DATAPLANE}", *flags, "-o", str(output), *map(str, sources)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return output


def run_build(source: Source, output: Path) -> tuple[int, str]:
    """Build a component in C into `output`, as the supervisor does but without a sandbox; status and stderr."""
    build = load("c").build(source, output)
    assert build is not None
    for command in build.commands:
        done = subprocess.run(command, cwd=source.folder, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            return done.returncode, done.stderr
    assert build.artifact.is_file()
    return 0, ""


@functools.cache
def example(name: str) -> tuple[Path, dict[str, Any]]:
    """Build a component of vnfc_examples: the object's path, and its row for a plan."""
    folder = EXAMPLES / name
    kind = parse_component_type((folder / COMPONENT_FILE).read_bytes(), COMPONENT_FILE)
    output = Path(tempfile.mkdtemp(dir=scratch(), prefix=f"{name}-"))
    source = Source(name, folder, kind.entry, kind.build or {})
    assert load("c").check(source) == ()
    assert run_build(source, output) == (0, "")
    keys = ("name", "outputs", "metrics", "operations", "state", "hold")
    row = {key: value for key, value in dataclasses.asdict(kind).items() if key in keys and value is not None}
    return output / f"{name}.so", row


def object_of(folder: Path, text: str, *flags: str) -> Path:
    """Compile the text of a component in C to a shared object, not through the framework."""
    source = folder / "text.c"
    source.write_text(text, encoding="utf-8")
    return component(source, *flags)
