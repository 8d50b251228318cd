"""Packages: uploaded to disk, unpacked and validated before anybody sees them, kept until deleted.

A package is there when its row is; its folder gets its name just before. What a kill leaves between (an
upload, a folder without row, a folder being removed) is swept away at the next start. When all rows are lost,
with the state file, the folders are what is true: functions may run from them. What is no installed package
belongs to somebody else and is left alone.
"""

from __future__ import annotations

import logging
import secrets
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coven.errors import CovenError
from coven.management.body import save_archive
from coven.management.events import EventLog
from coven.management.state import Store

if TYPE_CHECKING:
    from coven.package import Package

log = logging.getLogger(__name__)

MAX_UPLOADS = 4  # at the same time
KEEP_FREE = 64 * 1024 * 1024  # bytes of the disk that uploads must leave


class Packages:
    """The packages of this agent."""

    def __init__(self, state_dir: Path, store: Store, events: EventLog, max_upload_bytes: int) -> None:
        """Sweep the folder. max_upload_bytes: of one archive."""
        self._folder = state_dir / "packages"
        self._incoming = state_dir / "incoming"
        self._store = store
        self._events = events
        self._limit = max_upload_bytes
        self._uploads = threading.BoundedSemaphore(MAX_UPLOADS)
        self._folder.mkdir(mode=0o755, exist_ok=True)
        self._sweep()

    def _sweep(self) -> None:
        if self._incoming.exists():
            _remove(self._incoming)
        self._incoming.mkdir(mode=0o700)
        known = {document["id"] for document in self._store.packages()}
        strange = sorted(folder for folder in self._folder.iterdir() if folder.name not in known)
        if not strange:
            return
        from coven import package

        package.clean(self._folder)
        is_lost = self._store.is_empty()
        adopted: dict[str, dict[str, Any]] = {}
        for folder in filter(Path.exists, strange):
            if not package.is_installed(folder):
                log.warning("folder=%s is no package of this agent; left alone", folder)
            elif not is_lost:
                _remove(folder)
            else:
                try:
                    found = package.load(folder)
                except CovenError as error:
                    log.error("folder=%s holds no package that can be read; left alone: %s", folder, error)
                    continue
                adopted[found.id] = _describe(found, sum(found.files.values()))
        self._store.add_packages(adopted)
        for package_id in adopted:
            self._events.append({"type": "package-adopted", "package": package_id})

    # ---- look --------------------------------------------------------------------------------------

    def list(self) -> list[dict[str, Any]]:
        """Give all packages, oldest first."""
        return self._store.packages()

    def get(self, package_id: str) -> dict[str, Any]:
        """Give a package; raises package.not-found."""
        return self._store.package(package_id)

    def load(self, package_id: str) -> Package:
        """Read an installed package again; raises package.not-found."""
        from coven import package  # brings the schema checker with it: only when needed

        return package.load(self._folder / str(self.get(package_id)["id"]))

    # ---- change ------------------------------------------------------------------------------------

    def upload(self, environ: Mapping[str, Any]) -> dict[str, Any]:
        """Take the archive in a request's body; gives the package's document."""
        from coven import package

        with self._received(environ) as (archive, size):
            installed = package.install(archive, self._folder)
        document = _describe(installed, size)
        try:
            self._store.add_package(installed.id, document)
        except BaseException:
            package.remove(installed.folder)
            raise
        self._events.append({"type": "package-uploaded", "package": installed.id})
        return document

    def validate(self, environ: Mapping[str, Any]) -> dict[str, Any]:
        """Say what a package contains, as `upload` would, and keep nothing."""
        from coven import package

        with self._received(environ) as (archive, size):
            return _describe(package.validate(archive), size)

    def delete(self, package_id: str) -> None:
        """Remove a package; raises package.not-found, package.in-use."""
        from coven import package

        self._store.remove_package(package_id)
        package.remove(self._folder / package_id)
        self._events.append({"type": "package-deleted", "package": package_id})

    @contextmanager
    def _received(self, environ: Mapping[str, Any]) -> Iterator[tuple[Path, int]]:
        """Give the uploaded archive as a file, for as long as it is needed, and its length."""
        if not self._uploads.acquire(blocking=False):
            raise CovenError(
                "platform.no-resources",
                f"{MAX_UPLOADS} uploads are under way",
                hint="try again when one has ended",
            )
        archive = self._incoming / secrets.token_hex(8)
        try:
            size = save_archive(environ, archive, self._room())
            yield archive, size
        finally:
            archive.unlink(missing_ok=True)
            self._uploads.release()

    def _room(self) -> int:
        free = shutil.disk_usage(self._incoming).free - KEEP_FREE
        if free <= 0:
            raise CovenError(
                "platform.no-resources",
                "the disk is full",
                hint=f"make room on the disk of {self._folder}",
            )
        return min(self._limit, free)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _describe(package: Package, size: int) -> dict[str, Any]:
    """Give what a package's resource shows."""
    vnf = package.vnf
    return {
        "id": package.id,
        "kind": package.kind,
        "vnf": vnf.name,
        "version": vnf.version,
        "provider": vnf.provider,
        "summary": vnf.summary,
        "sha256": package.sha256,
        "bytes": size,
        "uploaded": time.time(),
        "ports": [{"name": port.name, "summary": port.summary} for port in vnf.ports],
        "components": [
            {
                "name": component.name,
                "summary": component.type.summary,
                "framework": component.type.framework,
                "isolation": str(component.isolation),
                "replicas": component.replicas,
                "metrics": [metric.name for metric in component.type.metrics],
                "operations": [operation.name for operation in component.type.operations],
            }
            for component in vnf.components
        ],
        "paths": [{"name": path.name, "ingress": path.ingress} for path in vnf.paths],
        "parameters": [
            {
                "name": parameter.name,
                "schema": dict(parameter.schema),
                "required": parameter.required,
                "default": parameter.default,
            }
            for parameter in vnf.parameters
        ],
    }
