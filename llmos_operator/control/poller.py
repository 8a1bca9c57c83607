"""Asks every runtime how it is: each second while it loads, every ten seconds when it serves.

Polling instead of pushing: a runtime needs no address of the operator and no rights, and what it says is only believed
from the pod it comes from.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from llmos_operator.api.runtime.messages import RuntimeState
from llmos_operator.errors import Permanent, Retryable
from llmos_operator.observability.logging import logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmos_operator.actuators.runtime_client import RuntimeClient
    from llmos_operator.api.runtime.messages import RuntimeStatus
    from llmos_operator.clock import Clock
    from llmos_operator.control.records import Records
    from llmos_operator.state.replicas import Replica

log = logger(__name__)

TICK = 0.25
LOADING = 1.0
SETTLED = 10.0
PARALLEL = 32
_SETTLED_STATES = frozenset({RuntimeState.READY, RuntimeState.ASLEEP, RuntimeState.FAILED})


class Poller:
    """Keeps the reports in the records fresh."""

    def __init__(
        self,
        client: RuntimeClient,
        records: Records,
        clock: Clock,
        *,
        reported: Callable[[Replica, RuntimeStatus, RuntimeStatus | None], None],
    ) -> None:
        """`reported` is told each report that is news, with the one before it."""
        self._client = client
        self._records = records
        self._clock = clock
        self._reported = reported
        self._due: dict[str, float] = {}  # pod UID -> monotonic time of the next poll
        self._misses: dict[str, int] = {}
        self._polling: set[asyncio.Task[None]] = set()
        self._gate = asyncio.Semaphore(PARALLEL)

    async def run(self) -> None:
        """Poll until cancelled."""
        try:
            while True:
                self._start_due()
                await asyncio.sleep(TICK)
        finally:
            for task in self._polling:
                task.cancel()

    def _start_due(self) -> None:
        now = self._clock.monotonic()
        present = set()
        for replica in self._records.replicas():
            if not (replica.ip and replica.running and replica.serves) or replica.deleting:
                continue
            present.add(replica.uid)
            if self._due.get(replica.uid, 0.0) <= now:
                self._due[replica.uid] = now + SETTLED  # until this poll has ended
                task = asyncio.create_task(self._poll(replica))
                self._polling.add(task)
                task.add_done_callback(self._polling.discard)
        for uid in [uid for uid in self._due if uid not in present]:
            self._due.pop(uid)
            self._misses.pop(uid, None)

    async def _poll(self, replica: Replica) -> None:
        namespace = replica.pod.partition("/")[0]
        async with self._gate:
            try:
                report = await self._client.status(namespace, replica.ip)
            except Retryable as error:
                self._missed(replica, error)
                return
            except Permanent as error:
                log.warning("runtime gives no report", pod=replica.pod, error=error)
                self._missed(replica, error)
                return
        self._misses.pop(replica.uid, None)
        self._due[replica.uid] = self._clock.monotonic() + (
            SETTLED if report.state in _SETTLED_STATES else LOADING
        )
        before = self._records.report(replica.uid)
        current = self._records.replica(replica.pod)
        if (
            current is not None
            and current.uid == replica.uid
            and self._records.put_report(replica.uid, report, self._clock.now())
        ):
            self._reported(replica, report, before)

    def _missed(self, replica: Replica, error: Exception) -> None:
        misses = self._misses.get(replica.uid, 0) + 1
        self._misses[replica.uid] = misses
        self._due[replica.uid] = self._clock.monotonic() + min(SETTLED, LOADING * misses)
        log.debug("runtime did not answer", pod=replica.pod, misses=misses, error=error)
