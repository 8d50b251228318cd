"""Checks and launches components in Python. Nothing of a component is run or imported here."""

from __future__ import annotations

import ast
import sys
import threading
from pathlib import Path

from coven.errors import CovenError, Where
from coven.processing.framework import Build, Launch, Source

# The parser is recursive: what it is given is bounded, and it gets a thread with room enough.
MAX_SOURCE_BYTES = 1024 * 1024
MAX_SOURCES = 256
PARSER_STACK_BYTES = 64 * 1024 * 1024

_STACK_SIZE = threading.Lock()  # the size is a setting of the whole process

START = "from coven.processing.python.runtime import main; main()"


class PythonFramework:
    """The framework `python`: source runs as it is, always in a process of its own."""

    def check(self, source: Source) -> tuple[CovenError, ...]:
        """Parse every Python file of the folder; give all syntax errors with line and column."""
        paths = sorted(path for path in source.folder.rglob("*.py") if path.is_file())
        if len(paths) > MAX_SOURCES:
            text = f"the component has {len(paths)} Python files, at most {MAX_SOURCES} are allowed"
            return (CovenError("component.bad-code", text, where=Where(part=source.where)),)
        faults: list[CovenError] = []
        thread = threading.Thread(target=lambda: faults.extend(_faults(source, paths)))
        with _STACK_SIZE:
            before = threading.stack_size(PARSER_STACK_BYTES)
            try:
                thread.start()
            finally:
                threading.stack_size(before)
        thread.join()
        return tuple(faults)

    def toolchain(self) -> tuple[CovenError, ...]:
        """Nothing is needed but the Python that runs this."""
        return ()

    def build(self, source: Source, output: Path) -> Build | None:
        """Nothing is built."""
        return None

    def findings(self, source: Source, stderr: str) -> tuple[CovenError, ...]:
        """Nothing is built, nothing can be found."""
        return ()

    def launch(self, source: Source, artifact: Path | None, bin_dir: Path) -> Launch:
        """Start the runtime in this Python, isolated from the environment and the working directory (-I)."""
        entry = source.folder / source.entry
        return Launch(argv=(sys.executable, "-I", "-B", "-c", START), entry=entry, read=(source.folder,))

    def fused(self, source: Source, artifact: Path | None) -> Path:
        """Not possible: Python does not run inside the worker."""
        raise CovenError("platform.internal", "components in Python cannot be fused", where=Where(part=source.where))


def _faults(source: Source, paths: list[Path]) -> list[CovenError]:
    """Parse the files one by one; a CovenError for each that does not parse."""
    faults = []
    for path in paths:
        name = str(path.relative_to(source.folder))
        line = column = None
        hint = None
        try:
            if path.stat().st_size > MAX_SOURCE_BYTES:
                raise ValueError(f"larger than {MAX_SOURCE_BYTES} bytes")
            ast.parse(path.read_bytes(), name)
            continue
        except SyntaxError as error:
            text, line, column = error.msg, error.lineno or None, max(error.offset or 0, 0) or None
            hint = f"the line is: {error.text.strip()[:80]}" if error.text and error.text.strip() else None
        except (RecursionError, MemoryError):
            text = "nested too deeply"
        except (ValueError, OSError) as error:
            text = str(error)
        where = Where(file=name, line=line, column=column, part=source.where)
        faults.append(CovenError("component.bad-code", text, hint=hint, where=where))
    return faults


FRAMEWORK = PythonFramework()
