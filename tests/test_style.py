"""The linters, as tests: ruff, mypy, the compiler's warnings, headers that stand alone, links in the documentation."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from coven.dataplane.build import CFLAGS

ROOT = Path(__file__).resolve().parents[1]
DATAPLANE = ROOT / "coven" / "dataplane"


def tracked(*patterns: str) -> list[Path]:
    """Give the files of the repository that match, also new ones; all files below it when it is no git work tree."""
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        names = done.stdout.splitlines() if done.returncode == 0 else []
    except FileNotFoundError:
        names = []
    if names:
        return sorted(path for name in names if (path := ROOT / name).is_file())
    skipped = {".venv", "build", "dist", ".git"}
    found = (path for pattern in patterns for path in ROOT.rglob(pattern) if path.is_file())
    return sorted(path for path in found if not skipped & set(path.relative_to(ROOT).parts))


C_FILES = [path for path in tracked("*.c", "*.h") if path.name != "_core.c"]
HEADERS = [path for path in C_FILES if path.suffix == ".h" and path.is_relative_to(DATAPLANE)]
PAGES = tracked("*.md")


def run(*command: str) -> None:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"


def test_ruff() -> None:
    run(sys.executable, "-m", "ruff", "check", "--config", "tests/ruff.toml", "--exclude", "build", ".")


def test_mypy() -> None:
    run(sys.executable, "-m", "mypy")


@pytest.mark.parametrize("header", HEADERS, ids=lambda path: path.name)
def test_a_header_compiles_alone(header: Path) -> None:
    includes = [f"-I{DATAPLANE}", f"-I{DATAPLANE / 'include'}"]
    run("cc", *CFLAGS, "-Werror", "-fsyntax-only", *includes, "-x", "c", str(header))


@pytest.mark.parametrize("source", [f for f in C_FILES if f.is_relative_to(DATAPLANE) and f.suffix == ".c"],
                         ids=lambda path: path.name)  # fmt: skip
def test_a_source_compiles_without_warnings(source: Path) -> None:
    includes = [f"-I{DATAPLANE}", f"-I{DATAPLANE / 'include'}"]
    run("cc", *CFLAGS, "-Werror", "-fsyntax-only", *includes, str(source))


@pytest.mark.skipif(not shutil.which("clang-format"), reason="needs clang-format")
def test_c_is_formatted() -> None:
    """Versions of clang-format differ in details; .clang-format is written for the one of Debian 12."""
    version = subprocess.run(["clang-format", "--version"], capture_output=True, text=True, check=True).stdout
    if " 14." not in version:
        pytest.skip(f"clang-format 14 judges, this is {version.strip()}")
    run("clang-format", "--dry-run", "-Werror", *map(str, C_FILES))


def test_c_files_have_a_licence_and_no_long_lines() -> None:
    faults = []
    for path in C_FILES:
        lines = path.read_text(encoding="utf-8").splitlines()
        if "SPDX-License-Identifier: Apache-2.0" not in lines[0]:
            faults.append(f"{path.relative_to(ROOT)}:1: no SPDX line")
        faults += [
            f"{path.relative_to(ROOT)}:{number}: {len(line)} columns, or a tab"
            for number, line in enumerate(lines, 1)
            if len(line) > 140 or "\t" in line
        ]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text)
    missing = [t for t in targets if "://" not in t and not (page.parent / t).exists()]
    assert not missing, f"{page.relative_to(ROOT)}: {missing}"


def test_a_decision_has_a_number_of_its_own() -> None:
    pages = [page for page in PAGES if page.parent.name == "decisions"]
    numbers = [page.name.partition("-")[0] for page in pages]
    assert pages
    assert len(set(numbers)) == len(numbers), f"two decisions with one number: {sorted(numbers)}"
    for page, number in zip(pages, numbers, strict=True):
        assert page.read_text(encoding="utf-8").startswith(f"# {number}: "), page.name


def test_places_in_the_code_that_pages_name_exist() -> None:
    faults = []
    for page in PAGES:
        for name, function in re.findall(r"`(\w+\.c): (\w+)`", page.read_text(encoding="utf-8")):
            source = DATAPLANE / name
            text = source.read_text(encoding="utf-8") if source.exists() else ""
            if not re.search(rf"^[a-z][^;\n]*\b{function}\(", text, re.MULTILINE):
                faults.append(f"{page.relative_to(ROOT)}: {name}: {function}")
    assert not faults, "\n".join(faults)


def test_nothing_names_the_machine_it_was_written_on() -> None:
    words = re.compile(r"/w" r"ork/|/tmp/" r"brief|/fa" r"rm/|DEVELOPERS" r"\.md")
    faults = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in tracked("*")
        if path.suffix not in (".so", ".pcap", ".gz")
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1)
        if words.search(line)
    ]
    assert not faults, "\n".join(faults)
