"""A REST client for tests that holds every request and response against the OpenAPI document."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jsonschema
import yaml

DOCUMENT = Path(__file__).parents[2] / "coven" / "management" / "openapi.yaml"
OPENAPI: dict[str, Any] = yaml.safe_load(DOCUMENT.read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Answer:
    """A response that fits the document."""

    status: int
    headers: dict[str, str]  # names in lower case
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """The problem's code."""
        return str(self.json["code"])


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def _resolve(node: Any) -> Any:
    while isinstance(node, dict) and "$ref" in node:
        target: Any = OPENAPI
        for key in node["$ref"].removeprefix("#/").split("/"):
            target = target[key]
        node = target
    return node


def _find(path: str) -> dict[str, Any] | None:
    bare = path.split("?")[0]
    if bare in OPENAPI["paths"]:
        return dict(OPENAPI["paths"][bare])
    for template, item in OPENAPI["paths"].items():
        if re.fullmatch(re.sub(r"\{[^}]+\}", "[^/]+", template), bare):
            return dict(item)
    return None


def check_against_document(method: str, path: str, answer: Answer) -> None:
    """Fail if the response is not one that the document describes."""
    item = _find(path)
    if method == "HEAD":
        assert answer.body == b""
        return
    if item is None:
        assert answer.status in (401, 403, 404), f"{path} is not described"
        described = OPENAPI["components"]["responses"]["Problem"]
    elif method.lower() not in item:
        assert answer.status in (401, 403, 405), f"{method} {path} is not described"
        described = OPENAPI["components"]["responses"]["Problem"]
    else:
        responses = item[method.lower()]["responses"]
        described = _resolve(responses.get(str(answer.status)) or responses["default"])
        assert answer.status >= 400 or str(answer.status) in responses
    for name, header in described.get("headers", {}).items():
        if header.get("required"):
            assert name.lower() in answer.headers, f"{method} {path}: no header {name}"
    if "content" not in described:
        assert answer.body == b""
        return
    kind = answer.headers["content-type"].split(";")[0]
    assert kind in described["content"], f"{method} {path} {answer.status}: {kind}"
    if kind.endswith("json"):
        jsonschema.validate(
            answer.json,
            {**described["content"][kind]["schema"], "components": OPENAPI["components"]},
        )
    if answer.status >= 400:
        assert answer.json["status"] == answer.status


class Rest:
    """Calls to one agent, over its Unix socket or by URL."""

    def __init__(
        self,
        socket_path: Path | None = None,
        *,
        address: tuple[str, int] | None = None,
        token: str | None = None,
        context: ssl.SSLContext | None = None,
        timeout: float = 60,
    ) -> None:
        """Exactly one of `socket_path` and `address`; `context` makes it HTTPS."""
        self.socket_path, self.address = socket_path, address
        self.token, self.context, self.timeout = token, context, timeout

    def connection(self) -> http.client.HTTPConnection:
        """Give a connection that was not used yet."""
        if self.socket_path is not None:
            return _UnixConnection(self.socket_path, self.timeout)
        assert self.address is not None
        if self.context is not None:
            return http.client.HTTPSConnection(*self.address, timeout=self.timeout, context=self.context)
        return http.client.HTTPConnection(*self.address, timeout=self.timeout)

    def call(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        headers: dict[str, str] | None = None,
        raw: bytes | None = None,
        kind: str = "application/json",
    ) -> Answer:
        """Call and check the answer against the document; `raw` is sent as it is, `body` as JSON."""
        fields = dict(headers or {})
        data = raw
        if body is not None:
            data = json.dumps(body).encode()
        if data is not None:
            fields.setdefault("Content-Type", kind)
        if self.token is not None:
            fields.setdefault("Authorization", f"Bearer {self.token}")
        connection = self.connection()
        try:
            # If it is refused before the body was sent, the answer is there all the same.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                connection.request(method, path, data, fields)
            response = connection.getresponse()
            answer = Answer(
                response.status,
                {name.lower(): value for name, value in response.getheaders()},
                response.read(),
            )
        finally:
            connection.close()
        check_against_document(method, path, answer)
        return answer

    def get(self, path: str) -> Any:
        """Give the JSON of a GET that must succeed."""
        answer = self.call("GET", path)
        assert answer.status == 200, answer.body
        return answer.json

    def finish(self, answer: Answer) -> dict[str, Any]:
        """Wait until an accepted operation has ended; give it."""
        assert answer.status == 202, answer.body
        operation: dict[str, Any] = answer.json
        while operation["state"] == "running":
            operation = self.get(f"/v1/operations/{operation['id']}?wait=30&seen={operation['revision']}")
        return operation
