"""The example components as replicas under test, and frames for them."""

from __future__ import annotations

import dataclasses
import functools
import os
import struct
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from coven.agents.client import AgentClient
from coven.agents.schema import argument_lines, read_declarations, read_result
from coven.descriptor.component import COMPONENT_FILE, parse_component_type
from coven.processing.framework import Source, load
from tests.lib.builds import BIN, made_once
from tests.lib.replica import Replica

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "vnfc_examples"
DATA = Path(os.environ.get("COVEN_TESTDATA") or ROOT.parent / "shared" / "data")


def described(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Give what a plan would have of a component's folder, and the defaults of its options."""
    document = yaml.safe_load((folder / "component.yaml").read_text(encoding="utf-8"))
    properties = (document.get("options") or {}).get("properties", {})
    options = {key: schema["default"] for key, schema in properties.items() if "default" in schema}
    component = {key: document[key] for key in ("name", "outputs", "metrics", "operations", "state") if key in document}
    for operation in component.get("operations", []):
        for argument in operation.get("arguments", []):
            argument.setdefault("required", "default" not in argument)
    return {**component, "framework": document["framework"], "entry": document["entry"]}, options


def run_build(source: Source, output: Path) -> tuple[int, str]:
    """Build a component in C into `output`, as the supervisor does but without a sandbox; status and stderr."""
    build = load("c").build(source, output)
    assert build is not None
    for command in build.commands:
        done = subprocess.run(command, cwd=source.folder, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            return done.returncode, done.stderr
    assert build.artifact.is_file()
    return 0, ""


@functools.cache
def built(name: str) -> tuple[Path, dict[str, Any]]:
    """Build an example in C through the framework: the object's path, and its row for a plan."""
    folder = EXAMPLES / name
    kind = parse_component_type((folder / COMPONENT_FILE).read_bytes(), COMPONENT_FILE)
    source = Source(name, folder, kind.entry, kind.build or {})
    assert load("c").check(source) == ()

    def make(output: Path) -> None:
        assert run_build(source, output) == (0, "")

    output = made_once(f"example-{name}", folder.glob("*.[ch]"), [repr(kind.build)], make)
    keys = ("name", "outputs", "metrics", "operations", "state", "hold")
    row = {key: value for key, value in dataclasses.asdict(kind).items() if key in keys and value is not None}
    return output / f"{name}.so", row


def example(name: str, log: Path, *, options: Mapping[str, Any] | None = None, **kwargs: Any) -> Replica:
    """Give an example component of vnfc_examples, not started yet; options are filled up with its defaults."""
    folder = EXAMPLES / name
    component, defaults = described(folder)
    entry = built(name)[0] if component["framework"] == "c" else folder / component["entry"]
    return Replica(
        component["framework"], entry.parent, entry.name, component=component, options={**defaults, **(options or {})},
        bin_dir=BIN, log=log, **kwargs,
    )  # fmt: skip


def call(agent: AgentClient, name: str, /, **arguments: object) -> dict[str, str]:
    """Call an operation as the platform does: by what the component lists."""
    (operation,) = (o for o in read_declarations(agent.ask("list")).operations if o.name == name)
    return read_result(agent.ask("call", name, argument_lines(operation, arguments)))


def tcp(
    payload: bytes = b"",
    *,
    source: int = 40000,
    destination: int = 443,
    vlans: tuple[int, ...] = (),
    version: int = 4,
    ip_options: bytes = b"",
    tcp_options: bytes = b"",
    extensions: tuple[tuple[int, bytes], ...] = (),
    padding: bytes = b"",
) -> bytes:
    """Give an Ethernet frame with a TCP segment. extensions: IPv6 headers as (kind, bytes after the next-header field)."""
    segment = struct.pack(">HHIIBBHHH", source, destination, 1, 2, (5 + len(tcp_options) // 4) << 4, 0x18, 8192, 0, 0)
    segment += tcp_options + payload
    if version == 4:
        header = struct.pack(
            ">BBHHHBBH4s4s", 0x40 | 5 + len(ip_options) // 4, 0, 20 + len(ip_options) + len(segment), 1, 0x4000, 64, 6, 0,
            bytes((10, 0, 0, 1)), bytes((10, 0, 0, 2)),
        )  # fmt: skip
        inner = header + ip_options + segment
    else:
        kinds = [kind for kind, _ in extensions] + [6]
        body = (
            b"".join(bytes((after,)) + rest for (_, rest), after in zip(extensions, kinds[1:], strict=True)) + segment
        )
        inner = struct.pack(">IHBB", 6 << 28, len(body), kinds[0], 64) + bytes(15) + b"\1" + bytes(15) + b"\2" + body
    ethertype = struct.pack(">H", 0x0800 if version == 4 else 0x86DD)
    tags = b"".join(struct.pack(">HH", tpid, 7) for tpid in vlans)
    return b"\2\0\0\0\0\1" + b"\2\0\0\0\0\2" + tags + ethertype + inner + padding


def capture(path: Path) -> Iterator[bytes]:
    """Give the frames of a capture file as far as they were recorded."""
    from scapy.utils import RawPcapReader

    with RawPcapReader(str(path)) as reader:
        for data, _ in reader:
            yield data
