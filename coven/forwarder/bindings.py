"""Bindings of logical ports to what carries their packets, brought into one form."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from coven.errors import CovenError, Where
from coven.forwarder.instance_plan import AUTO, PORT_TOOLS
from coven.suggest import near_miss

# What the kernel allows, but for `%`, where it would put a number of its own choice, and bytes beyond ASCII.
INTERFACE_PATTERN = r"^[!-$&-.0-9;-~]{1,15}$"
INTERFACE_TOOLS = (AUTO, "afpacket", "afxdp", "tap")


@dataclass(frozen=True, slots=True)
class Binding:
    """What a port is bound to."""

    tool: str
    interface: str | None
    options: Mapping[str, Any]


def _is_file(value: object) -> bool:
    return value is None or (isinstance(value, str) and value.startswith("/") and "\x00" not in value)


def _is_flag(value: object) -> bool:
    return isinstance(value, bool)


def _within(low: int, high: int) -> Callable[[object], bool]:
    return lambda value: type(value) is int and low <= value <= high


# Options of each tool: default, test, what it must be.
OPTIONS: dict[str, dict[str, tuple[Any, Callable[[object], bool], str]]] = {
    AUTO: {},
    "afpacket": {},
    "afxdp": {
        "queues": (0, _within(0, 8), "0 (as many as the interface has) to 8"),
        "zero_copy": ("auto", lambda value: value in ("auto", "yes", "no"), "auto, yes or no"),
        "busy_poll": (False, _is_flag, "true or false"),
    },
    "tap": {},
    "pcap": {
        "in": (None, _is_file, "an absolute path or null"),
        "out": (None, _is_file, "an absolute path or null"),
        "paced": (False, _is_flag, "true or false"),
        "nanosecond": (False, _is_flag, "true or false"),
        "loop": (False, _is_flag, "true or false"),
        "skip_cut": (False, _is_flag, "true or false"),
    },
    "gen": {
        "packets": (0, _within(0, 2**64 - 1), "a number of packets"),
        "bytes": (64, lambda value: value == 0 or _within(60, 65535)(value), "0 (a mix) or 60 to 65535"),
        "rate": (0, _within(0, 10**12), "packets a second, 0 for as fast as can be"),
        "flows": (1, _within(1, 2**24), "1 to 16777216"),
    },
}


def _fault(port: str, message: str, hint: str | None = None) -> CovenError:
    return CovenError("binding.invalid", f"port {port}: {message}", hint=hint, where=Where(part=f"port {port}"))


def normalise(port: str, given: object) -> Binding:
    """Bring a binding into its full form: a text is the name of an interface.

    Raises CovenError `binding.invalid` or `port.unknown-tool`.
    """
    if isinstance(given, str):
        given = {"tool": AUTO, "interface": given}
    if not isinstance(given, Mapping):
        raise _fault(port, "is bound to neither a name nor a mapping",
                     'write "eth1" or {"tool": "pcap", "in": FILE, "out": FILE}')  # fmt: skip
    tool = given.get("tool", AUTO)
    if tool not in (AUTO, *PORT_TOOLS):
        raise CovenError("port.unknown-tool", f"port {port}: there is no NIC tool {tool!r}",
                         hint=near_miss(str(tool), PORT_TOOLS) or f"tools are: auto, {', '.join(PORT_TOOLS)}",
                         where=Where(part=f"port {port}"))  # fmt: skip
    rest = {key: value for key, value in given.items() if key != "tool"}
    interface = _interface(port, tool, rest)
    table = OPTIONS[tool]
    for key, value in rest.items():
        if key not in table:
            raise _fault(port, f"tool {tool} has no option {key!r}", near_miss(str(key), table))
        if not table[key][1](value):
            raise _fault(port, f"{key} must be {table[key][2]}, not {value!r}")
    return Binding(tool, interface, {key: rest.get(key, row[0]) for key, row in table.items()})


def _interface(port: str, tool: str, rest: dict[str, Any]) -> str | None:
    """Take the interface out of a binding and check it."""
    interface = rest.pop("interface", None)
    if tool not in INTERFACE_TOOLS:
        if interface is not None:
            raise _fault(port, f"tool {tool} has no interface")
        return None
    if not isinstance(interface, str) or not re.fullmatch(INTERFACE_PATTERN, interface) or interface in (".", ".."):
        raise _fault(port, f"{interface!r} is no name of an interface",
                     "an interface's name has 1 to 15 characters of ASCII, no blank, `/`, `:` or `%`")  # fmt: skip
    return interface
