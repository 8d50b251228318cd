"""`deploy`: from a package, an archive or a folder to a function that carries traffic."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from coven.cli.client import segment
from coven.cli.options import Commands, Context, add_json, add_wait, finish, pair, value
from coven.cli.package import upload
from coven.cli.show import line
from coven.errors import CovenError

TOOLS = ("auto", "afpacket", "afxdp", "tap", "pcap", "gen")
PROFILES = ("balanced", "low-latency", "power-save")
MAX_CORE = 4095
BARE = ("pcap", "gen")  # need no interface, so their name alone will do; auto:gen is the interface `gen`


def register(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "deploy",
        help="instantiate a package and start it",
        description="Instantiate a package and start it; undone as a whole if it fails. "
        "A file or folder is uploaded first.",
    )
    parser.add_argument("package", help="id of a package, an archive, or a folder")
    parser.add_argument("--id", help="of the instance; else the function's name and a number")
    parser.add_argument(
        "--port",
        action="append",
        default=[],
        type=pair,
        metavar="NAME=INTERFACE",
        help="bind a port: lan=eth1, lan=tap:cvtap0, lan=pcap:in=a.pcap,out=b.pcap, lan=gen:packets=1000",
    )
    parser.add_argument(
        "--param", action="append", default=[], type=pair, metavar="NAME=VALUE", help="set a parameter"
    )
    parser.add_argument(
        "--grant",
        action="append",
        default=[],
        type=pair,
        metavar="COMPONENT=MODE",
        help="how close a component may come: fused, shared or copy; * for all",
    )
    parser.add_argument("--workers", type=int, metavar="N", help="divide the flows among so many workers")
    parser.add_argument("--cores", type=cores, metavar="LIST", help="pin worker 0, 1, ... to these cores: 2,3 or 2-5")
    parser.add_argument(
        "--component-cores", type=cores, metavar="LIST",
        help="cores of isolated components; else those that no worker is pinned to",
    )  # fmt: skip
    parser.add_argument("--profile", choices=PROFILES, help="how workers wait for packets")
    parser.add_argument(
        "--start", action=argparse.BooleanOptionalAction, default=True, help="start it as well"
    )
    add_wait(parser)
    add_json(parser)
    parser.set_defaults(run=run)


def run(context: Context, arguments: argparse.Namespace) -> None:
    """Deploy."""
    package = find_package(context, arguments.package, quiet=arguments.json)
    request: dict[str, Any] = {
        "package": package["id"],
        "ports": {name: binding(text) for name, text in arguments.port},
        "parameters": parameters(package, arguments.param),
        "grants": dict(arguments.grant),
        "start": arguments.start,
    }
    named = ("workers", "cores", "component_cores", "profile")
    wanted = {name: getattr(arguments, name) for name in named if getattr(arguments, name) is not None}
    if wanted:
        request["workers"] = {"count" if name == "workers" else name: given for name, given in wanted.items()}
    if arguments.id:
        request["id"] = arguments.id
    operation = context.client.post("/v1/instances", request)
    finish(context, operation, wait=arguments.wait, as_document=arguments.json)
    if arguments.wait and not arguments.json:
        line(f"{operation['instance']} is {'started' if arguments.start else 'instantiated'}")


def find_package(context: Context, text: str, *, quiet: bool) -> Any:
    """Give the document of a package, uploading it if `text` is a file or folder."""
    path = Path(text)
    if not path.exists():
        return context.client.get(f"/v1/packages/{segment(text)}")
    try:
        document = upload(context, path)
    except CovenError as error:
        if error.code != "package.exists":
            raise
        return _same_package(context, path, error)
    if not quiet:
        line(f"{document['id']} is uploaded")
    return document


def _same_package(context: Context, path: Path, error: CovenError) -> Any:
    """Give the package that is there if it has the same content as the file or folder."""
    import tempfile

    from coven import package as packages

    if path.is_dir():
        with tempfile.TemporaryDirectory(prefix="coven-deploy-") as folder:
            found = packages.validate(packages.build(path, Path(folder)))
    else:
        found = packages.validate(path)
    document = context.client.get(f"/v1/packages/{segment(found.id)}")
    if found.sha256 and document["sha256"] == found.sha256:
        return document
    raise CovenError(
        error.code,
        f"package {found.id} is already there, with other content",
        hint=f"give it another version in vnf.yaml, or 'coven delete {found.id}' first",
    )


def binding(text: str) -> Any:
    """Read what a port is bound to: an interface, TOOL:INTERFACE, TOOL:KEY=VALUE,..., or JSON."""
    if text.startswith("{"):
        return value(text)
    tool, colon, rest = text.partition(":")
    if tool not in TOOLS or not (colon or tool in BARE):
        return text
    bound: dict[str, Any] = {"tool": tool}
    for part in filter(None, rest.split(",")):
        key, equals, given = part.partition("=")
        if equals and key in ("in", "out"):
            bound[key] = str(Path(given).absolute())  # the agent has another working directory
        elif equals:
            bound[key] = given if key == "interface" else value(given)
        else:
            bound["interface"] = part
    return bound


def cores(text: str) -> list[int]:
    """Read a list of cores: `2,3` or `2-5,8`. Raises ValueError, ArgumentTypeError."""
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        low, high = int(first), int(last if dash else first)
        if not 0 <= low <= high <= MAX_CORE:
            raise argparse.ArgumentTypeError(f"{part!r} is no core or range of cores")
        found += range(low, high + 1)
    return found


def parameters(package: dict[str, Any], given: list[tuple[str, str]]) -> dict[str, Any]:
    """Give parameters in the types that the package declares; text stays text where text is wanted."""
    schemas = {parameter["name"]: parameter["schema"] for parameter in package["parameters"]}
    return {
        name: text if schemas.get(name, {}).get("type") == "string" else value(text)
        for name, text in given
    }
