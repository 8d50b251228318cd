"""Compiled components: built as the component's user in the sandbox, then kept where only root can write.

An artifact is found again by the digest of everything it was made of, so a source that was compiled once costs
nothing the next time.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from coven.errors import CovenError, Where
from coven.folders import open_folder
from coven.supervisor import cgroup
from coven.supervisor.beneath import Copy
from coven.supervisor.context import Context
from coven.supervisor.launch import ENVIRONMENT, Sandbox, spawn
from coven.supervisor.process import Process
from coven.supervisor.program import Program

if TYPE_CHECKING:
    from coven.forwarder.instance_plan import ComponentPlan
    from coven.processing.framework import Build, Source

BUILD_TIMEOUT = 120.0
OUTPUT_BYTES = 1 << 18  # of a compiler, the rest is not kept
ARTIFACT_BYTES = 256 << 20


def _trusted(context: Context) -> Path:
    """Give the real folder from which on every path is checked: as root, the agent could replace what is below it."""
    settings = context.settings
    return settings.state_dir.resolve() if settings.privileged else settings.packages_dir.resolve()


def check_folder(context: Context, name: str, part: str) -> Path:
    """Give a package's or component's real folder. Raises CovenError unless it is below this platform's packages."""
    settings = context.settings
    packages = _trusted(context) / settings.packages_dir.name if settings.privileged else _trusted(context)
    folder = Path(name)
    try:
        real = folder.resolve(strict=True)
    except OSError as error:
        raise CovenError("package.missing-file", f"the folder {folder} is not there", where=Where(part=part)) from error
    if real == packages or not real.is_relative_to(packages) or not real.is_dir():
        raise CovenError(
            "package.unsafe-path",
            f"{folder} is not below {packages}",
            hint="upload the package; components run from unpacked packages only",
            where=Where(part=part),
        )
    return real


async def build(context: Context, plan: ComponentPlan, fused: bool) -> tuple[Program | None, int | None]:
    """Make a component ready to run: the program of an isolated one, or the code of a fused one as a descriptor."""
    from coven.processing import framework as frameworks

    folder = check_folder(context, plan.source, f"component {plan.name}")
    framework = frameworks.load(plan.framework)
    output = Path(tempfile.mkdtemp(prefix="tmp-", dir=context.settings.build_dir))
    ours = Path(tempfile.mkdtemp(prefix="tmp-", dir=context.settings.build_dir))
    try:
        await asyncio.to_thread(_take_copy, context, plan, folder, ours)
        copy = frameworks.Source(plan.name, ours, plan.entry, dict(plan.build))
        faults = await asyncio.to_thread(frameworks.check, plan.framework, copy)
        if faults:
            first = faults[0]
            raise CovenError(first.code, first.message, hint=first.hint, where=first.where, findings=faults)
        recipe = framework.build(copy, output)
        artifact = None if recipe is None else await _artifact(context, plan, copy, recipe)
        if fused:
            if not frameworks.information(plan.framework).can_fuse:
                raise CovenError("plan.invalid", f"components in {plan.framework} cannot be fused")
            return None, _open_code(framework.fused(copy, artifact), is_kept=artifact is not None)
    finally:
        shutil.rmtree(output, ignore_errors=True)
        shutil.rmtree(ours, ignore_errors=True)
    source = frameworks.Source(plan.name, folder, plan.entry, dict(plan.build))
    launch = framework.launch(source, artifact, context.settings.bin_dir)
    # The package's own folder is bound exactly (launch.Sandbox); what lies in it needs no bind of its own.
    read = tuple(str(path) for path in launch.read if not path.is_relative_to(folder))
    return Program(tuple(map(str, launch.argv)), str(launch.entry), read, str(folder)), None


def _take_copy(context: Context, plan: ComponentPlan, folder: Path, target: Path) -> None:
    """Copy a component's folder to where the agent cannot change it any more, or put links into it."""
    part = f"component {plan.name}"
    target.chmod(0o755)
    try:
        with open_folder(_trusted(context), folder) as fd:
            Copy(part).take(fd, target)
    except OSError as error:
        raise CovenError(
            "platform.no-resources" if error.errno == errno.ENOSPC else "package.missing-file",
            f"the folder of component {plan.name} cannot be copied: {error.strerror}",
            hint=f"make room on the disk of {target.parent}" if error.errno == errno.ENOSPC else None,
            where=Where(part=part),
        ) from error


async def _artifact(context: Context, plan: ComponentPlan, source: Source, recipe: Build) -> Path:
    kept = context.settings.build_dir / recipe.key[:64] / recipe.artifact.name
    if not recipe.key.isalnum():
        raise CovenError("platform.internal", f"the framework {plan.framework} gave no digest for its build")
    if kept.is_file():
        return kept
    uid_number = context.take_uid() if context.settings.privileged else None
    uid = None if uid_number is None else context.uid(uid_number)
    try:
        if uid is not None:
            os.chown(recipe.output, uid, uid)
        for command in recipe.commands:
            await _run(context, plan, source, recipe, command, uid)
        _keep(recipe.artifact, kept, plan)
    finally:
        if uid_number is not None:
            context.uids.discard(uid_number)
    return kept


async def _run(
    context: Context, plan: ComponentPlan, source: Source, recipe: Build, command: tuple[str, ...], uid: int | None
) -> None:
    """Run one command to its end. Raises CovenError component.compile-failed with the findings."""
    from coven.processing import framework as frameworks

    group = f"build.{recipe.output.name}"
    folders = cgroup.create(context.cgroups, group, None)
    features = context.settings.features
    sandbox = Sandbox(
        uid=uid,
        gid=uid,
        cgroups=tuple(map(str, folders)),
        limits=(("core", "0"), ("cpu", str(int(BUILD_TIMEOUT))), ("fsize", str(ARTIFACT_BYTES)), ("as", str(8 << 30))),
        root=features.root,
        binds=(str(recipe.output),),
        binds_ro=tuple(str(path) for path in recipe.read),
        binds_exact=(str(source.folder),),
        new_net=features.root,
        new_user=features.user,
        filter="component" if features.filter else None,
        scope=features.scope,
    )
    read_end, write_end = os.pipe()
    collector = _Collector(read_end)
    try:
        env = {**ENVIRONMENT, "TMPDIR": str(recipe.output)}
        pid = spawn(
            context.settings,
            command,
            fds={1: write_end, 2: write_end},
            env=env,
            cwd=str(source.folder),
            sandbox=sandbox,
        )
    finally:
        os.close(write_end)
    process = Process.spawned(pid, context.keeper, lambda: None)
    try:
        await asyncio.wait_for(process.ended.wait(), BUILD_TIMEOUT)
    except TimeoutError as error:
        raise CovenError(
            "component.compile-failed",
            f"component {plan.name}: the compiler did not end within {BUILD_TIMEOUT:g} s",
            where=Where(part=f"component {plan.name}"),
        ) from error
    finally:
        await process.end()
        await cgroup.remove(folders)
        text = collector.end()
    if process.status is None or os.waitstatus_to_exitcode(process.status) != 0:
        raise frameworks.build_failed(plan.framework, source, text)


class _Collector:
    """Takes what a compiler writes, up to a limit, so that it never waits for us."""

    def __init__(self, fd: int) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        self._data = bytearray()
        asyncio.get_running_loop().add_reader(fd, self._read)

    def _read(self) -> bool:
        try:
            data = os.read(self._fd, 65536)
        except BlockingIOError:
            return False
        if data:
            self._data += data[: max(0, OUTPUT_BYTES - len(self._data))]
            return True
        asyncio.get_running_loop().remove_reader(self._fd)
        return False

    def end(self) -> str:
        while self._read():
            pass
        asyncio.get_running_loop().remove_reader(self._fd)
        os.close(self._fd)
        return self._data.decode("utf-8", "replace")


def _keep(made: Path, kept: Path, plan: ComponentPlan) -> None:
    """Copy an artifact out of its builder's reach: only a regular file, read through one descriptor, no links."""
    try:
        fd = os.open(made, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise CovenError(
            "component.compile-failed",
            f"component {plan.name}: the build made no {made.name}",
            where=Where(part=f"component {plan.name}"),
        ) from error
    with os.fdopen(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size > ARTIFACT_BYTES:
            raise CovenError("component.compile-failed", f"component {plan.name}: {made.name} is no usable file")
        kept.parent.mkdir(mode=0o755, exist_ok=True)
        temporary = kept.with_suffix(".new")
        with temporary.open("wb") as target:
            shutil.copyfileobj(file, target)
        temporary.chmod(0o755)
        temporary.replace(kept)


def _open_code(path: Path, *, is_kept: bool) -> int:
    """Open the code of a fused component; a prebuilt one is copied first, since its file goes away."""
    if is_kept:
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    source = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(source)
        if not stat.S_ISREG(status.st_mode) or status.st_size > ARTIFACT_BYTES:
            raise CovenError("component.bad-code", f"{path.name} is no usable file")
        copy = os.memfd_create(path.name, os.MFD_CLOEXEC)
        with contextlib.ExitStack() as undo:
            undo.callback(os.close, copy)
            while os.sendfile(copy, source, None, 1 << 24):
                pass
            os.fchmod(copy, 0o555)
            undo.pop_all()
        return copy
    finally:
        os.close(source)


def clean(build_dir: Path) -> None:
    """Remove what interrupted builds left."""
    for path in build_dir.glob("tmp-*"):
        shutil.rmtree(path, ignore_errors=True)
