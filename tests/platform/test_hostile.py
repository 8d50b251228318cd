"""Components that attack: the worker goes on, another path keeps its traffic, every packet is accounted for, nothing is left.

Each does its worst from within its process, with everything that the launch contract gives it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from coven.errors import CovenError
from tests.lib import plans
from tests.lib.platform import BIN, PlatformUnderTest

pytestmark = pytest.mark.skipif(not (BIN / "coven-worker").exists(), reason="the programs are not built")

ENDLESS = 2**40  # packets
INSTANCE = "fw-1"

HEAD = """
#define _GNU_SOURCE
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>
#include <coven/component.h>
static void burst(struct coven_component *self, struct coven_packet *pkts, uint16_t n)
{
    (void)self; (void)pkts; (void)n;
}
static uint8_t *map(int fd, size_t *bytes)
{
    struct stat status;
    void *at;

    if (fstat(fd, &status) != 0)
        return NULL;
    *bytes = (size_t)status.st_size;
    at = mmap(NULL, *bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    return at == MAP_FAILED ? NULL : at;
}
"""

# Stops, and leaves children that say it sleeps and keep both doorbells full and waiting: whoever rings or empties one next
# would stand still.
DOORBELLS = """
static void keep_full(int fd)
{
    const uint64_t most = UINT64_MAX - 1;
    size_t bytes;
    struct coven_replica *replica = (struct coven_replica *)map(COVEN_FD_REPLICA, &bytes);

    signal(SIGPIPE, SIG_IGN);
    for (;;) {
        __atomic_store_n(&replica->in.sleeping, 1, __ATOMIC_SEQ_CST);
        fcntl(fd, F_SETFL, O_NONBLOCK);
        while (write(fd, &most, sizeof(most)) > 0)
            ;
        fcntl(fd, F_SETFL, 0);
        poll(NULL, 0, 1);
    }
}
static void stop(struct coven_component *self, struct coven_packet *pkts, uint16_t n)
{
    (void)self; (void)pkts; (void)n;
    kill(getpid(), SIGSTOP);
}
static int init(struct coven_component *self)
{
    (void)self;
    if (fork() == 0)
        keep_full(COVEN_FD_DOORBELL);
    if (fork() == 0)
        keep_full(COVEN_FD_WORKER);
    return 0;
}
COVEN_COMPONENT(.process_burst = stop, .init = init);
"""


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[PlatformUnderTest]:
    under_test = PlatformUnderTest(tmp_path, arguments=("--start-timeout", "8"))
    with under_test:
        yield under_test
    assert under_test.leftovers() == []


def two_paths(platform: PlatformUnderTest, source: str, isolation: str, **more: Any) -> dict[str, Any]:
    """A plan with a hostile component on the path between the first two ports, and nothing between the other two."""
    root = platform.package("demo", {"hostile/hostile.c": HEAD + source})
    ports = [plans.gen_port("lan", ENDLESS, rate=2000), plans.gen_port("wan")]
    others = [plans.gen_port("lan-b", ENDLESS, rate=2000), plans.gen_port("wan-b")]
    hostile = plans.component("hostile", root, "c", isolation_asked=isolation, isolation=isolation, **more)
    plan = plans.chain(INSTANCE, root, [hostile], ports)
    plan["ports"] += [{**others[0], "path": 1, "first": {"port": 3}}, {**others[1], "path": None, "first": None}]
    plan["paths"].append({"name": "other", "ingress": "lan-b", "spi": 0})
    return plan


def snapshot(platform: PlatformUnderTest) -> dict[str, Any] | None:
    try:
        taken = platform.request("snapshot", instance=INSTANCE)
    except CovenError:
        return None
    assert taken["accounting"]["balanced"], taken
    return dict(taken)


def moves_on(platform: PlatformUnderTest, packets: int = 500, port: str = "wan-b") -> dict[str, Any]:
    """Give a snapshot once so many more packets have left by the other path."""
    first = platform.wait_for(lambda: snapshot(platform), "the worker does not answer")["ports"][port]["tx_pkts"]

    def further() -> dict[str, Any] | None:
        now = snapshot(platform)
        return now if now is not None and now["ports"][port]["tx_pkts"] >= first + packets else None

    return dict(platform.wait_for(further, f"no packets leave by {port}"))


def stays_whole(platform: PlatformUnderTest, worker: int) -> None:
    """The same worker still moves packets of the other path; afterwards nothing is left of the instance."""
    moves_on(platform)
    assert platform.instance(INSTANCE)["workers"][0]["pid"] == worker
    platform.execute("terminate", INSTANCE, force=True)


@pytest.mark.parametrize("isolation", ["copy", "shared"])
def test_doorbells_that_are_full_and_wait(platform: PlatformUnderTest, isolation: str) -> None:
    platform.deploy(two_paths(platform, DOORBELLS, isolation))
    stays_whole(platform, platform.instance(INSTANCE)["workers"][0]["pid"])
