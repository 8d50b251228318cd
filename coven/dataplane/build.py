"""How the C core is compiled: the cffi module `_core` and the executables in `coven/bin`.

The only place where C is declared to Python. Structures and constants come from abi.h itself, so that
Python cannot disagree with them; so do functions, from the headers that are listed here.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import cffi
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.errors import CompileError

HERE = Path(__file__).resolve().parent
INCLUDE = HERE / "include"

CFLAGS = [
    "-std=gnu11", "-O2", "-g", "-fno-strict-aliasing", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wshadow",
    "-Wvla", "-Wmissing-prototypes",
]  # fmt: skip

# What each executable is made of besides programs/<name>.c and programs/<name>_*.c: the whole core, or nothing.
PROGRAMS: dict[str, bool] = {
    "coven-worker": True,
    "coven-component-host": True,
    "coven-launch": False,
    "coven-keeper": False,
}

# Functions that Python calls of headers that are otherwise the worker's own.
FUNCTIONS = """
uint64_t coven_ledger_bytes(const struct coven_plan *plan);
uint64_t coven_ledger_breadcrumb_offset(void);
uint64_t coven_ledger_poison_offset(void);
int64_t coven_capture_check(int fd, char *why, size_t why_bytes);
const char *coven_syscall_name(uint32_t architecture, uint32_t number);
"""
INCLUDES: list[str] = ["ledger.h", "capture.h", "syscalls.h"]

# Headers whose whole content Python may use, but for inline functions; declared from their own text.
FUNCTION_HEADERS: list[str] = ["ring.h", "control.h", "state.h", "client.h", "flow.h", "flow_export.h"]


def core_sources() -> list[str]:
    """Give the C files of the core, relative to the repository root, in a stable order."""
    return [f"coven/dataplane/{path.name}" for path in sorted(HERE.glob("*.c")) if path.name != "_core.c"]


def header_declarations(path: Path) -> str:
    """Give a header as cffi can read it: without includes, assertions, attributes, computed macros and inline code."""
    text = path.read_text(encoding="utf-8")
    text = re.sub(r"\s*__attribute__\(\(.*?\)\)", "", text)
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
    text = re.sub(r"_Static_assert\(.*?\);", "", text, flags=re.DOTALL)
    text = re.sub(r"^static inline [^;{]*\{.*?^\}$", "", text, flags=re.DOTALL | re.MULTILINE)
    text = text.replace("\\\n", " ")
    kept = []
    for line in text.splitlines():
        if line.startswith("#"):
            constant = re.fullmatch(r"#define (\w+) ((?:0x)?[0-9a-f]+)(?:u|ull)?\s*", line, re.IGNORECASE)
            if constant:
                kept.append(f"#define {constant[1]} {constant[2]}")
            continue
        kept.append(line)
    return "\n".join(kept)


ffi = cffi.FFI()
ffi.cdef(
    header_declarations(INCLUDE / "coven" / "abi.h")
    + "".join(header_declarations(HERE / name) for name in FUNCTION_HEADERS)
    + FUNCTIONS
)
ffi.set_source(
    "coven.dataplane._core",
    "#include <coven/abi.h>\n" + "".join(f'#include "{name}"\n' for name in FUNCTION_HEADERS + INCLUDES),
    sources=core_sources(),
    include_dirs=[str(INCLUDE), str(HERE)],
    extra_compile_args=CFLAGS,
    py_limited_api=True,
)


class BuildPrograms(build_ext):
    """build_ext that also links the executables of the data plane."""

    def run(self) -> None:
        """Build `_core`, then the executables, into the build tree or in place."""
        super().run()
        root = Path(__file__).resolve().parents[2]
        target = (root if self.inplace else Path(self.build_lib)) / "coven" / "bin"
        target.mkdir(parents=True, exist_ok=True)
        for name, with_core in PROGRAMS.items():
            source = HERE / "programs" / f"{name.removeprefix('coven-').replace('-', '_')}.c"
            parts = [source, *sorted(source.parent.glob(f"{source.stem}_*.c"))]
            sources = [str(part.relative_to(root)) for part in parts] + (core_sources() if with_core else [])
            try:
                objects = self.compiler.compile(
                    sources,
                    output_dir=str(Path(self.build_temp) / name),
                    include_dirs=[str(INCLUDE), str(HERE)],
                    extra_postargs=CFLAGS,
                )
            except CompileError as error:
                raise CompileError(f"{name}: {error}") from error
            self.compiler.link_executable(
                objects, name, output_dir=str(target), libraries=["dl"], extra_postargs=["-Wl,--gc-sections"]
            )


class BuildExamples(build_py):
    """build_py that also takes along what `coven demo` deploys, since it lies beside the package, not in it."""

    def run(self) -> None:
        """Copy packages/ and vnfc_examples/ to coven/examples; an editable installation uses them where they are."""
        super().run()
        if getattr(self, "editable_mode", False):
            return
        for name in ("packages", "vnfc_examples"):
            target = Path(self.build_lib) / "coven" / "examples" / name
            shutil.rmtree(target, ignore_errors=True)
            shutil.copytree(HERE.parents[1] / name, target, ignore=shutil.ignore_patterns("__pycache__", "*.o", "*.so"))
