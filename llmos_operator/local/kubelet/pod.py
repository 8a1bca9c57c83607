"""One pod from "bound to this node" to "gone".

::

    admit ── rejected ─────────────────────────────► Failed ─┐
      │                                                      ├─ wait for deletion ─► gone
    volumes ─ init containers and sidecars ─ app containers ─┘
      └──── deletionTimestamp at any point: stop app containers, then sidecars backwards, last status, delete ─► gone
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from llmos_operator.clock import parse_rfc3339
from llmos_operator.cluster import port
from llmos_operator.cluster.failures import NotFound
from llmos_operator.errors import Conflict, Retryable
from llmos_operator.local.kubelet.container import Container
from llmos_operator.local.kubelet.context import EventReason, PodContext
from llmos_operator.local.kubelet.environment import ConfigProblem
from llmos_operator.local.kubelet.logs import log_file
from llmos_operator.local.kubelet.model import EXIT_KILLED, Terminated, Waiting, views_of
from llmos_operator.local.kubelet.status import TERMINAL, phase_of, pod_status, rejected_status
from llmos_operator.local.kubelet.volumes import PodVolumes
from llmos_operator.local.kubelet.writer import Gone, StatusWriter
from llmos_operator.observability.logging import logger

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path
    from typing import Any

    from llmos_operator.local.kubelet.context import Node, Shared
    from llmos_operator.local.kubelet.model import ContainerView, Json

log = logger(__name__)

_FORCED_GRACE = 2.0  # for pods whose object is gone already
_MOUNT_RETRY_MAX = 10.0


class PodWorker:
    """Runs one pod. `new_address` gives it an address, `free_address` takes it back."""

    def __init__(
        self,
        shared: Shared,
        node: Node,
        pod: Json,
        new_address: Callable[[Json], str],
        free_address: Callable[[str], None],
    ) -> None:
        self.context = PodContext(shared=shared, node=node, pod=pod, pod_ip="", changed=self._changed)
        self.context.volumes = PodVolumes(
            self.context.folder, shared.paths.claims, self.context, shared.objects, shared.clock
        )
        self.views = views_of(pod["spec"], pod.get("status") or {}, shared.clock.now())
        self._new_address = new_address
        self._free_address = free_address
        self._containers: dict[str, Container] = {}
        self._final: Json | None = None  # the status of a pod that will never run (again)
        self._expired = False  # activeDeadlineSeconds is over
        self._began = _start_time(pod) or shared.clock.now()
        self._deleting = asyncio.Event()
        self._gone = asyncio.Event()
        self._sources_changed = asyncio.Event()
        self._writer = StatusWriter(self.context, self._status)
        self.update(pod)

    # -- what the outside tells

    def update(self, pod: Json) -> None:
        """Take a newer version of the pod."""
        if int(pod["metadata"]["resourceVersion"]) >= int(self.context.pod["metadata"]["resourceVersion"]):
            self.context.pod = pod
            self.views.take_spec(pod["spec"])
        if pod["metadata"].get("deletionTimestamp"):
            self._deleting.set()
        self._writer.mark()

    def forget(self) -> None:
        """The pod's object is gone."""
        self._gone.set()

    def log_path(self, view: ContainerView) -> Path:
        """Return the log of a container's present run."""
        return log_file(self.context.log_folder, view.name, view.restarts)

    def source_changed(self) -> None:
        """A Secret or ConfigMap the pod's volumes show has changed."""
        self._sources_changed.set()

    def _changed(self) -> None:
        self._writer.mark()

    # -- life

    async def run(self) -> None:
        """Run the pod to its end and clean up; returns when nothing of it is left."""
        writer = asyncio.create_task(self._writer.run(), name=f"status {self.context.key}")
        writer.add_done_callback(self._writer_ended)
        try:
            if not self._deleting.is_set():
                await self._until(self._live(), self._deleting)
                await self._until(_for_ever(), self._deleting)
            if not self._gone.is_set():
                await self._shut_down(self._deletion_grace())
                writer.cancel()
                await self._finish()
        finally:
            writer.cancel()
            await self._shut_down(_FORCED_GRACE)
            self._clean_up()

    def _writer_ended(self, task: asyncio.Task[None]) -> None:
        if task.cancelled():
            return
        error = task.exception()
        if isinstance(error, Gone):
            self._gone.set()
        elif error is not None:
            log.error("a pod's status is no longer written", pod=self.context.key, error=repr(error))

    async def _until(self, work: Coroutine[Any, Any, Any], *events: asyncio.Event) -> None:
        """Run ``work`` until it ends, or one of ``events`` or the pod's disappearance ends it."""
        tasks: list[asyncio.Task[Any]] = [asyncio.create_task(work, name=f"pod {self.context.key}")]
        tasks += [asyncio.create_task(event.wait()) for event in (*events, self._gone)]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks[1:]:
                task.cancel()
            if not tasks[0].done():
                tasks[0].cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
        if isinstance(results[0], Exception):
            raise results[0]

    async def _live(self) -> None:
        status = self.context.pod.get("status") or {}
        if status.get("phase") in TERMINAL:
            self._final = {}
            return
        rejection = self.context.node.ledger.admit(self.context.pod)
        if rejection is not None:
            self.context.event("Warning", EventReason.REJECTED, rejection.message)
            now = self.context.shared.clock.now()
            self._final = rejected_status(
                self.context.pod, rejection.reason, rejection.message, host_ip=self.context.host_ip, now=now
            )
            self._changed()
            return
        self.context.pod_ip = self._new_address(self.context.pod)
        self._changed()
        await self._set_up_volumes()
        async with asyncio.TaskGroup() as group:
            upkeep = group.create_task(self._keep_volumes_fresh())
            deadline = group.create_task(self._watch_deadline())
            await self._run_containers()
            upkeep.cancel()
            if not self._expired:
                deadline.cancel()
        if self._expired:
            message = "Pod was active on the node longer than the specified deadline"
            self._final = self._running_status("Failed") | {"reason": "DeadlineExceeded", "message": message}
        self.context.node.ledger.release(self.context.uid)
        self._changed()

    async def _set_up_volumes(self) -> None:
        delay = 0.2
        while True:
            try:
                await self.context.volumes.set_up()
            except ConfigProblem as problem:
                note = f"MountVolume.SetUp failed: {problem}"
                self.context.event("Warning", EventReason.FAILED_MOUNT, note)
                for view in self.views.all():
                    view.state = Waiting("ContainerCreating", note)
                self._changed()
            except Retryable as error:
                log.debug("volumes wait for the API server", pod=self.context.key, error=error)
            else:
                return
            await self._next_try(delay)
            delay = min(delay * 2, _MOUNT_RETRY_MAX)

    async def _next_try(self, seconds: float) -> None:
        """Wait, but no longer than until a Secret or ConfigMap changes."""
        self._sources_changed.clear()
        try:
            async with asyncio.timeout(None if seconds == float("inf") else seconds):
                await self._sources_changed.wait()
        except TimeoutError:
            return

    async def _keep_volumes_fresh(self) -> None:
        """Renew tokens before they end; show changed Secrets and ConfigMaps."""
        while True:
            now = self.context.shared.clock.now()
            await self._next_try(max(self.context.volumes.refresh_at - now, 1.0))
            try:
                await self.context.volumes.refresh()
            except (ConfigProblem, Retryable) as error:
                log.warning("volumes not refreshed", pod=self.context.key, error=error)
                await asyncio.sleep(_MOUNT_RETRY_MAX)

    async def _watch_deadline(self) -> None:
        seconds = self.context.pod["spec"].get("activeDeadlineSeconds")
        if seconds is None:
            return
        await asyncio.sleep(max(0.0, self._began + float(seconds) - self.context.shared.clock.now()))
        self._expired = True
        await self._shut_down(self.context.grace_seconds)

    # -- containers

    async def _run_containers(self) -> None:
        """Run init containers in turn, then all others; returns when none will run again."""
        sidecars = []
        for view in self.views.init:
            container = self._begin(view)
            if view.sidecar:
                sidecars.append(container)
                await _first_of(container.started(), container.finished())
            else:
                await container.finished()
            if not view.done:  # it failed under restartPolicy Never, or was stopped
                await self._stop_in_turn(sidecars, self.context.grace_seconds)
                return
        apps = [self._begin(view) for view in self.views.app]
        await asyncio.gather(*(container.finished() for container in apps))
        await self._stop_in_turn(sidecars, self.context.grace_seconds)

    def _begin(self, view: ContainerView) -> Container:
        container = self._containers[view.name] = Container(self.context, view, self._last)
        container.begin()
        return container

    def _last(self, view: ContainerView) -> bool:
        """Return whether no app container but ``view`` runs or will run again: one that has ended for good does not."""
        others = [one for one in self._containers.values() if one.view is not view and not one.view.init]
        return all(one.ended for one in others)

    async def _stop_in_turn(self, sidecars: list[Container], grace: float) -> None:
        """Stop sidecars, last started first; ``grace`` seconds are for all together."""
        deadline = asyncio.get_running_loop().time() + grace
        for container in reversed(sidecars):
            await container.stop(max(0.0, deadline - asyncio.get_running_loop().time()))

    async def _shut_down(self, grace: float) -> None:
        """Stop all containers: those of the app together, then sidecars backwards."""
        deadline = asyncio.get_running_loop().time() + grace
        containers = list(self._containers.values())
        sidecars = [container for container in containers if container.view.sidecar]
        others = [container for container in containers if not container.view.sidecar]
        await asyncio.gather(*(container.stop(grace) for container in others))
        await self._stop_in_turn(sidecars, max(0.0, deadline - asyncio.get_running_loop().time()))

    def _deletion_grace(self) -> float:
        meta = self.context.pod["metadata"]
        return float(meta.get("deletionGracePeriodSeconds", self.context.grace_seconds))

    # -- the end

    async def _finish(self) -> None:
        """Write the last status, then delete the object: the promise that nothing of the pod runs any more."""
        message = "The container could not be located when the pod was terminated"
        for view in self.views.all():
            if isinstance(view.state, Waiting):
                view.state = view.last or Terminated(EXIT_KILLED, "ContainerStatusUnknown", message)
            view.ready = view.started = False
        delay = 0.2
        while not self._gone.is_set():
            try:
                await self._writer.flush()
                await self._delete()
            except (Gone, NotFound, Conflict):
                return
            except Retryable as error:
                log.debug("pod not deleted", pod=self.context.key, error=error)
                await asyncio.sleep(delay)
                delay = min(delay * 2, _MOUNT_RETRY_MAX)
            else:
                return

    async def _delete(self) -> None:
        meta = self.context.pod["metadata"]
        await self.context.shared.transport.delete(
            port.PODS, meta["name"], namespace=meta["namespace"], uid=meta["uid"], grace_seconds=0
        )

    def _clean_up(self) -> None:
        context = self.context
        context.node.ledger.release(context.uid)
        context.volumes.tear_down()
        context.shared.logs.pod_gone(context.log_folder)
        if context.pod_ip:
            self._free_address(context.pod_ip)

    # -- status

    def _status(self) -> Json | None:
        if self._final is not None:
            return self._final or None
        if not self.context.pod_ip:
            return None
        return self._running_status(self._phase_while_ending() if self._deleting.is_set() else "")

    def _phase_while_ending(self) -> str:
        """A pod that is being ended stays as it is until all containers have ended, then is Succeeded or Failed."""
        ends = [view.state for view in self.views.app]
        if any(not isinstance(end, Terminated) for end in ends):
            return phase_of(self.context.pod["spec"], self.views)
        good = all(isinstance(end, Terminated) and end.exit_code == 0 for end in ends)
        return "Succeeded" if good else "Failed"

    def _running_status(self, phase: str) -> Json:
        return pod_status(
            self.context.pod,
            self.views,
            pod_ip=self.context.pod_ip,
            host_ip=self.context.host_ip,
            started_at=self._began,
            now=self.context.shared.clock.now(),
            phase=phase,
        )


async def _first_of(*awaitables: Coroutine[Any, Any, None]) -> None:
    """Wait for one and drop the others."""
    tasks = [asyncio.ensure_future(awaitable) for awaitable in awaitables]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


async def _for_ever() -> None:
    await asyncio.Event().wait()


def _start_time(pod: Json) -> float | None:
    text = (pod.get("status") or {}).get("startTime")
    return parse_rfc3339(text) if text else None
