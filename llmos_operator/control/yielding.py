"""Sees to it that runtimes hold what the ledger counts them with: told to come down, watched until they have.

A replica that was asked for memory is told, asked how it is twice a second, and counted with less only once its runtime
reports that it keeps to the new limit and uses no more. One that has not by the end of its time keeps what it has. A
runtime that started again knows only the limit its pod was created with, so it is told anew when it reports that one.

Where it is to serve at a narrower format, too, it is told both together, and has the time that a load takes. Whoever gets
all of it back gets the format back first; one that cannot load it again keeps the narrower one, with all of the memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmos_operator.api.quantity import human_bytes
from llmos_operator.api.runtime.messages import ChangeState, RuntimeState
from llmos_operator.control.following import Following, address_of
from llmos_operator.observability.logging import logger
from llmos_operator.state.types import PodPhase

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmos_operator.actuators.lowering import Lowering
    from llmos_operator.actuators.runtime_client import RuntimeClient
    from llmos_operator.api.runtime.messages import RuntimeStatus
    from llmos_operator.clock import Clock
    from llmos_operator.control.records import Records
    from llmos_operator.state.store import Store
    from llmos_operator.state.types import Claim, Pod

log = logger(__name__)


class Yielding(Following):
    """Talks to the runtimes whose claims were lowered or restored."""

    refusal = "runtime does not take its budget yet"

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
        narrowing_timeout: float = 120.0,
    ) -> None:
        """`narrowing_timeout` is the seconds a runtime has to serve at another format."""
        super().__init__(store, records, client, lowering, clock, timeout=timeout, may_act=may_act)
        self._narrowing_timeout = narrowing_timeout
        self._ordered: dict[str, str] = {}  # pod UID -> the format it was told to change to last

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
        return report.memory.limit_bytes <= pod.claim.asked_bytes and _is_at(report, pod.claim.asked_format)

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
        if not _is_at(report, claim.asked_format):
            if self._failed(pod, claim.asked_format, report):
                self._refuse(pod, _why(report))
                return
            await self._change(pod, claim.asked_format, claim.asked_bytes, report)
        elif report.memory.limit_bytes != claim.asked_bytes and _may_be_told(report):
            await self._client.set_budget(namespace, ip, claim.asked_bytes)
            report = await self._client.status(namespace, ip)
        self._records.put_report(pod.uid, report, self._clock.now())
        if _is_down(report, claim):
            log.info("runtime has come down", pod=pod.key, seconds=round(self._clock.monotonic() - since, 2))
            self._ordered.pop(pod.uid, None)
            self._lowering.yielded(pod)
            return
        memory = report.memory
        at = f"it serves at {report.model.format} and uses" if claim.asked_format else "it uses"
        self._expire(
            pod,
            f"{at} {human_bytes(memory.measured_bytes)} with a limit of {human_bytes(memory.limit_bytes)}, "
            f"{human_bytes(claim.asked_bytes)} were asked for",
        )

    async def _change(self, pod: Pod, fmt: str, memory_bytes: int, report: RuntimeStatus) -> None:
        """Tell a runtime that serves, and is in no change, to change its format."""
        if _may_be_told(report):
            seconds = self._narrowing_timeout / 4  # of the time it has: the load takes its share
            address = address_of(self._records, pod)
            await self._client.requantise(pod.namespace, address, fmt, memory_bytes, seconds)
            self._ordered[pod.uid] = fmt

    def _failed(self, pod: Pod, fmt: str, report: RuntimeStatus) -> bool:
        """Return whether a runtime could not do the change it was told, and serves at what it had."""
        change = report.change
        return (
            self._ordered.get(pod.uid) == fmt
            and change is not None
            and change.state is ChangeState.FAILED
            and change.format == fmt
            and report.state is RuntimeState.READY
        )

    def _refuse(self, pod: Pod, why: str) -> None:
        """Let a replica keep what it has. One that came down before, and started again, is not told over and over."""
        if pod.claim is not None and not pod.claim.yielded:
            self._ordered.pop(pod.uid, None)
            self._lowering.refused(pod, why)

    def _late(self, pod: Pod) -> bool:
        """Return whether a runtime's time is over."""
        if pod.claim is None or not pod.claim.asked_format:
            return super()._late(pod)
        since = self._since.get(pod.uid)
        return since is not None and self._clock.monotonic() - since >= self._narrowing_timeout

    def _expire(self, pod: Pod, why: str) -> None:
        """Let a replica keep what it has if its time to come down is over; one that has come down before is told for ever."""
        if self._late(pod) and pod.claim is not None and pod.claim.lowered:
            seconds = self._narrowing_timeout if pod.claim.asked_format else self._timeout
            self._refuse(pod, f"after {seconds:.0f} s {why}")

    async def _go_up(self, pod: Pod) -> None:
        """Tell a runtime that it may have all it was bound with again: its format, and its memory."""
        if pod.claim is None or pod.phase is not PodPhase.BOUND:
            self._lowering.raised.discard(pod.key)
            return
        claim, namespace, address = pod.claim, pod.namespace, address_of(self._records, pod)
        report = await self._client.status(namespace, address)
        if _changes(report):
            return  # what comes of it is seen when it is over
        if not _is_at(report, claim.format) and not self._failed(pod, claim.format, report):
            await self._change(pod, claim.format, claim.bytes_per_device, report)
            return  # looked at again
        if self._failed(pod, claim.format, report):
            log.warning("runtime keeps its narrower format", pod=pod.key, detail=_why(report))
        await self._client.set_budget(namespace, address, claim.bytes_per_device)
        self._ordered.pop(pod.uid, None)
        self._lowering.raised.discard(pod.key)


def _is_at(report: RuntimeStatus, fmt: str) -> bool:
    """Return whether a runtime serves at a format, as far as it says at which; every one will do where none is asked."""
    return not fmt or report.model.format in {"", fmt}


def _changes(report: RuntimeStatus) -> bool:
    """Return whether a runtime is changing its format."""
    return report.change is not None and report.change.state is ChangeState.RUNNING


def _may_be_told(report: RuntimeStatus) -> bool:
    """Return whether a runtime takes a budget or a format now: it serves, and no change goes on."""
    return report.state is RuntimeState.READY and not _changes(report)


def _why(report: RuntimeStatus) -> str:
    failure = report.change.failure if report.change is not None else None
    return f"{failure.reason}: {failure.message}" if failure is not None else "the change failed"


def _is_down(report: RuntimeStatus, claim: Claim) -> bool:
    memory = report.memory
    return (
        _is_at(report, claim.asked_format)
        and 0 < memory.limit_bytes <= claim.asked_bytes
        and memory.measured_bytes <= claim.asked_bytes
    )
