"""Routes of the REST interface: each turns a request into one call of the platform, and its result into JSON."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import bottle  # type: ignore[import-untyped]

from coven.errors import CovenError, Where
from coven.management import contract, problem
from coven.management.auth import Authenticator
from coven.management.body import read_json
from coven.management.platform import Platform

log = logging.getLogger(__name__)

MAX_WAIT_S = 60
SSE_KEEP_ALIVE_S = 15
HTTP_CODES = {
    400: "request.malformed",
    404: "request.not-found",
    405: "request.method-not-allowed",
}


def make_app(platform: Platform, authenticator: Authenticator) -> Callable[..., Any]:
    """Give the WSGI application."""
    app = bottle.Bottle()
    api = _Api(platform)
    for method, path, handler in api.routes():
        app.route(path, method, _guarded(handler))
    app.default_error_handler = _http_error

    def authenticate() -> None:
        try:
            authenticator.caller(bottle.request.environ)
        except CovenError as error:
            raise _problem(error) from None

    app.add_hook("before_request", authenticate)
    return app  # type: ignore[no-any-return]


def _guarded(handler: Callable[..., Any]) -> Callable[..., Any]:
    def call(**arguments: str) -> Any:
        try:
            return handler(**arguments)
        except CovenError as error:
            if error.status >= 500:
                log.error("%s %s: %s", bottle.request.method, bottle.request.path, error)
            return _problem(error)
        except bottle.HTTPResponse:
            raise
        except Exception:
            log.exception("%s %s failed", bottle.request.method, bottle.request.path)
            return _problem(
                CovenError(
                    "platform.internal",
                    "the agent failed at this request",
                    hint="its log has the details",
                )
            )

    return call


def _problem(error: CovenError, **headers: str) -> Any:
    return bottle.HTTPResponse(problem.encode(error), error.status, {**problem.headers(error), **headers})


def _http_error(error: Any) -> bytes:
    """Turn what bottle refuses by itself into a problem body."""
    code = HTTP_CODES.get(error.status_code, "platform.internal")
    request = bottle.request
    if code == "request.not-found":
        message, hint = f"there is nothing at {request.path}", "GET /v1/openapi.yaml describes all"
    elif code == "request.method-not-allowed":
        message = f"{request.path} has no method {request.method}"
        hint = f"it has: {error.headers.get('Allow', '')}"
    else:
        message, hint = "the request cannot be served", ""
    if code == "platform.internal":
        log.error("%s %s: %s", request.method, request.path, error.traceback or error.body)
    made = CovenError(code, message, hint=hint or None)
    for name, value in problem.headers(made).items():
        error.set_header(name, value)
    return problem.encode(made)


def _json(document: object, status: int = 200, **headers: str) -> Any:
    fields = {"Content-Type": "application/json", "Cache-Control": "no-store", **headers}
    return bottle.HTTPResponse(json.dumps(document).encode(), status, fields)


def _accepted(operation: dict[str, Any]) -> Any:
    return _json(operation, 202, Location=f"/v1/operations/{operation['id']}")


def _integer(name: str, default: int, low: int, high: int) -> int:
    """Read a whole number from the query; raises request.invalid."""
    text = bottle.request.query.get(name)
    if text is None:
        return default
    if text.isascii() and text.removeprefix("-").isdigit() and len(text) < 17:
        number = int(text)
        if low <= number <= high:
            return number
    raise CovenError(
        "request.invalid",
        f"query parameter '{name}' must be a whole number from {low} to {high}",
        where=Where(part=name),
    )


def _body(schema: str, *, required: bool) -> dict[str, Any]:
    body = read_json(bottle.request.environ, required=required)
    return contract.check_body(schema, body) if body is not None else {}


class _Api:
    """One method for each resource and verb."""

    def __init__(self, platform: Platform) -> None:
        self.platform = platform

    def routes(self) -> Iterator[tuple[str, str, Callable[..., Any]]]:
        """Give method, path and handler of each route."""
        yield "GET", "/v1", self.get_platform
        yield "GET", "/v1/openapi.yaml", self.get_openapi
        yield "GET", "/v1/events", self.get_events
        yield "POST", "/v1/agent/off", self.turn_off
        yield "POST", "/v1/packages", self.upload
        yield "GET", "/v1/packages", self.list_packages
        yield "POST", "/v1/packages/validate", self.validate
        package = "/v1/packages/<package_id:re:(?!validate$)[^/]+>"
        yield "GET", package, self.get_package
        yield "DELETE", package, self.delete_package
        yield "POST", "/v1/instances", self.create
        yield "GET", "/v1/instances", self.list_instances
        one = "/v1/instances/<instance_id>"
        yield "GET", one, self.get_instance
        for verb in ("start", "stop", "restart", "heal", "terminate"):
            yield "POST", f"{one}/{verb}", self._verb(verb)
        yield "GET", f"{one}/monitor", self.monitor
        yield "GET", f"{one}/counters", self.counters
        yield "GET", f"{one}/flows", self.list_flows
        yield "POST", f"{one}/flows/export", self.export_flow
        yield "POST", f"{one}/flows/import", self.import_flow
        yield "GET", f"{one}/list", self.list_offers
        yield "GET", f"{one}/check", self.check
        yield "POST", f"{one}/request", self.request
        yield "GET", f"{one}/logs", self.worker_logs
        yield "GET", f"{one}/components/<component>/logs", self.logs
        yield "GET", f"{one}/components/<component>/poison", self.poison
        yield "DELETE", f"{one}/components/<component>/poison", self.clear_poison
        yield "GET", "/v1/operations", self.list_operations
        yield "GET", "/v1/operations/<operation_id>", self.get_operation

    # ---- platform ----------------------------------------------------------------------------------

    def get_platform(self) -> Any:
        return _json(self.platform.describe())

    def get_openapi(self) -> Any:
        fields = {"Content-Type": "application/yaml", "Cache-Control": "no-store"}
        return bottle.HTTPResponse(contract.DOCUMENT.read_bytes(), 200, fields)

    def turn_off(self) -> Any:
        body = _body("OffRequest", required=False)
        self.platform.turn_off(force=body.get("force", False))
        return _json({"state": "stopping"}, 202)

    def get_events(self) -> Any:
        limit = _integer("limit", 100, 1, 1000)
        after = _integer("after", -1, 0, 2**53)
        wait = _integer("wait", 0, 0, MAX_WAIT_S)
        accept = bottle.request.headers.get("Accept", "")
        if "text/event-stream" in accept:
            last = bottle.request.headers.get("Last-Event-ID", "")
            if last.isascii() and last.isdigit() and len(last) < 17:
                after = int(last)
            return self._event_stream(after)
        if after < 0:
            events = self.platform.events.latest(limit)
        else:
            with self.platform.waiting(wait) as allowed:
                events = self.platform.events.after(after, limit=limit, wait_s=allowed)
        last_seen = events[-1]["sequence"] if events else max(after, 0)
        return _json({"events": events, "next": last_seen})

    def _event_stream(self, after: int) -> Any:
        events = self.platform.events
        if after < 0:
            latest = events.latest(1)
            after = latest[-1]["sequence"] if latest else 0
        bottle.response.set_header("Content-Type", "text/event-stream")
        bottle.response.set_header("Cache-Control", "no-store")
        return self._stream(after)

    def _stream(self, after: int) -> Iterator[bytes]:
        events = self.platform.events
        with self.platform.waiting(SSE_KEEP_ALIVE_S) as allowed:
            yield b": events follow\n\n"
            while allowed and not events.is_closed:
                found = events.after(after, wait_s=allowed)
                if not found:
                    yield b": still here\n\n"  # fails when the client has gone
                for event in found:
                    after = event["sequence"]
                    yield (f"id: {after}\nevent: {event.get('type', 'event')}\ndata: {json.dumps(event)}\n\n").encode()

    # ---- packages ----------------------------------------------------------------------------------

    def upload(self) -> Any:
        document = self.platform.packages.upload(bottle.request.environ)
        return _json(document, 201, Location=f"/v1/packages/{document['id']}")

    def validate(self) -> Any:
        return _json(self.platform.packages.validate(bottle.request.environ))

    def list_packages(self) -> Any:
        return _json({"packages": self.platform.packages.list()})

    def get_package(self, package_id: str) -> Any:
        return _json(self.platform.packages.get(package_id))

    def delete_package(self, package_id: str) -> Any:
        self.platform.packages.delete(package_id)
        return bottle.HTTPResponse(b"", 204)

    # ---- instances ---------------------------------------------------------------------------------

    def create(self) -> Any:
        return _accepted(self.platform.instances.create(_body("InstanceRequest", required=True)))

    def list_instances(self) -> Any:
        return _json({"instances": self.platform.instances.list()})

    def get_instance(self, instance_id: str) -> Any:
        return _json(self.platform.instances.get(instance_id))

    def _verb(self, verb: str) -> Callable[..., Any]:
        schema = {"terminate": "TerminateRequest", "heal": "HealRequest"}.get(verb, "Empty")

        def handler(instance_id: str) -> Any:
            body = _body(schema, required=False)
            return _accepted(self.platform.operations.begin(verb, instance_id, **body))

        return handler

    def monitor(self, instance_id: str) -> Any:
        return _json(self.platform.monitor(instance_id))

    def counters(self, instance_id: str) -> Any:
        return _json(self.platform.instances.snapshot(instance_id))

    def list_flows(self, instance_id: str) -> Any:
        query = bottle.request.query
        wanted = {key: query.get(key) for key in ("address", "port", "protocol", "vlan") if query.get(key)}
        after, limit = query.get("after", ""), _integer("limit", 100, 1, 1000)
        return _json(self.platform.instances.flows(instance_id, wanted, after, limit))

    def export_flow(self, instance_id: str) -> Any:
        body = _body("FlowExportRequest", required=True)
        return _json(self.platform.instances.export_flow(instance_id, body))

    def import_flow(self, instance_id: str) -> Any:
        body = _body("FlowImportRequest", required=True)
        return _json(self.platform.instances.import_flow(instance_id, body))

    def list_offers(self, instance_id: str) -> Any:
        return _json(self.platform.instances.list_offers(instance_id))

    def check(self, instance_id: str) -> Any:
        return _json(self.platform.instances.check(instance_id))

    def request(self, instance_id: str) -> Any:
        body = _body("ComponentRequest", required=True)
        return _json(self.platform.instances.request(instance_id, body))

    def worker_logs(self, instance_id: str) -> Any:
        lines = _integer("lines", 100, 1, 1000)
        worker = _integer("replica", 0, 0, 127)
        return _json(self.platform.instances.logs(instance_id, None, lines, worker))

    def logs(self, instance_id: str, component: str) -> Any:
        lines = _integer("lines", 100, 1, 1000)
        replica = _integer("replica", 0, 0, 127)
        return _json(self.platform.instances.logs(instance_id, component, lines, replica))

    def poison(self, instance_id: str, component: str) -> Any:
        return _json(self.platform.instances.poison(instance_id, component, clear=False))

    def clear_poison(self, instance_id: str, component: str) -> Any:
        return _json(self.platform.instances.poison(instance_id, component, clear=True))

    # ---- operations --------------------------------------------------------------------------------

    def list_operations(self) -> Any:
        found = self.platform.operations.list(
            instance=bottle.request.query.get("instance"), limit=_integer("limit", 100, 1, 1000)
        )
        return _json({"operations": found})

    def get_operation(self, operation_id: str) -> Any:
        wait = _integer("wait", 0, 0, MAX_WAIT_S)
        seen = _integer("seen", -1, -1, 2**53)
        with self.platform.waiting(wait) as allowed:
            return _json(self.platform.operations.get(operation_id, wait_s=allowed, seen=seen))
