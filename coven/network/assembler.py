"""Enough of an assembler for eBPF: labels, the instructions of one small program, and the numbers of kernel functions.

Instruction format and opcodes: Documentation/bpf/standardization/instruction-set.rst of the kernel (RFC 9669);
type information: Documentation/bpf/btf.rst.
"""

from __future__ import annotations

import functools
import struct
from dataclasses import dataclass, field
from pathlib import Path

BTF = Path("/sys/kernel/btf/vmlinux")
BTF_MAGIC = 0xEB9F
KIND_FUNC = 12
# Bytes behind a type of a kind: fixed, and for each element.
TRAILERS = {
    1: (4, 0), 3: (12, 0), 4: (0, 12), 5: (0, 12), 6: (0, 8), 13: (0, 8), 14: (4, 0), 15: (0, 12), 17: (4, 0),
    19: (0, 12),
}  # fmt: skip

PSEUDO_MAP_FD, PSEUDO_KFUNC_CALL = 1, 2
SIZES = {1: 0x10, 2: 0x08, 4: 0x00, 8: 0x18}  # BPF_B, BPF_H, BPF_W, BPF_DW


@dataclass(slots=True)
class Program:
    """A program while it is written. Registers are numbers, 0 to 10."""

    _code: list[tuple[int, int, int, int | str, int]] = field(default_factory=list)  # opcode, dst, src, offset, imm
    _labels: dict[str, int] = field(default_factory=dict)

    def _add(self, opcode: int, dst: int = 0, src: int = 0, offset: int | str = 0, imm: int = 0) -> None:
        self._code.append((opcode, dst, src, offset, imm))

    def label(self, name: str) -> None:
        """Name the place that follows."""
        self._labels[name] = len(self._code)

    def mov(self, dst: int, src: int) -> None:
        """Copy a register."""
        self._add(0xBF, dst, src)

    def set(self, dst: int, value: int) -> None:
        """Load a number of 32 bits, signed."""
        self._add(0xB7, dst, imm=value)

    def add(self, dst: int, value: int) -> None:
        """Add a number."""
        self._add(0x07, dst, imm=value)

    def load(self, size: int, dst: int, src: int, offset: int) -> None:
        """Load 1, 2, 4 or 8 bytes at src + offset."""
        self._add(0x61 | SIZES[size], dst, src, offset)

    def store(self, size: int, dst: int, src: int, offset: int) -> None:
        """Store 1, 2, 4 or 8 bytes at dst + offset."""
        self._add(0x63 | SIZES[size], dst, src, offset)

    def store_zero(self, dst: int, offset: int) -> None:
        """Store 8 zero bytes at dst + offset."""
        self._add(0x7A, dst, 0, offset)

    def to_network16(self, dst: int) -> None:
        """Bring the lower 16 bits into network byte order."""
        self._add(0xDC, dst, imm=16)

    def load_map(self, dst: int, map_fd: int) -> None:
        """Load the address of a map; takes two places."""
        self._add(0x18, dst, PSEUDO_MAP_FD, imm=map_fd)
        self._add(0)

    def call(self, helper: int) -> None:
        """Call a helper by its number."""
        self._add(0x85, imm=helper)

    def call_kernel(self, number: int) -> None:
        """Call a kernel function by the number of its type."""
        self._add(0x85, 0, PSEUDO_KFUNC_CALL, imm=number)

    def jump_if_not_zero(self, dst: int, label: str) -> None:
        """Go to a label further down unless the register is 0."""
        self._add(0x55, dst, 0, label)

    def jump_if_greater(self, dst: int, src: int, label: str) -> None:
        """Go to a label further down if dst > src, unsigned."""
        self._add(0x2D, dst, src, label)

    def exit(self) -> None:
        """Return; the result is in register 0."""
        self._add(0x95)

    def assemble(self) -> bytes:
        """Give the instructions, eight bytes each, in the byte order of this machine."""
        code = b""
        for at, (opcode, dst, src, offset, imm) in enumerate(self._code):
            jump = self._labels[offset] - at - 1 if isinstance(offset, str) else offset
            code += struct.pack("=BBhi", opcode, dst | src << 4, jump, imm)
        return code


@functools.cache
def find_function(name: str) -> int:
    """Give the number of a function's type in the kernel's type information; 0 when it is not there."""
    try:
        data = BTF.read_bytes()
    except OSError:
        return 0
    magic, _, _, header, types, types_bytes, names, names_bytes = struct.unpack_from("=HBBIIIII", data)
    text = data.find(b"\0" + name.encode("ascii") + b"\0", header + names, header + names + names_bytes)
    if magic != BTF_MAGIC or text < 0:
        return 0
    wanted = text + 1 - header - names
    at, end, number = header + types, header + types + types_bytes, 0
    unpack = struct.Struct("=II").unpack_from
    while at < end:
        number += 1
        name_at, info = unpack(data, at)
        kind = info >> 24 & 0x1F
        if name_at == wanted and kind == KIND_FUNC:
            return number
        fixed, each = TRAILERS.get(kind, (0, 0))
        at += 12 + fixed + each * (info & 0xFFFF)
    return 0
