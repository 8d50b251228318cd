"""The processes of an appliance, by part: found, killed by tests, and waited for."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import psutil

from coven.errors import CovenError
from tests.e2e.appliance import CLIENT, SERVER, Appliance


def pin_neighbours(appliance: Appliance) -> None:
    """Pin the neighbours of both hosts, so that a lost ARP answer is never taken for a lost packet."""
    for host, other, address in (
        (appliance.client, appliance.server, SERVER[0]),
        (appliance.server, appliance.client, CLIENT[0]),
    ):
        mac = other.mac("eth0")
        host.ip("neigh", "replace", address, "lladdr", mac, "dev", "eth0", "nud", "permanent")


def processes(appliance: Appliance) -> dict[str, int]:
    """Give the process ids of everything that runs, by part."""
    assert appliance.platform.process is not None
    top = psutil.Process(appliance.platform.process.pid)
    found = {}
    for process in [top, *top.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            line = " ".join(process.cmdline())
            for part in ("coven.supervisor", "coven.management", "coven-keeper"):
                if part in line:
                    found[part] = process.pid
    state = appliance.state()
    found["worker"] = state["workers"][0]["pid"]
    for component in state["components"]:
        for replica in component["replicas"]:
            if replica["pid"]:
                found[component["name"]] = replica["pid"]
    return found


def answered(ask: Callable[[], Any]) -> Callable[[], Any]:
    """Give a condition: the call is answered at all."""

    def condition() -> Any:
        with contextlib.suppress(CovenError):
            return ask()
        return None

    return condition


def is_another(appliance: Appliance, part: str, old: int) -> bool:
    """Tell whether a part runs, in another process than before."""
    return processes(appliance).get(part) not in (None, old)
