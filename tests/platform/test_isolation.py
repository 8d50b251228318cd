"""What a component may ask of the kernel, what it sees of the host, and who hears of it when it asks for more."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from coven.supervisor.config import parse_arguments
from coven.supervisor.launch import program_folders
from tests.lib.hostile import INSTANCE, moves_on, stays_whole, subscribed, two_paths
from tests.lib.platform import BIN, Client, PlatformUnderTest

pytestmark = pytest.mark.skipif(not (BIN / "coven-worker").exists(), reason="the programs are not built")

ROOT = os.geteuid() == 0
USER = 1900009999  # without privileges

# What is told by name: call, and how C asks for it. Arguments are such that an unfiltered kernel would do it, or fail with
# something other than EPERM.
CALLS = {
    "ptrace": "PTRACE_TRACEME, 0, 0, 0",
    "process_vm_readv": "getpid(), &vec, 1, &vec, 1, 0",
    "process_vm_writev": "getpid(), &vec, 1, &vec, 1, 0",
    "pidfd_getfd": "-1, 0, 0",
    "kcmp": "getpid(), getpid(), 0, 0, 0",
    "bpf": "0, 0, 0",
    "perf_event_open": "0, 0, -1, -1, 0",
    "userfaultfd": "1",
    "io_uring_setup": "0, 0",
    "keyctl": "0, -3, 0",
    "add_key": "0, 0, 0, 0, -3",
    "request_key": "0, 0, 0, 0",
    "mount": '"x", "/tmp", "tmpfs", 0, 0',
    "umount2": '"/tmp", 0',
    "pivot_root": '"/tmp", "/tmp"',
    "chroot": '"/tmp"',
    "open_tree": '-100, "/tmp", 1',
    "move_mount": "-1, 0, -1, 0, 0",
    "fsopen": '"tmpfs", 0',
    "mount_setattr": "-1, 0, 0, 0, 0",
    "open_by_handle_at": "-100, 0, 0",
    "unshare": "CLONE_NEWUSER",
    "setns": "0, 0",
    "sethostname": '"h", 1',
    "init_module": '0, 0, ""',
    "finit_module": '-1, "", 0',
    "delete_module": '"x", 0',
    "kexec_load": "0, 0, 0, 0",
    "reboot": "0, 0, 0, 0",
    "swapon": '"/tmp", 0',
    "acct": "0",
    "syslog": "0, 0, 0",
}
SOCKETS = {
    "inet": "AF_INET, SOCK_DGRAM, 0",
    "raw": "AF_INET, SOCK_RAW, IPPROTO_ICMP",
    "packet": "AF_PACKET, SOCK_RAW, 0",
    "netlink": "AF_NETLINK, SOCK_RAW, 0",
    "vsock": "40, SOCK_STREAM, 0",
}

ASKS_C = (
    """
#include <errno.h>
#include <netinet/in.h>
#include <sched.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
static int init(struct coven_component *self)
{
    struct iovec vec = {&vec, sizeof(vec)};
"""
    + "".join(f'    say(self, "%s %d", "{name}", syscall(SYS_{name}, {args}) < 0 ? errno : 0);\n'
              for name, args in CALLS.items())
    + "".join(f'    say(self, "%s %d", "{name}", socket({args}) < 0 ? errno : 0);\n' for name, args in SOCKETS.items())
    + """
    say(self, "%s %d", "clone", syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0) < 0 ? errno : 0);
    say(self, "%s %d", "unix", socket(AF_UNIX, SOCK_STREAM, 0) < 0 ? errno : 0);
    return 0;
}
COVEN_COMPONENT(.process_pkt = process, .allocate_new_fs = allocate, .init = init);
"""
)  # fmt: skip

ASKS_PY = """
CALLS = {
    "ptrace": lambda: libc.ptrace(0, 0, 0, 0),
    "process_vm_writev": lambda: libc.process_vm_writev(os.getpid(), 0, 0, 0, 0, 0),
    "unshare": lambda: libc.unshare(0x10000000),
    "setns": lambda: libc.setns(0, 0),
    "mount": lambda: libc.mount(b"x", b"/tmp", b"tmpfs", 0, 0),
    "umount2": lambda: libc.umount2(b"/tmp", 0),
    "reboot": lambda: libc.reboot(0),
    "swapon": lambda: libc.swapon(b"/tmp", 0),
    "chroot": lambda: libc.chroot(b"/tmp"),
    "sethostname": lambda: libc.sethostname(b"h", 1),
}

class Hostile(Component):
    def __init__(self, *arguments, **more):
        super().__init__(*arguments, **more)
        for name, call in CALLS.items():
            ctypes.set_errno(0)
            call()
            print(name, ctypes.get_errno(), flush=True)
        for name, family in (("inet", socket.AF_INET), ("packet", socket.AF_PACKET)):
            try:
                socket.socket(family, socket.SOCK_RAW)
                print(name, 0, flush=True)
            except OSError as error:
                print(name, error.errno, flush=True)

    def process_burst(self, burst):
        pass
"""
PY_CALLS = {"ptrace", "process_vm_writev", "unshare", "setns", "mount", "umount2", "reboot", "swapon", "chroot", "sethostname"}
PY_SOCKETS = {"inet", "packet"}

# Shows what it can find out of itself and of others.
LOOKS = r"""
#include <dirent.h>
#include <errno.h>
static void show(struct coven_component *self, const char *what, const char *path)
{
    char line[512];
    FILE *file = fopen(path, "re");

    while (file && fgets(line, sizeof(line), file)) {
        line[strcspn(line, "\n")] = 0;
        say(self, "%s %s", what, line);
    }
    if (file)
        fclose(file);
}
static void list(struct coven_component *self, const char *what, const char *path)
{
    DIR *folder = opendir(path);
    struct dirent *entry;

    while (folder && (entry = readdir(folder)) != NULL) {
        char name[600], target[512];
        ssize_t n;

        snprintf(name, sizeof(name), "%s/%s", path, entry->d_name);
        n = readlink(name, target, sizeof(target) - 1);
        target[n < 0 ? 0 : n] = 0;
        if (entry->d_name[0] != '.' && atoi(entry->d_name) != (folder ? dirfd(folder) : -1))
            say(self, "%s %s %s", what, entry->d_name, target);
    }
    if (folder)
        closedir(folder);
}
static int init(struct coven_component *self)
{
    char path[64];

    show(self, "status", "/proc/self/status");
    show(self, "maps", "/proc/self/maps");
    list(self, "fd", "/proc/self/fd");
    list(self, "top", "/");
    list(self, "proc", "/proc");
    snprintf(path, sizeof(path), "/proc/%d/fd/3", getppid());
    say(self, "parent %d", open(path, O_RDONLY) >= 0 ? 0 : errno);
    snprintf(path, sizeof(path), "/proc/%d/mem", getppid());
    say(self, "memory %d", open(path, O_RDONLY) >= 0 ? 0 : errno);
    say(self, "kill %d", kill(getppid(), 0) ? errno : 0);
    return 0;
}
COVEN_COMPONENT(.process_pkt = process, .allocate_new_fs = allocate, .init = init);
"""

# Asks without end, from several threads, and lets signals break in on half of the calls.
ASKS_FOR_EVER = """
#include <pthread.h>
#include <sched.h>
#include <sys/time.h>
static void nothing(int number)
{
    (void)number;
}
static void *ask(void *unused)
{
    for (;;)
        unshare(CLONE_NEWNET);
    return unused;
}
static int init(struct coven_component *self)
{
    struct sigaction action = {.sa_handler = nothing};
    struct itimerval often = {{0, 1000}, {0, 1000}};

    (void)self;
    sigaction(SIGALRM, &action, NULL);
    setitimer(ITIMER_REAL, &often, NULL);
    for (int i = 0; i < 8; i++) {
        pthread_t thread;

        pthread_create(&thread, NULL, ask, NULL);
    }
    return 0;
}
COVEN_COMPONENT(.process_pkt = process, .allocate_new_fs = allocate, .init = init);
"""


def users() -> list[Any]:
    return [None, pytest.param(USER, marks=pytest.mark.skipif(not ROOT, reason="needs root to become somebody else"))]


@pytest.fixture(params=users(), ids=lambda user: "as-started" if user is None else "without-privileges")
def platform(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[PlatformUnderTest]:
    with contextlib.ExitStack() as stack:
        folder = tmp_path
        if request.param is not None:
            # not in pytest's own folder: every run that begins on this host closes it to other users again
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="coven-test-")))
            folder.chmod(0o755)
            os.chown(folder, request.param, request.param)
        under_test = stack.enter_context(PlatformUnderTest(folder, user=request.param))
        yield under_test
    assert under_test.leftovers() == []


def features(platform: PlatformUnderTest) -> str:
    """What this host lacks, as the operator reads it."""
    return " ".join(platform.request("hello")["degraded"])


def lines_of(platform: PlatformUnderTest, number: int = 1000) -> list[str]:
    logged = platform.request("logs", instance=INSTANCE, component="hostile", lines=number)["lines"]
    return [line["text"].removeprefix("hostile: ") for line in logged]


def told(client: Client) -> dict[str, int]:
    calls: dict[str, int] = {}
    for event in client.events:
        if event["type"] == "component-violation":
            assert (event["instance"], event["part"], event["kind"]) == (INSTANCE, "component hostile", "system-call")
            for name, number in event["calls"].items():
                calls[name] = calls.get(name, 0) + number
    return calls


@pytest.mark.parametrize("framework", ["c", "python"])
def test_what_it_may_not_ask_is_refused_and_told_by_name(platform: PlatformUnderTest, framework: str) -> None:
    if "seccomp" in features(platform):
        pytest.skip("no seccomp here")
    asked, sockets = (set(CALLS), set(SOCKETS)) if framework == "c" else (PY_CALLS, PY_SOCKETS)
    client = subscribed(platform)
    platform.deploy(two_paths(platform, ASKS_C if framework == "c" else ASKS_PY, "copy", framework))
    wanted = asked | {"socket"} | ({"clone"} if framework == "c" else set())
    # what came within a second of the event before it is told with the next one
    client.wait_event(lambda event: told(client) == {name: 1 for name in wanted} | {"socket": len(sockets)})
    refused = dict(line.split() for line in lines_of(platform) if len(line.split()) == 2)
    assert {name: refused[name] for name in asked | sockets} == dict.fromkeys(asked | sockets, "1")
    if framework == "c":
        assert (refused["clone"], refused["unix"]) == ("1", "1")
    replica = platform.instance(INSTANCE)["components"][0]["replicas"][0]
    assert (replica["state"], replica["restarts"], replica["refused_calls"]) == ("ready", 0, told(client))
    client.close()
    stays_whole(platform, platform.instance(INSTANCE)["workers"][0]["pid"])


def test_a_copy_component_sees_only_what_is_its_own(platform: PlatformUnderTest) -> None:
    platform.deploy(two_paths(platform, LOOKS, "copy"))
    seen: dict[str, list[str]] = {}
    for line in lines_of(platform):
        what, _, rest = line.partition(" ")
        seen.setdefault(what, []).append(rest)
    status = dict(line.split(":", 1) for line in seen["status"] if ":" in line)
    fields = {name: status[name].strip() for name in ("Seccomp", "NoNewPrivs", "CapEff", "CapBnd", "CapPrm")}
    assert fields == {"Seccomp": "2", "NoNewPrivs": "1", **dict.fromkeys(("CapEff", "CapBnd", "CapPrm"), "0" * 16)}
    shared = {line.split(None, 5)[5] for line in seen["maps"] if "memfd:" in line or "/dev/shm" in line}
    assert {name.split()[0].removeprefix("/memfd:") for name in shared} == {
        "coven-replica-0",
        "coven-state-hostile",
    }
    files = dict(line.split(" ", 1) for line in seen["fd"])
    assert files.pop("7").endswith("/hostile.so")  # its own code
    assert set(files) == {str(fd) for fd in range(7)}
    kinds = [files[str(fd)].split(":")[0] for fd in (0, 1, 2, 3, 6)]
    assert kinds == ["pipe", "pipe", "pipe", "socket", "pipe"]
    assert "memfd:coven-replica" in files["4"] and "memfd:coven-state" in files["5"]
    top = {line.split()[0] for line in seen["top"]}
    needed = {Path(folder).parts[1] for folder in program_folders(parse_arguments([]))}
    assert top <= {"bin", "dev", "etc", "lib", "lib32", "lib64", "libx32", "proc", "sbin", "tmp", "usr"} | needed
    assert not {"0"} & {*seen["parent"], *seen["memory"], *seen["kill"]}
    if ROOT and platform.request("hello")["privileged"]:
        assert len([line for line in seen["proc"] if line.split()[0].isdigit()]) == 1  # itself
    stays_whole(platform, platform.instance(INSTANCE)["workers"][0]["pid"])


def test_asking_without_end_harms_only_itself(platform: PlatformUnderTest) -> None:
    """Neither supervisor nor worker wait for it; the next supervisor hears of it as well."""
    if "told by name" in features(platform) or "seccomp" in features(platform):
        pytest.skip("nothing is told here")
    client = subscribed(platform)
    platform.deploy(two_paths(platform, ASKS_FOR_EVER, "copy"))
    worker = platform.instance(INSTANCE)["workers"][0]["pid"]
    client.wait_event(lambda event: told(client).get("unshare", 0) > 200)
    assert len([event for event in client.events if event["type"] == "component-violation"]) < 50
    client.close()
    for _ in range(20):
        moves_on(platform, packets=10)
    supervisor = platform.supervisor_pid
    platform.kill(supervisor)
    platform.wait_supervisor(other_than=supervisor)
    client = subscribed(platform)
    client.wait_event(lambda event: told(client).get("unshare", 0) > 50)
    client.close()
    stays_whole(platform, worker)
