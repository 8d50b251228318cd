"""The frameworks' registry, and the framework `c`: checks, builds, what a compiler says."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from coven.errors import CovenError, Where
from coven.model import Isolation
from coven.processing import framework
from coven.processing.c import framework as c_framework
from coven.processing.framework import Source
from tests.lib.examples import run_build

GOOD = """
#include <coven/component.h>
static void burst(struct coven_component *self, struct coven_packet *pkts, uint16_t n)
{ (void)self; (void)pkts; (void)n; }
COVEN_COMPONENT(.process_burst = burst);
"""


def component(folder: Path, files: dict[str, str], entry: str = "x.c", **build: Any) -> Source:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return Source("under-test", folder, entry, build)


@pytest.fixture
def output(tmp_path: Path) -> Path:
    path = tmp_path / "output"
    path.mkdir()
    return path


# ---- registry ---------------------------------------------------------------------------------------


def test_each_framework_says_what_it_is() -> None:
    assert {"c", "python"} <= set(framework.names())
    for name in framework.names():
        info = framework.information(name)
        assert info.summary
        assert info.modes
        assert info.entry_suffixes
        assert info.can_fuse == (Isolation.FUSED in info.modes)
        for method in ("check", "toolchain", "build", "findings", "launch", "fused"):
            assert callable(getattr(framework.load(name), method))
    assert framework.information("c").can_fuse


def test_an_unknown_framework_is_refused() -> None:
    with pytest.raises(CovenError, match="frameworks are: c, ") as caught:
        framework.load("cobol")
    assert caught.value.code == "descriptor.unknown-framework"


def test_a_framework_is_added_by_its_folder_alone(tmp_path: Path) -> None:
    package = tmp_path / "coven"
    shutil.copytree(framework.HERE, package / "processing")
    for name in ("__init__.py", "errors.py", "model.py"):
        shutil.copy2(framework.HERE.parent / name, package / name)
    (package / "processing" / "lisp").mkdir()
    (package / "processing" / "lisp" / "__init__.py").write_text("")
    (package / "processing" / "lisp" / "framework.yaml").write_text(
        "{summary: s, modes: [copy], entry_suffixes: [.lisp], build: {type: object}}"
    )
    (package / "processing" / "lisp" / "framework.py").write_text("FRAMEWORK = 'lisp itself'")
    program = "from coven.processing.framework import *; print(names(), load('lisp'), information('lisp').can_fuse)"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "'lisp'" in done.stdout, done.stderr
    assert done.stdout.endswith("lisp itself False\n")
    assert importlib.util.find_spec("coven.processing.lisp") is None


# ---- checks without running anything ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "entry", "build", "code", "words"),
    [
        ({}, "x.c", {}, "package.missing-file", "no file 'x.c'"),
        ({"x.rs": ""}, "x.rs", {}, "descriptor.invalid", "ends with .c or .so"),
        ({"x.c": ""}, "../x.c", {}, "package.unsafe-path", "outside"),
        ({"x.c": ""}, "x.c", {"sources": ["more.c"]}, "package.missing-file", "more.c"),
        ({"x.c": ""}, "x.c", {"sources": ["../../etc/x.c"]}, "package.unsafe-path", "outside"),
        ({"x.c": ""}, "x.c", {"sources": ["-fplugin=evil.c"]}, "descriptor.invalid", "build.sources.0"),
        ({"x.c": ""}, "x.c", {"include": ["inc"]}, "package.missing-file", "no folder 'inc'"),
        ({"x.c": ""}, "x.c", {"include": [".."]}, "package.missing-file", "no folder '..'"),
        ({"x.c": ""}, "x.c", {"defines": {"a b": 1}}, "descriptor.invalid", "a b"),
        ({"x.c": ""}, "x.c", {"libraries": ["-x"]}, "descriptor.invalid", "build.libraries.0"),
        ({"x.c": ""}, "x.c", {"flags": ["-O3"]}, "descriptor.invalid", "flags"),
        ({"x.so": "text"}, "x.so", {}, "component.bad-code", "no ELF"),
    ],
)
def test_faults_are_found(
    tmp_path: Path, files: dict[str, str], entry: str, build: dict[str, Any], code: str, words: str
) -> None:
    faults = framework.check("c", component(tmp_path / "x", files, entry, **build))
    assert [fault.code for fault in faults] == [code]
    assert words in faults[0].message
    assert str(faults[0].where)


def test_a_file_reached_by_a_link_is_outside(tmp_path: Path) -> None:
    source = component(tmp_path / "x", {"y.c": ""})
    (tmp_path / "secret.c").write_text("")
    (source.folder / "x.c").symlink_to(tmp_path / "secret.c")
    assert [fault.code for fault in framework.check("c", source)] == ["package.unsafe-path"]


# ---- builds -----------------------------------------------------------------------------------------


def test_a_source_becomes_a_prebuilt_object(tmp_path: Path, output: Path) -> None:
    files = {
        "x.c": GOOD + '#include "part.h"\nint use(void); int use(void) { return part() + NUMBER + (int)floor(2.5); }\n',
        "inc/part.h": "#include <math.h>\nint part(void);",
        "part.c": '#include "inc/part.h"\nint part(void) { return 1; }',
    }
    build = {"sources": ["part.c"], "include": ["inc"], "defines": {"NUMBER": 3}, "libraries": ["m"]}
    source = component(tmp_path / "x", files, **build)
    assert framework.check("c", source) == ()
    assert run_build(source, output) == (0, "")
    artifact = output / "under-test.so"
    shutil.copy2(artifact, source.folder / "ready.so")
    prebuilt = Source("under-test", source.folder, "ready.so")
    assert framework.check("c", prebuilt) == ()
    c = framework.load("c")
    assert c.build(prebuilt, output) is None
    assert c.fused(prebuilt, None) == source.folder / "ready.so"
    assert c.fused(source, artifact) == artifact
    launch = c.launch(source, artifact, Path("/opt/bin"))
    assert launch.argv == ("/opt/bin/coven-component-host",)
    assert launch.entry == artifact


@pytest.mark.parametrize("change", [(18, b"\xf3\x00"), (16, b"\x02\x00"), (4, b"\x01")])
def test_an_object_of_another_machine_is_refused(tmp_path: Path, output: Path, change: tuple[int, bytes]) -> None:
    source = component(tmp_path / "x", {"x.c": GOOD})
    run_build(source, output)
    data = bytearray((output / "under-test.so").read_bytes())
    data[change[0] : change[0] + len(change[1])] = change[1]
    (source.folder / "x.so").write_bytes(data)
    (fault,) = framework.check("c", Source("under-test", source.folder, "x.so"))
    assert (fault.code, "shared object for" in fault.message) == ("component.bad-code", True)


def test_an_object_without_the_entry_is_refused(tmp_path: Path, output: Path) -> None:
    source = component(tmp_path / "x", {"x.c": "int nothing;"})
    assert run_build(source, output) == (0, "")
    shutil.copy2(output / "under-test.so", source.folder / "x.so")
    (fault,) = framework.check("c", Source("under-test", source.folder, "x.so"))
    assert "no symbol coven_component_entry" in fault.message


def test_the_key_follows_what_matters(tmp_path: Path, output: Path) -> None:
    c = framework.load("c")

    def key(folder: str, text: str = GOOD, **build: Any) -> str:
        made = c.build(component(tmp_path / folder, {"x.c": text, "note.txt": folder}, **build), output)
        assert made is not None
        return made.key

    first = key("a")
    assert first == key("b")  # another folder, the same content
    assert len({first, key("a", GOOD + "\n"), key("a", defines={"A": 1}), key("a", libraries=["m"])}) == 4


# ---- what the compiler says -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "build", "where", "words"),
    [
        ({"x.c": "int a;\nint f(void) { return b; }\n"}, {}, Where("x.c", 2, 22), "b"),
        ({"x.c": '#include "gone.h"\n'}, {}, Where("x.c", 1, 10), "gone.h"),
        ({"x.c": "int a\n", "part.c": "int 5;\n"}, {"sources": ["part.c"]}, Where("x.c"), ""),
        ({"x.c": '#include "part.h"\n', "part.h": "\nint 5;\n"}, {}, Where("part.h", 2, 5), ""),
        ({"x.c": "int gone(void);\nint f(void) { return gone(); }\n"}, {}, Where("x.c", 2), "gone"),
        ({"x.c": "int a;"}, {"libraries": ["no-such-library"]}, Where("component.yaml"), "no-such-library"),
    ],
)
def test_errors_have_a_place(
    tmp_path: Path, output: Path, files: dict[str, str], build: dict[str, Any], where: Where, words: str
) -> None:
    source = component(tmp_path / "x", files, **build)
    status, stderr = run_build(source, output)
    assert status != 0
    error = framework.build_failed("c", source, stderr)
    assert error.code == "component.compile-failed"
    found = error.findings[0].where
    assert found is not None
    assert found.file == where.file
    if where.line:
        assert found.line == where.line
    if where.column:
        assert found.column == where.column
    assert words in error.findings[0].message
    assert error.where == found
    assert str(tmp_path) not in str(error)


def test_all_errors_are_listed_once(tmp_path: Path, output: Path) -> None:
    source = component(tmp_path / "x", {"x.c": "int f(void) { return a; }\nint g(void) { return b; }\n"})
    _, stderr = run_build(source, output)
    assert [error.where.line for error in framework.load("c").findings(source, stderr) if error.where] == [1, 2]


def test_output_that_is_no_diagnostic_is_shown(tmp_path: Path) -> None:
    error = framework.build_failed("c", component(tmp_path / "x", {}), "cc: fatal: out of memory\n")
    assert "out of memory" in error.message
    assert error.findings == ()


def test_a_missing_compiler_is_said(tmp_path: Path, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    (missing,) = framework.load("c").toolchain()
    assert missing.code == "component.toolchain-missing"
    assert "apt install gcc" in str(missing.hint)
    with pytest.raises(CovenError, match="no C compiler"):
        framework.load("c").build(component(tmp_path / "x", {"x.c": GOOD}), output)
    assert c_framework.compiler() is None
