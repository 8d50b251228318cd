"""Packets that killed a component twice: the worker marks them in the ledger (poison.h), here they are kept for people.

Each is saved as a capture of one packet in STATE/poison/INSTANCE, readable by root and the agent only, since it is
somebody's traffic. At most MOST of an instance are kept; the oldest goes. They go with the instance.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import struct
from dataclasses import dataclass
from pathlib import Path

from coven.supervisor.config import Settings

MOST = 32
PCAP_HEAD = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 262144, 1)  # microseconds, Ethernet


@dataclass(frozen=True, slots=True)
class Poison:
    """A poison packet of a component, as the ledger has it."""

    fingerprint: str  # 16 hexadecimal digits
    component: int
    deaths: int
    dropped: int
    length: int
    received_ns: int
    data: bytes  # its beginning


def marked(ledger: int) -> list[Poison]:
    """Give the poison packets of a ledger (descriptor), without those that are under suspicion only."""
    from coven.dataplane.core import ffi, lib, sizeof

    raw = ffi.new("struct coven_poison *")
    size = sizeof("coven_poison")
    ffi.memmove(raw, os.pread(ledger, size, lib.coven_ledger_poison_offset()).ljust(size, b"\0"), size)
    return [
        Poison(f"{row.fingerprint:016x}", row.component, row.deaths, row.dropped, row.length, row.timestamp_ns,
               bytes(ffi.buffer(row.bytes, min(row.kept, ffi.sizeof(row.bytes)))))
        for row in raw.entry
        if row.fingerprint and row.deaths > 1
    ]  # fmt: skip


def forget(ledger: int, component: int) -> None:
    """Take poison packets and suspects of a component out of a ledger (descriptor) that no worker has."""
    from coven.dataplane.core import ffi, lib, sizeof

    raw = ffi.new("struct coven_poison *")
    size, start = sizeof("coven_poison"), lib.coven_ledger_poison_offset()
    ffi.memmove(raw, os.pread(ledger, size, start).ljust(size, b"\0"), size)
    first, each = ffi.offsetof("struct coven_poison", "entry"), sizeof("coven_poison_entry")
    for i, row in enumerate(raw.entry):
        if row.component == component:
            os.pwrite(ledger, bytes(8), start + first + i * each)  # the fingerprint: 0 is no entry


class Captures:
    """The captures of one instance."""

    def __init__(self, settings: Settings, instance: str) -> None:
        """instance: its id, which is a safe name of a folder."""
        self._settings = settings
        self.folder = settings.state_dir / "poison" / instance

    def path(self, component: str, fingerprint: str) -> Path:
        """Give the file of a poison packet."""
        return self.folder / f"{component}-{fingerprint}.pcap"

    def save(self, component: str, packet: Poison) -> Path | None:
        """Write a packet's capture; None when there is one already. Raises OSError."""
        path = self.path(component, packet.fingerprint)
        if path.exists():
            return None
        for folder in (self.folder.parent, self.folder):
            with contextlib.suppress(FileExistsError):
                folder.mkdir(mode=0o750)
                self._give(folder)
            found = folder.lstat()
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
                raise NotADirectoryError(f"{folder} is not the supervisor's own folder")
        files = sorted(self.folder.glob("*.pcap"), key=lambda file: file.stat().st_mtime_ns)
        for old in files[: max(0, len(files) - MOST + 1)]:
            old.unlink(missing_ok=True)
        seconds, nanoseconds = divmod(packet.received_ns, 10**9)
        record = struct.pack("<IIII", seconds & 0xFFFFFFFF, nanoseconds // 1000, len(packet.data), packet.length)
        fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, 0o640)
        with os.fdopen(fd, "wb") as file:
            self._give(fd)
            file.write(PCAP_HEAD + record + packet.data)
        return path

    def remove(self, component: str | None = None) -> None:
        """Remove the captures of a component, or all."""
        if component is None:
            shutil.rmtree(self.folder, ignore_errors=True)
            return
        for path in self.folder.glob(f"{component}-{'?' * 16}.pcap"):
            path.unlink(missing_ok=True)

    def _give(self, what: Path | int) -> None:
        """To root, and the agent's group: it may read, nobody else."""
        if self._settings.privileged:
            os.chown(what, 0, self._settings.agent_uid)
