"""`coven bench`: what this machine reaches, each figure beside the bare minimum measured in the same run.

Scenarios deploy real functions on a platform of their own (keeper, supervisor, worker, components, sandboxes and all)
and measure from outside. Called by the command line: `add_arguments` says what it takes, `main` does it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

__all__ = ["add_arguments", "main"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `coven bench`."""
    parser.add_argument(
        "scenarios",
        nargs="*",
        metavar="SCENARIO",
        help="what to measure, as --list names it; all but `soak` when left out",
    )
    parser.add_argument("--list", action="store_true", help="list the scenarios and end")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to this file")
    parser.add_argument("--only", default="", metavar="TEXT", help="only cases whose name contains this text")
    parser.add_argument("--rounds", type=int, default=3, help="how often each case is measured, in turn (3)")
    parser.add_argument(
        "--seconds", type=float, metavar="S", help="length of the long runs: `throughput` at 80 %% (60), `soak` (60)"
    )
    parser.add_argument("--quick", action="store_true", help="a second or two for each scenario: to see that it works")
    parser.add_argument("--tool", action="append", metavar="TOOL", help="only with this NIC tool; may be given again")
    parser.add_argument("--bin-dir", type=Path, metavar="DIR", help="measure other executables than the installed ones")


def main(args: argparse.Namespace) -> int:
    """Run the scenarios; gives the exit status."""
    from coven.bench.run import run  # not before it is asked for: the other commands have no use for it

    return run(args)
