"""The NIC tools, each as the side that opens: afpacket, pcap, tap, gen. Their other half is `port_<tool>.c`."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Protocol

from coven.errors import CovenError, Where
from coven.network import fanout
from coven.network.captures import Output, foresee_output, mark_opening, open_input, open_output
from coven.network.interfaces import Interface, check_interface, list_interfaces, set_up
from coven.network.opened import FLAG_NANOSECOND, OpenedPort, change, hold, restore
from coven.network.shield import foresee_shield, raise_shield
from coven.network.sockets import (
    PACKET_ADD_MEMBERSHIP,
    PACKET_MR_PROMISC,
    SOL_PACKET,
    interface_settings,
)

# enum coven_port_tool and COVEN_PORT_* of abi.h; a test compares them
TOOL_AFPACKET, TOOL_PCAP, TOOL_TAP, TOOL_GEN = 1, 2, 3, 4
FLAG_PACED, FLAG_LOOP, FLAG_SKIP_CUT = 1, 4, 8

# linux/if_packet.h
PACKET_RX_RING, PACKET_COPY_THRESH = 5, 7
PACKET_VERSION, PACKET_VNET_HDR, PACKET_IGNORE_OUTGOING = 10, 15, 23
TPACKET_V2 = 1
ETH_P_ALL = 3
SO_RCVBUFFORCE, SO_SNDBUFFORCE = 33, 32

RING_BYTES = 8 << 20
RING_BLOCK_BYTES = 1 << 16
SLOT_BYTES = 2048
SLOT_OVERHEAD_BYTES = 160  # header, address, virtio-net header, alignment, two tags
# Super-frames wait outside the ring, in the socket's queue; 64 KiB of payload cost up to 90 KiB there.
QUEUE_BYTES = 64 << 20
SEND_BYTES = 4 << 20

# linux/if_tun.h
TUNSETIFF, TUNSETOFFLOAD, TUNSETVNETHDRSZ = 0x400454CA, 0x400454D0, 0x400454D8
IFF_TAP, IFF_NO_PI, IFF_VNET_HDR, IFF_MULTI_QUEUE = 0x0002, 0x1000, 0x4000, 0x0100
TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6, TUN_F_TSO_ECN, TUN_F_USO4, TUN_F_USO6 = 0x1, 0x2, 0x4, 0x8, 0x20, 0x40
VNET_HEADER_BYTES = 10


class NicTool(Protocol):
    """What opens a port. `name` is the word used in bindings."""

    name: str

    def intend(self, port: Mapping[str, Any]) -> OpenedPort | None:
        """Give, without descriptors, what `close` must put back if we die while opening; None when it is nothing."""
        ...

    def open(self, port: Mapping[str, Any], *, taken: Collection[str] = ()) -> OpenedPort:
        """Open a port of an instance plan; nothing is left changed when it raises CovenError.

        `workers` of the port: how many share it; each gets descriptors of its own, and the packets of a flow, in both
        directions, get to the same one. taken: names of interfaces that other ports have.
        """
        ...


def _where(port: Mapping[str, Any]) -> Where:
    return Where(part=f"port {port.get('name', '')}".rstrip())


def _no_privilege(port: Mapping[str, Any], what: str) -> CovenError:
    return CovenError(
        "platform.no-privilege",
        f"{what} needs root",
        hint="start the agent as root (sudo coven agent), or bind the port to a capture file",
        where=_where(port),
    )


class AfpacketTool:
    """Packet socket with a memory-mapped receive ring and a second socket to send by."""

    name = "afpacket"

    def intend(self, port: Mapping[str, Any]) -> OpenedPort | None:
        """Note how IPv6 is set, and whether somebody filters there already."""
        interface = str(port["interface"])
        try:
            index = socket.if_nametoindex(interface)
            settings = hold(interface_settings(interface))
        except OSError:
            return None  # it is not there; open() has the words
        made = foresee_shield(index)
        shield = (index, made) if made else None
        return OpenedPort(str(port["name"]), self.name, interface, (-1, -1), {}, "", settings, shield)

    def open(self, port: Mapping[str, Any], *, taken: Collection[str] = ()) -> OpenedPort:
        """Check the interface, shut the host's stack out of it, make ring and sockets."""
        interface = check_interface(str(port["interface"]), str(port["name"]), taken=taken)
        slot_bytes, slots = ring_geometry(interface.mtu)
        settings: dict[str, str] = {}
        with contextlib.ExitStack() as undo:
            try:
                settings = change(interface_settings(interface.name))
                undo.callback(restore, settings)
                sockets: list[socket.socket] = []
                workers = fanout.workers_of(port)
                for _ in range(workers):
                    geometry = (slot_bytes, slots)
                    sockets.append(
                        undo.enter_context(
                            receive_socket(interface.name, interface.index, *geometry, is_shut=workers > 1)
                        )
                    )
                    sockets.append(undo.enter_context(send_socket(interface.name)))
                if workers > 1:
                    fanout.share_packets(sockets[::2])
            except PermissionError as error:
                raise _no_privilege(port, f"opening {interface.name}") from error
            except OSError as error:
                raise _refused(port, interface, error) from error
            shielded = raise_shield(interface.index)
            undo.pop_all()
            return OpenedPort(
                name=str(port["name"]),
                tool=self.name,
                interface=interface.name,
                fds=tuple(made.detach() for made in sockets),
                plan_fields={
                    "tool": TOOL_AFPACKET,
                    "mtu": interface.mtu,
                    "ring_frames": slots,
                    "ring_frame_bytes": slot_bytes,
                    "flags": 0,
                },
                note=f"{interface.name}: receive ring of {slots} slots of {slot_bytes} bytes ({RING_BYTES >> 20} MiB)"
                + (f" for each of {workers} workers" if workers > 1 else "")
                + ("" if shielded else "; the host's own stack sees the traffic too (no cls_bpf in this kernel)"),
                settings=settings,
                shield=(interface.index, shielded) if shielded else None,
                index=interface.index,
            )


def ring_geometry(mtu: int) -> tuple[int, int]:
    """Give bytes and number of the slots: an ordinary frame fits one slot, super-frames need not."""
    slot_bytes = SLOT_BYTES
    while slot_bytes < mtu + SLOT_OVERHEAD_BYTES and slot_bytes < 16384:
        slot_bytes *= 2
    return slot_bytes, RING_BYTES // slot_bytes


def receive_socket(
    interface: str, index: int, slot_bytes: int, slots: int, *, is_shut: bool = False
) -> socket.socket:
    """Make a packet socket with a TPACKET_V2 ring; unless it is shut, it receives as soon as it is returned.

    V2, because V3 adds its block time-out (about 1 ms) at low rates.
    """
    made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, 0)
    try:
        made.setsockopt(SOL_PACKET, PACKET_VERSION, TPACKET_V2)
        made.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
        made.setsockopt(SOL_PACKET, PACKET_COPY_THRESH, 1)
        made.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
        _buffer(made, SO_RCVBUFFORCE, socket.SO_RCVBUF, QUEUE_BYTES)
        blocks = slot_bytes * slots // RING_BLOCK_BYTES
        made.setsockopt(SOL_PACKET, PACKET_RX_RING, struct.pack("=4I", RING_BLOCK_BYTES, blocks, slot_bytes, slots))
        made.setsockopt(SOL_PACKET, PACKET_ADD_MEMBERSHIP, struct.pack("=iHH8x", index, PACKET_MR_PROMISC, 0))
        if is_shut:
            fanout.shut(made)
        made.bind((interface, ETH_P_ALL))
    except OSError:
        made.close()
        raise
    return made


def send_socket(interface: str) -> socket.socket:
    """Make a packet socket that only sends: protocol 0 receives nothing."""
    made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, 0)
    try:
        _buffer(made, SO_SNDBUFFORCE, socket.SO_SNDBUF, SEND_BYTES)
        made.bind((interface, 0))
    except OSError:
        made.close()
        raise
    return made


def _buffer(made: socket.socket, force: int, ask: int, size: int) -> None:
    """Set a buffer size beyond the system's limit if allowed, else up to it."""
    try:
        made.setsockopt(socket.SOL_SOCKET, force, size)
    except PermissionError:
        made.setsockopt(socket.SOL_SOCKET, ask, size)


def _refused(port: Mapping[str, Any], interface: Interface, error: OSError) -> CovenError:
    if error.errno in (errno.ENOMEM, errno.ENOBUFS):
        return CovenError(
            "platform.no-resources",
            f"no memory for the receive ring of {interface.name} ({RING_BYTES >> 20} MiB)",
            hint="free memory, or bind fewer ports",
            where=_where(port),
        )
    if error.errno in (errno.ENODEV, errno.ENXIO):
        return CovenError(
            "port.interface-missing", f"{interface.name} went away while it was opened", where=_where(port)
        )
    return CovenError(
        "port.unsupported",
        f"{interface.name} cannot be used by afpacket: {error.strerror}",
        hint="the kernel needs AF_PACKET with PACKET_IGNORE_OUTGOING (Linux 4.20 and later)",
        where=_where(port),
    )


class PcapTool:
    """Reads packets from a capture file and writes those that leave to another."""

    name = "pcap"

    def intend(self, port: Mapping[str, Any]) -> OpenedPort | None:
        """Note whether the output will be made."""
        target = port["options"].get("out")
        output = foresee_output(Path(target), port.get("folders")) if target else None
        if output is None:
            return None
        return OpenedPort(str(port["name"]), self.name, None, (-1, -1), {}, "", output=output)

    def open(self, port: Mapping[str, Any], *, taken: Collection[str] = ()) -> OpenedPort:
        """Check the input whole, open the output, which keeps what it holds until OpenedPort.begin.

        CovenError port.bad-file names what is wrong where.

        `folders` of the port: the only ones whose files may be used; without, all.
        """
        options = port["options"]
        where = _where(port)
        rx, tx = -1, -1
        output: Output | None = None
        try:
            source = options.get("in")
            nanosecond = bool(options.get("nanosecond"))
            folders = port.get("folders")
            rx = open_input(Path(source), where, folders) if source else _nothing()
            target = options.get("out")
            out = Path(target) if target else None
            if out is None:
                tx = _nothing()
            else:
                tx, output = open_output(out, rx, where, nanosecond=nanosecond, folders=folders)
        except BaseException:
            for fd in (rx, tx):
                if fd >= 0:
                    os.close(fd)
            raise
        flags = FLAG_NANOSECOND if nanosecond else 0
        flags |= FLAG_PACED if options.get("paced") else 0
        flags |= FLAG_LOOP if options.get("loop") else 0
        flags |= FLAG_SKIP_CUT if options.get("skip_cut") else 0
        return OpenedPort(
            name=str(port["name"]),
            tool=self.name,
            interface=None,
            fds=(rx, tx, *(_nothing() for _ in range(2 * fanout.workers_of(port) - 2))),  # worker 0 has both files
            plan_fields={"tool": TOOL_PCAP, "mtu": 0, "ring_frames": 0, "ring_frame_bytes": 0, "flags": flags},
            note=f"reads {source or 'nothing'}, writes {target or 'nothing'}",
            output=output,
        )


class TapTool:
    """A virtual interface of the host whose other end is the port."""

    name = "tap"

    def intend(self, port: Mapping[str, Any]) -> OpenedPort | None:
        """A tap goes away with its last descriptor."""
        return None

    def open(self, port: Mapping[str, Any], *, taken: Collection[str] = ()) -> OpenedPort:
        """Make the interface and bring it up; it goes away with its last descriptor."""
        name, where = str(port["interface"]), _where(port)
        if name in list_interfaces():
            raise CovenError(
                "port.in-use",
                f"an interface {name} is already there",
                hint="give the tap another name, or remove the interface; COVEN makes its taps itself",
                where=where,
            )
        fds: list[int] = []
        workers = fanout.workers_of(port)
        try:
            for _ in range(workers):
                fds.append(os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC))
                attach_tap(fds[-1], name, has_queues=workers > 1)
                fds.append(os.dup(fds[-1]))
            made = list_interfaces()[name]
            set_up(made.index, int(port.get("options", {}).get("mtu", 0)) or None)
            mtu = list_interfaces()[name].mtu
        except BaseException as error:
            for fd in fds:
                os.close(fd)
            if isinstance(error, PermissionError):
                raise _no_privilege(port, f"making the tap {name}") from error
            if isinstance(error, OSError):
                raise CovenError(
                    "port.unsupported",
                    f"the tap {name} cannot be made: {error.strerror}",
                    hint="the kernel module tun is needed (modprobe tun)",
                    where=where,
                ) from error
            raise
        return OpenedPort(
            name=str(port["name"]),
            tool=self.name,
            interface=name,
            fds=tuple(fds),
            plan_fields={"tool": TOOL_TAP, "mtu": mtu, "ring_frames": 0, "ring_frame_bytes": 0, "flags": 0},
            note=f"made the tap {name}" + (f" with {workers} queues" if workers > 1 else ""),
            index=made.index,
        )


def attach_tap(fd: int, name: str, *, has_queues: bool = False) -> None:
    """Give an open /dev/net/tun its interface, with virtio-net headers and all offloads that can be split.

    has_queues: it is one queue of several. The kernel gives a flow's packets to the queue that packets of the flow
    were written to last, else to one by the same hash as in `fanout`.
    """
    flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | (IFF_MULTI_QUEUE if has_queues else 0)
    request = struct.pack("16sH22x", name.encode("ascii"), flags)
    fcntl.ioctl(fd, TUNSETIFF, request)
    fcntl.ioctl(fd, TUNSETVNETHDRSZ, struct.pack("=i", VNET_HEADER_BYTES))
    tcp = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN
    try:
        fcntl.ioctl(fd, TUNSETOFFLOAD, tcp | TUN_F_USO4 | TUN_F_USO6)
    except OSError:
        fcntl.ioctl(fd, TUNSETOFFLOAD, tcp)  # before Linux 6.2


class GenTool:
    """Makes packets by itself and swallows what is sent to it."""

    name = "gen"

    def intend(self, port: Mapping[str, Any]) -> OpenedPort | None:
        """Nothing is changed."""
        return None

    def open(self, port: Mapping[str, Any], *, taken: Collection[str] = ()) -> OpenedPort:
        """Need nothing from the system but a descriptor that tells one opening from another."""
        options = port["options"]
        fds: list[int] = []
        for _ in range(fanout.workers_of(port)):
            fds += [os.memfd_create("coven-gen", os.MFD_CLOEXEC), _nothing()]
            mark_opening(fds[-2])
        return OpenedPort(
            name=str(port["name"]),
            tool=self.name,
            interface=None,
            fds=tuple(fds),
            plan_fields={
                "tool": TOOL_GEN,
                "mtu": 0,
                "ring_frames": 0,
                "ring_frame_bytes": 0,
                "flags": 0,
                "gen_packets": int(options.get("packets", 0)),
                "gen_rate": int(options.get("rate", 0)),
                "gen_bytes": int(options.get("bytes", 64)),
                "gen_flows": int(options.get("flows", 1)),
            },
            note=f"makes {options.get('packets', 0)} packets",
        )


def _nothing() -> int:
    """Give the descriptor that stands for a direction that is not there."""
    return os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
