"""Network namespaces and veth pairs for tests: hosts with addresses, offloads at the kernel's defaults.

    with Network() as net:
        client, server, box = net.host("client"), net.host("server"), net.host("box")
        net.veth(client, "eth0", box, "lan")
        net.veth(server, "eth0", box, "wan")
        client.address("eth0", "10.7.0.1/24", "fd07::1/64")
        server.address("eth0", "10.7.0.2/24", "fd07::2/64")
        client.run("ping", "-c", "1", "10.7.0.2")

A host of None in `veth` is the namespace the test runs in; `net.name("lan")` gives a unique interface name for it.
Everything goes away at the end of the `with`, at exit of the process, and (what a killed process left) when the
next Network is made: all names carry the pid of their maker.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import itertools
import json
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_CLONE_NEWNET = 0x40000000
_STALE = re.compile(r"cv(\d+)[-x]")
_numbers = itertools.count(1)


def unavailable() -> str | None:
    """Say why namespaces cannot be had here, or give None; for `pytest.mark.skipif`."""
    if os.geteuid() != 0:
        return "needs root"
    if shutil.which("ip") is None:
        return "needs iproute2"
    probe = f"cv{os.getpid()}-probe-{next(_numbers)}"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        return f"cannot make network namespaces: {made.stderr.strip()}"
    subprocess.run(["ip", "netns", "del", probe], capture_output=True, check=False)
    return None


def inside(namespace: str) -> list[str]:
    """Give the words that run a command in a namespace. `ip netns exec` would also mount, which a chroot cannot."""
    return ["nsenter", f"--net=/run/netns/{namespace}"]


def ip(*arguments: str, namespace: str | None = None, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run `ip`, inside a namespace if one is named; a failure shows what ip said."""
    command = [*(inside(namespace) if namespace else []), "ip", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if check and done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done


def sweep_stale() -> None:
    """Remove namespaces and links whose maker is dead."""
    for entry in json.loads(ip("-j", "netns", "list").stdout or "[]"):
        found = _STALE.match(entry["name"])
        if found and not Path(f"/proc/{found[1]}").exists():
            ip("netns", "del", entry["name"], check=False)
    for link in json.loads(ip("-j", "link", "show").stdout or "[]"):
        found = _STALE.match(link["ifname"])
        if found and not Path(f"/proc/{found[1]}").exists():
            ip("link", "del", link["ifname"], check=False)


class Host:
    """A network namespace that stands for a host."""

    def __init__(self, name: str, namespace: str) -> None:
        """name: as the test calls it; namespace: as the system does."""
        self.name = name
        self.namespace = namespace
        self.children: list[subprocess.Popen[Any]] = []

    def ip(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run `ip` in this host."""
        return ip(*arguments, namespace=self.namespace, check=check)

    def address(self, interface: str, *addresses: str) -> None:
        """Add addresses (with prefix length); IPv6 ones are usable at once."""
        for address in addresses:
            self.ip("addr", "add", address, "dev", interface, *(["nodad"] if ":" in address else []))

    def command(self, *command: str) -> list[str]:
        """Give the command line that runs a command here."""
        return [*inside(self.namespace), *command]

    def run(
        self, *command: str, check: bool = True, timeout: float = 30, text: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; a failure shows its output. text: for its standard input."""
        done = subprocess.run(
            self.command(*command), capture_output=True, text=True, check=False, timeout=timeout, input=text
        )
        if check and done.returncode != 0:
            raise RuntimeError(f"{self.name}: {' '.join(command)}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def popen(self, *command: str, **options: Any) -> subprocess.Popen[Any]:
        """Start a command; it is killed with the host if it still runs then."""
        child = subprocess.Popen(self.command(*command), **options)
        self.children.append(child)
        return child

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Move the calling thread into this host: sockets made inside belong to it for ever."""
        libc = ctypes.CDLL(None, use_errno=True)
        with Path("/proc/thread-self/ns/net").open() as before, Path(f"/run/netns/{self.namespace}").open() as own:
            if libc.setns(own.fileno(), _CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), f"setns to {self.namespace}")
            try:
                yield
            finally:
                if libc.setns(before.fileno(), _CLONE_NEWNET) != 0:
                    raise OSError(ctypes.get_errno(), "setns back")

    def mac(self, interface: str) -> str:
        """Give the hardware address of an interface."""
        return str(json.loads(self.ip("-j", "link", "show", interface).stdout)[0]["address"])

    def counters(self, interface: str) -> dict[str, int]:
        """Give rx and tx packets, bytes and drops of an interface as `rx_packets`, `tx_bytes`, ..."""
        link = json.loads(self.ip("-j", "-s", "link", "show", interface).stdout)[0]
        return {f"{way}_{key}": value for way in ("rx", "tx") for key, value in link["stats64"][way].items()}

    def udp_not_taken(self) -> int:
        """Give how many UDP datagrams reached sockets here that had no room, because their owner did not read."""
        with self.entered():
            rows = [line.split() for line in Path("/proc/thread-self/net/snmp").read_text().splitlines() if line.startswith("Udp:")]
            rows6 = [line.split() for line in Path("/proc/thread-self/net/snmp6").read_text().splitlines()]
        found = dict(zip(*rows, strict=True))
        return int(found["RcvbufErrors"]) + sum(int(row[1]) for row in rows6 if row[0] == "Udp6RcvbufErrors")

    def wait_listening(self, port: int, deadline: float = 10) -> None:
        """Return when something listens on a TCP port here."""
        end = time.monotonic() + deadline
        wanted = f":{port:04X}"
        while time.monotonic() < end:
            with self.entered():
                tables = [Path(f"/proc/thread-self/net/{name}").read_text() for name in ("tcp", "tcp6")]
            for line in "".join(tables).splitlines():
                fields = line.split()
                if len(fields) > 3 and fields[1].endswith(wanted) and fields[3] == "0A":
                    return
            threading.Event().wait(0.01)
        raise TimeoutError(f"{self.name}: nothing listens on port {port} after {deadline} s")

    def close(self) -> None:
        """End what was started here and remove the namespace."""
        for child in self.children:
            if child.poll() is None:
                child.kill()
            child.wait()
            for stream in (child.stdin, child.stdout, child.stderr):
                if stream:
                    stream.close()
        ip("netns", "del", self.namespace, check=False)


class Network:
    """Hosts and the links between them, all gone at the end."""

    def __init__(self) -> None:
        """Sweep what dead processes left, and register for exit."""
        sweep_stale()
        self.prefix = f"cv{os.getpid()}"
        self.hosts: list[Host] = []
        self.links: list[str] = []  # in the namespace of the test
        atexit.register(self.close)

    def __enter__(self) -> Network:
        """Nothing to do: hosts are made one by one."""
        return self

    def __exit__(self, *_: object) -> None:
        """Remove everything."""
        self.close()

    def name(self, _purpose: str = "") -> str:
        """Give an interface name that nobody else uses (at most 15 characters)."""
        return f"{self.prefix}x{next(_numbers)}"

    def host(self, name: str) -> Host:
        """Make a host with its loopback up."""
        host = Host(name, f"{self.prefix}-{next(_numbers)}-{name}")
        ip("netns", "add", host.namespace)
        self.hosts.append(host)
        host.ip("link", "set", "lo", "up")
        return host

    def veth(
        self, a: Host | None, a_name: str, b: Host | None, b_name: str, *, mtu: int = 1500, up: bool = True
    ) -> None:
        """Join two hosts by a veth pair; both ends up, without addresses, offloads untouched."""
        ends = [(a, a_name), (b, b_name)]
        arguments: list[str] = []
        for number, (host, name) in enumerate(ends):
            arguments += ["peer"] if number else []
            arguments += ["name", name, "mtu", str(mtu)]
            arguments += ["netns", host.namespace] if host else []
            if number == 0:
                arguments += ["type", "veth"]
        ip("link", "add", *arguments)
        for host, name in ends:
            if host is None:
                self.links.append(name)
            if up:
                ip("link", "set", name, "up", namespace=host.namespace if host else None)

    def close(self) -> None:
        """Remove all links and hosts; may be called again."""
        atexit.unregister(self.close)
        for name in self.links:
            ip("link", "del", name, check=False)
        for host in self.hosts:
            host.close()
        self.links, self.hosts = [], []
