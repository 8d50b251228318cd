"""Commands on packages: validate and build (local), upload, packages, delete."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from coven.cli.client import segment
from coven.cli.options import Commands, Context, add_json
from coven.cli.show import as_json, line, size, table
from coven.errors import CovenError, Where


def register(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add the commands."""
    validate = commands.add_parser(
        "validate",
        help="check a descriptor, a package or its folder",
        description="Check a descriptor, a package or its folder; needs no agent, runs no code of it. "
        "All faults are shown, each with file, line and column.",
    )
    validate.add_argument("file", type=Path, help="vnf.yaml, component.yaml, an archive, or a folder")
    add_json(validate)
    validate.set_defaults(run=run_validate)

    package = commands.add_parser(
        "package", help="make packages", description="Make packages; needs no agent."
    )
    verbs = package.add_subparsers(title="commands", metavar="COMMAND", required=True)
    build = verbs.add_parser(
        "build", help="make a package of a folder", description="Make a package of a folder."
    )
    build.add_argument("folder", type=Path, help="has vnf.yaml and the components' folders")
    build.add_argument("-o", "--output", type=Path, default=Path(), help="archive or folder to write to")
    add_json(build)
    build.set_defaults(run=run_build)

    upload = commands.add_parser(
        "upload",
        help="give a package to the agent",
        description="Give a package to the agent; a folder is made into a package first.",
    )
    upload.add_argument("package", type=Path, help="archive or folder")
    add_json(upload)
    upload.set_defaults(run=run_upload)

    packages = commands.add_parser(
        "packages", help="show packages", description="Show the packages that the agent has."
    )
    packages.add_argument("id", nargs="?", help="only this one, with all that is known of it")
    add_json(packages)
    packages.set_defaults(run=run_packages)

    delete = commands.add_parser(
        "delete", help="delete a package", description="Delete a package that no instance uses."
    )
    delete.add_argument("id", help="of the package")
    delete.set_defaults(run=run_delete)


def run_validate(_: Context, arguments: argparse.Namespace) -> None:
    """Check without an agent."""
    from coven import package as packages
    from coven.descriptor import vnf as descriptor

    path: Path = arguments.file
    try:
        if path.name == "component.yaml" and path.is_file():
            kind = descriptor.load_component_type(path.parent)
            document: dict[str, Any] = {"valid": True, "component": kind.name, "framework": kind.framework}
            text = f"{path}: component {kind.name} ({kind.framework}) is valid"
        else:
            found = packages.validate(path)
            names = [component.name for component in found.vnf.components]
            document = {"valid": True, "id": found.id, "kind": found.kind, "components": names}
            text = f"{path}: {found.id} is valid, with components {', '.join(names)}"
    except CovenError as error:
        if error.where is None:
            error.where = Where(file=str(path))
        if not arguments.json:
            raise
        as_json({"valid": False, "error": error.to_json()})
        raise SystemExit(error.exit_status) from None
    as_json(document) if arguments.json else line(text)


def run_build(_: Context, arguments: argparse.Namespace) -> None:
    """Make an archive."""
    from coven import package as packages

    made = packages.build(arguments.folder, arguments.output)
    length = made.stat().st_size
    if arguments.json:
        as_json({"file": str(made), "bytes": length})
    else:
        line(f"{made} ({size(length)})")


def run_upload(context: Context, arguments: argparse.Namespace) -> None:
    """Give a package to the agent."""
    document = upload(context, arguments.package)
    if arguments.json:
        as_json(document)
    else:
        line(f"{document['id']} is uploaded")


def upload(context: Context, path: Path) -> Any:
    """Upload an archive, or what a folder makes; gives the package's document."""
    import tempfile

    from coven import package as packages

    if not path.exists():
        raise CovenError("package.not-found", f"there is no file {path}")
    if not path.is_dir():
        return context.client.upload("/v1/packages", path)
    with tempfile.TemporaryDirectory(prefix="coven-upload-") as folder:
        return context.client.upload("/v1/packages", packages.build(path, Path(folder)))


def run_packages(context: Context, arguments: argparse.Namespace) -> None:
    """Show packages."""
    if arguments.id:
        document = context.client.get(f"/v1/packages/{segment(arguments.id)}")
        found = [document]
    else:
        document = context.client.get("/v1/packages")
        found = document["packages"]
    if arguments.json:
        as_json(document)
        return
    rows = [
        (
            each["id"],
            each["provider"],
            size(each["bytes"]),
            ", ".join(port["name"] for port in each["ports"]),
            ", ".join(component["name"] for component in each["components"]),
        )
        for each in found
    ]
    table(("package", "provider", "size", "ports", "components"), rows)
    if arguments.id and found[0]["parameters"]:
        line()
        table(
            ("parameter", "default", "needed", "schema"),
            [
                (each["name"], each.get("default"), "yes" if each["required"] else "", each["schema"])
                for each in found[0]["parameters"]
            ],
        )


def run_delete(context: Context, arguments: argparse.Namespace) -> None:
    """Delete a package."""
    context.client.delete(f"/v1/packages/{segment(arguments.id)}")
    line(f"{arguments.id} is deleted")
