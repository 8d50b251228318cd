"""`coven demo`: a function uploaded, deployed, put under traffic, questioned, and every statement about it checked.

Called by the command line: `add_arguments` says what it takes, `main` does it. Status 0 only if everything that was
claimed is true. It uses the REST API alone, so what it shows can be typed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

__all__ = ["add_arguments", "main"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `coven demo`; `--json` is every command's."""
    parser.add_argument(
        "--pcap",
        nargs=2,
        type=Path,
        metavar=("IN", "OUT"),
        help="on capture files instead of network namespaces; needs no root",
    )
    parser.add_argument(
        "--keep", action="store_true", help="leave everything running, and say how to look further and how to stop it"
    )
    parser.add_argument("--stop", action="store_true", help="stop demos that --keep left running")


def main(args: argparse.Namespace) -> int:
    """Run the demo; gives the exit status."""
    from coven.demo.run import run  # not before it is asked for: the other commands have no use for it

    return run(args)
