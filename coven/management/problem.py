"""RFC 9457 problem bodies made from errors."""

from __future__ import annotations

import json
from typing import Any

from coven.errors import CODES, CovenError

MEDIA_TYPE = "application/problem+json"


def body(error: CovenError) -> dict[str, Any]:
    """Give the problem object of an error; `findings` are problem objects without status."""
    code = CODES[error.code]
    document: dict[str, Any] = {
        "type": f"urn:coven:error:{error.code}",
        "title": code.title,
        "status": code.status,
        "detail": error.message,
    }
    document.update(error.to_json())
    del document["message"]
    return document


def encode(error: CovenError) -> bytes:
    """Give the problem object as JSON text."""
    return json.dumps(body(error)).encode()


def headers(error: CovenError) -> dict[str, str]:
    """Give the headers that belong to the error's status (RFC 6750 section 3 for 401)."""
    fields = {"Content-Type": MEDIA_TYPE, "Cache-Control": "no-store"}
    if error.code == "auth.missing":
        fields["WWW-Authenticate"] = 'Bearer realm="coven"'
    elif error.code == "auth.wrong":
        fields["WWW-Authenticate"] = 'Bearer realm="coven", error="invalid_token"'
    return fields


def from_body(document: dict[str, Any]) -> CovenError:
    """Rebuild the error of a problem object that came over REST."""
    return CovenError.from_json({**document, "message": document.get("detail", "")})
