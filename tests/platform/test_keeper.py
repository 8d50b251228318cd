"""coven-keeper from outside, with a stand-in for the supervisor that does what each test needs."""

from __future__ import annotations

import array
import os
import select
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lib.platform import BIN, is_running, wait_gone

KEEPER = str(BIN / "coven-keeper")

PRELUDE = """
import array, os, signal, socket, subprocess, sys
keeper = socket.socket(fileno=3)
folder = sys.argv[1]
def send(text, fds=()):
    keeper.sendmsg([text.encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else [])
def receive():
    data, ancillary, _, _ = keeper.recvmsg(512, socket.CMSG_SPACE(64))
    fds = array.array("i")
    for _, _, payload in ancillary:
        fds.frombytes(payload)
    return data.decode(), list(fds)
def tell(text):
    with open(folder + "/said", "a") as file:
        file.write(text + "\\n")
generation = 1 + (open(folder + "/said").read().count("generation") if os.path.exists(folder + "/said") else 0)
tell(f"generation {generation} pid {os.getpid()}")
"""


class Kept:
    """A keeper with a stand-in supervisor; `said` are the lines it told."""

    def __init__(self, folder: Path, *code: str) -> None:
        self.folder = folder
        script = folder / "supervisor.py"
        script.write_text(PRELUDE + "".join(map(textwrap.dedent, code)))
        self.child = subprocess.Popen(
            [KEEPER, "--", sys.executable, str(script), str(folder)], stderr=subprocess.PIPE, text=True
        )

    def said(self) -> list[str]:
        path = self.folder / "said"
        return path.read_text().splitlines() if path.exists() else []

    def wait_said(self, wanted: str, count: int = 1, deadline: float = 20) -> str:
        end = time.monotonic() + deadline
        while time.monotonic() < end:
            found = [line for line in self.said() if line.startswith(wanted)]
            if len(found) >= count:
                return found[count - 1]
            select.select([], [], [], 0.01)
        raise TimeoutError(f"{wanted!r} not in {self.said()}")

    def end(self) -> int:
        self.child.terminate()
        return self.child.wait(30)


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[list[Kept]]:
    """Keepers that are ended with everything below them, whatever the test did."""
    made: list[Kept] = []
    yield made
    for one in made:
        if one.child.poll() is None:
            one.child.kill()
        one.child.communicate()
        for line in one.said():
            if " pid " in line:
                pid = int(line.split()[-1])
                if is_running(pid) and str(one.folder).encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGKILL)


ON_TERM = """
def on_term(*_):
    send("exit")
    os._exit(0)
signal.signal(signal.SIGTERM, on_term)
"""


def test_descriptors_survive_the_supervisor(tmp_path: Path, kept: list[Kept]) -> None:
    one = Kept(tmp_path, ON_TERM, """
    if generation == 1:
        for name in ("a", "b", "c"):
            fd = os.memfd_create(name)
            os.write(fd, f"content of {name}".encode())
            other = os.memfd_create(name + "2")
            send(f"store inst/{name}", [fd, other])
        replacement = os.memfd_create("a")
        os.write(replacement, b"newer")
        send("store inst/a", [replacement])
        send("drop inst/b")
        os.kill(os.getpid(), signal.SIGKILL)
    send("list")
    while True:
        text, fds = receive()
        if text == "end":
            break
        tell(f"{text} {len(fds)} {os.pread(fds[0], 100, 0).decode()}")
    tell("done")
    signal.pause()
    """)  # fmt: skip
    kept.append(one)
    one.wait_said("done")
    assert [line for line in one.said() if line.startswith("fd ")] == ["fd inst/c 2 content of c", "fd inst/a 1 newer"]
    assert one.end() == 0


def test_a_supervisor_that_dies_at_once_is_started_again_and_again(tmp_path: Path, kept: list[Kept]) -> None:
    one = Kept(tmp_path, "os._exit(7)")
    kept.append(one)
    one.wait_said("generation 4")  # after 0, 0.1 and 0.2 seconds
    assert one.end() == 0
    assert "the supervisor ended with status 7" in (one.child.stderr.read() if one.child.stderr else "")


def test_orphans_are_reaped_and_told(tmp_path: Path, kept: list[Kept]) -> None:
    one = Kept(tmp_path, ON_TERM, """
    if generation == 1:
        child = subprocess.Popen(["/bin/sh", "-c", "read x; exit 5"], stdin=subprocess.PIPE)
        send("store child", [child.stdin.fileno()])
        tell(f"child pid {child.pid}")
        os.kill(os.getpid(), signal.SIGKILL)
    send("list")
    text, fds = receive()
    while text != "end":
        pipe, (text, _) = fds[0], receive()
    os.write(pipe, b"go\\n")
    tell(receive()[0])
    signal.pause()
    """)  # fmt: skip
    kept.append(one)
    pid = int(one.wait_said("child pid").split()[-1])
    assert one.wait_said("reaped") == f"reaped {pid} {5 << 8}"
    assert not Path(f"/proc/{pid}").exists()
    assert one.end() == 0


def test_the_end_takes_everything_along(tmp_path: Path, kept: list[Kept]) -> None:
    one = Kept(tmp_path, ON_TERM, """
    deaf = "import signal, sys, subprocess, os; signal.signal(15, signal.SIG_IGN); "
    deaf += "grand = subprocess.Popen(['/bin/sleep', '1000'], start_new_session=True); "
    deaf += "open(sys.argv[1] + '/said', 'a').write(f'grandchild pid {grand.pid}\\\\n'); signal.pause()"
    child = subprocess.Popen([sys.executable, "-c", deaf, folder], start_new_session=True)
    tell(f"child pid {child.pid}")
    signal.pause()
    """)  # fmt: skip
    kept.append(one)
    pids = [int(one.wait_said(f"{who} pid").split()[-1]) for who in ("child", "grandchild")]
    assert one.end() == 0
    assert [pid for pid in pids if is_running(pid)] == []


def test_exit_ends_the_keeper_when_the_supervisor_has_ended(tmp_path: Path, kept: list[Kept]) -> None:
    one = Kept(tmp_path, 'send("exit"); os._exit(0)')
    kept.append(one)
    assert one.child.wait(20) == 0
    assert len(one.said()) == 1


def test_nonsense_is_refused_and_survived(tmp_path: Path, kept: list[Kept]) -> None:
    one = Kept(tmp_path, ON_TERM, """
    fd = os.memfd_create("x")
    send("store " + "n" * 300, [fd])
    send("store", [fd])
    send("store noname")
    send("frobnicate", [fd, fd])
    send("drop nothing")
    send("store good", [fd] * 16)
    send("list")
    text, fds = receive()
    tell(f"{text} {len(fds)}")
    tell(receive()[0])
    signal.pause()
    """)  # fmt: skip
    kept.append(one)
    one.wait_said("end")
    assert one.said()[1:] == ["fd good 16", "end"]
    assert one.end() == 0


def test_a_replacement_joins_a_running_supervisor(tmp_path: Path, kept: list[Kept]) -> None:
    """As the supervisor does it when its keeper died: the new one is given everything and takes over the watch."""
    script = tmp_path / "next.py"
    script.write_text(PRELUDE + textwrap.dedent(ON_TERM) + textwrap.dedent("""
    send("list")
    text, fds = receive()
    tell(f"{text} {os.pread(fds[0], 100, 0).decode()}")
    signal.pause()
    """))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    first = subprocess.Popen(["/bin/sleep", "1000"])
    keeper = subprocess.Popen(
        [KEEPER, "--supervisor", str(first.pid), "--fd", str(theirs.fileno()), "--", sys.executable, str(script), str(tmp_path)],
        pass_fds=(theirs.fileno(),), stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    one = Kept.__new__(Kept)
    one.folder, one.child = tmp_path, keeper
    kept.append(one)
    theirs.close()
    memory = os.memfd_create("kept")
    os.write(memory, b"handed over")
    ours.sendmsg([b"store x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [memory]))])
    first.kill()
    first.wait()
    one.wait_said("fd x handed over")
    assert one.end() == 0


def test_usage() -> None:
    done = subprocess.run([KEEPER], capture_output=True, text=True, check=False)
    assert (done.returncode, "usage:" in done.stderr) == (2, True)
    wrong = subprocess.run(
        [KEEPER, "--supervisor", "1", "--fd", "77", "--", "/bin/true"], capture_output=True, text=True, check=False
    )
    assert wrong.returncode == 2


def test_a_killed_child_is_gone(tmp_path: Path, kept: list[Kept]) -> None:
    one = Kept(tmp_path, ON_TERM, "signal.pause()")
    kept.append(one)
    pid = int(one.wait_said("generation 1").split()[-1])
    os.kill(pid, signal.SIGKILL)
    wait_gone(pid)
    assert int(one.wait_said("generation 2").split()[-1]) != pid
    assert one.end() == 0
