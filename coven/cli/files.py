"""Files that a command writes for its user."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from coven.errors import CovenError


@contextlib.contextmanager
def written(path: Path) -> Iterator[BinaryIO]:
    """Open a file to be written anew; what it held stays when nothing comes of it.

    Raises CovenError request.invalid when it cannot be opened or written.
    """
    in_place = path.exists() and not path.is_file()  # /dev/stdout; a folder says so when it is opened
    part = path if in_place else path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            yield file
        if not in_place:
            part.replace(path)
    except OSError as error:
        raise CovenError(
            "request.invalid",
            f"cannot write {path}: {error.strerror}",
            hint="name a file in a folder that exists and that you may write to",
        ) from error
    finally:
        if not in_place:
            with contextlib.suppress(OSError):
                part.unlink()
