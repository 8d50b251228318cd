"""An opened port: descriptors, what the plan segment must say, and how to put everything back."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from coven.network import ethtool, xdp
from coven.network.captures import Output, begin_output, discard_output
from coven.network.shield import lower_shield

log = logging.getLogger(__name__)

FLAG_NANOSECOND = 2  # COVEN_PORT_NANOSECOND of abi.h


@dataclass(slots=True)
class OpenedPort:
    """A port that is open. Belongs to the supervisor; closing twice is harmless.

    fds: what each worker is given. (rx, tx), both always there: what a direction does not have is an open /dev/null;
    for afxdp one socket for each queue.
    held: what has to stay open beside them, and which no worker is given; for afxdp the program's link comes first.
    plan_fields: values of `struct coven_plan_port` that are known only now.
    settings: files under /proc/sys and what they held before, written back by `close`.
    ethtool: what it told before, the same.
    index: of the interface; another of the same name has another one. None for ports on files.
    shield: index of the interface whose host was shut out, and how (shield.py); None when it was not.
    output: the capture file that is written, and what was there before; begun: whether that is replaced by now.
    """

    name: str
    tool: str
    interface: str | None
    fds: tuple[int, ...]
    plan_fields: dict[str, int]
    note: str
    settings: dict[str, str] = field(default_factory=dict)
    shield: tuple[int, str] | None = None
    index: int | None = None
    output: Output | None = None
    begun: bool = False
    held: tuple[int, ...] = ()
    ethtool: dict[str, list[int]] = field(default_factory=dict)

    def of_workers(self, workers: int) -> list[tuple[int, ...]]:
        """Give the descriptors of each worker."""
        each = len(self.fds) // workers
        return [self.fds[worker * each : (worker + 1) * each] for worker in range(workers)]

    def begin(self) -> None:
        """Packets may come from now on: empty the file that is written. Once for each opening. Raises OSError."""
        if self.output is not None and not self.begun:
            begin_output(self.fds[1], nanosecond=bool(self.plan_fields["flags"] & FLAG_NANOSECOND))
        self.begun = True

    def close(self) -> None:
        """Close the descriptors and put the interface, or a file not begun, back as it was before `open`."""
        if self.held:
            # The keeper lets its own descriptor of the link go a moment later; the interface must be free now.
            with contextlib.suppress(OSError):
                xdp.detach(self.held[0])
        for fd in (*self.held, *self.fds):
            with contextlib.suppress(OSError):
                if fd >= 0:
                    os.close(fd)
        self.fds, self.held = (-1, -1), ()
        restore(self.settings)
        if self.ethtool and self.interface is not None:
            ethtool.restore(self.interface, self.ethtool)
        if self.shield:
            lower_shield(*self.shield)
        if self.output is not None and not self.begun:
            discard_output(self.output)
        self.settings, self.ethtool, self.shield, self.output = {}, {}, None, None

    def to_json(self) -> dict[str, Any]:
        """Give everything but the descriptors, for a successor's `adopt`."""
        return {
            "name": self.name,
            "tool": self.tool,
            "interface": self.interface,
            "plan_fields": dict(self.plan_fields),
            "note": self.note,
            "settings": dict(self.settings),
            "shield": list(self.shield) if self.shield else None,
            "index": self.index,
            "output": self.output.to_json() if self.output else None,
            "begun": self.begun,
            "held": len(self.held),
            "ethtool": self.ethtool,
        }


def adopt(document: Mapping[str, Any], fds: Sequence[int], held: Sequence[int] = ()) -> OpenedPort:
    """Rebuild a port that another process opened.

    fds: of all or the first worker; held: as it was. Owned by the result from now on.
    """
    shield, output = document["shield"], document.get("output")
    return OpenedPort(
        name=str(document["name"]),
        tool=str(document["tool"]),
        interface=document["interface"],
        fds=tuple(fds),
        plan_fields={str(key): int(value) for key, value in document["plan_fields"].items()},
        note=str(document["note"]),
        settings={str(key): str(value) for key, value in document["settings"].items()},
        shield=(int(shield[0]), str(shield[1])) if shield else None,
        index=document.get("index"),
        output=Output.from_json(output) if output else None,
        begun=bool(document.get("begun")),
        held=tuple(held),
        ethtool={str(key): [int(n) for n in value] for key, value in document.get("ethtool", {}).items()},
    )


def change(settings: Mapping[str, str]) -> dict[str, str]:
    """Write values to files under /proc/sys; give what they held. Files that do not exist are passed over."""
    before: dict[str, str] = {}
    try:
        for name, value in settings.items():
            path = Path(name)
            if not path.exists():
                continue
            before[name] = path.read_text(encoding="ascii").strip()
            path.write_text(value, encoding="ascii")
    except OSError:
        restore(before)
        raise
    return before


def hold(names: Iterable[str]) -> dict[str, str]:
    """Give what files under /proc/sys hold. Files that do not exist are passed over."""
    return {name: Path(name).read_text(encoding="ascii").strip() for name in names if Path(name).exists()}


def restore(settings: Mapping[str, str]) -> None:
    """Write values back; the interface may be gone, which is no fault."""
    for name, value in settings.items():
        try:
            Path(name).write_text(value, encoding="ascii")
        except FileNotFoundError:
            continue
        except OSError as error:
            log.warning("setting-not-restored path=%s value=%s error=%s", name, value, error)
