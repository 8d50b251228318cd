"""The generated parts of the documentation: `python -m coven.docs_gen docs` brings them up to date.

A page has `<!-- generated: NAME -->` and `<!-- end -->`; what stands between comes from the one place where
the facts are. A test regenerates the pages and compares.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from coven.dataplane.layout import drop_reasons
from coven.descriptor.schema_check import schema
from coven.errors import CODES
from coven.processing import framework

BLOCK = re.compile(r"(<!-- generated: ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
AREAS = {
    "agent": "The agent", "auth": "Access", "request": "Requests", "package": "Packages", "descriptor": "Descriptors",
    "binding": "Bindings of ports", "flow": "Flows", "grant": "Grants", "parameter": "Parameters", "plan": "Plans",
    "instance": "Instances", "operation": "Operations", "component": "Components", "port": "Ports",
    "worker": "Workers", "platform": "The platform",
}  # fmt: skip


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _errors() -> str:
    text = ""
    for area in dict.fromkeys(code.partition(".")[0] for code in CODES):
        rows = [
            [f"`{code}`", CODES[code].title, str(CODES[code].status)] for code in CODES if code.startswith(area + ".")
        ]
        text += f"\n### {AREAS.get(area, area)}\n\n" + _table(["code", "meaning", "HTTP status"], rows)
    return text.lstrip("\n")


def _drop_reasons() -> str:
    rows = [[f"`{reason.label}`", reason.what, reason.hint] for reason in drop_reasons()]
    return _table(["reason", "what happened", "what to do"], rows)


def _frameworks() -> str:
    rows = []
    for name in framework.names():
        info = framework.information(name)
        modes = ", ".join(f"`{mode}`" for mode in info.modes)
        rows.append([f"`{name}`", info.summary, modes, ", ".join(f"`{suffix}`" for suffix in info.entry_suffixes)])
    return _table(["framework", "what it runs", "isolation", "entry ends with"], rows)


def _keys(name: str) -> Callable[[], str]:
    return lambda: "".join(_objects(name))


def _resolve(part: Any, name: str) -> tuple[Any, str, str]:
    """Follow references; give the schema (its own description first), the last reference and its document."""
    label = ""
    while "$ref" in part:
        document, _, label = part["$ref"].partition("#/$defs/")
        name = document.split(":")[3] if document else name
        target = schema(name)["$defs"][label]
        part = {**target, **{key: value for key, value in part.items() if key != "$ref"}}
    return part, label, name


def _objects(name: str) -> Iterator[str]:
    """Give a table for each mapping of a schema, the outermost first."""
    pending: list[tuple[str, Any, str]] = [(f"`{name}.yaml`", schema(name), name)]
    done: set[str] = set()
    while pending:
        title, description, document = pending.pop(0)
        required = description.get("required", [])
        rows = []
        for key, raw in description["properties"].items():
            part, label, its = _resolve(raw, document)
            rows.append([f"`{key}`", _type(part), _presence(key, part, required), part.get("description", "")])
            inner = part.get("items", part.get("additionalProperties"))
            below = [(part, label, its)]
            if isinstance(inner, dict):
                below.append(_resolve(inner, its))
            for each, its_label, its_document in below:
                if each.get("properties") and its_label and its_label not in done:
                    done.add(its_label)
                    pending.append((_title(title, key, each, part), each, its_document))
        yield f"\n### {title}\n\n" + _table(["key", "value", "default", "meaning"], rows)


def _title(above: str, key: str, below: Any, part: Any) -> str:
    above = "" if above.endswith(".yaml`") else above.strip("`") + "."
    return f"`{above}{key}`" if below is part else f"`{above}{key}{'[]' if 'items' in part else '.NAME'}`"


def _type(part: Any) -> str:
    if "const" in part:
        return f"`{_text(part['const'])}`"
    if "enum" in part:
        return " or ".join(f"`{_text(value)}`" for value in part["enum"])
    kinds = part.get("type", "any value")
    words: dict[str, str] = {"object": "mapping", "array": "list", "string": "text", "null": "nothing"}
    kind = " or ".join(words.get(each, each) for each in map(str, kinds if isinstance(kinds, list) else [kinds]))
    low, high = part.get("minimum"), part.get("maximum")
    return f"{kind}, {low} to {high}" if low is not None and high is not None else kind


def _presence(key: str, part: Any, required: list[str]) -> str:
    if key in required:
        return "must be given"
    return f"`{_text(part['default'])}`" if part.get("default") not in (None, "", [], {}) else ""


def _text(value: object) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value)


def _commands() -> str:
    from coven.cli import reference

    return reference.commands()


def _rest_resources() -> str:
    from coven.management import reference

    return reference.resources()


def _rest_schemas() -> str:
    from coven.management import reference

    return reference.schemas()


GENERATORS: dict[str, Callable[[], str]] = {
    "errors": _errors,
    "drop-reasons": _drop_reasons,
    "frameworks": _frameworks,
    "vnf-keys": _keys("vnf"),
    "component-keys": _keys("component"),
    "commands": _commands,
    "rest-resources": _rest_resources,
    "rest-schemas": _rest_schemas,
}


def refresh(text: str) -> str:
    """Give a page with its generated parts made anew. Raises KeyError for a part that nothing makes."""
    return BLOCK.sub(lambda match: match[1] + "\n" + GENERATORS[match[2]]().strip("\n") + "\n\n" + match[3], text)


def main() -> None:
    """Bring all pages of the folder given as argument up to date."""
    for page in sorted(Path(sys.argv[1]).rglob("*.md")):
        before = page.read_text(encoding="utf-8")
        after = refresh(before)
        if after != before:
            page.write_text(after, encoding="utf-8")


if __name__ == "__main__":
    main()
