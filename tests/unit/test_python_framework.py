"""The framework `python`: static check and launch."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from coven.errors import CovenError
from coven.processing.framework import Source, check, information, load


def faults(folder: Path, text: str | bytes) -> tuple[CovenError, ...]:
    """Check a folder with one file."""
    (folder / "main.py").write_bytes(text.encode() if isinstance(text, str) else text)
    return check("python", Source("probe", folder, "main.py"))


def test_good_code_is_not_run(tmp_path: Path) -> None:
    assert faults(tmp_path, f"open({str(tmp_path / 'trace')!r}, 'w')\nraise SystemExit\n") == ()
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize(
    ("text", "line", "column", "message"),
    [
        ("x = 1\nclass A(B)\n    pass\n", 2, 11, "expected ':'"),
        ("def f(:\n", 1, 7, "invalid syntax"),
        ("if 1:\nx\n", 2, 1, "expected an indented block"),
        (b"x = '\xe9'\n", 1, None, "utf-8"),
        ("x\0", None, None, "null bytes"),
        ("# -*- coding: klingon -*-\n", None, None, "unknown encoding"),
        ("-" * 500000 + "1", None, None, "nested too deeply"),
        ("(" * 1000, 1, 201, "too many nested parentheses"),
        ("#" * 2_000_000, None, None, "larger than"),
    ],
)
def test_bad_code_is_found_with_its_place(
    tmp_path: Path, text: str | bytes, line: int | None, column: int | None, message: str
) -> None:
    (fault,) = faults(tmp_path, text)
    assert fault.code == "component.bad-code"
    assert message in fault.message
    assert fault.where is not None and fault.where.file == "main.py" and fault.where.line == line
    assert column is None or fault.where.column == column


def test_every_file_is_checked(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "other.py").write_text("1 +")
    found = faults(tmp_path, "def")
    assert [f.where.file for f in found if f.where] == ["main.py", "sub/other.py"]


def test_launch_is_isolated_and_never_fused(tmp_path: Path) -> None:
    framework = load("python")
    source = Source("probe", tmp_path, "main.py")
    launch = framework.launch(source, None, tmp_path)
    assert launch.argv[:3] == (sys.executable, "-I", "-B")
    assert launch.entry == tmp_path / "main.py"
    assert framework.build(source, tmp_path) is None and framework.toolchain() == ()
    assert not information("python").can_fuse
    with pytest.raises(CovenError):
        framework.fused(source, None)
