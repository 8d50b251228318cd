"""The platform as the supervisor sees it: instances, operations, manifest, takeover and the end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import sys
from collections.abc import Coroutine
from typing import Any

from coven.errors import CovenError
from coven.supervisor import cgroup, journal, logs, verbs
from coven.supervisor.agent import ManagementAgent
from coven.supervisor.context import Context
from coven.supervisor.instance import Instance
from coven.supervisor.journal import Journal, Record
from coven.supervisor.keeper import SOCKET_FD
from coven.supervisor.operation import Operation, Runner, Step, from_record
from coven.supervisor.ports import LinkWatch
from coven.supervisor.process import children
from coven.supervisor.reserve import Reserve
from coven.supervisor.server import LISTEN_NAME

log = logging.getLogger(__name__)

PATIENCE = 10.0  # seconds that operations have at the end; the keeper gives 20 for everything


class Platform:
    """Everything that runs."""

    def __init__(self, context: Context) -> None:
        """Nothing runs yet; `take_over` finds out what does."""
        self.context = context
        self.instances: dict[str, Instance] = {}
        self.operations: dict[str, Operation] = {}
        self.agent = ManagementAgent(context)
        self.links = LinkWatch(context)
        self.ending = asyncio.Event()
        self.reserve = Reserve(context.settings.journal_dir / "reserve")
        self._tasks: set[asyncio.Task[None]] = set()
        self._open_records: dict[str, Record] = {}
        self._reexec = False
        context.save = self.save

    # ---- questions ------------------------------------------------------------------------------

    def instance(self, name: str) -> Instance:
        """Give an instance. Raises CovenError instance.not-found."""
        found = self.instances.get(name)
        if found is None:
            raise CovenError("instance.not-found", f"there is no instance {name!r}")
        return found

    def degraded(self) -> list[str]:
        """Say what could not be had on this host."""
        missing = self.context.settings.features.missing()
        if self.context.settings.privileged:
            return [*self.context.cgroups.missing, *missing]
        return [
            "not root: all components run as one user, not isolated from each other by user id",
            "not root: no memory, cpu and pids limits (cgroups)",
            "not root: only ports of the tools pcap and gen can be opened",
            *missing,
        ]

    # ---- operations -----------------------------------------------------------------------------

    def execute(
        self, name: str, verb: str, instance: str, *, plan: object, force: bool, component: str | None
    ) -> Operation:
        """Begin an operation, or give the one of this id. Raises CovenError."""
        if not journal.OPERATION_PATTERN.fullmatch(name):
            raise CovenError("request.invalid", f"{name[:64]!r} is no id of an operation")
        if name in self.operations:
            return self.operations[name]
        if verb not in verbs.NEEDS:
            hint = f"verbs are: {', '.join(verbs.NEEDS)}"
            raise CovenError("request.invalid", f"there is no verb {verb[:40]!r}", hint=hint)
        if self.ending.is_set():
            raise CovenError("platform.unavailable", "the platform is ending")
        request: dict[str, Any] = {"force": force, "component": component}
        if verb in ("instantiate", "deploy"):
            target = self._new_instance(instance, plan)
            request["plan"] = target.document
            request["seed"] = list(target.seed)
        else:
            target = self.instance(instance)
        if target.operation is not None:
            raise CovenError(
                "instance.busy", f"{instance} is busy with operation {target.operation}", hint="wait for it to end"
            )
        verbs.check_state(target, verb, force)
        request["state"] = target.state
        operation = Operation(name, verb, instance, request)
        operation.steps = verbs.steps_of(self.context, target, verb, component, self._forget)
        self.reserve.hold()
        pen = Journal(self.context.settings.journal_dir / f"{name}.jsonl", self.reserve)
        pen.write(operation.head())
        self._begin(operation, target, pen, None)
        return operation

    def _new_instance(self, name: str, document: object) -> Instance:
        from coven.forwarder.instance_plan import InstancePlan

        if name in self.instances:
            raise CovenError("instance.exists", f"there is an instance {name!r} already", hint="choose another id")
        plan = InstancePlan.from_json(document)
        if plan.instance != name:
            raise CovenError("plan.invalid", f"the plan is for {plan.instance!r}, not for {name!r}")
        return Instance(self.context, plan)

    def _begin(self, operation: Operation, target: Instance, pen: Journal, record: Record | None) -> None:
        self.operations[operation.id] = operation
        self.instances[target.id] = target
        target.operation = operation.id
        self.save()
        runner = Runner(operation, pen, self._tell)
        if record is not None:
            runner.restore(record)
        self._task(self._run(runner, operation, target))

    def _task(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, runner: Runner, operation: Operation, target: Instance) -> None:
        await runner.run()
        self._settle(target, operation)
        self._watch_links(target)
        if operation.resumed and self.instances.get(target.id) is target:
            await self._revive(target)
        journal.prune(self.context.settings.journal_dir, {o.id for o in self.operations.values() if o.ended is None})
        self._prune_operations()

    def _settle(self, target: Instance, operation: Operation | None) -> None:
        """What an operation's end means for its instance."""
        target.operation = None
        if operation is not None and operation.state == "failed" and self.instances.get(target.id) is target:
            target.set_state("failed")
        if target.state in ("new", "terminated"):
            self._forget(target)
        self.save()

    def _prune_operations(self) -> None:
        ended = [name for name, operation in self.operations.items() if operation.ended is not None]
        for name in ended[: max(0, len(ended) - journal.KEPT)]:
            del self.operations[name]

    def _tell(self, operation: Operation, step: Step | None) -> None:
        if step is not None:
            self.context.emit(
                "operation-step", operation.instance, step.part, operation=operation.id, step=step.to_json()
            )
        else:
            self.context.emit("operation-ended", operation.instance, None, operation=operation.to_json())

    def _forget(self, target: Instance) -> None:
        if self.instances.get(target.id) is target and target.operation is None:
            del self.instances[target.id]

    def _watch_links(self, target: Instance) -> None:
        for plan in target.plan.ports:
            if plan.tool not in ("auto", "afpacket", "afxdp") or plan.interface is None:
                continue
            if target.ports.states[plan.name] == "closed":
                self.links.unwatch(plan.interface)
            else:
                self.links.watch(plan.interface, self._link_changed)

    def _link_changed(self, interface: str, state: str) -> None:
        for target in self.instances.values():
            if target.ports.link_changed(interface, state):
                target.changed()

    # ---- manifest -------------------------------------------------------------------------------

    def save(self) -> None:
        """Write the manifest. Renamed into place, so a successor finds the old one or the new one."""
        settings = self.context.settings
        document = {
            "version": 1,
            "pid": os.getpid(),
            "keeper": self.context.keeper.pid,
            "agent": self.agent.remember(),
            "instances": {name: instance.remember() for name, instance in self.instances.items()},
        }
        # In the journal's folder, where only root can write: the agent may make files in the run directory.
        temporary = settings.journal_dir / "supervisor.json.new"

        def write() -> None:
            temporary.touch(mode=0o600)  # it holds the keys of flow hashes
            temporary.write_text(json.dumps(document), encoding="utf-8")
            temporary.replace(settings.manifest_path)

        self.reserve.write(write)

    def read_manifest(self) -> dict[str, Any] | None:
        """Give the manifest that a predecessor wrote, if there is one."""
        path = self.context.settings.manifest_path
        try:
            with path.open(encoding="utf-8") as file:
                if os.fstat(file.fileno()).st_uid != os.geteuid() or path.is_symlink():
                    log.error("manifest=%s is not ours; ignored", path)
                    return None
                document: Any = json.load(file)
        except FileNotFoundError:
            return None
        except ValueError:
            log.error("manifest=%s does not parse; ignored", path)
            return None
        if not isinstance(document, dict):
            log.error("manifest=%s is no object; ignored", path)
            return None
        return document if document.get("version") == 1 else None

    # ---- takeover -------------------------------------------------------------------------------

    def take_over(self, manifest: dict[str, Any]) -> None:
        """Become the successor: the same processes and descriptors, nothing started again."""
        self.agent.recall(manifest["agent"])
        for name, document in manifest["instances"].items():
            try:
                self.instances[name] = Instance.recalled(self.context, document)
            except (CovenError, KeyError, ValueError) as error:
                log.exception("instance=%s cannot be taken over: %s", name, error)
        self._kill_strangers()

    def read_journals(self) -> None:
        """Find the operations that ended, and those that a predecessor did not finish."""
        for name, record in journal.read_all(self.context.settings.journal_dir).items():
            if record.end is not None:
                self.operations[name] = from_record(record)
            else:
                self._open_records[name] = record

    def resume(self) -> None:
        """Finish what a predecessor began, and start again what died while nobody watched."""
        for name, record in self._open_records.items():
            self._resume_operation(name, record)
        self._open_records = {}
        for instance in list(self.instances.values()):
            self._finish_ended(instance)
            self._watch_links(instance)
            if instance.operation is None:
                self._task(self._revive(instance))

    async def _revive(self, instance: Instance) -> None:
        """Start again what should run and does not. The worker last: it takes in the replicas that are ready."""
        try:
            for replica in instance.replicas:
                await replica.revive()
            for worker in instance.workers:
                await worker.revive()
            instance.hold_back()  # what a predecessor said last may not be so any more
        except CovenError as error:
            log.error("instance=%s not all of it could be revived: %s", instance.id, error)

    def _finish_ended(self, instance: Instance) -> None:
        """An operation may have ended in the journal, but not yet in the manifest."""
        operation = self.operations.get(instance.operation or "")
        if instance.operation is not None and (operation is None or operation.ended is not None):
            self._settle(instance, operation)

    def _resume_operation(self, name: str, record: Record) -> None:
        head = record.head
        request = dict(head["request"])
        pen = Journal(self.context.settings.journal_dir / f"{name}.jsonl", self.reserve)
        target = self.instances.get(str(head["instance"]))
        operation = Operation(name, str(head["verb"]), str(head["instance"]), request, started=float(head["started"]))
        try:
            if target is None and "plan" in request:
                from coven.forwarder.instance_plan import InstancePlan

                target = Instance(self.context, InstancePlan.from_json(request["plan"]), tuple(request["seed"]))
            if target is None:
                raise CovenError("operation.interrupted", "the instance is not there any more")
            # the steps must be those of then
            state, target.state = target.state, str(request["state"])
            operation.steps = verbs.steps_of(self.context, target, operation.verb, request["component"], self._forget)
            target.state = state
        except CovenError as error:
            self._close_unfinished(operation, pen, error, target)
            return
        log.warning("operation=%s verb=%s resumed", name, operation.verb)
        self._begin(operation, target, pen, record)

    def _close_unfinished(self, operation: Operation, pen: Journal, error: CovenError, target: Instance | None) -> None:
        """End an operation whose instance is gone: a terminate has reached its aim, all others have not."""
        gone = target is None and operation.verb == "terminate"
        operation.state = "succeeded" if gone else "failed"
        operation.error = None if gone else error
        operation.resumed = True
        operation.ended = operation.started
        fault = operation.error.to_json() if operation.error else None
        pen.write({"end": {"state": operation.state, "error": fault, "ended": operation.ended, "resumed": True}})
        pen.close()
        operation.finished.set()
        self.operations[operation.id] = operation
        if target is not None:
            target.operation = None

    def _kill_strangers(self) -> None:
        """Kill what a predecessor started and could not write down any more."""
        known = {os.getpid(), self.context.keeper.pid}
        for instance in self.instances.values():
            known |= instance.pids()
        if self.agent.process is not None:
            known.add(self.agent.process.pid)
        for pid in {*children(self.context.keeper.pid), *children(os.getpid())} - known:
            log.warning("pid=%d is nobody's; killed", pid)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 9)

    def known_groups(self) -> set[str]:
        """Give the names of control groups that belong to something."""
        found: set[str] = set()
        for instance in self.instances.values():
            found |= {part.group for part in instance.processes}
        return found

    # ---- the end --------------------------------------------------------------------------------

    def begin_shutdown(self) -> None:
        """Make `wait_for_end` return."""
        self.ending.set()

    def begin_reexec(self) -> None:
        """Make `wait_for_end` return, to replace this program."""
        busy = [instance.id for instance in self.instances.values() if instance.operation is not None]
        if busy:
            raise CovenError("instance.busy", f"{', '.join(busy)} is busy with an operation", hint="wait for its end")
        self._reexec = True
        self.ending.set()

    @property
    def wants_reexec(self) -> bool:
        """Whether the end is a new beginning."""
        return self._reexec

    async def shut_down(self) -> None:
        """Terminate all instances, end the agent, remove everything that was made."""
        await self.agent.stop()
        await self._end_tasks()
        for instance in list(self.instances.values()):
            await self._remove(instance)
        for folders in cgroup.sweep(self.context.cgroups, set()):
            await cgroup.remove(folders)
        for root in self.context.cgroups.folders:
            with contextlib.suppress(OSError):
                root.rmdir()
        for path in (self.context.settings.manifest_path, self.context.settings.socket_path):
            path.unlink(missing_ok=True)
        for path in self.context.settings.journal_dir.glob("*.jsonl"):
            path.unlink(missing_ok=True)
        logs.sweep(self.context.settings.logs_dir, set())
        self.context.keeper.drop(LISTEN_NAME)
        self.context.keeper.end()

    async def _end_tasks(self) -> None:
        """Let operations end; what takes too long is cancelled, so that nothing is made while we remove."""
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=PATIENCE)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _remove(self, instance: Instance) -> None:
        steps = verbs.steps_of(self.context, instance, "terminate", None, self._forget)
        for step in steps:
            try:
                await step.do()
            except Exception:  # the rest must go all the same
                log.exception("instance=%s step=%s", instance.id, step.name)

    def replace_program(self) -> None:
        """Become the installed program; the keeper's socket stays, everything else comes back from it."""
        self.save()
        os.set_inheritable(SOCKET_FD, True)
        argv = [*self.context.settings.argv]
        argv[3:3] = ["--keeper-pid", str(self.context.keeper.pid)]
        os.execv(sys.executable, argv)  # noqa: S606 - our own program
