"""Talking to runtimes whose claims changed, until they hold what the ledger counts them with: what `yielding` and `sleepers` share."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar

from llmos_operator.errors import Permanent, Retryable
from llmos_operator.observability.logging import logger

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from llmos_operator.actuators.lowering import Lowering
    from llmos_operator.actuators.runtime_client import RuntimeClient
    from llmos_operator.clock import Clock
    from llmos_operator.control.records import Records
    from llmos_operator.state.store import Store
    from llmos_operator.state.types import Pod

log = logger(__name__)

TICK = 0.5
_WIDTH = 16  # runtimes that are talked to at once


class Following(ABC):
    """Looks twice a second at the runtimes that have to do something, or may undo it, and tells them."""

    refusal: ClassVar[str]  # what is logged of a runtime that cannot be told

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
        """`timeout` is the seconds a runtime has to do what it is told."""
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
        """Look once at every runtime concerned."""
        watched, undoing = self._watched(), self._undoing()
        present = {pod.uid for pod in watched}
        self._since = {uid: at for uid, at in self._since.items() if uid in present}
        undone = [pod for key in sorted(undoing) if (pod := self._store.pod(key)) is not None]
        undoing &= {pod.key for pod in undone}
        await asyncio.gather(*(self._attend(pod) for pod in (*watched, *undone)))

    async def _attend(self, pod: Pod) -> None:
        async with self._gate:
            try:
                await self._see_to(pod)
            except (Retryable, Permanent) as error:
                log.debug(self.refusal, pod=pod.key, error=error)
                self._expire(pod, str(error))

    def _late(self, pod: Pod) -> bool:
        """Return whether a runtime's time is over."""
        since = self._since.get(pod.uid)
        return since is not None and self._clock.monotonic() - since >= self._timeout

    @abstractmethod
    def _watched(self) -> Sequence[Pod]:
        """Return those whose runtimes have to be told, or watched."""

    @abstractmethod
    def _undoing(self) -> set[str]:
        """Return the set of `Lowering` with the keys of pods whose runtimes may undo it."""

    @abstractmethod
    async def _see_to(self, pod: Pod) -> None:
        """Tell one runtime what it has to do, or may undo. Raises Retryable, Permanent."""

    @abstractmethod
    def _expire(self, pod: Pod, why: str) -> None:
        """Take back what was asked of a replica if its time is over."""


def address_of(records: Records, pod: Pod) -> str:
    """Return where a pod's runtime listens. Raises Retryable while that is not known."""
    replica = records.replica(pod.key)
    if replica is None or replica.uid != pod.uid or not replica.ip:
        raise Retryable(f"{pod.key} has no address")
    return replica.ip
