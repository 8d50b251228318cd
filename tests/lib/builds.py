"""What tests compile: the executables and the core with fault points or sanitizers, components, pieces of the core.

Each is made once for its sources, headers and flags, and kept in build/tests of the repository, so that the next run
has it already; `make clean` removes it. Test processes may ask at once.
"""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from coven.dataplane.build import CFLAGS, HERE, INCLUDE, core_sources, ffi

ROOT = HERE.parents[1]
BIN = ROOT / "coven" / "bin"
CACHE = ROOT / "build" / "tests"
FAULTS = ("-DCOVEN_FAULTS",)
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer")
FLOW_PARTS = ["flow.c", "flow_fragment.c", "flow_index.c", "flow_key.c", "flow_lookup.c", "parse.c"]
PROGRAMS = ("worker", "component_host")


def made_once(name: str, inputs: Iterable[Path], flags: Iterable[str], make: Callable[[Path], None]) -> Path:
    """Give a folder with what `make` put into it; inputs: the files it is made of, besides the headers of the core."""
    digest = hashlib.sha256(repr((CFLAGS, tuple(flags))).encode())
    headers = [*HERE.glob("*.h"), *HERE.glob("*.def"), *INCLUDE.glob("coven/*.h")]
    for path in sorted({*inputs, *headers}):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    CACHE.mkdir(parents=True, exist_ok=True)
    target = CACHE / f"{name}-{digest.hexdigest()[:20]}"
    with (CACHE / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not target.exists():
            work = Path(tempfile.mkdtemp(dir=CACHE, prefix="making-"))
            try:
                make(work)
                work.chmod(0o755)  # components under other users read it
                work.rename(target)
            finally:
                shutil.rmtree(work, ignore_errors=True)
    return target


def run(command: Iterable[str | Path]) -> None:
    """Run a compiler; its words are the assertion's."""
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stderr}"


def executables(*flags: str) -> Path:
    """Give a folder like coven/bin with coven-worker and coven-component-host compiled with further flags.

    The other executables are those of coven/bin.
    """
    programs = [HERE / "programs" / f"{name}.c" for name in PROGRAMS]
    sources = [path for path in sorted(HERE.glob("*.c")) if path.name != "_core.c"]
    others = [path for path in BIN.glob("coven-*") if path.name[len("coven-") :].replace("-", "_") not in PROGRAMS]

    def make(folder: Path) -> None:
        with tempfile.TemporaryDirectory(dir=CACHE) as name:
            objects = {path: Path(name) / f"{path.parent.name}-{path.stem}.o" for path in [*sources, *programs]}
            command = ["gcc", *CFLAGS, *flags, f"-I{INCLUDE}", f"-I{HERE}"]
            with ThreadPoolExecutor(2) as pool:
                list(pool.map(lambda path: run([*command, "-c", path, "-o", objects[path]]), objects))
            for path in programs:
                output = folder / f"coven-{path.stem.replace('_', '-')}"
                run(["gcc", *flags, objects[path], *(objects[source] for source in sources), "-o", output, "-ldl"])
        for path in others:
            shutil.copy2(path, folder / path.name)

    return made_once("bin", [*programs, *sources, *others], flags, make)


def core(*flags: str) -> Path:
    """Give a folder with a `_core` compiled with further flags, for COVEN_CORE."""
    sources = [ROOT / name for name in core_sources()]

    def make(folder: Path) -> None:
        generated = folder / "_core.c"
        ffi.emit_c_code(str(generated))
        own = [flag for flag in CFLAGS if not flag.startswith(("-W", "-O"))]
        include = [f"-I{path}" for path in (INCLUDE, HERE, sysconfig.get_paths()["include"])]
        run(["gcc", *own, "-O1", "-fPIC", "-shared", "-DPy_LIMITED_API=0x030B0000", *flags, *include, generated, *sources,
             "-o", folder / "_core.abi3.so"])  # fmt: skip

    return made_once("core", [*sources, HERE / "build.py"], flags, make)


def program(source: Path, parts: Iterable[str] = (), *flags: str) -> Path:
    """Compile a C program of the tests with files of the core (`parts`, by name); give its path."""
    sources = [source, *(HERE / name for name in parts)]

    def make(folder: Path) -> None:
        run(["gcc", *CFLAGS, *flags, f"-I{INCLUDE}", f"-I{HERE}", *sources, "-o", folder / source.stem])

    return made_once(source.stem, sources, flags, make) / source.stem


def shared_object(parts: Iterable[str], *flags: str) -> Path:
    """Compile files of the core (by name) to a shared object that shows all their functions; give its path."""
    sources = [HERE / name for name in parts]

    def make(folder: Path) -> None:
        shared = ("-fPIC", "-shared", "-fvisibility=default")
        run(["gcc", *CFLAGS, *shared, *flags, f"-I{INCLUDE}", f"-I{HERE}", *sources, "-o", folder / "part.so", "-ldl"])

    return made_once(sources[0].stem, sources, flags, make) / "part.so"


def component(source: Path, *flags: str) -> Path:
    """Compile a component in C (one file) to a shared object, not through the framework; give its path."""

    def make(folder: Path) -> None:
        command = ["gcc", "-std=gnu11", "-O2", "-g", "-Wall", "-shared", "-fPIC", *flags, f"-I{INCLUDE}"]
        run([*command, source, "-o", folder / f"{source.stem}.so"])

    return made_once(f"component-{source.stem}", [source], flags, make) / f"{source.stem}.so"


def component_of(folder: Path, text: str, *flags: str) -> Path:
    """Compile the text of a component in C, likewise."""
    source = folder / "text.c"
    source.write_text(text, encoding="utf-8")
    return component(source, *flags)
