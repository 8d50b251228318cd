"""Builds of the core with fault points in (-DCOVEN_FAULTS), made once for each state of the sources."""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
from pathlib import Path

from coven.dataplane.build import CFLAGS, HERE, INCLUDE, core_sources, ffi

ROOT = Path(__file__).resolve().parents[2]


def faulty_core() -> Path:
    """Give a folder with a `_core` that has fault points, for COVEN_CORE."""
    sources = [ROOT / name for name in core_sources()]
    digest = hashlib.sha256()
    for path in sorted({*sources, *HERE.rglob("*.h"), *HERE.glob("*.def"), HERE / "build.py"}):
        digest.update(path.read_bytes())
    target = ROOT / "build" / f"faults-{digest.hexdigest()[:16]}"
    if target.exists():
        return target
    target.parent.mkdir(exist_ok=True)
    made = Path(tempfile.mkdtemp(dir=target.parent))
    ffi.emit_c_code(str(made / "_core.c"))
    import sysconfig

    include = [f"-I{path}" for path in (INCLUDE, HERE, sysconfig.get_paths()["include"])]
    flags = [flag for flag in CFLAGS if not flag.startswith(("-W", "-O"))]
    command = ["cc", *flags, "-O1", "-fPIC", "-shared", "-DCOVEN_FAULTS", "-DPy_LIMITED_API=0x030B0000", *include,
               "-o", str(made / "_core.abi3.so"), str(made / "_core.c"), *map(str, sources)]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    made.chmod(0o755)
    try:
        os.rename(made, target)  # noqa: PTH104 - fails when another run was faster, which is as good
    except OSError:
        assert target.exists()
    return target
