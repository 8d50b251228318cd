"""The manifests of packages: SHA-256 of every file, so that a package is what its maker packed.

A `.coven` archive has `manifest.json`. A CSAR has a `.mf` file (ETSI GS NFV-SOL 004), whose digests are held
against the files as well. `manifest.cms` is the name kept for a signature over manifest.json.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from coven.errors import CovenError, Where
from coven.package.archive import bad, unsafe_name

MANIFEST = "manifest.json"
SIGNATURE = "manifest.cms"
MANIFEST_VERSION = 1
MAX_BYTES = 4 << 20
ALGORITHMS = {"SHA-224": "sha224", "SHA-256": "sha256", "SHA-384": "sha384", "SHA-512": "sha512"}


def digest(path: Path, algorithm: str = "sha256") -> str:
    """Give a file's digest in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def write(folder: Path, names: Iterable[str], name: str, version: str) -> None:
    """Write manifest.json for the files `names` of a folder."""
    files = {each: {"bytes": (folder / each).stat().st_size, "sha256": digest(folder / each)} for each in sorted(names)}
    document = {"coven": MANIFEST_VERSION, "name": name, "version": version, "files": files}
    text = json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def _read(folder: Path) -> Mapping[str, Any]:
    where = Where(MANIFEST)
    path = folder / MANIFEST
    if path.stat().st_size > MAX_BYTES:
        raise CovenError("package.bad-archive", f"the manifest is longer than {MAX_BYTES} bytes", where=where)
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["coven"] != MANIFEST_VERSION:
            raise CovenError("package.bad-archive", "the manifest is of another version", where=where)
        files = {str(name): str(file["sha256"]).lower() for name, file in document["files"].items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise CovenError("package.bad-archive", "the manifest cannot be read", where=where,
                         hint="`coven package build` writes it") from None  # fmt: skip
    return files


def check(folder: Path, names: Iterable[str]) -> str:
    """Hold the files `names` against manifest.json, both ways; give the manifest's SHA-256.

    Raises CovenError `package.bad-checksum`, `package.missing-file` or `package.bad-archive`.
    """
    present = set(names)
    if MANIFEST not in present:
        raise CovenError("package.missing-file", f"the package has no {MANIFEST}",
                         hint="`coven package build FOLDER` makes it", where=Where(MANIFEST))  # fmt: skip
    listed = _read(folder)
    faults = []
    for name in sorted(present - {MANIFEST, SIGNATURE}):
        if name not in listed:
            faults.append(_changed(name, "is not in the manifest"))
        elif digest(folder / name) != listed[name]:
            faults.append(_changed(name, "is not the file that the manifest was made for"))
    faults += [
        CovenError("package.missing-file", f"{name!r} is in the manifest but not in the package",
                   where=Where(MANIFEST))
        for name in sorted(set(listed) - present)
    ]  # fmt: skip
    if faults:
        if len(faults) == 1:
            raise faults[0]
        raise CovenError(faults[0].code, f"{len(faults)} files do not fit the manifest", findings=tuple(faults[:100]))
    return digest(folder / MANIFEST)


def _changed(name: str, message: str) -> CovenError:
    return CovenError("package.bad-checksum", f"{name!r} {message}", where=Where(name),
                      hint="the package was changed after it was built: build it again")  # fmt: skip


def check_csar(folder: Path, names: Iterable[str]) -> str:
    """Hold the files of a CSAR against the digests of its manifest; give the manifest's SHA-256.

    The manifest is read tolerantly (CRLF, comments, keys in any order and case), as those in the wild need.
    Files without digest are let through: SOL 004 asks for digests only where there is a signature.
    """
    present = set(names)
    manifest = _find_csar_manifest(folder, present)
    digests: dict[tuple[str, str], str] = {}  # a manifest may name a large file a thousand times
    for source, algorithm, expected, line in _csar_sources(folder / manifest, manifest):
        where = Where(manifest, line)
        if "://" in source or source.startswith("//"):
            raise CovenError("package.unsafe-path", f"the source {source[:100]!r} is elsewhere", where=where,
                             hint="a package must contain all its files")  # fmt: skip
        if unsafe_name(source):
            raise CovenError("package.unsafe-path", f"the source {source[:100]!r} {unsafe_name(source)}", where=where)
        if source not in present:
            raise CovenError("package.missing-file", f"the source {source!r} is not in the package", where=where)
        if expected is None:
            continue
        name = ALGORITHMS.get(algorithm.upper().replace("SHA", "SHA-").replace("--", "-"))
        if name is None:
            raise CovenError("package.bad-checksum", f"the algorithm {algorithm[:40]!r} is not known", where=where,
                             hint=f"algorithms are: {', '.join(ALGORITHMS)}")  # fmt: skip
        if (source, name) not in digests:
            digests[source, name] = digest(folder / source, name)
        if digests[source, name] != expected.lower():
            raise CovenError("package.bad-checksum", f"{source!r} is not the file that the manifest was made for",
                             where=where)  # fmt: skip
    return digest(folder / manifest)


def csar_digest(folder: Path, names: Iterable[str]) -> str:
    """Give the SHA-256 of a CSAR's manifest. Raises CovenError `package.missing-file`."""
    return digest(folder / _find_csar_manifest(folder, set(names)))


def _find_csar_manifest(folder: Path, present: set[str]) -> str:
    """Find a CSAR's manifest: named by TOSCA.meta, or the only .mf at the top."""
    meta = "TOSCA-Metadata/TOSCA.meta"
    if meta in present:
        for line in _lines(folder / meta, meta):
            key, _, value = line.partition(":")
            if key.strip().lower().removeprefix("etsi-") == "entry-manifest":
                if value.strip() not in present:
                    bad(f"the manifest {value.strip()[:100]!r} is not in the package", "package.missing-file", meta)
                return value.strip()
    top = [name for name in present if "/" not in name and name.endswith(".mf")]
    if len(top) != 1:
        raise CovenError("package.missing-file", "the CSAR has no manifest (.mf)",
                         hint="name it in TOSCA-Metadata/TOSCA.meta: ETSI-Entry-Manifest: NAME.mf")  # fmt: skip
    return top[0]


def _lines(path: Path, name: str) -> list[str]:
    if path.stat().st_size > MAX_BYTES:
        bad(f"the file is longer than {MAX_BYTES} bytes", name=name)
    return path.read_text(encoding="utf-8", errors="replace").splitlines()


def _csar_sources(path: Path, name: str) -> list[tuple[str, str, str | None, int]]:
    """Give source, algorithm, digest (None without) and line of each entry of a CSAR's manifest."""
    sources: list[dict[str, str]] = []
    numbers: list[int] = []
    for number, text in enumerate(_lines(path, name), start=1):
        if text.startswith("-----BEGIN CMS-----"):
            break
        key, colon, value = text.partition(":")
        word = key.strip().lower()
        if text.lstrip().startswith("#") or not colon:
            continue
        if word == "source":
            sources.append({"source": value.strip()})
            numbers.append(number)
        elif word in ("algorithm", "hash") and sources:
            sources[-1][word] = value.strip()
    return [
        (each["source"], each.get("algorithm", "SHA-256"), each.get("hash"), number)
        for each, number in zip(sources, numbers, strict=True)
    ]
