"""Who calls: a bearer token (RFC 6750), or the user at the other end of the Unix socket."""

from __future__ import annotations

import hmac
import logging
import os
import secrets
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coven.errors import CovenError, Where

log = logging.getLogger(__name__)

TOKEN_FILE = "token"  # noqa: S105 - the name of the file
MIN_TOKEN = 20  # characters; an operator may write a token of his own into the file


@dataclass(frozen=True, slots=True)
class Caller:
    """An authenticated caller. `role` decides what it may do; so far there is one, which may do everything."""

    name: str
    role: str


def ensure_token(state_dir: Path, owner: int | None = None) -> tuple[str, bool]:
    """Give the token and whether it was made now; the file has mode 0600 and belongs to `owner`.

    The file appears whole or not at all: it is written beside its name and linked, so two that start at the
    same time agree, and a kill leaves no half token.
    """
    path = state_dir / TOKEN_FILE
    try:
        return read_token(path), False
    except FileNotFoundError:
        pass
    token = secrets.token_hex(32)  # no character that a shell or an option parser reads as its own
    draft = state_dir / f".{TOKEN_FILE}.{secrets.token_hex(8)}"
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(token + "\n")
            file.flush()
            os.fsync(file.fileno())
            if owner is not None:
                os.fchown(file.fileno(), owner, owner)
        os.link(draft, path)
    except FileExistsError:
        return read_token(path), False
    finally:
        draft.unlink(missing_ok=True)
    return token, True


def read_token(path: Path) -> str:
    """Give the token in a file, and shut the file for others. Raises CovenError when it holds none that protects.

    An empty file would let everybody in who sends an empty token.
    """
    with path.open("rb") as file:
        text = file.read(4096).strip()
        if stat.S_IMODE(os.fstat(file.fileno()).st_mode) & 0o077:
            log.warning("token=%s could be read by other users; they may know it: remove the file for a new one", path)
            os.fchmod(file.fileno(), 0o600)
    if len(text) < MIN_TOKEN or not text.isascii() or not text.decode("ascii").isprintable() or b" " in text:
        raise CovenError(
            "auth.wrong",
            f"{path} holds no token of at least {MIN_TOKEN} printable characters",
            hint="remove the file: the agent makes a new token at its next start",
            where=Where(file=str(path)),
        )
    return text.decode("ascii")


class Authenticator:
    """Decides who a request comes from."""

    def __init__(self, token: str, uids: frozenset[int]) -> None:
        """token: what a bearer must know. uids: users that the Unix socket lets in without one."""
        self._token = token.encode()
        self._uids = uids

    def caller(self, environ: Mapping[str, Any]) -> Caller:
        """Name the caller of a WSGI request; raises auth.missing, auth.wrong or auth.forbidden."""
        given = str(environ.get("HTTP_AUTHORIZATION", ""))
        if given:
            scheme, _, token = given.partition(" ")
            if scheme.lower() == "bearer" and hmac.compare_digest(
                token.strip().encode("utf-8", "surrogateescape"), self._token
            ):
                return Caller("token", "admin")
            raise CovenError(
                "auth.wrong",
                "the token in the Authorization header is not this agent's",
                hint="send 'Authorization: Bearer TOKEN'; the token is in the file 'token' of the state folder",
            )
        uid = environ.get("coven.peer_uid")
        if uid is None:
            raise CovenError(
                "auth.missing",
                "the request has no Authorization header",
                hint="send 'Authorization: Bearer TOKEN'; the token is in the file 'token' of the state folder",
            )
        if uid not in self._uids:
            raise CovenError(
                "auth.forbidden",
                f"user {uid} may not use the agent's socket",
                hint="call as root or as the agent's user, or give a token",
            )
        return Caller(f"uid {uid}", "admin")
