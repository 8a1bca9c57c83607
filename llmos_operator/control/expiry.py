"""Deletes workloads that have finished, once `spec.ttlSecondsAfterFinished` has passed; what they own goes with them."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from llmos_operator.actuators.writequeue import Job, Rank
from llmos_operator.cluster.failures import NotFound
from llmos_operator.cluster.port import MODEL_WORKLOADS
from llmos_operator.control.history import time_of
from llmos_operator.errors import Conflict, LlmosError
from llmos_operator.observability.logging import logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmos_operator.actuators.writequeue import WriteQueue
    from llmos_operator.clock import Clock
    from llmos_operator.cluster.backoff import KeyedBackoff
    from llmos_operator.cluster.port import ClusterPort, Json
    from llmos_operator.state.types import Workload

log = logger(__name__)

LONGEST_WAIT = 3600.0  # seconds between looks: the wall clock may be set


def expires_at(workload: Workload, status: Json) -> float | None:
    """Return when a workload is to be deleted (epoch seconds); None if never, or if it has not finished."""
    if workload.ttl_after_finished is None or not workload.finished:
        return None
    conditions = status.get("conditions") or ()
    since = next(
        (time_of(one.get("lastTransitionTime")) for one in conditions if one.get("type") == "Finished"), 0.0
    )
    return since + workload.ttl_after_finished if since else None


class Expiry:
    """Looks at workloads that have finished. What fails is tried again, later each time."""

    def __init__(
        self,
        port: ClusterPort,
        queue: WriteQueue,
        clock: Clock,
        failures: KeyedBackoff[str],
        *,
        failed: Callable[[str], None],
    ) -> None:
        """`failed` is given the key of a workload that could not be deleted: :meth:`look` then says when to try again."""
        self._port = port
        self._queue = queue
        self._clock = clock
        self._failures = failures
        self._failed = failed

    def look(self, workload: Workload, status: Json) -> float | None:
        """Delete the workload if its time has come; return when to look again (monotonic seconds), None for never."""
        at = expires_at(workload, status)
        if at is None:
            return None
        key, now = f"expire {workload.key}", self._clock.monotonic()
        left = at - self._clock.now()
        if left > 0:
            return now + min(left, LONGEST_WAIT)
        if not self._failures.ready(key, now):
            return self._failures.ready_at(key)
        if not self._queue.holds(key):
            self._queue.submit(Job(Rank.SUPPORT, key, partial(self._delete, key, workload)))
        return now + LONGEST_WAIT

    async def _delete(self, key: str, workload: Workload) -> None:
        try:
            await self._port.delete(
                MODEL_WORKLOADS, workload.name, namespace=workload.namespace, uid=workload.uid
            )
        except (NotFound, Conflict):
            pass  # gone already, or another one of its name
        except LlmosError as error:
            self._failures.fail(key, self._clock.monotonic())
            log.warning("finished workload not deleted", workload=workload.key, error=error)
            self._failed(workload.key)
            return
        self._failures.succeed(key)
        log.info("finished workload deleted, its time was over", workload=workload.key)
