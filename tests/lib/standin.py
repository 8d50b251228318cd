"""A stand-in for the supervisor's socket, for what the real one cannot be made to show on demand.

It speaks section 7 of docs/internals.md and keeps operations open until the test ends them.
"""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Handler = Callable[[dict[str, Any]], dict[str, Any]]


class Refusal(Exception):
    """An answer that is an error."""

    def __init__(self, code: str, message: str = "refused") -> None:
        """code: of coven.errors."""
        super().__init__(message)
        self.code = code


class StandIn:
    """Serves on a socket from threads of the test process."""

    def __init__(self, path: Path, *, auto: bool = True) -> None:
        """auto: operations end at once."""
        self.path = path
        self.auto = auto
        self.instances: dict[str, dict[str, Any]] = {}
        self.operations: dict[str, dict[str, Any]] = {}
        self.requests: list[dict[str, Any]] = []
        self.handlers: dict[str, Handler] = {}
        self.changed = threading.Condition()
        self._subscribers: list[socket.socket] = []
        self._connections: list[socket.socket] = []
        self._listener: socket.socket | None = None

    def start(self) -> None:
        """Begin to listen."""
        self.path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(self.path))
        listener.listen(64)
        self._listener = listener
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()

    def stop(self) -> None:
        """Vanish as a killed supervisor does."""
        if self._listener is not None:
            self._listener.shutdown(socket.SHUT_RDWR)
            self._listener.close()
            self._listener = None
        self.path.unlink(missing_ok=True)
        with self.changed:
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            self._connections.clear()
            self._subscribers.clear()

    def wait_for(self, condition: Callable[[], bool], seconds: float = 20) -> None:
        """Wait until something is true of what was asked."""
        with self.changed:
            assert self.changed.wait_for(condition, seconds), "the agent did not ask for it"

    def asked(self, op: str) -> list[dict[str, Any]]:
        """Give the requests of one kind so far."""
        return [request for request in self.requests if request["op"] == op]

    def end(self, operation_id: str, state: str = "succeeded", error: dict[str, Any] | None = None) -> None:
        """Let an operation end and tell subscribers."""
        with self.changed:
            operation = self.operations[operation_id]
            self._apply(operation, state, error)
            self._tell({"type": "operation-ended", "operation": operation_id})

    def step(self, operation_id: str, name: str, state: str) -> None:
        """Let an operation come to a step and tell subscribers."""
        with self.changed:
            self.operations[operation_id]["steps"].append(
                {"name": name, "part": name, "state": state, "ms": 1.0, "error": None}
            )
            self._tell({"type": "operation-step", "operation": operation_id})

    def _apply(self, operation: dict[str, Any], state: str, error: dict[str, Any] | None = None) -> None:
        operation |= {"state": state, "error": error, "ended": time.time(), "progress": 1.0}
        name, verb = operation["instance"], operation["verb"]
        if state != "succeeded":
            return
        if verb == "terminate":
            self.instances.pop(name, None)
            return
        after = {"instantiate": "instantiated", "stop": "stopped", "heal": None}.get(verb, "started")
        if verb in ("deploy", "instantiate"):
            self.instances[name] = self._instance(operation)
        if after is not None:
            self.instances[name]["state"] = after

    def _instance(self, operation: dict[str, Any]) -> dict[str, Any]:
        plan = operation["plan"]
        replica = {"pid": 0, "state": "ready", "restarts": 0, "last_exit": None, "last_output": []}
        return {
            "id": operation["instance"],
            "vnf": plan["vnf"],
            "vnf_version": plan["vnf_version"],
            "package": plan["package"]["id"],
            "state": "started",
            "health": "ok",
            "problems": [],
            "plan": plan,
            "components": [
                {
                    "name": component["name"],
                    "framework": component["framework"],
                    "isolation_asked": component["isolation_asked"],
                    "isolation": component["isolation"],
                    "replicas": [dict(replica)],
                }
                for component in plan["components"]
            ],
            "ports": [
                {"name": x["name"], "tool": x["tool"], "interface": x["interface"], "state": "up"}
                for x in plan["ports"]
            ],
            "workers": [{"pid": 0, "state": "running", "restarts": 0}],
        }

    def _tell(self, event: dict[str, Any]) -> None:
        for subscriber in list(self._subscribers):
            try:
                _send(subscriber, {"event": {"time": time.time(), **event}})
            except OSError:
                self._subscribers.remove(subscriber)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with self.changed:
                self._connections.append(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            while (request := _receive(connection)) is not None:
                with self.changed:
                    self.requests.append(request)
                    self.changed.notify_all()
                try:
                    result = self._answer(request, connection)
                except Refusal as refusal:
                    error = {"code": refusal.code, "message": str(refusal)}
                    _send(connection, {"id": request["id"], "error": error})
                    continue
                with self.changed:
                    _send(connection, {"id": request["id"], "result": result})
                    if request["op"] == "subscribe":
                        self._subscribers.append(connection)
        except OSError:
            pass
        finally:
            connection.close()

    def _answer(self, request: dict[str, Any], connection: socket.socket) -> dict[str, Any]:
        op = request["op"]
        if op in self.handlers:
            return self.handlers[op](request)
        with self.changed:
            if op == "hello":
                return {"version": "test", "abi": 1, "pid": 0, "privileged": False, "degraded": ["all"]}
            if op == "state":
                return {"instances": self.instances, "operations": self.operations}
            if op == "execute":
                return self._execute(request)
            if op == "operation":
                if request["operation"] not in self.operations:
                    raise Refusal("operation.not-found")
                return self.operations[request["operation"]]
            if op == "subscribe":
                return {}
        raise Refusal("request.malformed", f"the stand-in knows no {op}")

    def _execute(self, request: dict[str, Any]) -> dict[str, Any]:
        known = self.operations.get(request["operation"])
        if known is not None:
            return known
        operation = {
            "id": request["operation"],
            "verb": request["verb"],
            "instance": request["instance"],
            "plan": request.get("plan"),
            "state": "running",
            "steps": [],
            "progress": 0.0,
            "error": None,
            "started": time.time(),
            "ended": None,
        }
        self.operations[operation["id"]] = operation
        if self.auto:
            self._apply(operation, "succeeded")
        return operation


def _send(connection: socket.socket, message: dict[str, Any]) -> None:
    data = json.dumps(message).encode()
    connection.sendall(struct.pack(">I", len(data)) + data)


def _receive(connection: socket.socket) -> dict[str, Any] | None:
    head = _exactly(connection, 4)
    if head is None:
        return None
    data = _exactly(connection, struct.unpack(">I", head)[0])
    return None if data is None else dict(json.loads(data))


def _exactly(connection: socket.socket, length: int) -> bytes | None:
    data = b""
    while len(data) < length:
        part = connection.recv(length - len(data))
        if not part:
            return None
        data += part
    return data
