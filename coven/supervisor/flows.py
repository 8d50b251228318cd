"""Flows of an instance: listed, exported, imported. The workers do it, each between two bursts."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import errno
import os
from typing import TYPE_CHECKING, Any

from coven.errors import CovenError
from coven.flows import MAX_BLOB, RECORD, FlowFilter, FlowName, describe
from coven.supervisor import control

if TYPE_CHECKING:
    from coven.supervisor.instance import Instance
    from coven.supervisor.worker import Worker

COPY, MOVE, BACK = 0, 1, 2  # enum coven_flow_export_mode
END = 0xFFFFFFFF
MAX_LIST = 1000
BUSY_TRIES, BUSY_WAIT_S = 200, 0.01
CODES = {
    errno.ESRCH: "flow.not-found",
    errno.EEXIST: "flow.exists",
    errno.ENOSPC: "flow.table-full",
    errno.ENOENT: "flow.incompatible",
    errno.EPROTO: "flow.incompatible",
    errno.EBADMSG: "flow.invalid",
    errno.EAGAIN: "flow.busy",
}


async def listed(instance: Instance, wanted: FlowFilter, after: str, limit: int) -> dict[str, Any]:
    """Give up to `limit` flows behind the place `after` (what `next` of the answer before said, or empty)."""
    number, flow = _place(instance, after)
    found: list[dict[str, Any]] = []
    while number < len(instance.workers) and len(found) < limit:
        answer = await _ask(
            instance.workers[number], control.FLOWS, args=(flow, limit - len(found)), payload=wanted.pack()
        )
        found += [_record(data, number) for data in _records(answer.payload)]
        number, flow = (number + 1, 0) if answer.args[0] == END else (number, answer.args[0])
    following = None if number >= len(instance.workers) else f"{number}.{flow}"
    return {"flows": found, "next": following}


async def exported(instance: Instance, name: FlowName, *, move: bool) -> dict[str, Any]:
    """Give the state of a flow. move: its packets are refused from now on, until it is imported again or ages out.

    Raises CovenError flow.not-found, flow.busy.
    """
    for number, worker in enumerate(instance.workers):
        try:
            blob = await _export(worker, name, move=move)
        except CovenError as error:
            if error.code == "flow.not-found" and number + 1 < len(instance.workers):
                continue
            raise
        about = describe(blob)
        return {**about, "worker": number, "moved": move, "blob": base64.b64encode(blob).decode("ascii")}
    raise CovenError("flow.not-found", f"{instance.id} has no worker")


async def imported(instance: Instance, text: str, number: int) -> dict[str, Any]:
    """Put an exported flow into a worker's table.

    Raises CovenError flow.exists, flow.table-full, flow.incompatible, flow.invalid.
    """
    try:
        blob = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise CovenError("flow.invalid", "`blob` is not Base64", hint="give `blob` as an export answered it") from error
    if len(blob) > MAX_BLOB:
        hint = f"an export answers at most {MAX_BLOB} bytes; give `blob` as it is"
        raise CovenError("flow.invalid", "the exported flow is too long", hint=hint)
    if number >= len(instance.workers):
        hint = f"workers are 0 to {len(instance.workers) - 1}"
        raise CovenError("request.invalid", f"{instance.id} has no worker {number}", hint=hint)
    fd = os.memfd_create("coven-flow", os.MFD_CLOEXEC)
    try:
        os.write(fd, blob)
        await _ask(instance.workers[number], control.FLOW_IMPORT, fds=(fd,))
    finally:
        os.close(fd)
    return {**describe(blob), "worker": number}


async def _export(worker: Worker, name: FlowName, *, move: bool) -> bytes:
    fd = os.memfd_create("coven-flow", os.MFD_CLOEXEC)
    mode = MOVE if move else COPY
    try:
        for tried in range(BUSY_TRIES):
            try:
                answer = await _ask(worker, control.FLOW_EXPORT, args=(mode,), payload=name.pack(), fds=(fd,))
                return os.pread(fd, answer.args[0], 0)
            except CovenError as error:
                if error.code != "flow.busy" or tried + 1 == BUSY_TRIES:
                    if move and error.code != "flow.not-found":  # it may be marked: its packets would be refused
                        with contextlib.suppress(CovenError):
                            await _ask(worker, control.FLOW_EXPORT, args=(BACK,), payload=name.pack(), fds=(fd,))
                    raise
            await asyncio.sleep(BUSY_WAIT_S)
    finally:
        os.close(fd)
    raise AssertionError("the loop returns or raises")


async def _ask(worker: Worker, op: int, **more: Any) -> Any:
    try:
        return await worker.request(op, **more)
    except control.WorkerRefused as error:
        code = CODES.get(error.number)
        if code is None:
            raise
        raise CovenError(code, error.text) from error


def _records(payload: bytes) -> list[bytes]:
    return [payload[at : at + RECORD.size] for at in range(0, len(payload), RECORD.size)]


def _record(data: bytes, worker: int) -> dict[str, Any]:
    name, _, *packets, idle_ns = RECORD.unpack(data)
    flow, moved = FlowName.unpack(name)
    return {**flow.to_json(), "packets": packets, "idle_ms": idle_ns // 1_000_000, "moved": moved, "worker": worker}


def _place(instance: Instance, after: str) -> tuple[int, int]:
    if not after:
        return 0, 0
    number, dot, flow = after.partition(".")
    if not (dot and number.isdecimal() and flow.isdecimal() and after.isascii() and len(after) < 20) or int(flow) > END:
        hint = "leave it out to begin"
        raise CovenError("request.invalid", "`after` must be what `next` of an answer said", hint=hint)
    return int(number), int(flow)
