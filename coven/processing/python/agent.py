"""The Extended Agent of a component in Python: answers what `start` declared, from memory and by its operations."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

from coven.agents.protocol import Answer, Line, Request, decode_request, request_id
from coven.agents.schema import argument_value, value_text
from coven.component import Component, Refused
from coven.errors import CovenError
from coven.processing.python import loader


class Agent:
    """Answers requests; called by the loop that handles packets."""

    def __init__(
        self,
        start: loader.Start,
        component: Component,
        uptime_ns: Callable[[], int],
        bursts: Callable[[], int],
    ) -> None:
        """start: what was declared. uptime_ns, bursts: for `check`."""
        self.is_stopped = False
        self._start = start
        self._component = component
        self._operations = loader.operations(start, component)
        self._uptime_ns = uptime_ns
        self._bursts = bursts
        self._verbs: dict[str, Callable[[Request], tuple[Line, ...]]] = {
            "list": lambda _: start.declarations,
            "get": self._get,
            "call": self._call,
            "check": self._check,
            "stop": self._stop,
        }

    def answer(self, data: bytes) -> Answer:
        """Give the answer to a datagram; a fault of the component's code is an error answer, not an exception."""
        try:
            request = decode_request(data)
        except CovenError as error:
            return Answer(request_id(data) or 0, code="malformed", message=error.message)
        verb = self._verbs.get(request.verb)
        if verb is None:
            return Answer(request.id, code="unknown-verb", message=f"no verb {request.verb[:40]!r}")
        try:
            return Answer(request.id, verb(request))
        except Refused as error:
            return Answer(request.id, code="failed", message=str(error))
        except CovenError as error:
            code = {
                "component.argument-invalid": "bad-argument",
                "component.operation-unknown": "unknown-name",
                "request.malformed": "malformed",
            }.get(error.code, "failed")
            return Answer(request.id, code=code, message=error.message)
        except Exception as error:  # an operation's own fault: the packets need not suffer from it
            loader.print_traceback()
            return Answer(request.id, code="failed", message=loader.describe(error))

    def _get(self, request: Request) -> tuple[Line, ...]:
        metrics = self._component.metrics
        if request.name and request.name not in metrics:
            raise CovenError("component.operation-unknown", f"no metric {request.name[:40]!r}")
        names = (request.name,) if request.name else tuple(metrics)
        return tuple(("value", name, value_text(metrics[name].value)) for name in names)

    def _check(self, _request: Request) -> tuple[Line, ...]:
        return (("value", "uptime_ns", str(self._uptime_ns())), ("value", "bursts", str(self._bursts())))

    def _stop(self, _request: Request) -> tuple[Line, ...]:
        self.is_stopped = True
        return ()

    def _call(self, request: Request) -> tuple[Line, ...]:
        if request.name not in self._operations:
            raise CovenError("component.operation-unknown", f"no operation {request.name[:40]!r}")
        operation, function = self._operations[request.name]
        given: dict[str, Any] = {}
        for line in request.lines:
            if len(line) != 3 or line[0] != "argument":
                raise CovenError("request.malformed", "a call has lines of `argument`, name and value")
            argument = operation.get(line[1])
            if argument is None:
                raise CovenError("component.argument-invalid", f"no argument {line[1][:40]!r}")
            given[line[1]] = argument_value(argument, line[2])
        for name, argument in operation.items():
            if name not in given and argument.default is not None:
                given[name] = argument.default
            elif name not in given and argument.required:
                raise CovenError("component.argument-invalid", f"argument {name!r} is missing")
        result = function(**{name.replace("-", "_"): value for name, value in given.items()})
        sys.stdout.flush()
        return _result_lines(result)


def _result_lines(result: object) -> tuple[Line, ...]:
    if result is None:
        return ()
    if isinstance(result, Mapping):
        return tuple(("result", str(name), _text(value)) for name, value in result.items())
    return (("result", "result", _text(result)),)


def _text(value: object) -> str:
    return value_text(value) if isinstance(value, bool | int | float | str) else str(value)
