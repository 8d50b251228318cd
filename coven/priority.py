"""Kinds of packets that may be given priority, as descriptors write them; the numbers are those of abi.h.

`arp`, `nd` (Neighbour Discovery), `bfd` (Bidirectional Forwarding Detection), `ether/0x88cc` (an EtherType), `ip/89`
(a protocol of IP), `udp/3784` and `tcp/179` (a port, source or destination).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from coven.errors import CovenError

ETHER, IP, UDP, TCP, ND = range(1, 6)  # enum coven_priority_kind of abi.h; a test compares them
MOST = 32  # COVEN_MAX_PRIORITIES
PATTERN = r"^(arp|nd|bfd|(ether|ip|udp|tcp)/(0x[0-9a-f]{1,4}|[0-9]{1,5}))$"
NUMBERED = {"ether": (ETHER, 0x600, 0xFFFF), "ip": (IP, 0, 255), "udp": (UDP, 1, 65535), "tcp": (TCP, 1, 65535)}
# RFC 5881 section 4 (single hop and echo), RFC 5883 section 5 (multihop), RFC 7881 section 4 (seamless).
BFD_PORTS = (3784, 3785, 4784, 7784)


@dataclass(frozen=True, slots=True)
class Rule:
    """One kind of packets: `struct coven_plan_priority`."""

    kind: int
    value: int


def parse(name: str) -> tuple[Rule, ...]:
    """Give what one name stands for. Raises CovenError descriptor.invalid."""
    if not re.fullmatch(PATTERN, name):
        raise CovenError("descriptor.invalid", f"{name!r} is no kind of packets",
                         hint="arp, nd, bfd, ether/NUMBER, ip/PROTOCOL, udp/PORT or tcp/PORT")  # fmt: skip
    if name == "arp":
        return (Rule(ETHER, 0x0806),)
    if name == "nd":
        return (Rule(ND, 0),)
    if name == "bfd":
        return tuple(Rule(UDP, port) for port in BFD_PORTS)
    word, text = name.split("/")
    kind, low, high = NUMBERED[word]
    value = int(text, 0 if text.startswith("0x") else 10)
    if not low <= value <= high:
        hint = f"{word}/ and a number from {low} to {high}"
        raise CovenError("descriptor.invalid", f"{name}: {value} is not within {low} and {high}", hint=hint)
    return (Rule(kind, value),)


def rules(names: Iterable[str]) -> tuple[Rule, ...]:
    """Give the rules of a list of names, each once. Raises CovenError descriptor.invalid, also for too many."""
    found = tuple(dict.fromkeys(rule for name in names for rule in parse(name)))
    if len(found) > MOST:
        raise CovenError(
            "descriptor.invalid",
            f"{len(found)} kinds of packets have priority, at most {MOST} can",
            hint="`nd` and `bfd` stand for several; name fewer",
        )
    return found
