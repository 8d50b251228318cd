"""What the demo runs on its two hosts: a web server, a web client, and a wire that sends and receives single frames.

    python -m coven.demo.peer serve FOLDER PORT
    python -m coven.demo.peer fetch URL TIMES PARALLEL      prints one JSON object
    python -m coven.demo.peer wire INTERFACE                hex frames on standard input are sent, received ones printed

Each role prints `ready` when it can be used.
"""

from __future__ import annotations

import concurrent.futures
import functools
import hashlib
import http.client
import http.server
import json
import os
import socket
import sys
import threading
import time
from typing import Any
from urllib.parse import urlsplit

_PACKET_OUTGOING = 4
_ETH_P_ALL = 3


class _Handler(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Say nothing: the demo reports what the client got."""


class _Server(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6
    request_queue_size = 256


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def serve(folder: str, port: int) -> None:
    """Serve a folder over HTTP, IPv4 and IPv6, until killed."""
    with _Server(("::", port), functools.partial(_Handler, directory=folder)) as server:
        say("ready")
        server.serve_forever()


def download(url: str) -> tuple[int, str]:
    """Fetch a file over a connection of its own; gives its length and its SHA-256."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
    digest, length = hashlib.sha256(), 0
    try:
        connection.request("GET", parts.path)
        answer = connection.getresponse()
        if answer.status != 200:
            raise OSError(f"HTTP status {answer.status}")
        while block := answer.read(1 << 18):
            digest.update(block)
            length += len(block)
    finally:
        connection.close()
    return length, digest.hexdigest()


def fetch(url: str, times: int, parallel: int) -> None:
    """Fetch a file many times, some at once; print how often, how much, how long, which digests, which failures."""
    digests: set[str] = set()
    failures: list[str] = []
    total = 0
    began = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(parallel) as pool:
        for future in concurrent.futures.as_completed([pool.submit(download, url) for _ in range(times)]):
            try:
                length, digest = future.result()
                total += length
                digests.add(digest)
            except (OSError, http.client.HTTPException) as error:
                failures.append(f"{type(error).__name__}: {error}")
    seconds = time.monotonic() - began
    say(json.dumps({"bytes": total, "seconds": seconds, "digests": sorted(digests), "failures": failures}))


def wire(interface: str) -> None:
    """Send frames given as hex lines on standard input; print each frame that arrives. Ends with its input."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL)) as line:
        line.bind((interface, _ETH_P_ALL))

        def receive() -> None:
            while True:
                data, sender = line.recvfrom(65536)
                if sender[2] != _PACKET_OUTGOING:
                    say(data.hex())

        threading.Thread(target=receive, daemon=True).start()
        say("ready")
        for text in sys.stdin:
            line.send(bytes.fromhex(text))
        os._exit(0)  # the receiving thread blocks for ever


def main(arguments: list[str]) -> int:
    """Play the role that is asked for."""
    match arguments:
        case ["serve", folder, port]:
            serve(folder, int(port))
        case ["fetch", url, times, parallel]:
            fetch(url, int(times), int(parallel))
        case ["wire", interface]:
            wire(interface)
        case _:
            sys.stderr.write(f"{__doc__}\n")
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
