"""Reading request bodies: JSON within a limit, archives streamed to disk, multipart without buffering it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from email.message import Message
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from coven.errors import CovenError

MAX_JSON_BYTES = 1024 * 1024
MAX_PART_HEADER = 8192
MAX_BOUNDARY = 70  # RFC 2046 section 5.1.1
CHUNK = 256 * 1024
ARCHIVE_TYPES = frozenset({"application/zip", "application/octet-stream", "application/x-zip"})


class Source(Protocol):
    """wsgi.input."""

    def read(self, size: int, /) -> bytes:
        """Give up to `size` bytes, none at the end."""


def media_type(environ: Mapping[str, Any]) -> tuple[str, str | None]:
    """Give the body's media type without parameters, and its boundary."""
    message = Message()
    message["Content-Type"] = str(environ.get("CONTENT_TYPE") or "")
    boundary = message.get_param("boundary")
    if not environ.get("CONTENT_TYPE"):
        return "", None
    return message.get_content_type(), boundary if isinstance(boundary, str) else None


def chunks(environ: Mapping[str, Any], limit: int) -> Iterator[bytes]:
    """Give the body piece by piece; raises request.too-large, request.incomplete."""
    declared = environ.get("CONTENT_LENGTH")
    length = int(declared) if declared else None
    if length is not None and length > limit:
        raise _too_large(limit)
    if length is None and not environ.get("wsgi.input_terminated"):
        return
    source: Source = environ["wsgi.input"]
    received = 0
    while length is None or received < length:
        try:
            part = source.read(CHUNK if length is None else min(CHUNK, length - received))
        except (ValueError, OSError, OverflowError) as error:  # the last: a chunk of 2^64 bytes, for example
            raise _incomplete(received, length) from error
        if not part:
            break
        received += len(part)
        if received > limit:
            raise _too_large(limit)
        yield part
    if length is not None and received < length:
        raise _incomplete(received, length)


def _too_large(limit: int) -> CovenError:
    return CovenError("request.too-large", f"the body is larger than {limit} bytes", hint="send less")


def _incomplete(received: int, length: int | None) -> CovenError:
    of = f" of {length}" if length is not None else ""
    return CovenError(
        "request.incomplete",
        f"the body ended or stalled after {received}{of} bytes",
        hint="nothing of it was kept; send it again",
    )


def read_json(environ: Mapping[str, Any], *, required: bool) -> dict[str, Any] | None:
    """Give the body as a JSON object; None if there is no body and it is not required.

    Raises request.unsupported-media-type, request.malformed, request.invalid and those of `chunks`.
    """
    kind, _ = media_type(environ)
    has_length = environ.get("CONTENT_LENGTH") not in (None, "", "0")
    if not has_length and not environ.get("wsgi.input_terminated"):
        if required:
            raise CovenError("request.malformed", "the request has no body; it needs a JSON object")
        return None
    if kind != "application/json" and not kind.endswith("+json"):
        raise CovenError(
            "request.unsupported-media-type",
            f"the body is declared as '{kind}'" if kind else "the body has no Content-Type",
            hint="send JSON with 'Content-Type: application/json'",
        )
    data = b"".join(chunks(environ, MAX_JSON_BYTES))
    if not data and not required:
        return None
    try:
        document = json.loads(data.decode("utf-8"), parse_constant=_no_constant, object_pairs_hook=_no_repetition)
        json.dumps(document, ensure_ascii=False).encode()  # "\\ud800" alone is no text that can be kept
    except (ValueError, RecursionError) as error:
        raise CovenError("request.malformed", f"the body is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise CovenError("request.invalid", "the body must be a JSON object")
    return document


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON (RFC 8259 section 6)")


def _no_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a name that is there twice: two readers could see two different requests (RFC 8259 section 4)."""
    document = dict(pairs)
    if len(document) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the name {twice[:100]!r} is there twice in one object")
    return document


def save_archive(environ: Mapping[str, Any], path: Path, limit: int) -> int:
    """Write an uploaded archive to a new file, never holding more than a piece; gives its length.

    The body is the archive itself, or multipart/form-data with a part named `file`.
    """
    kind, boundary = media_type(environ)
    try:
        return _save(environ, path, limit, kind, boundary)
    except OSError as error:  # of the file: those of the connection have become CovenErrors
        raise CovenError(
            "platform.no-resources",
            f"the archive cannot be written: {error.strerror}",
            hint="make room on the disk of the state folder",
        ) from error


def _save(environ: Mapping[str, Any], path: Path, limit: int, kind: str, boundary: str | None) -> int:
    with path.open("xb") as file:
        if kind in ARCHIVE_TYPES:
            for part in chunks(environ, limit):
                file.write(part)
        elif kind == "multipart/form-data":
            if not boundary or len(boundary) > MAX_BOUNDARY:
                raise CovenError("request.malformed", "multipart/form-data without a boundary")
            _save_part(chunks(environ, limit), boundary.encode("latin-1", "replace"), file)
        else:
            raise CovenError(
                "request.unsupported-media-type",
                f"the body is declared as '{kind}'" if kind else "the body has no Content-Type",
                hint="send the archive as 'Content-Type: application/zip', or as the part 'file' of "
                "multipart/form-data",
            )
        length = file.tell()
    if not length:
        raise CovenError("request.malformed", "the request has no archive in its body")
    return length


class _Window:
    """A sliding look at pieces of a body."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self.data = bytearray()

    def more(self) -> None:
        piece = next(self._pieces, None)
        if piece is None:
            raise CovenError("request.incomplete", "the multipart body ended before its last boundary")
        self.data += piece

    def until(self, mark: bytes, *, limit: int | None, file: BinaryIO | None = None) -> bytes:
        """Take everything before `mark`, and `mark`; into `file`, or give it if it is within `limit`."""
        while (at := self.data.find(mark)) < 0:
            if limit is not None and len(self.data) > limit:
                raise CovenError("request.malformed", "a header of the multipart body is too long")
            if limit is None:  # all but what may be the beginning of the mark can go
                done = max(len(self.data) - len(mark) + 1, 0)
                if file is not None:
                    file.write(self.data[:done])
                del self.data[:done]
            self.more()
        taken = bytes(self.data[:at])
        del self.data[: at + len(mark)]
        if file is not None:
            file.write(taken)
        return taken


def _save_part(pieces: Iterator[bytes], boundary: bytes, file: BinaryIO) -> None:
    """Write the part named `file` of a multipart body (RFC 7578); the body is read to its end."""
    window = _Window(pieces)
    window.data += b"\r\n"  # the first boundary may be the very first bytes
    mark = b"\r\n--" + boundary
    window.until(mark, limit=None)
    found = False
    while True:
        while len(window.data) < 2:
            window.more()
        if window.data[:2] == b"--":
            break
        window.until(b"\r\n", limit=MAX_PART_HEADER)
        window.data[:0] = b"\r\n"  # a part without headers ends them at once
        head = window.until(b"\r\n\r\n", limit=MAX_PART_HEADER)
        if not found and _part_name(head) == "file":
            found = True
            window.until(mark, limit=None, file=file)
        else:
            window.until(mark, limit=None)
    for _ in pieces:
        pass
    if not found:
        raise CovenError(
            "request.malformed",
            "the multipart body has no part named 'file'",
            hint="name the part 'file', as 'curl -F file=@package.coven' does",
        )


def _part_name(head: bytes) -> str | None:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-disposition":
            message = Message()
            message["Content-Disposition"] = value.strip().decode("utf-8", "replace")
            found = message.get_param("name", header="Content-Disposition")
            return found if isinstance(found, str) else None
    return None
