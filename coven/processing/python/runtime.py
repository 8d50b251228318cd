"""The process of a component in Python; `framework.py` says how it is started.

Follows the launch contract (docs/internals.md, section 4): waits for `start` on its agent descriptor, loads the
component, answers, and then moves bursts until `stop`. Imports little, because the time to the first packet counts.
"""

from __future__ import annotations

import contextlib
import io
import os
import select
import signal
import sys
import time
from typing import TYPE_CHECKING, NoReturn

from coven.agents import protocol
from coven.dataplane.client import WOKE_AGENT, ReplicaClient
from coven.errors import CovenError
from coven.processing.python import loader
from coven.processing.python.agent import Agent
from coven.processing.python.metrics import Metrics
from coven.processing.python.packets import Burst

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer

FD_DOORBELL, FD_AGENT, FD_REPLICA, FD_STATE, FD_WORKER, FD_POOL = 0, 3, 4, 5, 6, 7

BURSTS_BETWEEN_LOOKS = 64  # at the agent's socket while packets keep coming
TICK_HOLDING_NS = 1_000_000
TICK_NS = 1_000_000_000


class Output(io.RawIOBase):
    """Standard output or error that never waits for its reader: what the pipe has no room for is lost, and counted."""

    def __init__(self, fd: int) -> None:
        """fd: that does not block."""
        self._fd = fd
        self._lost = 0

    @classmethod
    def text(cls, fd: int) -> io.TextIOWrapper:
        """Give it as what `print` writes to, a line at a time."""
        buffered = io.BufferedWriter(cls(fd))
        return io.TextIOWrapper(buffered, encoding="utf-8", errors="backslashreplace", line_buffering=True)

    def writable(self) -> bool:
        """Nothing else can be done with it."""
        return True

    def fileno(self) -> int:
        """Give the descriptor, for whoever starts processes."""
        return self._fd

    def write(self, data: Buffer) -> int:
        """Write it or lose it; either way all of it is dealt with."""
        view = memoryview(data).cast("B")
        try:
            if self._lost:
                os.write(self._fd, b"[%d bytes of output were lost]\n" % self._lost)
                self._lost = 0
            self._lost = len(view) - os.write(self._fd, view)
        except BlockingIOError:
            self._lost += len(view)
        return len(view)


def main() -> NoReturn:
    """Run one component until it is stopped; the process ends here."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    sys.stdout, sys.stderr = Output.text(1), Output.text(2)  # what is printed is the log
    data = os.read(FD_AGENT, protocol.MAX_BYTES + 1)
    if not data:
        end(0)
    os.set_blocking(FD_AGENT, False)
    request_id = protocol.request_id(data) or 0
    try:
        request = protocol.decode_request(data)
        if request.verb != "start":
            raise CovenError("request.malformed", f"`start` comes first, not {request.verb!r}")
        runtime = Runtime(loader.read_start(request.lines))
    except CovenError as error:
        code = {"request.malformed": "malformed", "component.bad-code": "bad-code"}.get(error.code, "failed")
        fail_start(request_id, code, str(error.message))
    except BaseException as error:  # the component's own code may raise anything
        loader.print_traceback()
        fail_start(request_id, "bad-code", loader.describe(error))
    send(protocol.Answer(request_id))
    try:
        runtime.run()
    except BaseException as error:
        loader.print_traceback()
        runtime.client.last_words(loader.describe(error))
        end(1)
    end(0)


def fail_start(request_id: int, code: str, message: str) -> NoReturn:
    """Answer that the component cannot start, and end."""
    print(message, file=sys.stderr)
    send(protocol.Answer(request_id, code=code, message=message[:4000]))
    end(1)


def send(answer: protocol.Answer) -> None:
    """Write one answer. An asker that does not read must not stop the packets: what it has no room for is lost."""
    try:
        data = protocol.encode_answer(answer)
    except CovenError as error:
        data = protocol.encode_answer(
            protocol.Answer(answer.id, code="failed", message=f"the answer cannot be sent: {error.message}")
        )
    with contextlib.suppress(BrokenPipeError, BlockingIOError):
        os.write(FD_AGENT, data)


def end(status: int) -> NoReturn:
    """Leave without waiting for threads that the component may have started."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


class Runtime:
    """A loaded and initialised component with its memory."""

    def __init__(self, start: loader.Start) -> None:
        """Load and initialise. Raises CovenError, or whatever the component raises."""
        pool = FD_POOL if _is_open(FD_POOL) else -1
        self.client = ReplicaClient(FD_REPLICA, FD_STATE, pool, FD_DOORBELL, FD_WORKER, FD_AGENT)
        self.component = component = loader.load(start)
        component.name, component.instance = start.component, start.instance
        component.replica, component.options = start.replica, start.options
        component.metrics = Metrics(((m[0], m[1]) for m in start.metrics), self.client.metrics)
        self.burst = Burst(self.client, component.allocate_new_fs)
        self.agent = Agent(start, component, self.uptime_ns, lambda: self.bursts)
        self.bursts = 0
        self.started_ns = time.monotonic_ns()
        self.wants_tick = loader.overrides(component, "tick")
        self.stopping = False
        component.init()

    def uptime_ns(self) -> int:
        """Nanoseconds since the component was loaded."""
        return time.monotonic_ns() - self.started_ns

    def run(self) -> None:
        """Move bursts until `stop` or until the supervisor's end of the socket is closed."""
        client, burst = self.client, self.burst
        receive, finish, run, close = client.receive, client.finish, burst.run, burst.close
        process, ending, clock = self.component.process_burst, self.ending, time.monotonic_ns
        agent = select.poll()
        agent.register(FD_AGENT, select.POLLIN)
        next_tick = clock() + TICK_HOLDING_NS
        while not self.stopping:
            n = receive()
            if n:
                run(n, process, ending)
                finish()
                close()
                self.bursts += 1
                if self.bursts % BURSTS_BETWEEN_LOOKS == 0 and agent.poll(0):
                    self.answer()
            elif client.wait(self.wait_ms()) & WOKE_AGENT:
                self.answer()
            if clock() >= next_tick:
                next_tick = clock() + self.tick()
        self.component.fini()

    def tick(self) -> int:
        """Call the component's tick; nanoseconds until the next one."""
        self.burst.settle()
        if self.wants_tick:
            self.component.tick(time.monotonic_ns())
        self.client.flush()
        return TICK_HOLDING_NS if self.client.held_count() else TICK_NS

    def wait_ms(self) -> int:
        """How long to sleep at most: the next tick comes then."""
        return 1 if self.client.held_count() else 1000

    def answer(self) -> None:
        """Read one message of the supervisor and answer it."""
        try:
            data = os.read(FD_AGENT, protocol.MAX_BYTES + 1)
        except BlockingIOError:
            return
        except ConnectionResetError:
            data = b""
        if not data:
            self.stopping = True
            return
        answer = self.agent.answer(data)
        self.client.flush()  # the operation may have given back held packets
        self.stopping = self.agent.is_stopped
        send(answer)

    def ending(self, i: int) -> None:
        """Entry i says that a flow ended."""
        state = self.client.state_ending(i)
        if state is not None:
            self.component.deallocate_fs(state)


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
