"""The REST interface's reference, made from openapi.yaml; part of docs/api.md."""

from __future__ import annotations

from typing import Any

from coven.management.contract import document

METHODS = ("get", "post", "delete")


def resources() -> str:
    """Give the Markdown of all resources, by tag."""
    api = document()
    text = ""
    for tag in api["tags"]:
        text += f"### {tag['name'].capitalize()}\n\n{tag['description']}\n"
        for path, item in api["paths"].items():
            for method in METHODS:
                if tag["name"] in item.get(method, {}).get("tags", ()):
                    text += _operation(api, path, method, item)
        text += "\n"
    return text.rstrip("\n") + "\n"


def schemas() -> str:
    """Give the Markdown of all schemas."""
    text = ""
    for name, schema in document()["components"]["schemas"].items():
        text += f"### {name}\n\n"
        if "description" in schema:
            text += f"{schema['description']}\n\n"
        rows = _rows(schema, "")
        text += "| member | type | meaning |\n|---|---|---|\n" + "".join(rows) if rows else f"{_kind(schema)}\n"
        text += "\n"
    return text.rstrip("\n") + "\n"


def _resolve(api: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in node:
        target: Any = api
        for key in node["$ref"].removeprefix("#/").split("/"):
            target = target[key]
        node = target
    return node


def _operation(api: dict[str, Any], path: str, method: str, item: dict[str, Any]) -> str:
    operation = item[method]
    text = f"\n#### {method.upper()} {path}\n\n{operation['summary']}"
    text += f" {operation['description']}\n" if "description" in operation else "\n"
    rows = []
    for found in (*item.get("parameters", ()), *operation.get("parameters", ())):
        parameter = _resolve(api, found)
        if parameter["in"] == "query":
            rows.append(f"| `{parameter['name']}` | {_kind(parameter['schema'])} | {parameter['description']} |\n")
    if rows:
        text += "\n| query | type | meaning |\n|---|---|---|\n" + "".join(rows)
    if "requestBody" in operation:
        body = _resolve(api, operation["requestBody"])
        kinds = ", ".join(f"`{kind}` {_kind(made['schema'])}".rstrip() for kind, made in body["content"].items())
        text += f"\nBody{'' if body.get('required') else ' (optional)'}: {kinds}\n"
    answers = []
    for status, found in operation["responses"].items():
        answer = _resolve(api, found)
        if status.startswith("2"):
            kinds = ", ".join(_kind(made["schema"]) for made in answer.get("content", {}).values())
            answers.append(f"{status} {kinds}".rstrip())
        elif status != "default":
            answers.append(status)
    return text + f"\nAnswers: {', '.join(answers)}\n"


def _rows(schema: dict[str, Any], prefix: str) -> list[str]:
    rows = []
    required = schema.get("required", [])
    for name, member in schema.get("properties", {}).items():
        needed = "" if name in required else " (optional)"
        meaning = member.get("description", "").replace("|", "\\|")
        rows.append(f"| `{prefix}{name}` | {_kind(member)}{needed} | {meaning} |\n")
        rows += _rows(member, f"{prefix}{name}.")
        rows += _rows(member.get("items", {}), f"{prefix}{name}[].")
    return rows


def _kind(schema: dict[str, Any]) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[1]
        return f"[{name}](#{name.lower()})"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    if "const" in schema:
        return f"`{schema['const']}`"
    if "oneOf" in schema and "properties" not in schema:
        return " or ".join(_kind(option) for option in schema["oneOf"])
    kind = schema.get("type", "")
    if isinstance(kind, list):
        return " or ".join(kind)
    if kind == "array" and "items" in schema:
        inner = _kind(schema["items"])
        return f"list of {inner}" if inner != "object" else "list"
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"mapping to {_kind(schema['additionalProperties'])}"
    bounds = [f"{sign} {schema[key]}" for key, sign in (("minimum", "≥"), ("maximum", "≤")) if key in schema]
    if "default" in schema:
        bounds.append(f"default {schema['default']}".replace("True", "true").replace("False", "false"))
    return f"{kind} {', '.join(bounds)}".strip() if bounds else kind
