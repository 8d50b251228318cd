"""What holds for every test: it ends, and the run leaves nothing behind.

A test that is not done after DEADLINE_S fails with the stacks of all threads, and its fixtures clean up;
`@pytest.mark.deadline(SECONDS)` gives another time. (Should even that hang, `faulthandler_timeout` in setup.cfg ends
the run with a stack.) At the end of the run, tests/lib/leftovers.py looks for what is left. SIGTERM ends the run as
Ctrl-C does, with fixtures cleaning up; after a run that was killed, tests/lib/aftermath.py does it.
"""

from __future__ import annotations

import signal
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest

from tests.lib import aftermath
from tests.lib.leftovers import Watch

DEADLINE_S = 240.0  # many times what the longest test takes on a quiet machine
INNERMOST = 16  # frames of each stack; those above are pytest's
CLEAN_UP_S = 60.0  # then again, for a fixture that hangs as well
watch = pytest.StashKey[Watch]()
left = pytest.StashKey[list[str]]()


def pytest_configure(config: pytest.Config) -> None:
    # A shell that runs us in the background has it ignored, and every program of a test would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _terminated)
    config.stash[watch] = Watch()
    aftermath.start(config.stash[watch].token)


def _terminated(number: int, _frame: FrameType | None) -> None:
    """End the run in order, once: `timeout` sends it to the process and then to its group."""
    signal.signal(number, lambda *_: None)  # and not SIG_IGN, which the programs that fixtures start would inherit
    pytest.exit("ended by SIGTERM", returncode=128 + number)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    marker = item.get_closest_marker("deadline")
    seconds = float(marker.args[0]) if marker else DEADLINE_S

    def end(_number: int, _frame: FrameType | None) -> None:
        frames = sys._current_frames().items()
        stacks = [f"thread {thread}\n{''.join(traceback.format_stack(frame)[-INNERMOST:])}" for thread, frame in frames]
        pytest.fail(f"not done within {seconds:g} s\n" + "\n".join(stacks), pytrace=False)

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds, CLEAN_UP_S)
    try:
        return (yield)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    factory: pytest.TempPathFactory | None = getattr(session.config, "_tmp_path_factory", None)
    folder = factory.getbasetemp() if factory else Path("/nowhere")
    began = session.config.stash[watch]
    found = [*began.found(folder), *began.descriptors_left()]
    session.config.stash[left] = found
    if found and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    found = config.stash.get(left, [])
    if found:
        terminalreporter.section("left behind by this run", red=True)
        for line in found:
            terminalreporter.line(line)
