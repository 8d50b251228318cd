"""Keep the host's own stack away from an interface that is a port.

A packet socket gets copies: without more, the host would also answer ARP, accept and even forward what arrives.
A traffic-control filter at ingress runs after packet sockets have had their copy, and drops everything. It is one
instruction of classic BPF, so it needs neither the bpf() call nor any other module than cls_bpf.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import struct

log = logging.getLogger(__name__)

# linux/rtnetlink.h, linux/pkt_sched.h, linux/pkt_cls.h
RTM_NEWQDISC, RTM_DELQDISC, RTM_GETQDISC, RTM_NEWTFILTER, RTM_DELTFILTER = 36, 37, 38, 44, 45
NLM_REQUEST, NLM_ACK, NLM_EXCL, NLM_DUMP, NLM_CREATE = 0x1, 0x4, 0x200, 0x300, 0x400
NLMSG_DONE, NLMSG_ERROR = 3, 2
TC_H_CLSACT, TC_INGRESS = 0xFFFFFFF1, 0xFFFFFFF2
TCA_KIND, TCA_OPTIONS = 1, 2
TCA_BPF_OPS_LEN, TCA_BPF_OPS, TCA_BPF_FLAGS = 4, 5, 8
BPF_DIRECT_ACTION = 1
TC_ACT_SHOT = 2
ETH_P_ALL = 3
PRIORITY = 0xC0DE  # far behind what others add, and found again by it
RETURN_SHOT = struct.pack("=HBBI", 0x06, 0, 0, TC_ACT_SHOT)  # BPF_RET | BPF_K


def raise_shield(index: int) -> str:
    """Drop at ingress of an interface. Give what `lower_shield` needs; "" when the kernel cannot."""
    try:
        _ask(RTM_NEWQDISC, NLM_CREATE | NLM_EXCL, index, 0xFFFF0000, TC_H_CLSACT, 0, _text(TCA_KIND, "clsact"))
        made = "qdisc"
    except FileExistsError:
        made = "filter"  # somebody's filters are there already; they stay
    except OSError as error:
        log.warning("host-not-shut-out index=%d step=qdisc error=%s", index, error)
        return ""
    options = (
        _attribute(TCA_BPF_OPS_LEN, struct.pack("=H", 1))
        + _attribute(TCA_BPF_OPS, RETURN_SHOT)
        + _attribute(TCA_BPF_FLAGS, struct.pack("=I", BPF_DIRECT_ACTION))
    )
    try:
        _ask(
            RTM_NEWTFILTER, NLM_CREATE, index, 0, TC_INGRESS, _info(),
            _text(TCA_KIND, "bpf") + _attribute(TCA_OPTIONS, options),
        )  # fmt: skip
    except OSError as error:
        log.warning("host-not-shut-out index=%d step=filter error=%s", index, error)
        lower_shield(index, made)
        return ""
    return made


def foresee_shield(index: int) -> str:
    """Give what `raise_shield` would give now if nothing goes wrong; "" when the kernel does not say."""
    try:
        return "filter" if TC_H_CLSACT in _parents(index) else "qdisc"
    except OSError as error:
        log.warning("queues-not-listed index=%d error=%s", index, error)
        return ""


def lower_shield(index: int, made: str) -> None:
    """Undo `raise_shield`; the interface may be gone."""
    try:
        if made == "qdisc":
            _ask(RTM_DELQDISC, 0, index, 0xFFFF0000, TC_H_CLSACT, 0, b"")
        elif made:
            _ask(RTM_DELTFILTER, 0, index, 0, TC_INGRESS, _info(), b"")
    except OSError as error:
        if error.errno not in (errno.ENODEV, errno.ENOENT, errno.EINVAL):
            log.warning("host-not-let-in index=%d error=%s", index, error)


def _info() -> int:
    return PRIORITY << 16 | socket.htons(ETH_P_ALL)


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def _text(kind: int, value: str) -> bytes:
    return _attribute(kind, value.encode("ascii") + b"\0")


def _parents(index: int) -> set[int]:
    """Give the parents of an interface's queueing disciplines."""
    found: set[int] = set()
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as netlink:
        netlink.bind((0, 0))
        message = struct.pack("=BxxxiIII", 0, index, 0, 0, 0)
        netlink.send(struct.pack("=IHHII", 16 + len(message), RTM_GETQDISC, NLM_REQUEST | NLM_DUMP, 1, 0) + message)
        while True:
            answer = netlink.recv(1 << 18)
            while len(answer) >= 16:
                length, kind = struct.unpack_from("=IH", answer)
                if kind == NLMSG_ERROR:
                    code = -struct.unpack_from("=i", answer, 16)[0]
                    raise OSError(code, os.strerror(code))
                if kind == NLMSG_DONE:
                    return found
                _, whose, _, parent = struct.unpack_from("=BxxxiII", answer, 16)
                if whose == index:
                    found.add(parent)
                answer = answer[(length + 3) & ~3 :]


def _ask(kind: int, flags: int, index: int, handle: int, parent: int, info: int, attributes: bytes) -> None:
    """Send one traffic-control request and wait for the kernel's answer; raises OSError."""
    message = struct.pack("=BxxxiIII", 0, index, handle, parent, info) + attributes
    header = struct.pack("=IHHII", 16 + len(message), kind, NLM_REQUEST | NLM_ACK | flags, 1, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE) as netlink:
        netlink.bind((0, 0))
        netlink.send(header + message)
        answer = netlink.recv(65536)
    code = -struct.unpack_from("=i", answer, 16)[0]
    if code:
        raise OSError(code, os.strerror(code))
