"""Sees to it that runtimes sleep and wake as the ledger counts them: told to sleep, watched until they do, told to wake.

A replica that was asked to sleep is told, asked how it is twice a second, and counts as asleep once its runtime reports
that it sleeps and holds no more than it may keep. One that does not by the end of its time keeps its place and is woken.
A runtime that started again is awake whatever the ledger says, so it is told anew when it reports that.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from llmos_operator.api.quantity import human_bytes
from llmos_operator.api.runtime.messages import RuntimeState
from llmos_operator.control.yielding import TICK, address_of
from llmos_operator.errors import Permanent, Retryable
from llmos_operator.observability.logging import logger
from llmos_operator.state.types import PodPhase

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmos_operator.actuators.lowering import Lowering
    from llmos_operator.actuators.runtime_client import RuntimeClient
    from llmos_operator.clock import Clock
    from llmos_operator.control.records import Records
    from llmos_operator.state.store import Store
    from llmos_operator.state.types import Pod, Sleeping

log = logger(__name__)

DRAIN_SECONDS = 5.0  # for requests in progress, before they are cut
_WIDTH = 16  # runtimes that are talked to at once


class Sleepers:
    """Talks to the runtimes of replicas that sleep, or slept."""

    def __init__(
        self,
        store: Store,
        records: Records,
        client: RuntimeClient,
        lowering: Lowering,
        clock: Clock,
        *,
        timeout: float,
        may_act: Callable[[], bool],
    ) -> None:
        """`timeout` is the seconds a runtime has to go to sleep."""
        self._store = store
        self._records = records
        self._client = client
        self._lowering = lowering
        self._clock = clock
        self._timeout = timeout
        self._may_act = may_act
        self._since: dict[str, float] = {}  # pod UID -> monotonic time since which it is watched
        self._gate = asyncio.Semaphore(_WIDTH)

    async def run(self) -> None:
        """Go on until cancelled."""
        while True:
            if self._may_act():
                await self.turn()
            await asyncio.sleep(TICK)

    async def turn(self) -> None:
        """Look once at every runtime that has to go to sleep, or to wake."""
        watched = [
            pod
            for pod in self._store.sleeping()
            if pod.claim is not None and not (pod.claim.asleep and self._sleeps_on(pod))
        ]
        present = {pod.uid for pod in watched}
        self._since = {uid: at for uid, at in self._since.items() if uid in present}
        waking = [pod for key in sorted(self._lowering.waking) if (pod := self._store.pod(key)) is not None]
        self._lowering.waking &= {pod.key for pod in waking}
        await asyncio.gather(*(self._attend(pod) for pod in (*watched, *waking)))

    def _sleeps_on(self, pod: Pod) -> bool:
        """Return whether the runtime's last word is not that it is awake."""
        report = self._records.report(pod.uid)
        return report is None or report.state is not RuntimeState.READY

    async def _attend(self, pod: Pod) -> None:
        sleeping = pod.claim.sleeping if pod.claim is not None else None
        async with self._gate:
            try:
                await (self._lay_down(pod, sleeping) if sleeping is not None else self._rouse(pod))
            except (Retryable, Permanent) as error:
                log.debug("runtime does not sleep or wake yet", pod=pod.key, error=error)
                self._expire(pod, str(error))

    async def _lay_down(self, pod: Pod, sleeping: Sleeping) -> None:
        """Tell a runtime to sleep, and count it as asleep once it does and holds no more than it may keep."""
        since = self._since.setdefault(pod.uid, self._clock.monotonic())
        namespace, ip = pod.namespace, address_of(self._records, pod)
        report = await self._client.status(namespace, ip)
        if report.state is RuntimeState.READY:
            await self._client.sleep(namespace, ip, DRAIN_SECONDS)
            report = await self._client.status(namespace, ip)
        self._records.put_report(pod.uid, report, self._clock.now())
        held = report.memory.measured_bytes
        if report.state is RuntimeState.ASLEEP and held <= sleeping.bytes_per_device:
            log.info("runtime sleeps", pod=pod.key, seconds=round(self._clock.monotonic() - since, 2))
            self._lowering.asleep(pod)
            return
        kept = f"{human_bytes(held)} are in use, {human_bytes(sleeping.bytes_per_device)} may be"
        self._expire(pod, f"it is {report.state.value}, {kept}")

    def _expire(self, pod: Pod, why: str) -> None:
        """Let a replica stay awake if its time to go to sleep is over; one that has slept before is told for ever."""
        since = self._since.get(pod.uid)
        late = since is not None and self._clock.monotonic() - since >= self._timeout
        if late and pod.claim is not None and pod.claim.sleeping is not None and not pod.claim.asleep:
            self._lowering.not_slept(pod, f"after {self._timeout:.0f} s {why}")

    async def _rouse(self, pod: Pod) -> None:
        """Tell a runtime to serve again, until it is not asleep any more."""
        if pod.claim is None or pod.phase is not PodPhase.BOUND:
            self._lowering.waking.discard(pod.key)
            return
        ip = address_of(self._records, pod)
        await self._client.wake(pod.namespace, ip)
        report = await self._client.status(pod.namespace, ip)
        self._records.put_report(pod.uid, report, self._clock.now())
        if report.state is not RuntimeState.ASLEEP:
            self._lowering.waking.discard(pod.key)
