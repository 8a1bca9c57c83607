"""One container from its first start to its last end: start, probes, restarts with back-off, stop."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from llmos_operator.api.quantity import parse_bytes
from llmos_operator.errors import Retryable
from llmos_operator.local.kubelet.context import EventReason
from llmos_operator.local.kubelet.environment import ConfigProblem
from llmos_operator.local.kubelet.guard import Guard
from llmos_operator.local.kubelet.launch import ImageProblem, prepare, termination_message
from llmos_operator.local.kubelet.model import (
    EXIT_CANNOT_START,
    EXIT_KILLED,
    Running,
    Terminated,
    Waiting,
    wants_restart,
)
from llmos_operator.local.kubelet.process import ContainerProcess, StartFailure

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmos_operator.local.kubelet.context import PodContext
    from llmos_operator.local.kubelet.launch import Prepared
    from llmos_operator.local.kubelet.model import ContainerView

_CALM_SECONDS = 600.0  # a run this long forgives earlier crashes
_CONFIG_RETRY_MAX = 10.0
_LEAST_GRACE = 2.0
_PULL_SECONDS = 0.5  # how long a failed pull is told before its back-off


class Container:
    """Runs one container of a pod. The view is what its status reports; ``last`` tells whether no other app runs."""

    def __init__(
        self, context: PodContext, view: ContainerView, last: Callable[[ContainerView], bool]
    ) -> None:
        self.view = view
        self._context = context
        self._last = last
        self._task: asyncio.Task[None] | None = None
        self._process: ContainerProcess | None = None
        self._prepared: Prepared | None = None
        self._stopping = asyncio.Event()
        self._started = asyncio.Event()
        self._hooked: ContainerProcess | None = None  # its preStop hook has run
        self._endings: set[asyncio.Task[None]] = set()
        self._crashes = 0

    # -- running

    @property
    def ended(self) -> bool:
        """Whether the container has run for the last time."""
        return self._task is not None and self._task.done()

    def begin(self) -> None:
        """Start running in a task of its own, which ends with the restart policy's last word or :meth:`stop`."""
        self._task = asyncio.create_task(self._run(), name=f"container {self._context.key}/{self.view.name}")

    async def finished(self) -> None:
        """Wait until the container has run for the last time; cancelling the wait does not touch the container."""
        if self._task is not None:
            await asyncio.shield(self._task)

    async def started(self) -> None:
        """Wait until the container counts as started: its startup probe, if any, has passed."""
        await self._started.wait()

    async def stop(self, grace: float) -> None:
        """End the container for good within ``grace`` seconds: preStop hook, SIGTERM, SIGKILL."""
        self._stopping.set()
        await self._end_run(grace)
        if self._task is not None:
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        if isinstance(self.view.state, Terminated):
            if not self.view.init and not self._again(self.view.state.exit_code):
                return  # it had its end in an earlier life of the node process
            self._next_run(self.view.state)
        while (prepared := await self._prepare()) is not None:
            end = await self._one_run(prepared)
            self._set_end(end)
            if self._stopping.is_set() or not self._again(end.exit_code):
                return
            await self._back_off(end)
            if self._stopping.is_set():
                return
            self._next_run(end)

    def _again(self, exit_code: int) -> bool:
        return wants_restart(self.view, self._context.restart_policy, exit_code)

    def _next_run(self, end: Terminated) -> None:
        self.view.last = end
        self.view.restarts += 1

    async def _prepare(self) -> Prepared | None:
        """Return the container ready to start; None when stopped while something it needs was missing."""
        delay = 0.5
        while not self._stopping.is_set():
            try:
                prepared = await prepare(self._context, self.view)
            except ImageProblem as problem:
                await self._tell_image(problem)
            except ConfigProblem as problem:
                self._wait_for("CreateContainerConfigError", str(problem))
            except Retryable:
                pass  # the API server is away: the status could not be written anyway
            else:
                return None if self._stopping.is_set() else prepared
            await self._pause(delay)
            delay = min(delay * 2, _CONFIG_RETRY_MAX)
        return None

    async def _tell_image(self, problem: ImageProblem) -> None:
        """Say what is wrong with the image; a pull that failed is seen for a moment before its back-off."""
        self._wait_for(problem.reason, str(problem))
        if problem.reason == "ErrImagePull":
            await self._pause(_PULL_SECONDS)
            image = self.view.spec.get("image")
            self._wait_for("ImagePullBackOff", f'Back-off pulling image "{image}": ErrImagePull: {problem}')

    def _wait_for(self, reason: str, message: str) -> None:
        state = Waiting(reason, message)
        if self.view.state != state:
            self.view.state = state
            self._context.event(
                "Warning", EventReason.FAILED, f"Error: {message}", key=f"{self.view.name}/{reason}"
            )
            self._context.changed()

    async def _one_run(self, prepared: Prepared) -> Terminated:
        context, view, now = self._context, self.view, self._context.shared.clock.now
        context.shared.logs.drop_run(context.log_folder, view.name, view.restarts)
        view.image_id, view.container_id = prepared.image_id, prepared.container_id
        began = now()
        try:
            process = ContainerProcess.start(prepared.launch)
        except StartFailure as failure:
            context.event("Warning", EventReason.FAILED, f"Error: {failure}", key=view.name)
            return Terminated(
                EXIT_CANNOT_START, "StartError", str(failure), began, now(), prepared.container_id
            )
        self._process, self._prepared = process, prepared
        limit = ((view.spec.get("resources") or {}).get("limits") or {}).get("memory")
        if limit:
            context.shared.memory.add(process, parse_bytes(limit))
        view.state = Running(began)
        context.event(
            "Normal",
            EventReason.STARTED,
            f"Container started: {view.name}",
            key=f"{view.name}/{view.restarts}",
        )
        guard = Guard(context, view, prepared.target, self._set_started, self._condemn)
        watch = asyncio.create_task(guard.run(), name=f"guard {context.key}/{view.name}")
        context.changed()
        try:
            code = await process.wait()
        finally:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)
        self._process = None
        return self._end(process, prepared, code, began, now())

    def _end(
        self, process: ContainerProcess, prepared: Prepared, code: int, began: float, ended: float
    ) -> Terminated:
        if process.out_of_memory:
            limit = self.view.spec["resources"]["limits"]["memory"]
            note = f"Container {self.view.name} used more than its memory limit of {limit}"
            self._context.event(
                "Warning", EventReason.OOM_KILLING, note, key=f"{self.view.name}/{self.view.restarts}"
            )
            reason, code = "OOMKilled", EXIT_KILLED
        else:
            reason = "Completed" if code == 0 else "Error"
        message = termination_message(prepared, self.view.spec, code)
        return Terminated(code, reason, message, began, ended, prepared.container_id)

    def _set_end(self, end: Terminated) -> None:
        self.view.state = end
        self.view.ready = self.view.started = False
        if self.view.init and not self.view.sidecar:
            self.view.ready = end.exit_code == 0
        self._context.changed()

    async def _back_off(self, end: Terminated) -> None:
        """Wait before the next run: not at all after the first crash, then doubling."""
        self._crashes = 0 if end.finished_at - end.started_at > _CALM_SECONDS else self._crashes
        shared = self._context.shared
        delay = 0.0
        if self._crashes:
            delay = min(shared.crash_backoff_initial * 2.0 ** (self._crashes - 1), shared.crash_backoff_max)
        self._crashes += 1
        if delay:
            meta = self._context.pod["metadata"]
            message = (
                f"back-off {delay:g}s restarting failed container={self.view.name} "
                f"pod={meta['name']}_{meta['namespace']}({meta['uid']})"
            )
            self.view.last = end
            self.view.state = Waiting("CrashLoopBackOff", message)
            self._context.event("Warning", EventReason.BACK_OFF, message, key=self.view.name)
            self._context.changed()
            await self._pause(delay)

    async def _pause(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stopping.wait()

    # -- ending a run

    def _condemn(self, grace: float | None) -> None:
        """End this run in the background; :meth:`run` then decides on another.

        A kubelet ends the whole pod where nothing would go on, and then the pod's grace counts, not the probe's.
        """
        whole_pod = not self._again(EXIT_KILLED) and self._last(self.view)
        seconds = self._context.grace_seconds if grace is None or whole_pod else grace
        task = asyncio.create_task(self._end_run(seconds), name=f"end {self._context.key}/{self.view.name}")
        self._endings.add(task)
        task.add_done_callback(self._endings.discard)

    async def _end_run(self, grace: float) -> None:
        process, prepared = self._process, self._prepared
        if process is None or prepared is None or not process.running:
            return
        loop = asyncio.get_running_loop()
        deadline = loop.time() + grace
        hook = (self.view.spec.get("lifecycle") or {}).get("preStop")
        if hook and grace > 0 and process is not self._hooked:
            self._hooked = process
            outcome = await self._context.shared.checker.check(hook, prepared.target, grace)
            if not outcome.passed:
                note = f"PreStopHook failed: {outcome.message}"
                self._context.event("Warning", EventReason.FAILED_HOOK, note, key=f"{self.view.name}/preStop")
        process.terminate()
        with contextlib.suppress(TimeoutError):
            # A kubelet grants what preStop has left over, but never less than two seconds.
            async with asyncio.timeout_at(
                max(deadline, loop.time() + _LEAST_GRACE) if grace > 0 else deadline
            ):
                await process.wait()
        if process.running:
            process.kill()
            await process.wait()

    def _set_started(self) -> None:
        self.view.started = True
        self.view.ready = not self.view.spec.get("readinessProbe")
        self._started.set()
        self._context.changed()
