"""VNF packages: built from a folder, unpacked, checked and installed; none of their code is run here.

A package is a `.coven` archive (zip with manifest.json) or an unsigned CSAR that contains the same files.
What lies in an installed package's folder was checked when it came in and is never changed afterwards.
Called by the Management Agent and the command line.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from coven.descriptor.component import COMPONENT_FILE
from coven.descriptor.parameters import raise_all
from coven.descriptor.vnf import VNF_FILE, load_vnf, read_file
from coven.descriptor.yaml_source import Document, parse
from coven.errors import CovenError, Where
from coven.model import Vnf
from coven.package import manifest
from coven.package.archive import pack, unpack, unsafe_name
from coven.processing import framework

BUILD_FILE = "package.yaml"
INCOMING = ".incoming-"  # beginning of the name of a folder that is being filled
SKIPPED = ("__pycache__", "node_modules")
SKIPPED_ENDINGS = (".pyc", ".coven", ".csar")  # the last two: packages built into their own source folder
MAX_FILES = 8192


@dataclass(frozen=True, slots=True)
class Package:
    """A package that was checked."""

    id: str  # "<name>-<version>"
    kind: str  # "coven", "csar" or "folder"
    folder: Path  # what was installed
    root: Path  # where vnf.yaml is: the folder itself, or within it for a CSAR
    vnf: Vnf
    sha256: str  # of the manifest; empty for a folder
    files: Mapping[str, int]  # path within root -> bytes


def build(folder: Path, output: Path) -> Path:
    """Make a `.coven` archive of a source folder; give its path.

    output: the archive, or a folder in which it is called `<name>-<version>.coven`. The same content gives
    the same bytes. Raises CovenError as validate does; an existing archive stays as it is then.
    """
    with _scratch() as scratch:
        package = _assembled(folder, scratch)
        if output.is_dir():
            output = output / f"{package.id}.coven"
        manifest.write(scratch, package.files, package.vnf.name, package.vnf.version)
        try:
            with tempfile.NamedTemporaryFile(dir=output.parent, prefix=INCOMING, delete=False) as file:
                temporary = Path(file.name)
                try:
                    pack(scratch, [*package.files, manifest.MANIFEST], file.file)
                    os.fchmod(file.fileno(), 0o644)
                except BaseException:
                    temporary.unlink()
                    raise
            temporary.replace(output)
        except OSError as error:
            raise _cannot_write(output, error) from None
    return output


def validate(path: Path) -> Package:
    """Check an archive, a folder, or a vnf.yaml (its folder); nothing is run, nothing is kept.

    `folder` and `root` of the result are gone afterwards if `path` is an archive.
    Raises CovenError `package.*`, `descriptor.*`, `component.bad-code`.
    """
    if path.name == VNF_FILE and path.is_file():
        path = path.parent
    with _scratch() as scratch:
        return _assembled(path, scratch) if path.is_dir() else _unpacked(path, scratch)


def install(archive: Path, packages: Path) -> Package:
    """Unpack an archive to `packages/<id>`: completely, or not at all.

    Raises CovenError as validate does, and `package.exists`.
    """
    try:
        packages.mkdir(mode=0o755, parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=INCOMING, dir=packages))
    except OSError as error:
        raise _cannot_write(packages, error) from None
    try:
        package = _unpacked(archive, scratch)
        _settle(scratch)
        target = packages / package.id
        try:
            # Fails when the target is there, since a package's folder is never empty.
            scratch.rename(target)
        except OSError:
            if not target.exists():
                raise
            raise CovenError("package.exists", f"package {package.id} is already there",
                             hint="delete it first, or give the new one another version") from None  # fmt: skip
    except OSError as error:
        raise _cannot_write(packages, error) from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return load(target)


def load(folder: Path) -> Package:
    """Read an installed package again. Raises CovenError `package.not-found` if there is none."""
    if not folder.is_dir() or folder.name.startswith(INCOMING):
        raise CovenError("package.not-found", f"there is no package {folder.name}")
    names = _list(folder, is_source=False)
    kind = "coven" if manifest.MANIFEST in names else "csar"
    root = folder if kind == "coven" else _find_root(folder, names)
    sha256 = manifest.digest(folder / manifest.MANIFEST) if kind == "coven" else manifest.csar_digest(folder, names)
    return Package(folder.name, kind, folder, root, load_vnf(root), sha256, _within(folder, root, names))


def is_installed(folder: Path) -> bool:
    """Tell whether a folder looks as `install` makes them, without reading it. Source folders do not."""
    if folder.is_symlink() or not folder.is_dir() or folder.name.startswith(INCOMING):
        return False
    is_csar = (folder / "TOSCA-Metadata").is_dir() or any(folder.glob("*.mf"))
    return is_csar or (folder / manifest.MANIFEST).is_file()


def remove(folder: Path) -> None:
    """Remove an installed package: at once for everybody who lists packages. Raises CovenError."""
    if not folder.is_dir():
        raise CovenError("package.not-found", f"there is no package {folder.name}")
    try:
        away = Path(tempfile.mkdtemp(prefix=INCOMING, dir=folder.parent))
        folder.rename(away / folder.name)
    except OSError as error:
        raise _cannot_write(folder, error) from None
    shutil.rmtree(away, ignore_errors=True)


def clean(packages: Path) -> None:
    """Remove what an interrupted install or removal left. Only when no other is under way."""
    if packages.is_dir():
        for path in packages.glob(f"{INCOMING}*"):
            shutil.rmtree(path, ignore_errors=True)


def _cannot_write(path: Path, error: OSError) -> CovenError:
    return CovenError("platform.no-resources", f"{path.name} cannot be written: {error.strerror}",
                      hint="look at the free space and the folder's permissions")  # fmt: skip


@contextmanager
def _scratch() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="coven-package-") as name:
        yield Path(name)


def _unpacked(archive: Path, target: Path) -> Package:
    """Unpack an archive into a folder and check everything."""
    if not archive.exists():
        raise CovenError("package.not-found", f"there is no file {archive.name}")
    files = unpack(archive, target)
    if manifest.MANIFEST in files or VNF_FILE in files:
        kind, root = "coven", target
        sha256 = manifest.check(target, files)
    elif any(name.lower().endswith(".csar") for name in files):
        raise CovenError("package.bad-archive", "the archive contains a CSAR and its signature",
                         hint="give the .csar file within it; signatures are not checked")  # fmt: skip
    else:
        kind = "csar"
        sha256 = manifest.check_csar(target, files) if _is_csar(files) else ""
        root = _find_root(target, list(files))
    vnf = _check(root)
    return Package(f"{vnf.name}-{vnf.version}", kind, target, root, vnf, sha256, _within(target, root, list(files)))


def _is_csar(files: Mapping[str, int]) -> bool:
    if "TOSCA-Metadata/TOSCA.meta" in files or any("/" not in name and name.endswith(".mf") for name in files):
        return True
    raise CovenError("package.missing-file", f"the archive has neither {VNF_FILE} and {manifest.MANIFEST} nor "
                     "TOSCA-Metadata/TOSCA.meta", hint="`coven package build FOLDER` makes a package")  # fmt: skip


def _find_root(folder: Path, names: list[str]) -> Path:
    """Find the one COVEN descriptor of a CSAR."""
    found = [name for name in names if Path(name).name == VNF_FILE]
    if len(found) != 1:
        what = "has no COVEN descriptor (vnf.yaml)" if not found else f"has {len(found)} COVEN descriptors"
        raise CovenError("package.missing-file", f"the CSAR {what}",
                         hint="put the function's files into one folder of the CSAR, vnf.yaml at its top")  # fmt: skip
    return (folder / found[0]).parent


def _check(root: Path) -> Vnf:
    """Check a function's folder: descriptor, then each component's folder by its framework, without running it."""
    vnf = load_vnf(root)
    faults: list[CovenError] = []
    checked: set[str] = set()
    for component in vnf.components:
        if component.source in checked:
            continue
        checked.add(component.source)
        kind = component.type
        source = framework.Source(component.name, root / component.source, kind.entry, kind.build or {})
        faults.extend(_in_folder(fault, component.source) for fault in framework.check(kind.framework, source))
    raise_all(faults, "components")
    return vnf


def _in_folder(fault: CovenError, folder: str) -> CovenError:
    """Give a fault with the file's name as seen from the package's top."""
    where = fault.where
    if where is not None and where.file is not None and not where.file.startswith(f"{folder}/"):
        where = Where(f"{folder}/{where.file}", where.line, where.column, where.part)
    return CovenError(fault.code, fault.message, hint=fault.hint, where=where, findings=fault.findings)


def _settle(folder: Path) -> None:
    """Let everybody read a package: components run under other users than the agent."""
    for current, folders, _ in os.walk(folder):
        for name in folders:
            (Path(current) / name).chmod(0o755)
    folder.chmod(0o755)


def _list(folder: Path, *, is_source: bool = True) -> list[str]:
    """Give the files of a folder, relative, sorted. Raises CovenError for links, special files, bad names.

    is_source: leave out what does not belong into a package: hidden files and what tools leave behind.
    """
    names: list[str] = []
    for current, folders, files in os.walk(folder):
        if is_source:
            folders[:] = [name for name in folders if name not in SKIPPED and not name.startswith(".")]
            files = [name for name in files if not name.startswith(".") and not name.endswith(SKIPPED_ENDINGS)]
        for name in [*folders, *files]:
            path = Path(current) / name
            relative = path.relative_to(folder).as_posix()
            mode = path.lstat().st_mode
            if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
                raise CovenError("package.link-entry", f"{relative!r} is a link or special file",
                                 where=Where(relative), hint="put the file itself into the package")  # fmt: skip
            reason = unsafe_name(relative)
            if reason:
                raise CovenError("package.unsafe-path", f"the name {relative!r} {reason}", where=Where(relative))
            if stat.S_ISREG(mode):
                names.append(relative)
        if len(names) > MAX_FILES:
            raise CovenError("package.bomb", f"the folder has more than {MAX_FILES} files")
    return sorted(names)


def _within(folder: Path, root: Path, names: list[str]) -> dict[str, int]:
    """Give the files below `root` with their sizes."""
    prefix = root.relative_to(folder).as_posix()
    start = "" if prefix == "." else f"{prefix}/"
    return {
        name.removeprefix(start): (folder / name).stat().st_size
        for name in sorted(names)
        if name.startswith(start) and name != manifest.MANIFEST
    }


def _assembled(folder: Path, target: Path) -> Package:
    """Copy a source folder, and what its package.yaml adds, into `target` and check it."""
    if not folder.is_dir():
        raise CovenError("package.not-found", f"there is no folder {folder.name}")
    _copy(folder, target, [name for name in _list(folder) if name not in (BUILD_FILE, manifest.MANIFEST)])
    for place, source, where in _additions(folder):
        if (target / place).exists():
            raise CovenError("package.duplicate-entry", f"{place} is in the folder and in {BUILD_FILE}", where=where)
        if not (source / COMPONENT_FILE).is_file():
            raise CovenError("package.missing-file", f"{source.name}/{COMPONENT_FILE} is missing", where=where)
        _copy(source, target / place, _list(source))
    vnf = _check(target)
    return Package(f"{vnf.name}-{vnf.version}", "folder", folder, folder, vnf, "",
                   _within(target, target, _list(target)))  # fmt: skip


def _copy(source: Path, target: Path, names: list[str]) -> None:
    for name in names:
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, path)
        path.chmod(0o755 if (source / name).stat().st_mode & stat.S_IXUSR else 0o644)


def _additions(folder: Path) -> list[tuple[str, Path, Where]]:
    """Read package.yaml: `components:` with a place in the package -> a folder beside it."""
    if not (folder / BUILD_FILE).is_file():
        return []
    document = parse(read_file(folder / BUILD_FILE), BUILD_FILE)
    data = document.data
    if not isinstance(data, dict) or not isinstance(data.get("components", {}), dict):
        raise _build_fault(document, (), "must be a mapping with `components`, a mapping")
    for key in data:
        if key != "components":
            raise CovenError("descriptor.unknown-key", f"unknown key {key!r}", hint="known here: components",
                             where=document.where((key,), key=True))  # fmt: skip
    additions = []
    for place, source in data.get("components", {}).items():
        if unsafe_name(place) or place.endswith("/"):
            raise CovenError("package.unsafe-path", f"{place!r} is no folder within the package",
                             where=document.where(("components", place), key=True))  # fmt: skip
        if not isinstance(source, str) or "\x00" in source:
            raise _build_fault(document, ("components", place), "must name a folder")
        additions.append((place, (folder / source).resolve(), document.where(("components", place))))
    return additions


def _build_fault(document: Document, location: tuple[str, ...], message: str) -> CovenError:
    return CovenError("descriptor.invalid", f"{BUILD_FILE}: {message}", where=document.where(location))
