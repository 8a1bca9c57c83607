"""Writes statuses: only what changed, only as often as it is worth, never to an object recreated under the name.

Whoever notices that a workload may have changed marks it. The writer then builds the status, compares it with what
stands in the API and writes now, in a few seconds or twice a minute, by how much the change matters. Each object has a
small allowance of writes (one a second on average), and waits longer after each failure.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from llmos_operator.actuators.writequeue import Job, Rank
from llmos_operator.api import names
from llmos_operator.cluster.failures import NotFound
from llmos_operator.cluster.port import MODEL_WORKLOADS
from llmos_operator.errors import Conflict, LlmosError, Retryable
from llmos_operator.manifests import status as manifest
from llmos_operator.manifests.status import Urgency
from llmos_operator.observability.logging import logger
from llmos_operator.observability.slices import in_slices
from llmos_operator.state.alike import Alike

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmos_operator.actuators.writequeue import WriteQueue
    from llmos_operator.clock import Clock
    from llmos_operator.cluster.backoff import KeyedBackoff
    from llmos_operator.cluster.mirror import Mirror
    from llmos_operator.cluster.port import ClusterPort
    from llmos_operator.manifests.observed import Observed

log = logger(__name__)

# Seconds between writes for changes of that urgency.
SPACING = {Urgency.NOW: 0.0, Urgency.SOON: 5.0, Urgency.LATER: 30.0}
BURST = 3.0
PER_SECOND = 1.0
BUSY_SECONDS = 0.5  # until a workload that is being changed is looked at again without being marked


@dataclass(slots=True)
class _Allowance:
    """Writes an object may have now, as of `at` (monotonic seconds), and when it was written last."""

    left: float = BURST
    at: float = 0.0
    written: float = float("-inf")

    def wait(self, now: float) -> float:
        """Return seconds until a write is allowed."""
        left = min(BURST, self.left + (now - self.at) * PER_SECOND)
        return 0.0 if left >= 1.0 else (1.0 - left) / PER_SECOND

    def take(self, now: float) -> None:
        """Count one write."""
        self.left = min(BURST, self.left + (now - self.at) * PER_SECOND) - 1.0
        self.at = self.written = now


class StatusWriter:
    """Keeps `status` of ModelWorkloads true."""

    def __init__(
        self,
        *,
        port: ClusterPort,
        queue: WriteQueue,
        mirror: Mirror,
        observe: Callable[[str], Observed | None],
        busy: Callable[[str], bool],
        clock: Clock,
        backoff: KeyedBackoff[str],
    ) -> None:
        """`observe` gathers what is known of a workload, None if it is gone; `busy` tells that it is being changed."""
        self.written = 0
        self.failed = 0
        self._port = port
        self._queue = queue
        self._mirror = mirror
        self._observe = observe
        self._busy = busy
        self._clock = clock
        self._backoff = backoff
        self._alike = Alike()
        self._due: dict[str, float] = {}  # workload key -> monotonic time to look at it
        self._allowances: dict[str, _Allowance] = {}
        self._wake = asyncio.Event()

    def mark(self, key: str) -> None:
        """Say that the status of a workload may have changed."""
        self._due[key] = 0.0
        self._wake.set()

    def forget(self, key: str) -> None:
        """Say that a workload is gone."""
        self._due.pop(key, None)
        self._allowances.pop(key, None)
        self._backoff.succeed(key)

    async def run(self) -> None:
        """Look at marked workloads until cancelled."""
        while True:
            await self._sleep()
            now = self._clock.monotonic()
            async for key in in_slices([key for key, due in self._due.items() if due <= now]):
                if key in self._due:
                    self._try(key, now)
            await asyncio.sleep(0.01)  # what arrives together is looked at together

    async def _sleep(self) -> None:
        """Wait for a mark or for the next due time."""
        next_due = min(self._due.values(), default=None)
        wait = None if next_due is None else max(0.0, next_due - self._clock.monotonic())
        if wait == 0.0:
            return
        try:
            async with asyncio.timeout(wait):
                await self._wake.wait()
        except TimeoutError:
            return
        self._wake.clear()

    def _try(self, key: str, now: float) -> None:
        """Look at one workload; a status that cannot be built is that workload's trouble, not everybody's."""
        try:
            self._look(key, now)
        except Exception:
            self.failed += 1
            self._due[key] = self._backoff.fail(key, self._clock.monotonic())
            log.exception("status cannot be built", workload=key)

    def _look(self, key: str, now: float) -> None:
        if self._busy(key) or self._queue.holds(f"status {key}"):
            self._due[key] = (
                now + BUSY_SECONDS
            )  # the end of its writes marks it again; this is only the net below
            return
        del self._due[key]
        seen = self._observe(key)
        if seen is None:
            self.forget(key)
            return
        status = manifest.build(seen)
        urgency = manifest.urgency(seen.previous, status)
        if urgency is Urgency.NONE:
            return
        due = self._due_time(key, urgency, now)
        if due > now:
            self._due[key] = due
            return
        self._allowances[key].take(now)
        log.debug(
            "status", workload=key, urgency=urgency.name, changes=manifest.changes(seen.previous, status)
        )
        uid = seen.workload.uid
        body = self._alike.json(manifest.to_json(status))  # thousands may wait for their turn
        write = partial(self._write, key, uid, body)
        # Dropped by the fence: nothing else would bring it again, as what it says has not changed.
        self._queue.submit(Job(Rank.STATUS, f"status {key}", write, partial(self.mark, key)))

    def _due_time(self, key: str, urgency: Urgency, now: float) -> float:
        allowance = self._allowances.setdefault(key, _Allowance(at=now))
        spaced = allowance.written + SPACING[urgency]
        return max(now + allowance.wait(now), spaced, self._backoff.ready_at(key))

    async def _write(self, key: str, uid: str, status: dict[str, object]) -> None:
        namespace, _, name = key.partition("/")
        # The UID is a precondition: a workload recreated under this name must not get its predecessor's status.
        body = {"metadata": {"name": name, "namespace": namespace, "uid": uid}, "status": status}
        try:
            written = await self._port.patch_status(
                MODEL_WORKLOADS, body, manager=names.MANAGER_STATUS, namespace=namespace
            )
        except NotFound:
            return  # its deletion is on the way
        except Conflict as error:
            # Recreated under its name, then its event is on the way and this look finds the new one; or a race the
            # API server gave up on, then only this look brings it again.
            log.debug("status lost a race, looking again", workload=key, error=error)
            self._due[key] = self._backoff.fail(key, self._clock.monotonic())
            self._wake.set()
            return
        except LlmosError as error:
            self.failed += 1
            after = error.after if isinstance(error, Retryable) else 0.0
            self._due[key] = self._backoff.fail(key, self._clock.monotonic(), after=after)
            self._wake.set()
            log.warning("status not written", workload=key, error=error)
            return
        self.written += 1
        self._backoff.succeed(key)
        self._mirror.observe("MODIFIED", written)
