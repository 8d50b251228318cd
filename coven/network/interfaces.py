"""What netlink says about interfaces, and whether one may become a port."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from coven.errors import CovenError, Where
from coven.suggest import near_miss

ARPHRD_ETHER = 1
IFF_UP, IFF_LOOPBACK = 0x1, 0x8
SCOPE_GLOBAL = 0
MAIN_TABLE = 254


@dataclass(frozen=True, slots=True)
class Interface:
    """An interface as it is now. mtu: payload bytes behind the Ethernet header."""

    index: int
    name: str
    mtu: int
    is_up: bool
    is_loopback: bool
    is_ethernet: bool
    master: str | None  # bridge, bond or team it belongs to
    kind: str | None  # "veth", "bridge", "tun", ...; None for hardware
    addresses: tuple[str, ...]  # global ones
    routes: tuple[str, ...]  # of the main table that leave by it
    xdp_program: int | None = None  # id of the one that is attached


def list_interfaces() -> dict[str, Interface]:
    """Give all interfaces of this network namespace by name."""
    from pyroute2 import (
        IPRoute,  # late: costs a tenth of a second, and files need no netlink
    )

    with IPRoute() as netlink:
        links = [message for message in netlink.get_links()]
        names = {message["index"]: message.get_attr("IFLA_IFNAME") for message in links}
        addresses: dict[int, list[str]] = {}
        for message in netlink.get_addr():
            if message["scope"] == SCOPE_GLOBAL:
                text = f"{message.get_attr('IFA_LOCAL') or message.get_attr('IFA_ADDRESS')}/{message['prefixlen']}"
                addresses.setdefault(message["index"], []).append(text)
        routes: dict[int, list[str]] = {}
        for message in netlink.get_routes():
            target = str(message.get_attr("RTA_DST") or "default")
            table = message.get_attr("RTA_TABLE") or message["table"]
            if table != MAIN_TABLE or target.startswith(("fe80:", "ff00:")):
                continue
            routes.setdefault(message.get_attr("RTA_OIF") or 0, []).append(target)
        return {names[link["index"]]: _interface(link, names, addresses, routes) for link in links}


def _interface(
    link: Any, names: dict[int, str], addresses: dict[int, list[str]], routes: dict[int, list[str]]
) -> Interface:
    index = link["index"]
    master = link.get_attr("IFLA_MASTER")
    info = link.get_attr("IFLA_LINKINFO")
    return Interface(
        index=index,
        name=link.get_attr("IFLA_IFNAME"),
        mtu=link.get_attr("IFLA_MTU"),
        is_up=bool(link["flags"] & IFF_UP),
        is_loopback=bool(link["flags"] & IFF_LOOPBACK),
        is_ethernet=link["ifi_type"] == ARPHRD_ETHER,
        master=names.get(master, str(master)) if master else None,
        kind=info.get_attr("IFLA_INFO_KIND") if info else None,
        addresses=tuple(addresses.get(index, ())),
        routes=tuple(routes.get(index, ())),
        xdp_program=_xdp_program(link),
    )


def _xdp_program(link: Any) -> int | None:
    found = link.get_attr("IFLA_XDP")
    if found is None:
        return None
    for name in ("IFLA_XDP_PROG_ID", "IFLA_XDP_DRV_PROG_ID", "IFLA_XDP_SKB_PROG_ID", "IFLA_XDP_HW_PROG_ID"):
        number = found.get_attr(name)
        if number:
            return int(number)
    return None


def check_interface(
    name: str, port: str, *, taken: Collection[str] = (), interfaces: dict[str, Interface] | None = None
) -> Interface:
    """Give an interface that may become a port.

    taken: interfaces that other ports of COVEN have. Raises CovenError port.interface-missing, port.in-use,
    port.unsupported or port.interface-down.
    """
    known = list_interfaces() if interfaces is None else interfaces
    where = Where(part=f"port {port}")
    found = known.get(name)
    if found is None:
        usable = sorted(other.name for other in known.values() if _usable(other) and other.name not in taken)
        offer = "no interface here could be used"
        if usable:
            offer = f"interfaces that could be used: {', '.join(usable[:8])}"
        hint = "; ".join(filter(None, [near_miss(name, usable), offer]))
        raise CovenError("port.interface-missing", f"there is no interface {name!r}", hint=hint, where=where)
    if found.is_loopback or not found.is_ethernet:
        what = "the loopback interface" if found.is_loopback else "not an Ethernet interface"
        raise CovenError(
            "port.unsupported", f"{name} is {what}", hint="bind an Ethernet interface or a veth", where=where
        )
    _check_free(found, taken, where)
    if not found.is_up:
        raise CovenError(
            "port.interface-down", f"{name} is down", hint=f"bring it up: ip link set {name} up", where=where
        )
    return found


def _check_free(found: Interface, taken: Collection[str], where: Where) -> None:
    """Refuse an interface that somebody else lives on: COVEN takes everything that arrives there."""
    name = found.name
    if name in taken:
        raise CovenError(
            "port.in-use",
            f"{name} is already a port",
            hint="bind another interface, or terminate what has it",
            where=where,
        )
    if found.master:
        raise CovenError(
            "port.in-use",
            f"{name} belongs to {found.master}",
            hint=f"take it out (ip link set {name} nomaster) or bind another interface",
            where=where,
        )
    if found.addresses:
        raise CovenError(
            "port.in-use",
            f"{name} has the address {', '.join(found.addresses)}: the host itself talks through it",
            hint=f"bind an interface without address, or remove it (ip addr flush dev {name})",
            where=where,
        )
    if found.routes:
        raise CovenError(
            "port.in-use",
            f"{name} carries the route {', '.join(found.routes[:4])}",
            hint=f"bind another interface, or remove the routes (ip route flush dev {name})",
            where=where,
        )


def _usable(found: Interface) -> bool:
    return found.is_ethernet and not found.is_loopback and not (found.master or found.addresses or found.routes)


def set_up(index: int, mtu: int | None) -> None:
    """Bring a tap up, with an MTU if one is asked for."""
    from pyroute2 import IPRoute

    with IPRoute() as netlink:
        if mtu:
            netlink.link("set", index=index, mtu=mtu)
        netlink.link("set", index=index, state="up")
