"""The NIC tool afxdp, the side that opens. Its other half is `port_afxdp.c`."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from coven.errors import CovenError, Where
from coven.network import ethtool, xdp
from coven.network.fanout import workers_of
from coven.network.interfaces import Interface, check_interface
from coven.network.opened import OpenedPort, change, hold, restore
from coven.network.sockets import (
    PACKET_ADD_MEMBERSHIP,
    PACKET_MR_PROMISC,
    SOL_PACKET,
    interface_settings,
)

TOOL_AFXDP = 5  # enum coven_port_tool of abi.h; a test compares it
FLAG_PARTIAL, FLAG_BUSY_POLL = 16, 32  # COVEN_PORT_*
MAX_QUEUES = 8  # COVEN_PORT_QUEUES of port.h

RX_ENTRIES, TX_ENTRIES = 16384, 4096  # a burst of 16 k packets meets a worker that is not running just then
BUFFER_BYTES = (2048, 4096)  # what the kernel takes as packet memory: not more than a page
KERNEL_HEADROOM = 256  # XDP_PACKET_HEADROOM: before each received packet
HEADER_BYTES = 14 + 8  # Ethernet header and two VLAN tags
LET_GO_S = 2.0  # the kernel takes the socket of an earlier opening off its queue a little after it was closed


@dataclass(frozen=True, slots=True)
class _Mode:
    """How packets get from driver to socket."""

    is_native: bool
    zero_copy: bool
    why: str


class AfxdpTool:
    """AF_XDP sockets whose memory is the packet pool, fed by an XDP program."""

    name = "afxdp"

    def intend(self, port: Mapping[str, Any]) -> OpenedPort | None:
        """Note the settings that will be changed."""
        interface = str(port["interface"])
        try:
            socket.if_nametoindex(interface)
        except OSError:
            return None  # it is not there; open() has the words
        settings = hold(interface_settings(interface))
        made = OpenedPort(str(port["name"]), self.name, interface, (-1, -1), {}, "", settings)
        made.ethtool = ethtool.hold(interface)
        return made

    def open(self, port: Mapping[str, Any], *, taken: Collection[str] = ()) -> OpenedPort:
        """Check the interface, make a socket for each queue and let the XDP program feed them."""
        where = Where(part=f"port {port.get('name', '')}".rstrip())
        interface = check_interface(str(port["interface"]), str(port["name"]), taken=taken)
        _check(interface, port, where)
        options = port.get("options", {})
        with contextlib.ExitStack() as undo:
            try:
                before = ethtool.hold(interface.name)
                undo.callback(ethtool.restore, interface.name, before)
                settings = change(interface_settings(interface.name))
                undo.callback(restore, settings)
                queues = _prepare(interface, int(options.get("queues", 0)), where)
                fds, held, mode = _open_sockets(interface, queues, port, undo)
            except PermissionError as error:
                raise _no_privilege(interface.name, where) from error
            except OSError as error:
                raise _refused(interface, error, where) from error
            undo.pop_all()
        flags = FLAG_PARTIAL if interface.kind is not None else 0
        flags |= FLAG_BUSY_POLL if options.get("busy_poll") else 0
        return OpenedPort(
            name=str(port["name"]),
            tool=self.name,
            interface=interface.name,
            fds=fds,
            plan_fields={
                "tool": TOOL_AFXDP,
                "mtu": interface.mtu,
                "ring_frames": RX_ENTRIES,
                "ring_frame_bytes": TX_ENTRIES,
                "flags": flags,
            },
            note=f"{interface.name}: AF_XDP with {queues} queue{'s' if queues > 1 else ''}, {mode.why}",
            settings=settings,
            index=interface.index,
            held=held,
            ethtool=before,
        )


def _no_privilege(name: str, where: Where) -> CovenError:
    return CovenError(
        "platform.no-privilege",
        f"opening {name} by AF_XDP needs root",
        hint="start the agent as root (sudo coven agent), or bind the port to a capture file",
        where=where,
    )


def _unsupported(message: str, hint: str, where: Where) -> CovenError:
    return CovenError("port.unsupported", message, hint=hint, where=where)


def _check(interface: Interface, port: Mapping[str, Any], where: Where) -> None:
    """Refuse what cannot be, before anything is changed."""
    name, pool = interface.name, port.get("pool")
    if workers_of(port) > 1:
        raise _unsupported(
            f"{name} cannot be used by afxdp: the queues of a NIC do not bring both directions of a flow to one worker",
            "use the tool afpacket, or one worker",
            where,
        )
    if interface.xdp_program is not None:
        raise CovenError(
            "port.in-use",
            f"{name} has an XDP program already (id {interface.xdp_program})",
            hint=f"take it off (ip link set dev {name} xdp off), bind another interface, or use the tool afpacket",
            where=where,
        )
    reason = xdp.unavailable()
    if reason == xdp.NEEDS_ROOT:
        raise _no_privilege(name, where)
    if reason is not None or not isinstance(pool, xdp.Pool):
        raise _unsupported(f"{name} cannot be used by afxdp: {reason or 'no pool'}", "use the tool afpacket", where)
    if pool.buffer_bytes not in BUFFER_BYTES:
        raise _unsupported(
            f"{name} cannot be used by afxdp: buffers have {pool.buffer_bytes} bytes, the kernel takes at most 4096",
            "set pool.buffer_bytes to 4096 in vnf.yaml, or use the tool afpacket",
            where,
        )
    most = pool.buffer_bytes - KERNEL_HEADROOM - HEADER_BYTES
    if interface.mtu > most:
        raise _unsupported(
            f"{name} cannot be used by afxdp: a frame of its MTU of {interface.mtu} does not fit a buffer",
            f"lower the MTU to {most} (ip link set {name} mtu {most}), or use the tool afpacket",
            where,
        )
    if interface.kind == "veth" and not xdp.knows_tags():
        raise _unsupported(
            f"{name} cannot be used by afxdp: this kernel does not tell XDP programs the VLAN tags of a veth",
            "use the tool afpacket, or Linux 6.8 and later",
            where,
        )


def _prepare(interface: Interface, wanted: int, where: Where) -> int:
    """Set queues and offloads; give the number of queues. Raises OSError, CovenError."""
    found = ethtool.channels(interface.name)
    queues = max(found.receiving, 1) if found else 1
    if wanted and found and wanted != queues:
        most = max(found.most_combined, found.most_rx)
        if wanted > most:
            raise _unsupported(f"{interface.name} has at most {most} queues, not {wanted}", "ask for fewer", where)
        if found.combined:
            ethtool.set_channels(interface.name, found.rx, found.tx, found.other, wanted - found.rx)
        else:
            ethtool.set_channels(interface.name, wanted, found.tx, found.other, 0)
        queues = wanted
    elif wanted and wanted != queues:
        raise _unsupported(f"{interface.name} has one queue", "leave `queues` out", where)
    if queues > MAX_QUEUES:
        raise _unsupported(
            f"{interface.name} receives by {queues} queues, a port has at most {MAX_QUEUES}",
            f'say how many it shall have: {{"tool": "afxdp", "interface": "{interface.name}", "queues": {MAX_QUEUES}}}',
            where,
        )
    if interface.kind != "veth":  # on a veth it is the sender that moves the tag aside, and the program puts it back
        unwanted = ethtool.ETH_FLAG_RXVLAN | ethtool.ETH_FLAG_LRO
        before = ethtool.flags(interface.name)
        if before & unwanted:
            ethtool.set_flags(interface.name, before & ~unwanted)
        if ethtool.flags(interface.name) & unwanted:
            raise _unsupported(
                f"{interface.name} cannot be used by afxdp: its driver always takes VLAN tags off, or joins segments",
                "use the tool afpacket",
                where,
            )
    return queues


def _open_sockets(
    interface: Interface, queues: int, port: Mapping[str, Any], undo: contextlib.ExitStack
) -> tuple[tuple[int, ...], tuple[int, ...], _Mode]:
    """Give the sockets, what must be held beside them, and how they are fed. Raises OSError."""
    options = port.get("options", {})
    memory = xdp.Memory(port["pool"])
    undo.callback(memory.close)
    sockets: list[socket.socket] = []
    zero_copy, why = _wanted_mode(str(options.get("zero_copy", "auto")))
    for queue in range(queues):
        made = xdp.make_socket(memory, rx=RX_ENTRIES, tx=TX_ENTRIES, busy_poll=bool(options.get("busy_poll")))
        undo.callback(made.close)
        sockets.append(made)
        try:
            _bind(made, interface.index, queue, zero_copy=zero_copy)
        except OSError as error:
            if not zero_copy or options.get("zero_copy") == "yes" or queue > 0:
                raise
            zero_copy, why = False, f"copy mode (no zero-copy: {error.strerror})"
            _bind(made, interface.index, queue, zero_copy=False)
    queue_map = xdp.make_map(queues)
    try:
        for queue, made in enumerate(sockets):
            xdp.put_socket(queue_map, queue, made.fileno())
        link, is_native, how = _attach(interface, queue_map, native_only=bool(port.get("native_only")))
    finally:
        os.close(queue_map)  # the program holds the map
    undo.callback(os.close, link)
    promiscuous = _listen_to_all(interface.index)
    memory.close()
    fds = tuple(made.detach() for made in sockets)
    return fds, (link, promiscuous.detach()), _Mode(is_native, zero_copy, f"{why}, {how}")


def _wanted_mode(zero_copy: str) -> tuple[bool, str]:
    return (False, "copy mode (as asked for)") if zero_copy == "no" else (True, "zero-copy")


def _bind(made: socket.socket, index: int, queue: int, *, zero_copy: bool) -> None:
    end = time.monotonic() + LET_GO_S
    while True:
        try:
            return xdp.bind(made, index, queue, zero_copy=zero_copy)
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > end:
                raise
        time.sleep(0.01)


def _attach(interface: Interface, queue_map: int, *, native_only: bool) -> tuple[int, bool, str]:
    """Load and attach the program; give its link, whether the driver runs it, and words for it. Raises OSError."""
    is_veth = interface.kind == "veth"
    program = xdp.load_program(queue_map, vlan_on=interface.index if is_veth else None)
    try:
        return xdp.attach(program, interface.index, native=True), True, "XDP in the driver"
    except OSError as error:
        # In generic mode super-frames of senders on this machine are lost: on a veth little else comes.
        if is_veth or native_only or error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):
            raise
        how = f"generic XDP, which is slower (the driver has none: {error.strerror})"
        return xdp.attach(program, interface.index, native=False), False, how
    finally:
        os.close(program)


def _listen_to_all(index: int) -> socket.socket:
    """Have the NIC take frames to all addresses as long as the socket that is given lives. Raises OSError."""
    made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0)
    try:
        made.setsockopt(SOL_PACKET, PACKET_ADD_MEMBERSHIP, struct.pack("=iHH8x", index, PACKET_MR_PROMISC, 0))
    except OSError:
        made.close()
        raise
    return made


def _refused(interface: Interface, error: OSError, where: Where) -> CovenError:
    name = interface.name
    if error.errno in (errno.ENOMEM, errno.ENOBUFS):
        return CovenError("platform.no-resources", f"no memory for the AF_XDP rings of {name}",
                          hint="free memory, or bind fewer ports", where=where)  # fmt: skip
    if error.errno in (errno.ENODEV, errno.ENXIO):
        return CovenError("port.interface-missing", f"{name} went away while it was opened",
                          hint="bind the port again when it is there", where=where)  # fmt: skip
    if error.errno in (errno.EBUSY, errno.EEXIST):
        return CovenError("port.in-use", f"{name} is used by AF_XDP or an XDP program of somebody else",
                          hint=f"see `ip link show {name}`; take the program off, or use the tool afpacket",
                          where=where)  # fmt: skip
    hint = "use the tool afpacket"
    if interface.kind == "veth" and error.errno in (errno.ENOSPC, errno.ERANGE):
        hint = f"the other end must not send by more queues than {name} receives by (ethtool -L), nor have a larger MTU"
    return _unsupported(f"{name} cannot be used by afxdp: {error.strerror}", hint, where)
