"""`python -m coven.management`: the Management Agent's process. Started by the supervisor."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
from pathlib import Path

from coven.errors import CovenError
from coven.management import last_words, tls
from coven.management.app import make_app
from coven.management.auth import Authenticator, ensure_token
from coven.management.platform import Platform, Settings
from coven.management.server import Server

DEFAULT_LISTEN = "127.0.0.1:8440"
TCP_THREADS = 16
UNIX_THREADS = 16
MAX_UPLOAD_MB = 512


def parse_address(text: str) -> tuple[str, int]:
    """Give host and port of `HOST:PORT`, `[IPV6]:PORT` or `PORT`."""
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]") or "127.0.0.1"
    if not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise argparse.ArgumentTypeError(f"'{text}' is not HOST:PORT")
    return host, int(port)


def parser() -> argparse.ArgumentParser:
    """Give the parser of the agent's arguments."""
    made = argparse.ArgumentParser(prog="python -m coven.management", description=__doc__)
    made.add_argument("--state-dir", type=Path, required=True, help="what must outlive a reboot")
    made.add_argument("--run-dir", type=Path, required=True, help="sockets and pid files")
    made.add_argument("--supervisor", type=Path, help="the supervisor's socket (RUN_DIR/supervisor.sock)")
    made.add_argument(
        "--listen",
        action="append",
        metavar="HOST:PORT",
        help=f"TCP address, may be given again, 'none' for no TCP ({DEFAULT_LISTEN})",
    )
    made.add_argument("--socket", type=Path, help="Unix socket of the agent (RUN_DIR/agent.sock)")
    made.add_argument("--max-upload-mb", type=int, default=MAX_UPLOAD_MB, help="of one package")
    made.add_argument("--verbose", action="store_true", help="log more")
    return made


def make_servers(platform: Platform, addresses: list[tuple[str, int]], socket_path: Path) -> list[Server]:
    """Bind all listeners; TLS for those that can be reached from other machines."""
    state_dir = platform.settings.state_dir
    token, made = ensure_token(state_dir)
    if made:
        print(f"token (shown once, kept in {state_dir / 'token'}): {token}", flush=True)
    app = make_app(platform, Authenticator(token, frozenset({0, os.getuid()})))
    servers = [Server(str(socket_path), app, UNIX_THREADS)]
    beyond = [host for host, _ in addresses if not tls.is_loopback(host)]
    context = None
    if beyond:
        certificate, both, fingerprint = tls.ensure_certificate(state_dir / "tls", beyond)
        context = tls.server_context(both)
        print(f"certificate: {certificate} sha256 {fingerprint}", flush=True)
    servers += [
        Server(address, app, TCP_THREADS, None if tls.is_loopback(address[0]) else context) for address in addresses
    ]
    for server in servers:
        server.prepare()
        platform.listeners.append(server.listening_at())

    def served() -> dict[str, int]:
        counts = [server.served() for server in servers]
        return {key: sum(count[key] for count in counts) for key in ("rx_bytes", "tx_bytes")}

    platform.served = served
    return servers


def run(arguments: argparse.Namespace) -> None:
    """Serve until SIGTERM or SIGINT."""
    # Waited for, not handled: a handler could come while a lock is held that it needs. Threads inherit the mask.
    ends = {signal.SIGTERM, signal.SIGINT}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    run_dir: Path = arguments.run_dir
    arguments.state_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
    run_dir.mkdir(mode=0o755, parents=True, exist_ok=True)
    listen = [text for text in (arguments.listen or [DEFAULT_LISTEN]) if text != "none"]
    platform = Platform(
        Settings(
            state_dir=arguments.state_dir,
            run_dir=run_dir,
            supervisor=arguments.supervisor or run_dir / "supervisor.sock",
            max_upload_bytes=arguments.max_upload_mb * 1024 * 1024,
        )
    )
    platform.start()
    servers = make_servers(
        platform,
        [parse_address(text) for text in listen],
        arguments.socket or run_dir / "agent.sock",
    )
    threads = [threading.Thread(target=server.serve, daemon=True) for server in servers]
    for thread in threads:
        thread.start()
    last_words.clear(run_dir)
    (run_dir / "agent.pid").write_text(f"{os.getpid()}\n", encoding="ascii")
    for place in platform.listeners:
        print(f"listening at {place}", flush=True)
    sys.stdout.flush()
    threading.Thread(target=_tell_degraded, args=(platform,), daemon=True).start()
    signal.sigwait(ends)
    platform.stop()
    for server in servers:
        server.stop()
    platform.store.close()


def _tell_degraded(platform: Platform) -> None:
    for text in platform.describe()["degraded"]:
        print(f"not to be had here: {text}", flush=True)


def main() -> int:
    """Run the agent; gives its exit status."""
    arguments = parser().parse_args()
    logging.basicConfig(
        level=logging.INFO if arguments.verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s %(message)s",
        stream=sys.stderr,
    )
    try:
        run(arguments)
    except CovenError as error:
        last_words.keep(arguments.run_dir, error)
        print(f"coven.management: {error}", file=sys.stderr)
        return error.exit_status
    except (OSError, argparse.ArgumentTypeError) as error:
        last_words.keep(arguments.run_dir, error)
        print(f"coven.management: {error}", file=sys.stderr)
        return 1
    except Exception as error:
        last_words.keep(arguments.run_dir, error)
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main())
