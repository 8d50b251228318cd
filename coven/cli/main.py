"""`coven`: reads the command line, calls the command, turns errors into text and exit status.

Exit status: 0 done; 1 refused or failed; 2 wrong usage; 3 no agent answers; 4 `check` or `status` found
something that is not well; 130 interrupted.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import coven
from coven.cli import (
    agent,
    ask,
    client,
    deploy,
    flows,
    lifecycle,
    package,
    status,
)
from coven.cli.options import Context
from coven.errors import CovenError

STATUSES = """exit status:
  0    done
  1    refused or failed; the text on standard error says what, where and what to do
  2    wrong usage
  3    no agent answers
  4    'check' or 'status' found something that is not well
  130  interrupted

environment: COVEN_SOCKET, COVEN_URL, COVEN_TOKEN, COVEN_CACERT (as the options), NO_COLOR"""


def make_parser() -> argparse.ArgumentParser:
    """Give the parser of the whole command."""
    parser = argparse.ArgumentParser(
        prog="coven",
        description="Deploy, watch and question network functions.",
        epilog=STATUSES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"coven {coven.__version__}")
    target = parser.add_argument_group("agent", "which agent to talk to")
    target.add_argument("--socket", type=Path, help="its Unix socket (default: this machine's agent)")
    target.add_argument("--url", help="its URL, as https://10.0.0.1:8440")
    target.add_argument("--token", help="its token; better in COVEN_TOKEN, where no other user sees it")
    target.add_argument("--cacert", type=Path, help="its certificate, for https")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in (agent, package, deploy, lifecycle, status, ask, flows):
        module.register(commands)
    _register_demo(commands)
    _register_bench(commands)
    return parser


def _register_bench(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    from coven import bench  # only its options

    parser = commands.add_parser(
        "bench",
        help="measure what this machine reaches",
        description="Measure what this machine reaches, each figure beside the bare minimum of the same run. Deploys "
        "on a platform of its own; scenarios with network interfaces need root.",
    )
    bench.add_arguments(parser)
    parser.set_defaults(run=lambda _context, arguments: bench.main(arguments))


def _register_demo(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    from coven import demo  # only its options; what it does is loaded when it is run

    parser = commands.add_parser(
        "demo",
        help="show everything with real traffic on this machine",
        description="Show the whole life of a function with real traffic on this machine; ends by itself.",
    )
    demo.add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=lambda _context, arguments: demo.main(arguments))


def _context(arguments: argparse.Namespace) -> Context:
    env = os.environ.get
    socket_path = arguments.socket or env("COVEN_SOCKET")
    ca_file = arguments.cacert or env("COVEN_CACERT")
    return Context(
        client.Client(
            client.Target(
                Path(socket_path) if socket_path else client.default_socket(),
                # A socket on the command line outweighs a URL in the environment.
                arguments.url or (None if arguments.socket else env("COVEN_URL") or None),
                arguments.token or env("COVEN_TOKEN"),
                Path(ca_file) if ca_file else None,
            )
        )
    )


def main(argv: list[str] | None = None) -> int:
    """Run the command; gives the exit status."""
    words = sys.argv[1:] if argv is None else argv
    try:
        arguments = make_parser().parse_args(words)
        return int(arguments.run(_context(arguments), arguments) or 0)
    except CovenError as error:
        print(f"coven: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Who read our output has gone (as `| head` does); do not fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


if __name__ == "__main__":
    sys.exit(main())
