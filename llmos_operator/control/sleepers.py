"""Sees to it that runtimes sleep and wake as the ledger counts them: told to sleep, watched until they do, told to wake.

A replica that was asked to sleep is told, asked how it is twice a second, and counts as asleep once its runtime reports
that it sleeps and holds no more than it may keep. One that does not by the end of its time keeps its place and is woken.
A runtime that started again is awake whatever the ledger says, so it is told anew when it reports that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmos_operator.api.quantity import human_bytes
from llmos_operator.api.runtime.messages import RuntimeState
from llmos_operator.control.following import Following, address_of
from llmos_operator.observability.logging import logger
from llmos_operator.state.types import PodPhase

if TYPE_CHECKING:
    from llmos_operator.state.types import Pod, Sleeping

log = logger(__name__)

DRAIN_SECONDS = 5.0  # for requests in progress, before they are cut


class Sleepers(Following):
    """Talks to the runtimes of replicas that sleep, or slept."""

    refusal = "runtime does not sleep or wake yet"

    def _watched(self) -> list[Pod]:
        return [
            pod
            for pod in self._store.sleeping()
            if pod.claim is not None and not (pod.claim.asleep and self._sleeps_on(pod))
        ]

    def _undoing(self) -> set[str]:
        return self._lowering.waking

    def _sleeps_on(self, pod: Pod) -> bool:
        """Return whether the runtime's last word is not that it is awake."""
        report = self._records.report(pod.uid)
        return report is None or report.state is not RuntimeState.READY

    async def _see_to(self, pod: Pod) -> None:
        sleeping = pod.claim.sleeping if pod.claim is not None else None
        await (self._lay_down(pod, sleeping) if sleeping is not None else self._rouse(pod))

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
        if (
            self._late(pod)
            and pod.claim is not None
            and pod.claim.sleeping is not None
            and not pod.claim.asleep
        ):
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
