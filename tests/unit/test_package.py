"""Packages: built, checked and installed completely or not at all; none of their code runs."""

from __future__ import annotations

import hashlib
import json
import shutil
import stat
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coven import package
from coven.errors import CovenError
from coven.package.manifest import MANIFEST
from tests.lib.functions import FIRST, edited, write
from tests.lib.zips import Zip

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write(tmp_path / "source")


@pytest.fixture
def archive(source: Path, tmp_path: Path) -> Path:
    return package.build(source, tmp_path)


def refused(path: Path, store: Path) -> CovenError:
    """Validate and install, expect the same refusal of both, and check that nothing is left."""
    with pytest.raises(CovenError) as validated:
        package.validate(path)
    with pytest.raises(CovenError) as installed:
        package.install(path, store)
    assert installed.value.to_json() == validated.value.to_json()
    assert list(store.iterdir()) == []
    return installed.value


def rezip(archive: Path, **changes: bytes | None) -> None:
    """Make the archive again with files replaced, added (`/` written `__`) or, for None, left out."""
    files = {}
    with zipfile.ZipFile(archive) as old:
        files = {name: old.read(name) for name in old.namelist()}
    for name, content in changes.items():
        key = name.replace("__", "/").replace("_yaml", ".yaml").replace("_json", ".json").replace("_c", ".c")
        if content is None:
            del files[key]
        else:
            files[key] = content
    with zipfile.ZipFile(archive, "w") as new:
        for name, content in files.items():
            new.writestr(name, content)


def test_build_and_install(archive: Path, tmp_path: Path) -> None:
    assert archive.name == "fw-1.0.0.coven"
    checked = package.validate(archive)
    installed = package.install(archive, tmp_path / "store")
    assert (installed.id, installed.kind, installed.folder) == ("fw-1.0.0", "coven", tmp_path / "store/fw-1.0.0")
    assert (checked.vnf, checked.sha256, checked.files) == (installed.vnf, installed.sha256, installed.files)
    assert package.load(installed.folder) == installed
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["fw-1.0.0"]
    for path in [installed.folder, *installed.folder.rglob("*")]:
        assert stat.S_IMODE(path.stat().st_mode) == (0o755 if path.is_dir() else 0o644), path


def test_what_goes_in_comes_out(source: Path, tmp_path: Path) -> None:
    (source / "data").mkdir()
    (source / "data" / "größe.bin").write_bytes(bytes(range(256)) * 300)
    (source / "data" / "tool").write_text("#!/bin/sh\n")
    (source / "data" / "tool").chmod(0o700)
    (source / ".hidden").write_text("x")
    (source / "old.coven").write_text("x")
    (source / "vnfc" / "__pycache__").mkdir()
    (source / "vnfc" / "__pycache__" / "x.pyc").write_text("x")
    installed = package.install(package.build(source, tmp_path / "x.coven"), tmp_path / "store")
    expected = {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()}
    expected -= {".hidden", "old.coven", "vnfc/__pycache__/x.pyc"}
    assert set(installed.files) == expected
    assert all((installed.root / name).read_bytes() == (source / name).read_bytes() for name in expected)
    assert stat.S_IMODE((installed.root / "data/tool").stat().st_mode) == 0o755


def test_the_same_content_gives_the_same_archive(source: Path, archive: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    shutil.copytree(source, again)
    for path in again.rglob("*"):
        path.touch()
    assert package.build(again, tmp_path / "again.coven").read_bytes() == archive.read_bytes()


def test_a_package_is_installed_once(archive: Path, tmp_path: Path) -> None:
    package.install(archive, tmp_path / "store")
    with pytest.raises(CovenError, match=r"\[package.exists\]"):
        package.install(archive, tmp_path / "store")
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["fw-1.0.0"]


def test_removed_and_cleaned(archive: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    folder = package.install(archive, store).folder
    (store / ".incoming-left").mkdir()
    package.clean(store)
    package.remove(folder)
    assert list(store.iterdir()) == []
    for call in (package.remove, package.load):
        with pytest.raises(CovenError, match=r"\[package.not-found\]"):
            call(folder)


def test_validate_a_folder_or_its_descriptor(source: Path) -> None:
    assert package.validate(source).id == package.validate(source / "vnf.yaml").id == "fw-1.0.0"


def test_an_archive_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CovenError, match=r"\[package.not-found\]"):
        package.validate(tmp_path / "none.coven")


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"vnfc__first__first_c": b"int x;"}, "package.bad-checksum", "'vnfc/first/first.c' is not the file"),
        ({"extra": b"1"}, "package.bad-checksum", "'extra' is not in the manifest"),
        ({"vnfc__first__first_c": None}, "package.missing-file", "in the manifest but not in the package"),
        ({"manifest_json": None}, "package.missing-file", "has no manifest.json"),
        ({"manifest_json": b"{}"}, "package.bad-archive", "cannot be read"),
        ({"manifest_json": b"[" * 100000}, "package.bad-archive", "cannot be read"),
        ({"manifest_json": b'{"coven": 2}'}, "package.bad-archive", "another version"),
    ],
)
def test_a_changed_archive(
    archive: Path, tmp_path: Path, changes: dict[str, bytes | None], code: str, words: str
) -> None:
    rezip(archive, **changes)
    error = refused(archive, tmp_path / "store")
    assert error.code == code
    assert words in str(error)


def test_a_truncated_upload_leaves_nothing(archive: Path, tmp_path: Path) -> None:
    archive.write_bytes(archive.read_bytes()[:-100])
    assert refused(archive, tmp_path / "store").code == "package.bad-archive"


def test_an_attack_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "x.coven").write_bytes(Zip().add("vnf.yaml", b"1").add("../../x", b"1").bytes())
    assert refused(tmp_path / "x.coven", tmp_path / "store").code == "package.unsafe-path"


def test_neither_package_nor_csar(tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(Zip().add("readme", b"1").bytes())
    error = refused(tmp_path / "x.zip", tmp_path / "store")
    assert error.code == "package.missing-file"
    assert "coven package build" in str(error)


def broken(source: Path, tmp_path: Path) -> CovenError:
    """Expect that a source folder is refused, and that an archive that was there stays as it is."""
    output = tmp_path / "out.coven"
    output.write_bytes(b"before")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(CovenError) as caught:
        package.build(source, output)
    assert output.read_bytes() == b"before"
    assert sorted(tmp_path.iterdir()) == before
    return caught.value


def test_a_missing_source_file(source: Path, tmp_path: Path) -> None:
    (source / "vnfc/first/first.c").unlink()
    error = broken(source, tmp_path)
    assert error.code == "package.missing-file"
    assert error.where is not None
    assert error.where.file == "vnfc/first/component.yaml"


def test_a_missing_component_folder(source: Path, tmp_path: Path) -> None:
    shutil.rmtree(source / "vnfc/second")
    error = broken(source, tmp_path)
    assert (error.code, str(error.where).startswith("vnf.yaml:15:13")) == ("package.missing-file", True)


def test_a_missing_descriptor(source: Path, tmp_path: Path) -> None:
    (source / "vnf.yaml").unlink()
    assert broken(source, tmp_path).code == "package.missing-file"


def test_a_link_in_a_source_folder(source: Path, tmp_path: Path) -> None:
    (source / "secret").symlink_to("/etc/passwd")
    assert broken(source, tmp_path).code == "package.link-entry"


def test_a_linked_folder_is_not_followed(source: Path, tmp_path: Path) -> None:
    (source / "secrets").symlink_to("/etc")
    assert broken(source, tmp_path).code == "package.link-entry"


def test_python_is_checked_without_running_it(source: Path, tmp_path: Path) -> None:
    write(source, first=edited(edited(FIRST, "framework: c", "framework: python"), "first.c", "first.py"))
    (source / "vnfc/first/first.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nthis is no python\n")
    error = broken(source, tmp_path)
    found = error.findings or (error,)
    assert any(each.where and each.where.file == "vnfc/first/first.py" and each.where.line == 2 for each in found), str(
        error
    )
    assert not (tmp_path / "ran").exists()


def csar(
    source: Path, path: Path, *, manifest: str | None = None, meta: bool = True, prefix: str = "Files/coven/"
) -> Path:
    """Make a CSAR with the function's files in a folder of it."""
    files = {
        prefix + each.relative_to(source).as_posix(): each.read_bytes()
        for each in sorted(source.rglob("*"))
        if each.is_file()
    }
    files["fw.yaml"] = b"tosca_definitions_version: tosca_simple_yaml_1_2\n"
    lines = "metadata:\r\n vnf_product_name: fw\r\n# digests\r\n"
    for name, content in files.items():
        lines += f"\r\nsource: {name}\r\nHash: {hashlib.sha512(content).hexdigest()}\r\nAlgorithm: sha-512\r\n"
    files["fw.mf"] = (manifest or lines).encode()
    if meta:
        files["TOSCA-Metadata/TOSCA.meta"] = (
            b"TOSCA-Meta-File-Version: 1.0\nCSAR-Version: 1.1\nEntry-Definitions: fw.yaml\nETSI-Entry-Manifest: fw.mf\n"
        )
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as output:
        for name, content in files.items():
            output.writestr(name, content)
    return path


@pytest.mark.parametrize("meta", [True, False])
def test_a_csar_with_the_same_content(source: Path, tmp_path: Path, meta: bool) -> None:
    installed = package.install(csar(source, tmp_path / "x.csar", meta=meta), tmp_path / "store")
    assert (installed.id, installed.kind) == ("fw-1.0.0", "csar")
    assert installed.root == installed.folder / "Files/coven"
    assert package.load(installed.folder) == installed
    assert installed.vnf == package.validate(source).vnf
    assert set(installed.files) == set(package.validate(source).files)


@pytest.mark.parametrize(
    ("manifest", "code", "words"),
    [
        ("Source: http://localhost/x\n", "package.unsafe-path", "is elsewhere"),
        ("Source: ../x\n", "package.unsafe-path", ".."),
        ("Source: gone.yaml\n", "package.missing-file", "not in the package"),
        ("Source: fw.yaml\nAlgorithm: SHA-256\nHash: 00\n", "package.bad-checksum", "fw.yaml"),
        ("Source: fw.yaml\nAlgorithm: MD5\nHash: 00\n", "package.bad-checksum", "not known"),
    ],
)
def test_a_csar_with_a_wrong_manifest(source: Path, tmp_path: Path, manifest: str, code: str, words: str) -> None:
    error = refused(csar(source, tmp_path / "x.csar", manifest=manifest), tmp_path / "store")
    assert (error.code, error.where and (error.where.file, error.where.line)) == (code, ("fw.mf", 1))
    assert words in str(error)


def test_a_csar_without_a_coven_descriptor(source: Path, tmp_path: Path) -> None:
    (source / "vnf.yaml").rename(source / "other.yaml")
    assert "no COVEN descriptor" in str(refused(csar(source, tmp_path / "x.csar"), tmp_path / "store"))


def test_a_signed_csar_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "x.zip").write_bytes(Zip().add("x.csar", b"1").add("x.cms", b"1").bytes())
    assert "the .csar file within it" in str(refused(tmp_path / "x.zip", tmp_path / "store"))


def test_components_from_elsewhere_are_copied_in(source: Path, tmp_path: Path) -> None:
    shutil.move(source / "vnfc/first", tmp_path / "elsewhere")
    (source / "package.yaml").write_text("components:\n  vnfc/first: ../elsewhere\n")
    built = package.validate(package.build(source, tmp_path / "x.coven"))
    assert "vnfc/first/first.c" in built.files
    assert "package.yaml" not in built.files


@pytest.mark.parametrize(
    ("text", "code", "column"),
    [
        ("components:\n  ../x: ../elsewhere\n", "package.unsafe-path", 3),
        ("components:\n  vnfc/first: ../elsewhere\n", "package.duplicate-entry", 15),
        ("components:\n  vnfc/new: ../nowhere\n", "package.missing-file", 13),
        ("components:\n  vnfc/new: 5\n", "descriptor.invalid", 13),
        ("component:\n  vnfc/new: 5\n", "descriptor.unknown-key", 1),
    ],
)
def test_faults_of_package_yaml(source: Path, tmp_path: Path, text: str, code: str, column: int) -> None:
    shutil.copytree(source / "vnfc/first", tmp_path / "elsewhere")
    (source / "package.yaml").write_text(text)
    error = broken(source, tmp_path)
    assert (error.code, error.where and (error.where.file, error.where.column)) == (code, ("package.yaml", column))


def test_the_manifest_names_every_file(archive: Path) -> None:
    with zipfile.ZipFile(archive) as content:
        document = json.loads(content.read(MANIFEST))
        for name in content.namelist():
            if name != MANIFEST:
                assert document["files"][name]["sha256"] == hashlib.sha256(content.read(name)).hexdigest()
    assert (document["name"], document["version"]) == ("fw", "1.0.0")


@pytest.mark.parametrize("folder", sorted((ROOT / "packages").iterdir()), ids=lambda path: path.name)
def test_the_packages_of_the_repository(folder: Path, tmp_path: Path) -> None:
    installed = package.install(package.build(folder, tmp_path), tmp_path / "store")
    assert installed.vnf.name == folder.name


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(["coven", "files", "sha256", "vnf.yaml", "x"]), inner, max_size=3),
    ),
    max_leaves=8,
)
TEXTS = st.one_of(
    JSON.map(lambda value: json.dumps(value).encode()),
    JSON.map(lambda value: json.dumps({"coven": 1, "files": value}).encode()),
    st.binary(max_size=60),
    st.lists(st.sampled_from(["Source: ", "vnf.yaml", "\n", "Hash: 00", "Algorithm: SHA256", ":", "\r", "ETSI-Entry-Manifest: ", "x.mf", "\0", "/.."]),
             max_size=12).map(lambda words: "".join(words).encode()),
)  # fmt: skip


@given(st.sampled_from([MANIFEST, "x.mf", "TOSCA-Metadata/TOSCA.meta"]), TEXTS)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_manifest_raises_nothing_else(tmp_path: Path, name: str, content: bytes) -> None:
    archive = Zip().add("vnf.yaml" if name == MANIFEST else "c/vnf.yaml", b"coven: 1\n").add(name, content)
    (tmp_path / "x.zip").write_bytes(archive.bytes())
    with pytest.raises(CovenError):
        package.install(tmp_path / "x.zip", tmp_path / "store")
    assert list((tmp_path / "store").iterdir()) == []
