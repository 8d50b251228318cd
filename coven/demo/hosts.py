"""Two hosts in network namespaces, each joined to the appliance by a veth pair; and what an earlier demo left behind.

Everything carries the demo's tag (`cvd<pid>`) and stands in a record file before it is made, so that the next demo can
remove what a killed one left. Offloads stay at the kernel's defaults. The addresses are of the range kept for
benchmarks (RFC 2544) and of a local IPv6 prefix; the appliance's own ends have none.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from coven.errors import CovenError

RECORDS = Path("/run/coven-demo")
ADDRESSES = {"client": ("198.18.77.1", "fd2c:0e7:77::1"), "server": ("198.18.77.2", "fd2c:0e7:77::2")}


@dataclass(frozen=True, slots=True)
class Record:
    """What one demo made, enough to remove it. Processes are named by id and start time."""

    tag: str
    folder: str
    owner: tuple[int, float]
    platform: tuple[int, float] | None = None
    socket: str | None = None
    kept: bool = False

    @property
    def path(self) -> Path:
        """Give the file of this record."""
        return RECORDS / f"{self.tag}.json"

    def save(self) -> None:
        """Write the record, whole or not at all."""
        RECORDS.mkdir(mode=0o700, exist_ok=True)
        partial = self.path.with_suffix(".new")
        partial.write_text(json.dumps(asdict(self)), encoding="utf-8")
        partial.replace(self.path)


def identity(pid: int) -> tuple[int, float]:
    """Name a process so that another one with the same id is not taken for it."""
    return pid, psutil.Process(pid).create_time()


def new_record() -> Record:
    """Give and save the record of a demo that begins in this process."""
    tag = f"cvd{os.getpid()}"
    record = Record(tag, tempfile.mkdtemp(prefix=f"coven-demo-{tag}-"), identity(os.getpid()))
    Path(record.folder).chmod(0o755)  # packages are unpacked below it and read by the components' own users
    record.save()
    return record


def records() -> list[Record]:
    """Give the records of all demos that were not cleaned up."""
    found = []
    for path in sorted(RECORDS.glob("*.json")):
        document = json.loads(path.read_text(encoding="utf-8"))
        for key in ("owner", "platform"):
            document[key] = tuple(document[key]) if document[key] else None
        found.append(Record(**document))
    return found


def is_running(process: tuple[int, float] | None) -> bool:
    """Tell whether the process with this id and start time is still there."""
    if process is None:
        return False
    with contextlib.suppress(psutil.NoSuchProcess):
        found = psutil.Process(process[0])
        return found.create_time() == process[1] and found.status() != psutil.STATUS_ZOMBIE
    return False


def run(*command: str, check: bool = True) -> str:
    """Run a program of the system and give what it printed; a failure shows what it said."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise CovenError(
            "platform.unavailable", f"the program {command[0]} is missing", hint="apt-get install iproute2"
        ) from error
    if check and done.returncode != 0:
        raise CovenError(
            "platform.no-privilege" if "ermitted" in done.stderr else "platform.no-resources",
            f"{' '.join(command)}: {done.stderr.strip()}",
            hint="namespaces need root; `coven demo --pcap IN OUT` shows the same on files without",
        )
    return done.stdout


class Hosts:
    """The client and the server of one demo."""

    def __init__(self, tag: str) -> None:
        """tag: unique on this machine, at most 13 characters."""
        self.tag = tag
        self.lan = f"{tag}l"  # the appliance's ends
        self.wan = f"{tag}w"

    def namespace(self, host: str) -> str:
        """Give the namespace of `client` or `server`."""
        return f"{self.tag}-{host}"

    def create(self) -> None:
        """Make both hosts and their links, up and addressed."""
        for host, appliance_end in (("client", self.lan), ("server", self.wan)):
            namespace = self.namespace(host)
            run("ip", "netns", "add", namespace)
            self.run(host, "ip", "link", "set", "lo", "up")
            run("ip", "link", "add", appliance_end, "type", "veth", "peer", "name", "eth0", "netns", namespace)
            # no address on the appliance's side, so that its host's stack has nothing to say on the wire
            run("ip", "link", "set", appliance_end, "addrgenmode", "none")
            run("ip", "link", "set", appliance_end, "up")
            for address, length in zip(ADDRESSES[host], ("24", "64"), strict=True):
                nodad = ["nodad"] if ":" in address else []
                self.run(host, "ip", "addr", "add", f"{address}/{length}", "dev", "eth0", *nodad)
            self.run(host, "ip", "link", "set", "eth0", "up")

    def remove(self) -> None:
        """Remove both hosts and their links, as far as they are there."""
        for end in (self.lan, self.wan):
            run("ip", "link", "del", end, check=False)
        for host in ADDRESSES:
            run("ip", "netns", "del", self.namespace(host), check=False)

    def left(self) -> list[str]:
        """Give the names of what is still there."""
        names = [entry["name"] for entry in json.loads(run("ip", "-j", "netns", "list") or "[]")]
        names += [entry["ifname"] for entry in json.loads(run("ip", "-j", "link", "show") or "[]")]
        return [name for name in names if name.startswith(self.tag)]

    def command(self, host: str, *command: str) -> list[str]:
        """Give the command line that runs a command on a host.

        Not `ip netns exec`: that wants to mount, which it cannot in a chroot.
        """
        return ["nsenter", f"--net=/run/netns/{self.namespace(host)}", *command]

    def run(self, host: str, *command: str) -> str:
        """Run a command on a host and give what it printed."""
        return run(*self.command(host, *command))

    def counters(self, host: str) -> dict[str, int]:
        """Give `rx` and `tx`, the packets that the host's interface has received and sent."""
        link: dict[str, Any] = json.loads(
            self.run(host, "ip", "-j", "-s", "link", "show", "eth0")
        )[0]
        return {way: int(link["stats64"][way]["packets"]) for way in ("rx", "tx")}

    def mac(self, host: str) -> str:
        """Give the hardware address of a host."""
        link = json.loads(self.run(host, "ip", "-j", "link", "show", "eth0"))[0]
        return str(link["address"])


def end_processes(process: tuple[int, float] | None) -> None:
    """End a process and all below it: asked first, killed after five seconds."""
    if process is None or not is_running(process):
        return
    top = psutil.Process(process[0])
    everyone = [top, *top.children(recursive=True)]
    with contextlib.suppress(psutil.NoSuchProcess):
        top.terminate()
    _, alive = psutil.wait_procs(everyone, timeout=5)
    for one in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    psutil.wait_procs(alive, timeout=5)


def remove(record: Record) -> None:
    """Remove everything that a record names, and then the record."""
    end_processes(record.platform)
    Hosts(record.tag).remove()
    shutil.rmtree(record.folder, ignore_errors=True)
    record.path.unlink(missing_ok=True)


def remove_leftovers() -> list[str]:
    """Remove what killed demos left behind; demos that run or are kept stay. Gives the tags of what was removed."""
    gone = [record for record in records() if not record.kept and not is_running(record.owner)]
    for record in gone:
        remove(record)
    return [record.tag for record in gone]
