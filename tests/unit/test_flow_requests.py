"""What the supervisor makes of a worker's answers about flows."""

from __future__ import annotations

import asyncio
import errno
from types import SimpleNamespace
from typing import Any

import pytest

from coven.errors import CovenError
from coven.flows import FlowName
from coven.supervisor import control, flows

NAME = FlowName.parse("udp 10.0.0.1:1000 10.0.0.2:80")


class Refusing:
    """A worker that refuses everything with one errno."""

    def __init__(self, number: int) -> None:
        self.number, self.asked = number, []  # type: ignore[var-annotated]

    async def request(self, op: int, **more: Any) -> Any:
        self.asked.append((op, more.get("args")))
        if more.get("args") == (flows.BACK,):
            return SimpleNamespace(args=(0,))
        raise control.WorkerRefused("worker 0", "its words", self.number)


def refused(worker: Refusing, what: Any) -> str:
    with pytest.raises(CovenError) as caught:
        asyncio.run(what(SimpleNamespace(id="fw", workers=[worker])))
    return caught.value.code


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (errno.EEXIST, "flow.exists"), (errno.ENOSPC, "flow.table-full"), (errno.ENOENT, "flow.incompatible"),
        (errno.EPROTO, "flow.incompatible"), (errno.EBADMSG, "flow.invalid"), (errno.EIO, "platform.internal"),
    ],
)  # fmt: skip
def test_refused_imports(number: int, code: str) -> None:
    assert refused(Refusing(number), lambda instance: flows.imported(instance, "AAAA", 0)) == code


def test_a_worker_that_is_not_there() -> None:
    assert refused(Refusing(0), lambda instance: flows.imported(instance, "AAAA", 1)) == "request.invalid"


@pytest.mark.parametrize(("number", "code"), [(errno.EIO, "platform.internal"), (errno.ENOSPC, "flow.table-full")])
def test_a_move_that_fails_leaves_no_mark(number: int, code: str) -> None:
    worker = Refusing(number)
    assert refused(worker, lambda instance: flows.exported(instance, NAME, move=True)) == code
    assert [args for _, args in worker.asked] == [(flows.MOVE,), (flows.BACK,)]


def test_a_flow_that_stays_busy_is_not_left_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flows, "BUSY_TRIES", 3)
    monkeypatch.setattr(flows, "BUSY_WAIT_S", 0.0)
    worker = Refusing(errno.EAGAIN)
    assert refused(worker, lambda instance: flows.exported(instance, NAME, move=True)) == "flow.busy"
    assert [args for _, args in worker.asked] == [(flows.MOVE,)] * 3 + [(flows.BACK,)]
    worker = Refusing(errno.EAGAIN)
    assert refused(worker, lambda instance: flows.exported(instance, NAME, move=False)) == "flow.busy"
    assert [args for _, args in worker.asked] == [(flows.COPY,)] * 3


def test_a_flow_that_no_worker_has() -> None:
    workers = [Refusing(errno.ESRCH), Refusing(errno.ESRCH)]
    with pytest.raises(CovenError) as caught:
        asyncio.run(flows.exported(SimpleNamespace(id="fw", workers=workers), NAME, move=False))  # type: ignore[arg-type]
    assert caught.value.code == "flow.not-found"
    assert [len(worker.asked) for worker in workers] == [1, 1]
