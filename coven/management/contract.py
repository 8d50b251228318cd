"""The OpenAPI document, and checks of request bodies against it: the schema is written once, there."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from coven.errors import CovenError, Where

DOCUMENT = Path(__file__).with_name("openapi.yaml")
MAX_FINDINGS = 20


@functools.cache
def document() -> dict[str, Any]:
    """Give the OpenAPI document; read at the first use."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    with DOCUMENT.open("rb") as file:
        loaded: dict[str, Any] = yaml.load(file, Loader=loader)  # noqa: S506 - a safe loader
    return loaded


@functools.cache
def _validator(schema: str) -> Any:
    import jsonschema

    return jsonschema.Draft202012Validator(
        {
            "$ref": f"#/components/schemas/{schema}",
            "components": {"schemas": document()["components"]["schemas"]},
        }
    )


def check_body(schema: str, body: dict[str, Any]) -> dict[str, Any]:
    """Give the body if it fits the named schema; raises request.invalid with every finding."""
    faults = sorted(_validator(schema).iter_errors(body), key=lambda fault: list(map(str, fault.path)))
    if not faults:
        return body
    findings = tuple(
        CovenError(
            "request.invalid",
            fault.message[:500],
            where=Where(part=".".join(map(str, fault.absolute_path)) or "body"),
        )
        for fault in faults[:MAX_FINDINGS]
    )
    if len(findings) == 1:
        raise findings[0]
    raise CovenError("request.invalid", f"the body has {len(faults)} faults", findings=findings)
