"""Every error that COVEN shows to a person: a stable code, a sentence, where, and what to do.

A code is written once, in `CODES`; REST problem bodies (RFC 9457), the event log, the exit text of the
command line and docs/errors.md use it. HTTP and exit status belong to the code, not to the place it is raised.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Code:
    """What is true of every error with this code."""

    status: int  # HTTP
    title: str  # one phrase, the same each time
    exit_status: int = 1


@dataclass(frozen=True, slots=True)
class Where:
    """Place of a fault: a file with line and column (from 1), or the name of a part."""

    file: str | None = None
    line: int | None = None
    column: int | None = None
    part: str | None = None  # "component analyzer", "port lan", "paths.inspect.hops[1]"

    def __str__(self) -> str:
        place = ":".join(str(x) for x in (self.file, self.line, self.column) if x is not None)
        return f"{place} ({self.part})" if place and self.part else place or self.part or ""


# Codes by area: the word before the dot says who found it. Kept in alphabetical order within an area.
CODES: dict[str, Code] = {
    # usage and access
    "agent.running": Code(409, "an agent is running already"),
    "agent.unreachable": Code(503, "no agent answers", 3),
    "auth.forbidden": Code(403, "not allowed for this caller"),
    "auth.missing": Code(401, "no credentials"),
    "auth.wrong": Code(401, "credentials not accepted"),
    "request.malformed": Code(400, "the request cannot be read"),
    "request.method-not-allowed": Code(405, "the resource does not have this method"),
    "request.not-found": Code(404, "no such resource"),
    "request.too-large": Code(413, "the request body is too large"),
    "request.unsupported-media-type": Code(415, "the body has the wrong media type"),
    "request.invalid": Code(422, "the request's content is not valid"),
    "request.incomplete": Code(400, "the request body ended early"),
    # packages
    "package.bad-archive": Code(422, "not a readable package archive"),
    "package.bad-checksum": Code(422, "a file does not match the manifest"),
    "package.bomb": Code(413, "the archive unpacks to more than allowed"),
    "package.duplicate-entry": Code(422, "the archive has two entries of one name"),
    "package.exists": Code(409, "this package is already there"),
    "package.in-use": Code(409, "the package is in use"),
    "package.link-entry": Code(422, "the archive contains a link or special file"),
    "package.missing-file": Code(422, "a file that the package names is missing"),
    "package.not-found": Code(404, "no such package"),
    "package.unsafe-path": Code(422, "an archive entry would land outside the package"),
    # descriptors
    "descriptor.bad-path": Code(422, "a path does not fit the components and ports"),
    "descriptor.bad-yaml": Code(422, "the YAML does not parse"),
    "descriptor.duplicate-name": Code(422, "two things have the same name"),
    "descriptor.invalid": Code(422, "the descriptor breaks its schema"),
    "descriptor.loop": Code(422, "a path loops"),
    "descriptor.unknown-framework": Code(422, "no such framework"),
    "descriptor.unknown-key": Code(422, "an unknown key"),
    "descriptor.unknown-name": Code(422, "a name that nothing has"),
    # parameters and bindings
    "binding.invalid": Code(422, "a port is bound to something it cannot be bound to"),
    "binding.missing": Code(422, "a port is not bound"),
    "binding.unknown": Code(422, "no such port"),
    "grant.invalid": Code(422, "a grant names no component or no isolation"),
    "parameter.invalid": Code(422, "a parameter has the wrong value"),
    "parameter.missing": Code(422, "a parameter without default was not given"),
    "parameter.unknown": Code(422, "no such parameter"),
    "plan.invalid": Code(422, "the plan is not one that COVEN makes"),
    # workers
    "worker.invalid": Code(422, "workers cannot be had like that"),
    "worker.bad-core": Code(422, "a core that cannot be used"),
    # instances and operations
    "instance.busy": Code(409, "another operation is under way"),
    "instance.exists": Code(409, "an instance of this id is already there"),
    "instance.not-found": Code(404, "no such instance"),
    "instance.wrong-state": Code(409, "not possible in this state"),
    "operation.interrupted": Code(500, "the operation did not reach its end"),
    "operation.not-found": Code(404, "no such operation"),
    # flows
    "flow.busy": Code(409, "a component has packets of the flow"),
    "flow.exists": Code(409, "the flow is there already"),
    "flow.incompatible": Code(422, "the flow's state does not fit the components here"),
    "flow.invalid": Code(422, "this is no exported flow, or it is damaged"),
    "flow.not-found": Code(404, "no such flow"),
    "flow.table-full": Code(409, "the flow table is full"),
    # components
    "component.answer-malformed": Code(502, "the component's answer cannot be read"),
    "component.compile-failed": Code(422, "the component does not compile"),
    "component.exited": Code(422, "the component ended while starting"),
    "component.bad-code": Code(422, "the component's code cannot be loaded"),
    "component.not-answering": Code(504, "the component did not answer in time"),
    "component.not-found": Code(404, "no such component"),
    "component.not-running": Code(409, "the component is not running"),
    "component.operation-failed": Code(422, "the component refused the operation"),
    "component.operation-unknown": Code(404, "the component has no such operation or metric"),
    "component.argument-invalid": Code(422, "an argument of the operation is wrong"),
    "component.start-timeout": Code(422, "the component was not ready in time"),
    "component.toolchain-missing": Code(422, "a program needed to build or run the component is missing"),
    # ports
    "port.bad-file": Code(422, "the capture file cannot be used"),
    "port.in-use": Code(409, "the interface is taken"),
    "port.interface-down": Code(409, "the interface is down"),
    "port.interface-missing": Code(422, "no such interface"),
    "port.unknown-tool": Code(422, "no such NIC tool"),
    "port.unsupported": Code(422, "the interface cannot be used"),
    # platform
    "platform.no-privilege": Code(403, "this needs privileges that COVEN does not have"),
    "platform.no-resources": Code(507, "not enough resources"),
    "platform.running": Code(409, "functions are running"),
    "platform.unavailable": Code(503, "the platform is not reachable"),
    "platform.internal": Code(500, "a fault in COVEN itself"),
}


class CovenError(Exception):
    """An error meant for a person. `str()` gives the whole text on one or a few lines."""

    def __init__(
        self,
        code: str,
        message: str,
        *,
        hint: str | None = None,
        where: Where | None = None,
        findings: tuple[CovenError, ...] = (),
    ) -> None:
        """code: a key of CODES. message: what is wrong. hint: what to do. findings: all faults found at once."""
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint
        self.where = where
        self.findings = findings

    @property
    def status(self) -> int:
        """HTTP status of the code."""
        return CODES[self.code].status

    @property
    def exit_status(self) -> int:
        """Exit status of the command line for the code."""
        return CODES[self.code].exit_status

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where and str(self.where) else ""
        if place and self.message.startswith(place.rstrip(" :")):
            place = ""  # "port lan: port lan is not bound"
        hint = f"\n  hint: {self.hint}" if self.hint else ""
        more = "".join(f"\n{finding}" for finding in self.findings)
        return f"{place}{self.message} [{self.code}]{hint}{more}"

    def to_json(self) -> dict[str, object]:
        """Give the error as a JSON object: code, message, and hint, where, findings when there are any."""
        document: dict[str, object] = {"code": self.code, "message": self.message}
        if self.hint:
            document["hint"] = self.hint
        if self.where:
            document["where"] = {
                key: value
                for key in ("file", "line", "column", "part")
                if (value := getattr(self.where, key)) is not None
            }
        if self.findings:
            document["findings"] = [finding.to_json() for finding in self.findings]
        return document

    @classmethod
    def from_json(cls, document: Mapping[str, object]) -> CovenError:
        """Rebuild an error that crossed a socket; an unknown code becomes platform.internal."""
        code = str(document.get("code", ""))
        where = document.get("where")
        findings = document.get("findings")
        hint = document.get("hint")
        return cls(
            code if code in CODES else "platform.internal",
            str(document.get("message", "")),
            hint=None if hint is None else str(hint),
            where=Where(**where) if isinstance(where, dict) else None,
            findings=tuple(cls.from_json(x) for x in findings) if isinstance(findings, list) else (),
        )
