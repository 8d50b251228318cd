"""The documentation's generated parts are current, its examples are valid, and codes and reasons have tests."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from coven.dataplane.layout import drop_reasons
from coven.descriptor.schema_check import schema
from coven.descriptor.vnf import load_vnf
from coven.docs_gen import AREAS, refresh
from coven.errors import CODES

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
EXAMPLE = re.compile(r"```yaml\n# ([a-z0-9-]+)/(\S+\.yaml)\n(.*?)```", re.DOTALL)
TESTS = [
    path
    for path in (ROOT / "tests").rglob("*.[pc]*")
    if path.suffix in (".py", ".c") and path.name != Path(__file__).name
]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_generated_parts_are_current(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert refresh(text) == text, "run: python -m coven.docs_gen docs"


def test_the_pages_have_their_generated_parts() -> None:
    for page, name in (
        ("descriptor", "vnf-keys"),
        ("descriptor", "component-keys"),
        ("errors", "errors"),
        ("drop_reasons", "drop-reasons"),
        ("cli", "commands"),
        ("api", "rest-resources"),
        ("api", "rest-schemas"),
    ):
        assert f"<!-- generated: {name} -->" in (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    assert len(drop_reasons()) == (ROOT / "coven/dataplane/drop_reasons.def").read_text(encoding="utf-8").count(
        "\nDROP("
    )
    assert {code.partition(".")[0] for code in CODES} <= set(AREAS)


def test_the_examples_of_the_descriptor_page(tmp_path: Path) -> None:
    functions = set()
    for name, path, text in EXAMPLE.findall((ROOT / "docs/descriptor.md").read_text(encoding="utf-8")):
        functions.add(name)
        (tmp_path / name / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name / path).write_text(text, encoding="utf-8")
    assert functions == {"monitor", "guard"}
    assert {load_vnf(tmp_path / name).name for name in functions} == functions


@pytest.mark.parametrize("name", ["vnf", "component"])
def test_schemas_refuse_unknown_keys_and_describe_every_key(name: str) -> None:
    def check(part: object, place: str) -> None:
        if isinstance(part, dict):
            is_mapping = isinstance(part.get("properties"), dict) and not place.endswith(".properties")
            if is_mapping and "type" in part:
                assert part.get("additionalProperties") is False, place
                for key, value in part["properties"].items():
                    assert value.get("description"), f"{place}.{key}"
            for key, value in part.items():
                check(value, f"{place}.{key}")
        elif isinstance(part, list):
            for value in part:
                check(value, place)

    check(schema(name), name)


def mentioned(words: set[str]) -> set[str]:
    """Give those words that stand in some test, also as part of an expected message with escaped dots."""
    text = "\n".join(path.read_text(encoding="utf-8") for path in TESTS).replace("\\.", ".")
    return {word for word in words if re.search(rf"(?<![\w.-]){re.escape(word)}(?![\w-])", text)}


def test_every_error_code_has_a_test() -> None:
    assert set(CODES) - mentioned(set(CODES)) == set()


def test_every_drop_reason_has_a_test() -> None:
    labels = {reason.label for reason in drop_reasons()}
    names = {label.upper().replace("-", "_"): label for label in labels}
    text = "\n".join(path.read_text(encoding="utf-8") for path in TESTS)
    by_name = {label for name, label in names.items() if re.search(rf"\bCOVEN_DROP_{name}\b", text)}
    assert labels - mentioned(labels) - by_name == set()
