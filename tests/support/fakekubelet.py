"""Plays the kubelet and the runtime for operator tests: pods become Running and Ready, and end when they are deleted.

Each pod gets an address of the loopback network on which a control API answers, so that the operator's poller has
somebody to ask. What a pod does is decided by :attr:`FakeKubelet.script` when it starts.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aiohttp import web

from llmos_operator.api.runtime.messages import (
    Failure,
    MemoryReport,
    ModelInfo,
    RuntimeState,
    RuntimeStatus,
    WorkProgress,
)
from llmos_operator.clock import rfc3339
from llmos_operator.cluster.failures import NotFound
from llmos_operator.cluster.mirror import Change, Mirror
from llmos_operator.cluster.port import PODS
from llmos_operator.cluster.reflector import Reflector
from llmos_operator.errors import LlmosError

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmos_operator.cluster.port import ClusterPort

# Begins anywhere, so that several test processes of one machine do not take each other's addresses.
_ADDRESSES = itertools.count(os.getpid() * 257)


@dataclass(slots=True)
class Script:
    """What one pod does."""

    ready_after: float = 0.0  # seconds; infinity: never
    failure: Failure | None = None  # what the runtime reports instead of getting ready
    oom_killed: bool = False
    waiting: tuple[str, str] | None = None  # reason and message the container waits for
    ends_after: float = 0.0  # seconds between deletion and the pod's end
    stubborn: bool = False  # the runtime takes no new memory budget
    exit: tuple[int, str] | None = None  # code and last words of a program that ends at once
    progress: WorkProgress | None = None  # what a program that ends reports meanwhile


@dataclass(slots=True)
class _Life:
    pod: dict[str, Any]
    script: Script
    address: str = ""
    status: RuntimeStatus = field(default_factory=RuntimeStatus)
    runner: web.AppRunner | None = None
    task: asyncio.Task[None] | None = None
    deleting: bool = False


class FakeKubelet:
    """Runs every pod that is bound to a node."""

    def __init__(self, port: ClusterPort, *, serve_control: bool = True) -> None:
        self.script: Callable[[dict[str, Any]], Script] = lambda _: Script()
        self.started: list[str] = []
        self.ended: list[str] = []
        self.troubles: list[str] = []  # what went wrong in here; a test that fails shows it
        self._port = port
        self._serve_control = serve_control
        self._lives: dict[str, _Life] = {}
        self._task: asyncio.Task[None] | None = None
        self._ending: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        reflector = Reflector(self._port, Mirror(PODS, self._take), field_selector="spec.nodeName!=")
        self._task = asyncio.create_task(reflector.run())

    async def close(self) -> None:
        tasks = [self._task, *(life.task for life in self._lives.values()), *self._ending]
        for task in tasks:
            if task is not None:
                task.cancel()
        await asyncio.gather(*(task for task in tasks if task is not None), return_exceptions=True)
        for life in self._lives.values():
            if life.runner is not None:
                await life.runner.cleanup()

    def report(self, pod_uid: str, status: RuntimeStatus) -> None:
        """Let a pod's runtime report ``status`` from now on."""
        self._lives[pod_uid].status = status

    def reported(self, pod_uid: str) -> RuntimeStatus:
        """Return what a pod's runtime reports."""
        return self._lives[pod_uid].status

    async def exit(self, pod_uid: str, code: int, words: str = "") -> None:
        """Let the program of a pod that works end by itself."""
        await self._exit(self._lives[pod_uid], code, words)

    def _take(self, change: Change, pod: dict[str, Any]) -> None:
        uid = pod["metadata"]["uid"]
        life = self._lives.get(uid)
        if change is Change.DELETED:
            if life is not None:
                self._keep(asyncio.create_task(self._forget(uid)))
            return
        if life is None:
            life = self._lives[uid] = _Life(pod, self.script(pod))
            life.task = asyncio.create_task(self._live(life))
            life.task.add_done_callback(lambda task, name=pod["metadata"]["name"]: self._note(task, name))
        if pod["metadata"].get("deletionTimestamp") and not life.deleting:
            life.deleting = True
            self._keep(asyncio.create_task(self._end(life)))

    def _note(self, task: asyncio.Task[None], name: str) -> None:
        if not task.cancelled() and task.exception() is not None:
            self.troubles.append(f"{name}: {task.exception()!r}")

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _live(self, life: _Life) -> None:
        script, name = life.script, life.pod["metadata"]["name"]
        self.started.append(name)
        if script.waiting is not None:
            reason, message = script.waiting
            await self._patch(life, "Pending", {"waiting": {"reason": reason, "message": message}})
            return
        number = next(_ADDRESSES)
        life.address = f"127.77.{number >> 8 & 255}.{number & 255}"
        if self._serve_control:
            await self._listen(life)
        running = {"running": {"startedAt": rfc3339(time.time())}}
        if script.oom_killed:
            ended = {"reason": "OOMKilled", "exitCode": 137, "finishedAt": rfc3339(time.time())}
            await self._patch(
                life, "Running", {"waiting": {"reason": "CrashLoopBackOff"}}, last={"terminated": ended}
            )
            return
        life.status = RuntimeStatus(state=RuntimeState.LOADING, failure=None)
        if script.failure is not None:
            life.status = RuntimeStatus(state=RuntimeState.FAILED, failure=script.failure)
            await self._patch(life, "Running", running)
            return
        if script.ready_after:
            await self._patch(life, "Running", running)
            await asyncio.sleep(script.ready_after)
        env = {one["name"]: one.get("value", "") for one in life.pod["spec"]["containers"][0].get("env", ())}
        limit = int(env.get("LLMOS_MEMORY_LIMIT_BYTES") or 0)
        life.status = RuntimeStatus(
            state=RuntimeState.READY,
            model=ModelInfo(
                name="m", digest="sha256:" + "0" * 64, revision="r", format=env.get("LLMOS_FORMAT", "")
            ),
            memory=MemoryReport(
                predicted_bytes=limit,
                measured_bytes=limit // 2,
                peak_bytes=limit // 2,
                limit_bytes=limit,
            ),
            progress=script.progress,
        )
        await self._patch(life, "Running", running, ready=True)
        if script.exit is not None:
            await self._exit(life, *script.exit)

    async def _exit(self, life: _Life, code: int, words: str) -> None:
        """The program ends by itself, as the kubelet tells it of a pod that is not started again."""
        ended = {
            "reason": "Error" if code else "Completed",
            "exitCode": code,
            "message": words,
            "finishedAt": rfc3339(time.time()),
        }
        await self._patch(life, "Failed" if code else "Succeeded", {"terminated": ended})

    async def _listen(self, life: _Life) -> None:
        async def answer(_: web.Request) -> web.Response:
            return web.json_response(life.status.model_dump(mode="json", by_alias=True))

        async def budget(request: web.Request) -> web.Response:
            if not life.script.stubborn:
                _keep_to(life, int((await request.json())["memoryBytes"]))
            return web.json_response({}, status=202)

        async def requantise(request: web.Request) -> web.Response:
            order = await request.json()
            if not life.script.stubborn:
                model = life.status.model.model_copy(update={"format": order["precision"]})
                life.status = life.status.model_copy(update={"model": model})
                _keep_to(life, order["budgetBytes"])
            return web.json_response({}, status=202)

        async def sleep(_: web.Request) -> web.Response:
            if not life.script.stubborn:
                memory = life.status.memory.model_copy(update={"measured_bytes": 1 << 20})
                await self._turn(life, RuntimeState.ASLEEP, memory)
            return web.json_response({}, status=202)

        async def wake(_: web.Request) -> web.Response:
            if life.status.state is RuntimeState.ASLEEP:
                memory = life.status.memory.model_copy(
                    update={"measured_bytes": life.status.memory.limit_bytes // 2}
                )
                await self._turn(life, RuntimeState.READY, memory)
            return web.json_response({}, status=202)

        app = web.Application()
        app.router.add_get("/control/v1/status", answer)
        app.router.add_post("/control/v1/budget", budget)
        app.router.add_post("/control/v1/requantise", requantise)
        app.router.add_post("/control/v1/sleep", sleep)
        app.router.add_post("/control/v1/wake", wake)
        life.runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await life.runner.setup()
        await web.TCPSite(life.runner, life.address, 8001).start()

    async def _turn(self, life: _Life, state: RuntimeState, memory: MemoryReport) -> None:
        """Let a runtime fall asleep or wake; the kubelet's next probe sees it."""
        update = {"state": state, "memory": memory, "load_path": "hot", "load_seconds": {"Warming": 0.5}}
        life.status = life.status.model_copy(update=update)
        running = {"running": {"startedAt": rfc3339(time.time())}}
        await self._patch(life, "Running", running, ready=state is RuntimeState.READY)

    async def _patch(
        self,
        life: _Life,
        phase: str,
        state: dict[str, Any],
        *,
        ready: bool = False,
        last: dict[str, Any] | None = None,
    ) -> None:
        meta = life.pod["metadata"]
        container = {
            "name": "runtime",
            "image": "i",
            "imageID": "i",
            "ready": ready,
            "started": ready,
            "restartCount": 1 if last else 0,
            "state": state,
            "lastState": last or {},
        }
        status = {
            "phase": phase,
            "podIP": life.address or None,
            "podIPs": [{"ip": life.address}] if life.address else [],
            "startTime": rfc3339(time.time()),
            "containerStatuses": [container],
            "conditions": [
                {
                    "type": "Ready",
                    "status": "True" if ready else "False",
                    "lastTransitionTime": rfc3339(time.time()),
                }
            ],
        }
        patch = {"metadata": {"uid": meta["uid"]}, "status": status}
        for _ in range(40):
            try:
                await self._port.merge_patch(
                    PODS, meta["name"], patch, namespace=meta["namespace"], subresource="status"
                )
            except NotFound:
                return
            except LlmosError as error:
                self.troubles.append(f"{meta['name']}: {error}")
                await asyncio.sleep(0.25)
            else:
                return
        self.troubles.append(f"{meta['name']}: gave up writing its status")

    async def _end(self, life: _Life) -> None:
        meta = life.pod["metadata"]
        await asyncio.sleep(life.script.ends_after)
        self.ended.append(meta["name"])
        for _ in range(40):
            try:
                await self._port.delete(
                    PODS, meta["name"], namespace=meta["namespace"], uid=meta["uid"], grace_seconds=0
                )
            except NotFound:
                return
            except LlmosError:
                await asyncio.sleep(0.25)
            else:
                return

    async def _forget(self, uid: str) -> None:
        life = self._lives.pop(uid)
        if life.task is not None:
            life.task.cancel()
        if life.runner is not None:
            await life.runner.cleanup()


def _keep_to(life: _Life, asked: int) -> None:
    used = min(life.status.memory.measured_bytes, asked)
    memory = life.status.memory.model_copy(update={"limit_bytes": asked, "measured_bytes": used})
    life.status = life.status.model_copy(update={"memory": memory})
