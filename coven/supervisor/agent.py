"""The Management Agent's process: started, watched, restarted with back-off, taken over."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from typing import Any

from coven.supervisor.backoff import BackOff
from coven.supervisor.context import Context
from coven.supervisor.launch import ENVIRONMENT, Sandbox, program_folders, spawn
from coven.supervisor.process import Process, exit_text

log = logging.getLogger(__name__)

STOP_GRACE = 5.0
PAUSE_WHEN_HOPELESS = 5.0  # seconds between starts of an agent that keeps dying: it is never parked


class ManagementAgent:
    """`python -m coven.management`, unprivileged."""

    def __init__(self, context: Context) -> None:
        """Nothing runs yet."""
        self._context = context
        self.process: Process | None = None
        self.restarts = 0
        self.last_exit: str | None = None
        self._back_off = BackOff()
        self._task: asyncio.Task[None] | None = None
        self._wanted = False

    def start(self) -> None:
        """Start it, unless one was taken over."""
        self._wanted = True
        if self.process is None or not self.process.alive:
            self._task = asyncio.create_task(self._launch(0.0))

    async def stop(self) -> None:
        """End it."""
        self._wanted = False
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self.process is not None and self.process.alive:
            await self.process.end(STOP_GRACE)

    def remember(self) -> dict[str, Any] | None:
        """Give what a successor needs to take it over."""
        if self.process is None or not self.process.alive:
            return None
        return {"pid": self.process.pid, "start_time": self.process.started, "restarts": self.restarts}

    def recall(self, document: dict[str, Any] | None) -> None:
        """Take over the one that runs."""
        if document:
            self.restarts = int(document["restarts"])
            self.process = Process.adopted(document["pid"], document["start_time"], self._context.keeper, self._died)

    def command(self) -> list[str]:
        """Give its command line."""
        settings = self._context.settings
        directories = ["--state-dir", str(settings.state_dir), "--run-dir", str(settings.run_dir)]
        return [sys.executable, "-m", "coven.management", *directories, *settings.agent_arguments]

    async def _launch(self, wait: float) -> None:
        await asyncio.sleep(wait)
        settings = self._context.settings
        privileged = settings.privileged
        sandbox = Sandbox(
            uid=settings.agent_uid if privileged else None,
            gid=settings.agent_uid if privileged else None,
            limits=(("core", "0"),),
            root=privileged,
            binds=(str(settings.state_dir), str(settings.run_dir)),
            binds_ro=(*program_folders(settings), "/sys"),
            all_processes=True,  # monitors workers and components
        )
        env = {**ENVIRONMENT, "PYTHONUNBUFFERED": "1"}
        if not privileged:
            env["HOME"] = os.environ.get("HOME", "/")
        try:
            # Its output is ours: the token it shows at the first start is for whoever started the platform.
            pid = spawn(settings, self.command(), fds={1: 1, 2: 2}, env=env, cwd="/", sandbox=sandbox)
        except OSError as error:
            log.error("the agent cannot be started: %s", error)
            return
        self.process = Process.spawned(pid, self._context.keeper, self._died)
        self._context.save()
        self._context.emit("agent-started", None, "agent", pid=pid)

    def _died(self) -> None:
        process = self.process
        if process is None:
            return
        self.last_exit = process.last_exit
        if process.status is None:
            self._context.keeper.on_reaped(process.pid, lambda status: setattr(self, "last_exit", exit_text(status)))
        if self._wanted:
            log.warning("agent=%d died: %s; starting another", process.pid, self.last_exit)
            self.restarts += 1
            wait = self._back_off.died()
            self._task = asyncio.create_task(self._launch(PAUSE_WHEN_HOPELESS if wait is None else wait))
