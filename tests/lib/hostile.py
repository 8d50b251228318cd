"""Hostile components for tests of the platform: where they are put, and what must be true whatever they do."""

from __future__ import annotations

from typing import Any

from coven.errors import CovenError
from tests.lib import plans
from tests.lib.platform import Client, PlatformUnderTest

ENDLESS = 2**40  # packets
INSTANCE = "fw-1"
STATE = {"bytes": 24, "version": 1, "scope": "flow", "class": "soft"}

HEAD_C = """
#define _GNU_SOURCE
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>
#include <coven/component.h>
static void process(struct coven_component *self, struct coven_packet *pkt, void *fs)
{
    (void)self; (void)pkt; (void)fs;
}
static int allocate(struct coven_component *self, const struct coven_packet *pkt, void *fs)
{
    (void)self; (void)pkt; (void)fs;
    return 0;
}
__attribute__((unused, format(printf, 2, 3))) static void say(struct coven_component *self, const char *format, ...)
{
    char text[1024];
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(text, sizeof(text), format, arguments);
    va_end(arguments);
    coven_log(self, text);
}
__attribute__((unused)) static uint8_t *map(int fd, size_t *bytes)
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


HEAD_PY = """
import ctypes, os, signal, socket, threading, time
from coven.component import Component

libc = ctypes.CDLL(None, use_errno=True)
"""


def two_paths(
    platform: PlatformUnderTest, source: str, isolation: str, framework: str = "c", **more: Any
) -> dict[str, Any]:
    """A plan with a hostile component on the path between the first two ports, and nothing between the other two."""
    text = {"hostile/hostile.c": HEAD_C + source} if framework == "c" else {"hostile/hostile.py": HEAD_PY + source}
    root = platform.package("demo", text)
    more.setdefault("state", STATE if framework == "c" else None)
    ports = [plans.gen_port("lan", ENDLESS, rate=2000), plans.gen_port("wan")]
    others = [plans.gen_port("lan-b", ENDLESS, rate=2000), plans.gen_port("wan-b")]
    hostile = plans.component("hostile", root, framework, isolation_asked=isolation, isolation=isolation, **more)
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


def moves_on(platform: PlatformUnderTest, packets: int = 100, port: str = "wan-b") -> dict[str, Any]:
    """Give a snapshot once so many more packets have left by the other path."""
    first = platform.wait_for(lambda: snapshot(platform), "the worker does not answer")["ports"][port]["tx_pkts"]

    def further() -> dict[str, Any] | None:
        now = snapshot(platform)
        return now if now is not None and now["ports"][port]["tx_pkts"] >= first + packets else None

    return dict(platform.wait_for(further, f"no packets leave by {port}"))


def subscribed(platform: PlatformUnderTest) -> Client:
    """A connection that hears events."""
    client = Client(platform.run_dir / "supervisor.sock")
    client.request("subscribe")
    return client


def stays_whole(platform: PlatformUnderTest, worker: int) -> None:
    """The same worker still moves packets of the other path; afterwards nothing is left of the instance."""
    moves_on(platform)
    assert platform.instance(INSTANCE)["workers"][0]["pid"] == worker
    platform.execute("terminate", INSTANCE, force=True)


