"""What watches over one run of a container: the postStart hook, then startup, readiness and liveness probes."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from llmos_operator.local.kubelet.context import EventReason
from llmos_operator.local.kubelet.model import EXIT_KILLED, wants_restart
from llmos_operator.local.kubelet.probes import probe

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmos_operator.local.kubelet.context import PodContext
    from llmos_operator.local.kubelet.model import ContainerView, Json
    from llmos_operator.local.kubelet.probes import Outcome, Target

_HOOK_SECONDS = 60.0


class Guard:
    """Runs beside one run of a container and ends with it.

    ``started`` is called once the container counts as started, ``condemn`` with a grace period in seconds (None: the
    pod's) when the run must be ended.
    """

    def __init__(
        self,
        context: PodContext,
        view: ContainerView,
        target: Target,
        started: Callable[[], None],
        condemn: Callable[[float | None], None],
    ) -> None:
        self._context = context
        self._view = view
        self._target = target
        self._started = started
        self._condemn = condemn

    async def run(self) -> None:
        """Guard until cancelled or nothing is left to do."""
        spec = self._view.spec
        if not await self._post_start((spec.get("lifecycle") or {}).get("postStart")):
            return
        if spec.get("startupProbe"):
            await self._startup(spec["startupProbe"])
        self._started()
        async with asyncio.TaskGroup() as group:
            if spec.get("readinessProbe"):
                group.create_task(self._readiness(spec["readinessProbe"]))
            if spec.get("livenessProbe"):
                group.create_task(self._liveness(spec["livenessProbe"]))

    async def _post_start(self, hook: Json | None) -> bool:
        if not hook:
            return True
        outcome = await self._context.shared.checker.check(hook, self._target, _HOOK_SECONDS)
        if not outcome.passed:
            note = f"PostStartHook failed: {outcome.message}"
            self._context.event("Warning", EventReason.FAILED_HOOK, note, key=self._view.name)
            self._condemn(None)
        return outcome.passed

    async def _startup(self, spec: Json) -> None:
        passed = asyncio.Event()

        def report(good: bool, _outcome: Outcome) -> None:
            if good:
                passed.set()
            else:
                self._end("startup", spec)

        task = asyncio.create_task(self._probe("Startup", spec, initial=None, report=report))
        try:
            await passed.wait()
        finally:
            task.cancel()

    async def _readiness(self, spec: Json) -> None:
        def report(good: bool, _outcome: Outcome) -> None:
            if self._view.ready != good:
                self._view.ready = good
                self._context.changed()

        await self._probe("Readiness", spec, initial=False, report=report)

    async def _liveness(self, spec: Json) -> None:
        def report(good: bool, _outcome: Outcome) -> None:
            if not good:
                self._end("liveness", spec)

        await self._probe("Liveness", spec, initial=True, report=report)

    async def _probe(
        self, kind: str, spec: Json, *, initial: bool | None, report: Callable[[bool, Outcome], None]
    ) -> None:
        async def check(seconds: float) -> Outcome:
            return await self._context.shared.checker.check(spec, self._target, seconds)

        def failed(outcome: Outcome) -> None:
            note = f"{kind} probe failed: {outcome.message}"
            self._context.event("Warning", EventReason.UNHEALTHY, note, key=f"{self._view.name}/{note[:100]}")

        await probe(spec, check, initial=initial, report=report, failed=failed)

    def _end(self, kind: str, spec: Json) -> None:
        again = wants_restart(self._view, self._context.restart_policy, EXIT_KILLED)
        note = f"Container {self._view.name} failed {kind} probe{', will be restarted' if again else ''}"
        key = f"{self._view.name}/{self._view.restarts}"
        self._context.event("Normal", EventReason.KILLING, note, key=key)
        grace = spec.get("terminationGracePeriodSeconds")
        self._condemn(None if grace is None else float(grace))
