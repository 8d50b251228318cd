"""Without control groups: what a component or a fused one leaves in a session of its own ends with it all the same."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lib import plans
from tests.lib.leftovers import descendants as below
from tests.lib.platform import BIN, PlatformUnderTest, is_running

pytestmark = pytest.mark.skipif(not (BIN / "coven-worker").exists(), reason="the programs are not built")

NOBODY = 65534

# Leaves a grandchild of the keeper's: nothing of the family tree leads from it to the component.
LEAVES_C = """
#include <coven/component.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>
static int init(struct coven_component *self)
{
    pid_t child = fork();

    (void)self;
    if (child == 0) {
        setsid();
        if (fork() != 0)
            _exit(0);
        execl("/bin/sleep", "sleep", "1000", (char *)0);
        _exit(1);
    }
    waitpid(child, NULL, 0);
    return 0;
}
static void process_burst(struct coven_component *self, struct coven_packet *pkts, uint16_t n)
{
    (void)self; (void)pkts; (void)n;
}
COVEN_COMPONENT(.process_burst = process_burst, .init = init);
"""


@pytest.fixture
def platform() -> Iterator[PlatformUnderTest]:
    if not all(parent.stat().st_mode & 0o001 for parent in BIN.parents):
        pytest.skip("coven lies where other users cannot go")
    user = NOBODY if os.geteuid() == 0 else None
    with tempfile.TemporaryDirectory() as name:
        if user is not None:
            os.chown(name, user, user)
        with PlatformUnderTest(Path(name), user=user) as under_test:
            assert not under_test.request("hello")["privileged"]
            yield under_test
        assert under_test.leftovers() == []


def deploy(platform: PlatformUnderTest) -> None:
    """One instance with a component in a process of its own, another with one in its worker."""
    root = platform.package("demo", {"one/one.c": LEAVES_C})
    ports = [plans.gen_port("lan", 1), plans.gen_port("wan")]
    platform.deploy(plans.chain("apart", root, [plans.component("one", root, "c")], ports))
    fused = plans.component("one", root, "c", isolation_asked="fused", isolation="fused")
    platform.deploy(plans.chain("fused", root, [fused], ports))


def strays(platform: PlatformUnderTest, instance: str) -> set[int]:
    """Give what was left behind for an instance: children of the keeper that the supervisor did not start."""
    found = set()
    assert platform.keeper is not None
    for pid in below(platform.keeper.pid):
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            group = next((word for word in words if word.startswith(b"COVEN_GROUP=")), b"")
            sleeps = Path(f"/proc/{pid}/comm").read_text().strip() == "sleep"
            if sleeps and f"/{instance}.".encode() in group and is_running(pid):
                found.add(pid)
    return found


def one(platform: PlatformUnderTest, instance: str) -> int:
    """Give the stray of an instance; it becomes a `sleep` soon after the component is ready."""
    return int(min(platform.wait_for(lambda: strays(platform, instance), f"{instance} leaves nothing behind")))


def test_a_restart_ends_what_the_last_one_left(platform: PlatformUnderTest) -> None:
    deploy(platform)
    left = {name: one(platform, name) for name in ("apart", "fused")}
    component = platform.replica("apart", "one")["pid"]
    platform.kill(component)
    platform.wait_ready("apart", "one", other_than=component)
    assert not is_running(left["apart"])
    assert is_running(left["fused"]), "another instance's"
    worker = platform.wait_worker("fused")["pid"]
    platform.kill(worker)
    platform.wait_worker("fused", other_than=worker)
    assert not is_running(left["fused"])
    assert len({one(platform, "apart"), one(platform, "fused")} - set(left.values())) == 2


def test_another_environment_does_not_help(platform: PlatformUnderTest) -> None:
    """Its user namespace tells whose it is; there is none to be had without this."""
    if "user namespaces" in " ".join(platform.request("hello")["degraded"]):
        pytest.skip("no user namespaces here")
    call = 'execl("/bin/sleep", "sleep", "1000", (char *)0)'
    assert call in LEAVES_C
    bare = LEAVES_C.replace(call, 'execle("/bin/sleep", "sleep", "1000", (char *)0, (char *[]){NULL})')
    root = platform.package("demo", {"one/one.c": bare})
    ports = [plans.gen_port("lan", 1), plans.gen_port("wan")]
    platform.deploy(plans.chain("apart", root, [plans.component("one", root, "c")], ports))

    def sleepers() -> set[int]:
        assert platform.keeper is not None
        found = set()
        for pid in below(platform.keeper.pid):
            with contextlib.suppress(OSError):
                if Path(f"/proc/{pid}/comm").read_text().strip() == "sleep" and is_running(pid):
                    found.add(pid)
        return found

    before = platform.wait_for(sleepers, "it leaves nothing behind")
    component = platform.replica("apart", "one")["pid"]
    platform.kill(component)
    platform.wait_ready("apart", "one", other_than=component)
    assert not any(map(is_running, before))
    platform.wait_for(sleepers, "its successor leaves nothing behind")
    platform.execute("terminate", "apart", force=True)
    assert not sleepers()


def test_terminate_ends_what_was_left(platform: PlatformUnderTest) -> None:
    deploy(platform)
    left = {name: one(platform, name) for name in ("apart", "fused")}
    for name in ("apart", "fused"):
        platform.execute("terminate", name, force=True)
        assert not is_running(left[name])


def test_a_platform_killed_as_a_whole_leaves_nothing_at_the_next_start(platform: PlatformUnderTest) -> None:
    deploy(platform)
    left = [one(platform, name) for name in ("apart", "fused")]
    platform.kill_keeper_and_supervisor()
    platform.start()
    assert not any(map(is_running, left))
