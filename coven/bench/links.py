"""The network of the measurements: an appliance's namespace between a client's and a server's, joined by veth pairs.

    with Network() as net:          # in net.box: lan, wan; in the client and the server: eth0
        net.enter("box")            # words that run a command there

Names carry the pid of their maker, so that what a killed run left is found and removed by the next one.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from coven.demo.hosts import run

CLONE_NEWNET = 0x40000000
HOSTS = {"client": "lan", "server": "wan"}  # and the interface of the appliance that leads there
STALE = re.compile(r"cvb(\d+)-")


def sweep() -> None:
    """Remove namespaces whose maker is dead; the links go with them."""
    for entry in json.loads(run("ip", "-j", "netns", "list") or "[]"):
        found = STALE.match(entry["name"])
        if found and not Path(f"/proc/{found[1]}").exists():
            run("ip", "netns", "del", entry["name"], check=False)


class Network:
    """Three namespaces and two links, for as long as the `with` lasts."""

    def __init__(self) -> None:
        """Remove what dead runs left."""
        sweep()
        self._tag = f"cvb{os.getpid()}"

    def path(self, host: str) -> str:
        """Give the file of a namespace: `client`, `server` or `box`."""
        return f"/run/netns/{self._tag}-{host}"

    def enter(self, host: str) -> list[str]:
        """Give the words that run a command there. `ip netns exec` would also mount, which a chroot cannot."""
        return ["nsenter", f"--net={self.path(host)}"]

    @contextlib.contextmanager
    def entered(self, host: str) -> Iterator[None]:
        """Move the calling thread there: sockets made inside belong to it for ever."""
        libc = ctypes.CDLL(None, use_errno=True)
        with Path("/proc/thread-self/ns/net").open() as before, Path(self.path(host)).open() as wanted:
            if libc.setns(wanted.fileno(), CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), f"setns to {host}")
            try:
                yield
            finally:
                if libc.setns(before.fileno(), CLONE_NEWNET) != 0:
                    raise OSError(ctypes.get_errno(), "setns back")

    def __enter__(self) -> Network:
        """Make everything; nothing has an address, so nobody speaks on the links by itself."""
        try:
            for host in ("box", *HOSTS):
                run("ip", "netns", "add", f"{self._tag}-{host}")
                run(*self.enter(host), "ip", "link", "set", "lo", "up")
            for host, interface in HOSTS.items():
                inside = f"{self._tag}-box"
                run("ip", "link", "add", interface, "netns", inside, "type", "veth",
                    "peer", "name", "eth0", "netns", f"{self._tag}-{host}")  # fmt: skip
                for where, name in (("box", interface), (host, "eth0")):
                    run(*self.enter(where), "ip", "link", "set", name, "addrgenmode", "none")
                    run(*self.enter(where), "ip", "link", "set", name, "up")
            # the floor of all latencies: a wire without an appliance
            run("ip", "link", "add", "direct", "netns", f"{self._tag}-client", "type", "veth",
                "peer", "name", "direct", "netns", f"{self._tag}-server")  # fmt: skip
            for host in HOSTS:
                run(*self.enter(host), "ip", "link", "set", "direct", "addrgenmode", "none")
                run(*self.enter(host), "ip", "link", "set", "direct", "up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Remove everything."""
        for host in ("box", *HOSTS):
            run("ip", "netns", "del", f"{self._tag}-{host}", check=False)


@dataclass(frozen=True, slots=True)
class InterfaceCounters:
    """Packets of an interface so far."""

    rx: int
    tx: int


def counters(pid: int, interface: str) -> InterfaceCounters:
    """Give the counters of an interface in the network namespace of a process."""
    for row in Path(f"/proc/{pid}/net/dev").read_text().splitlines():
        name, _, rest = row.partition(":")
        if name.strip() == interface:
            words = rest.split()
            return InterfaceCounters(int(words[1]), int(words[9]))
    return InterfaceCounters(0, 0)
