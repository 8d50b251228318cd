"""Flows by name: the text an operator writes, and the bytes the worker compares.

A name is what the first packet said: `udp 10.0.0.1:1000 10.0.0.2:80`, `tcp [fe80::1]:5 [fe80::2]:80 vlan 7.8`.
Bytes are those of `struct coven_flow_name` and `struct coven_flow_filter` (flow_export.h), integers little-endian.
"""

from __future__ import annotations

import ipaddress
import re
import struct
from dataclasses import dataclass

from coven.errors import CovenError

PROTOCOLS = {6: "tcp", 17: "udp", 132: "sctp", 136: "udplite"}
NUMBERS = {name: number for number, name in PROTOCOLS.items()}
NAME = struct.Struct("<16s16sHHHHBBBB")
RECORD = struct.Struct("<44sIIIQ")
FILTER = struct.Struct("<16sHHBBB9x")
BLOB = struct.Struct("<QHHI44sIIIQ")
BLOB_STATE = struct.Struct("<32sII")
MAX_BLOB = 4456448

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class FlowName:
    """The name of a flow."""

    protocol: int
    source: Address
    source_port: int
    destination: Address
    destination_port: int
    vlans: tuple[int, ...] = ()  # the two outermost
    n_vlans: int = 0

    def __str__(self) -> str:
        """Give the text that parse() reads."""
        words = [PROTOCOLS.get(self.protocol, str(self.protocol))]
        for address, port in ((self.source, self.source_port), (self.destination, self.destination_port)):
            words.append(f"{address}:{port}" if address.version == 4 else f"[{address}]:{port}")
        if self.n_vlans:
            more = f"+{self.n_vlans - len(self.vlans)}" if self.n_vlans > len(self.vlans) else ""
            words += ["vlan", ".".join(map(str, self.vlans)) + more]
        return " ".join(words)

    @classmethod
    def parse(cls, text: str) -> FlowName:
        """Read the text. Raises CovenError request.invalid."""
        words = text.lower().split()
        try:
            if len(words) not in (3, 5) or (len(words) == 5 and words[3] != "vlan"):
                raise ValueError
            source, source_port = _end(words[1])
            destination, destination_port = _end(words[2])
            vlans, n_vlans = _vlans(words[4]) if len(words) == 5 else ((), 0)
            if source.version != destination.version:
                raise ValueError
            protocol = protocol_of(words[0])
            return cls(protocol, source, source_port, destination, destination_port, vlans, n_vlans)
        except ValueError as error:
            raise CovenError(
                "request.invalid",
                f"{text[:100]!r} is no flow",
                hint="protocol, source and destination with ports, like `udp 10.0.0.1:1000 10.0.0.2:80`, "
                "`tcp [fe80::1]:5 [fe80::2]:80 vlan 7`; 'coven flows list' shows them",
            ) from error

    def pack(self) -> bytes:
        """Give `struct coven_flow_name`."""
        first, second = (*self.vlans, 0, 0)[:2]
        return NAME.pack(
            self.source.packed, self.destination.packed, self.source_port, self.destination_port, first, second,
            self.n_vlans, self.source.version, self.protocol, 0,
        )  # fmt: skip

    @classmethod
    def unpack(cls, data: bytes) -> tuple[FlowName, bool]:
        """Read `struct coven_flow_name`; give also whether the flow was moved."""
        source, destination, source_port, destination_port, *vlan, n_vlans, version, protocol, moved = NAME.unpack(data)
        size = 4 if version == 4 else 16
        ends = [ipaddress.ip_address(packed[:size]) for packed in (source, destination)]
        name = cls(protocol, ends[0], source_port, ends[1], destination_port, tuple(vlan[: min(n_vlans, 2)]), n_vlans)
        return name, bool(moved)

    def to_json(self) -> dict[str, object]:
        """Give the name for people and for programs."""
        return {
            "flow": str(self),
            "protocol": self.protocol,
            "source": str(self.source),
            "source_port": self.source_port,
            "destination": str(self.destination),
            "destination_port": self.destination_port,
            "vlans": list(self.vlans),
        }


def _end(text: str) -> tuple[Address, int]:
    found = re.fullmatch(r"(?:\[([0-9a-f:.]+)\]|([0-9.]+)):([0-9]{1,5})", text)
    if found is None:
        raise ValueError
    return ipaddress.ip_address(found[1] or found[2]), _within(int(found[3]), 65535)


def _vlans(text: str) -> tuple[tuple[int, ...], int]:
    found = re.fullmatch(r"([0-9]{1,4})(?:\.([0-9]{1,4}))?(?:\+([0-9]{1,2}))?", text)
    if found is None or (found[3] and not found[2]):
        raise ValueError
    vlans = tuple(_within(int(word), 4095) for word in found.group(1, 2) if word)
    return vlans, len(vlans) + int(found[3] or 0)


def _within(number: int, most: int) -> int:
    if number > most:
        raise ValueError
    return number


def protocol_of(text: str) -> int:
    """Read a protocol, by name or number. Raises ValueError."""
    if text in NUMBERS:
        return NUMBERS[text]
    if not text.isascii() or not text.isdigit() or not 0 < int(text) <= 255:
        raise ValueError
    return int(text)


@dataclass(frozen=True, slots=True)
class FlowFilter:
    """Which flows to list; what is left out does not matter."""

    network: ipaddress.IPv4Network | ipaddress.IPv6Network | None = None  # of either end
    port: int = 0  # of either end
    protocol: int = 0
    vlan: int | None = None  # outermost

    @classmethod
    def parse(cls, words: dict[str, str]) -> FlowFilter:
        """Read `address`, `port`, `protocol` and `vlan`. Raises CovenError request.invalid."""
        try:
            return cls(
                ipaddress.ip_network(words["address"], strict=False) if "address" in words else None,
                _within(_digits(words["port"]), 65535) if "port" in words else 0,
                protocol_of(words["protocol"].lower()) if "protocol" in words else 0,
                _within(_digits(words["vlan"]), 4095) if "vlan" in words else None,
            )
        except ValueError as error:
            raise CovenError(
                "request.invalid",
                "the filter cannot be read",
                hint="address=10.0.0.0/8, port=80, protocol=tcp, vlan=7",
            ) from error

    def pack(self) -> bytes:
        """Give `struct coven_flow_filter`."""
        network = self.network
        return FILTER.pack(
            network.network_address.packed if network else b"", self.port, 0 if self.vlan is None else self.vlan + 1,
            network.version if network else 0, network.prefixlen if network else 0, self.protocol,
        )  # fmt: skip


def _digits(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 6:
        raise ValueError
    return int(text)


def describe(blob: bytes) -> dict[str, object]:
    """Say what an exported flow holds, without its state. Raises CovenError flow.invalid."""
    try:
        _, version, n_states, _, name, *packets, _, _ = BLOB.unpack_from(blob)
        components, at = [], BLOB.size
        for _ in range(n_states):
            component, state_version, size = BLOB_STATE.unpack_from(blob, at)
            text = component.rstrip(b"\0").decode("ascii")
            components.append({"component": text, "version": state_version, "bytes": size})
            at += BLOB_STATE.size + -(-size // 8) * 8
        flow, _ = FlowName.unpack(name)
    except (struct.error, ValueError) as error:
        hint = "give what an export answered, whole and unchanged"
        raise CovenError("flow.invalid", "this is no exported flow", hint=hint) from error
    return {"format": version, **flow.to_json(), "packets": packets, "states": components}
