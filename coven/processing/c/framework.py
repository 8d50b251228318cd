"""Builds, checks and launches components in C."""

from __future__ import annotations

import hashlib
import platform
import re
import shutil
import struct
from pathlib import Path, PurePosixPath

from coven.errors import CovenError, Where
from coven.processing.framework import Build, Launch, Source, file_fault

INCLUDE = Path(__file__).resolve().parents[2] / "dataplane" / "include"
ENTRY_SYMBOL = b"coven_component_entry"

CFLAGS = (
    "-std=gnu11", "-Wall", "-O2", "-g", "-fPIC", "-shared", "-fvisibility=hidden", "-fno-strict-aliasing",
    "-fdiagnostics-color=never", "-fno-diagnostics-show-caret", "-Wl,-z,defs", "-Wl,--build-id=none",
)  # fmt: skip

# ELF e_machine by the kernel's name of the machine (System V ABI, processor supplements).
ELF_MACHINES = {"x86_64": 62, "aarch64": 183, "riscv64": 243, "ppc64le": 21, "s390x": 22}

# "filter.c:12:5: error: ..." of gcc and clang; a fatal error (missing header) is one as well.
DIAGNOSTIC = re.compile(
    r"^(?P<file>[^\s:][^:]*):(?P<line>\d+):(?P<column>\d+): (?:fatal )?error: (?P<text>.+)$"
)
# "/usr/bin/ld: filter.c:12:(.text+0x1): undefined reference to `x'": of the linker, line when compiled with -g.
LINK = re.compile(
    r"(?:^|[\s(])(?P<file>[^\s:()]+\.c):(?:(?P<line>\d+):)?.*?(?P<text>(?:undefined reference|multiple definition).+)$"
)
MISSING_LIBRARY = re.compile(r"cannot find -l(?P<name>[^\s:]+)")


class CFramework:
    """The framework `c`: see coven.processing.framework.Framework for what each method is for."""

    def check(self, source: Source) -> tuple[CovenError, ...]:
        """Check that all named files are there and that a prebuilt object fits this machine."""
        if source.entry.endswith(".so"):
            fault = self._check_prebuilt(source)
            return (fault,) if fault else ()
        faults = [
            file_fault(source, name, "build.sources") for name in source.build.get("sources", ())
        ]
        for name in source.build.get("include", ()):
            folder = (source.folder / name).resolve()
            if not folder.is_relative_to(source.folder.resolve()) or not folder.is_dir():
                faults.append(
                    CovenError(
                        "package.missing-file",
                        f"build.include: there is no folder {name!r} in the component's folder",
                        where=Where(file="component.yaml", part=source.where),
                    )
                )
        return tuple(fault for fault in faults if fault)

    def toolchain(self) -> tuple[CovenError, ...]:
        """Say whether a C compiler is missing."""
        if compiler() is None:
            return (
                CovenError(
                    "component.toolchain-missing",
                    "there is no C compiler (gcc or cc)",
                    hint="apt install gcc libc6-dev",
                ),
            )
        return ()

    def build(self, source: Source, output: Path) -> Build | None:
        """Say how to compile it; None for a prebuilt object."""
        if source.entry.endswith(".so"):
            return None
        program = compiler()
        if program is None:
            raise self.toolchain()[0]
        artifact = output / f"{source.component}.so"
        files = (source.entry, *source.build.get("sources", ()))
        flags = (
            *CFLAGS,
            *(f"-D{name}={value}" for name, value in source.build.get("defines", {}).items()),
            "-I.",
            *(f"-I{name}" for name in source.build.get("include", ())),
            f"-I{INCLUDE}",
        )
        libraries = tuple(f"-l{name}" for name in source.build.get("libraries", ()))
        command = (
            program,
            *flags,
            f"-ffile-prefix-map={source.folder}=.",
            "-o",
            str(artifact),
            *(f"./{name}" for name in files),
            *libraries,
        )
        return Build(
            commands=(command,),
            output=output,
            artifact=artifact,
            read=(INCLUDE,),
            key=self._key(source, program, flags, files, libraries),
        )

    def findings(self, source: Source, stderr: str) -> tuple[CovenError, ...]:
        """Read the compiler's and the linker's errors."""
        found: dict[tuple[str | None, int | None, str], CovenError] = {}
        for line in stderr.splitlines():
            diagnostic = DIAGNOSTIC.match(line) or LINK.search(line)
            if diagnostic:
                groups = diagnostic.groupdict()
                column = groups.get("column")
                where = Where(
                    file=str(PurePosixPath(groups["file"])),
                    line=int(groups["line"]) if groups["line"] else None,
                    column=int(column) if column else None,
                    part=source.where,
                )
                text, hint = groups["text"], None
            elif library := MISSING_LIBRARY.search(line):
                where = Where(file="component.yaml", part=source.where)
                text = f"the library {library['name']} is not installed"
                hint = f"apt install lib{library['name']}-dev, or take it out of build.libraries"
            else:
                continue
            key = (where.file, where.line, text)
            found.setdefault(
                key, CovenError("component.compile-failed", text, hint=hint, where=where)
            )
        return tuple(found.values())

    def launch(self, source: Source, artifact: Path | None, bin_dir: Path) -> Launch:
        """Start it in coven-component-host."""
        entry = self.fused(source, artifact)
        return Launch(argv=(str(bin_dir / "coven-component-host"),), entry=entry, read=(entry,))

    def fused(self, source: Source, artifact: Path | None) -> Path:
        """Give the compiled object, or the prebuilt one."""
        return artifact if artifact is not None else source.folder / source.entry

    def _check_prebuilt(self, source: Source) -> CovenError | None:
        where = Where(file=source.entry, part=source.where)
        data = (source.folder / source.entry).read_bytes()
        # ELF header (System V ABI): magic, class 2 = 64 bit, data 1 = little endian; type 3 = shared object
        if len(data) < 64 or data[:4] != b"\x7fELF":
            return CovenError(
                "component.bad-code", "the prebuilt component is no ELF shared object", where=where
            )
        kind, machine = struct.unpack_from("<HH" if data[5] == 1 else ">HH", data, 16)
        wanted = ELF_MACHINES.get(platform.machine())
        if kind != 3 or data[4] != 2 or (wanted is not None and machine != wanted):
            return CovenError(
                "component.bad-code",
                f"the prebuilt component is no 64-bit shared object for {platform.machine()}",
                hint="put the source into the package, or an object built for this machine",
                where=where,
            )
        if ENTRY_SYMBOL not in data:
            return CovenError(
                "component.bad-code",
                f"the prebuilt component has no symbol {ENTRY_SYMBOL.decode()}",
                hint="end the source with COVEN_COMPONENT(...)",
                where=where,
            )
        return None

    def _key(
        self,
        source: Source,
        program: str,
        flags: tuple[str, ...],
        files: tuple[str, ...],
        libraries: tuple[str, ...],
    ) -> str:
        """Digest what the object depends on: compiler, flags, all files of the folder, COVEN's headers."""
        status = Path(program).resolve().stat()
        digest = hashlib.sha256(repr((program, status.st_size, status.st_mtime_ns)).encode())
        digest.update(repr((source.component, flags, files, libraries)).encode())
        for folder in (source.folder, INCLUDE):
            for path in sorted(folder.rglob("*")):
                if path.is_file() and path.suffix in (".c", ".h", ".inc", ".def"):
                    content = path.read_bytes()
                    digest.update(
                        repr((str(path.relative_to(folder)), len(content))).encode() + content
                    )
        return digest.hexdigest()


def compiler() -> str | None:
    """Give the path of the C compiler, gcc before cc."""
    return shutil.which("gcc") or shutil.which("cc")


FRAMEWORK = CFramework()
