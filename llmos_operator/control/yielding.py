"""Sees to it that runtimes hold what the ledger counts them with: told to come down, watched until they have.

A replica that was asked for memory is told, asked how it is twice a second, and counted with less only once its runtime
reports that it keeps to the new limit and uses no more. One that has not by the end of its time keeps what it has. A
runtime that started again knows only the limit its pod was created with, so it is told anew when it reports that one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmos_operator.api.quantity import human_bytes
from llmos_operator.api.runtime.messages import RuntimeState
from llmos_operator.control.following import Following, address_of
from llmos_operator.observability.logging import logger
from llmos_operator.state.types import PodPhase

if TYPE_CHECKING:
    from llmos_operator.api.runtime.messages import RuntimeStatus
    from llmos_operator.state.types import Claim, Pod

log = logger(__name__)


class Yielding(Following):
    """Talks to the runtimes whose claims were lowered or restored."""

    refusal = "runtime does not take its budget yet"

    def _watched(self) -> list[Pod]:
        return [
            pod
            for pod in self._store.lowered()
            if pod.claim is not None
            and pod.claim.sleeping is None
            and not (pod.claim.yielded and self._keeps(pod))
        ]

    def _undoing(self) -> set[str]:
        return self._lowering.raised

    def _keeps(self, pod: Pod) -> bool:
        """Return whether the runtime's last word is that it keeps to what its claim was lowered to, or it serves nobody."""
        report = self._records.report(pod.uid)
        if report is None or report.state is not RuntimeState.READY or pod.claim is None:
            return True
        return report.memory.limit_bytes <= pod.claim.asked_bytes

    async def _see_to(self, pod: Pod) -> None:
        if pod.claim is not None and pod.claim.lowered:
            await self._come_down(pod, pod.claim)
        else:
            await self._go_up(pod)

    async def _come_down(self, pod: Pod, claim: Claim) -> None:
        """Tell a runtime its lower limit, and count it with that once it keeps to it."""
        since = self._since.setdefault(pod.uid, self._clock.monotonic())
        namespace, ip = pod.namespace, address_of(self._records, pod)
        report = await self._client.status(namespace, ip)
        if report.memory.limit_bytes != claim.asked_bytes and report.state is RuntimeState.READY:
            await self._client.set_budget(namespace, ip, claim.asked_bytes)
            report = await self._client.status(namespace, ip)
        self._records.put_report(pod.uid, report, self._clock.now())
        if _is_down(report, claim):
            log.info("runtime has come down", pod=pod.key, seconds=round(self._clock.monotonic() - since, 2))
            self._lowering.yielded(pod)
            return
        memory = report.memory
        self._expire(
            pod,
            f"it uses {human_bytes(memory.measured_bytes)} with a limit of {human_bytes(memory.limit_bytes)}, "
            f"{human_bytes(claim.asked_bytes)} were asked for",
        )

    def _expire(self, pod: Pod, why: str) -> None:
        """Let a replica keep what it has if its time to come down is over; one that has come down before is told for ever."""
        if self._late(pod) and pod.claim is not None and pod.claim.lowered and not pod.claim.yielded:
            self._lowering.refused(pod, f"after {self._timeout:.0f} s {why}")

    async def _go_up(self, pod: Pod) -> None:
        """Tell a runtime that it may have all it was bound with again."""
        if pod.claim is None or pod.phase is not PodPhase.BOUND:
            self._lowering.raised.discard(pod.key)
            return
        await self._client.set_budget(
            pod.namespace, address_of(self._records, pod), pod.claim.bytes_per_device
        )
        self._lowering.raised.discard(pod.key)


def _is_down(report: RuntimeStatus, claim: Claim) -> bool:
    memory = report.memory
    return 0 < memory.limit_bytes <= claim.asked_bytes and memory.measured_bytes <= claim.asked_bytes
