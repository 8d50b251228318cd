"""Variants of the executables for tests: with fault points, with sanitizers. Built once for each content and flags."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from coven.dataplane.build import CFLAGS, HERE, INCLUDE

ROOT = HERE.parents[1]
BIN = ROOT / "coven" / "bin"
FAULTS = ("-DCOVEN_FAULTS",)
SANITIZERS = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer")
PROGRAMS = ("worker", "component_host")


def _cache() -> Path:
    folder = Path(tempfile.gettempdir()) / f"coven-test-builds-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def _key(flags: tuple[str, ...]) -> str:
    digest = hashlib.sha256(repr((CFLAGS, flags)).encode())
    for path in sorted([*HERE.glob("*.[chd]*"), *HERE.glob("programs/*.c"), *INCLUDE.glob("coven/*.h")]):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()[:24]


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr}"


def executables(*flags: str) -> Path:
    """Give a folder like coven/bin with coven-worker and coven-component-host compiled with further flags.

    The other executables are those of coven/bin. Safe when several test processes ask at once.
    """
    target = _cache() / _key(flags)
    with (target.parent / f"{target.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if target.exists():
            return target
        work = Path(tempfile.mkdtemp(dir=target.parent))
        sources = [p for p in sorted(HERE.glob("*.c")) if p.name != "_core.c"]
        command = ["gcc", *CFLAGS, *flags, f"-I{INCLUDE}", f"-I{HERE}"]
        programs = [HERE / "programs" / f"{name}.c" for name in PROGRAMS]
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda p: _run([*command, "-c", str(p), "-o", str(work / f"{p.stem}-{p.parent.name}.o")]),
                          [*sources, *programs]))  # fmt: skip
        core = [str(work / f"{p.stem}-{p.parent.name}.o") for p in sources]
        for path in programs:
            name = f"coven-{path.stem.replace('_', '-')}"
            _run(["gcc", *flags, str(work / f"{path.stem}-programs.o"), *core, "-o", str(work / name), "-ldl"])
        for path in BIN.glob("coven-*"):
            if not (work / path.name).exists():
                shutil.copy2(path, work / path.name)
        work.rename(target)
    return target


def component(source: Path, *flags: str) -> Path:
    """Compile a component in C (one file) to a shared object; give its path."""
    digest = hashlib.sha256(repr(flags).encode() + source.read_bytes())
    for header in sorted(INCLUDE.glob("coven/*.h")):
        digest.update(header.read_bytes())
    target = _cache() / f"{source.stem}-{digest.hexdigest()[:24]}.so"
    if not target.exists():
        made = target.with_suffix(f".{os.getpid()}")
        _run(["gcc", "-std=gnu11", "-O2", "-g", "-Wall", "-shared", "-fPIC", *flags, f"-I{INCLUDE}", str(source), "-o", str(made)])
        made.rename(target)
    return target
