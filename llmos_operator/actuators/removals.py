"""Takes pods away: evicts what has to make room or moves elsewhere, deletes what of our own is not wanted any more.

Evictions go through the Eviction API with the pod's UID, once per pod: while one is under way the store counts the pod
as terminating and the planner does not name it again. Where a replica is moved to is written on its pod before the
eviction is sent, so that a leader who comes after this one keeps that place, too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmos_operator.actuators.writequeue import Rank, WriteQueue
from llmos_operator.api import names
from llmos_operator.api.conditions import Reason
from llmos_operator.cluster.failures import Disrupted, NotFound
from llmos_operator.cluster.port import MODEL_WORKLOADS, PODS
from llmos_operator.errors import Conflict, LlmosError, Retryable
from llmos_operator.observability.logging import logger
from llmos_operator.state.convert.pods import claim_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmos_operator.actuators.care import CareWriter
    from llmos_operator.actuators.outcomes import Outcomes, Retire
    from llmos_operator.clock import Clock
    from llmos_operator.cluster.backoff import KeyedBackoff
    from llmos_operator.cluster.port import ClusterPort
    from llmos_operator.scheduler.plan import Evict, Move
    from llmos_operator.state.breaker import Breaker
    from llmos_operator.state.store import Store

log = logger(__name__)

_UNSEEN_GRACE = 300.0  # seconds a pod counts as ending before the watch shows its real deletion time
_REMEMBERED = 600.0  # seconds for which refused evictions and removals of a pod lengthen its next wait


class Removals:
    """Evictions and removals as jobs of the write queue."""

    def __init__(
        self,
        port: ClusterPort,
        store: Store,
        queue: WriteQueue,
        outcomes: Outcomes,
        clock: Clock,
        evictions: KeyedBackoff[str],
        *,
        care: CareWriter,
        breaker: Breaker,
        submit: Callable[..., Any],
    ) -> None:
        """`evictions` spaces refused ones per pod; `submit` queues a job that counts as work of its workload.

        `breaker` admits what is taken off sick devices, and `care` remembers it.
        """
        self._port = port
        self._store = store
        self._queue = queue
        self._outcomes = outcomes
        self._clock = clock
        self._evictions = evictions
        self._care = care
        self._breaker = breaker
        self._submit = submit

    def evict(self, evict: Evict) -> bool:
        """Queue an eviction. Returns False if it is under way or must wait."""
        now = self._clock.now()
        if not self._evictions.ready(evict.pod_uid, self._clock.monotonic()):
            return False
        pod = self._store.pod(evict.pod)
        if pod is None:
            return False
        if evict.reason is Reason.GPU_UNHEALTHY and not self._store.disturb(evict.node, now, self._breaker):
            return False
        freed_at = now + (0 if evict.force else pod.grace_seconds)
        if not self._store.assume_evicted(evict.pod, now + _UNSEEN_GRACE, evict.preemptor, freed_at):
            return False
        if evict.fewer:
            self._store.give_up_replica(evict.victim, evict.victim_uid, evict.preemptor, now)
        self._submit(
            Rank.EVICT,
            f"evict {evict.pod}",
            evict.victim,
            lambda: self._evict(evict),
            lambda: self._forget(evict),
        )
        return True

    def _forget(self, evict: Evict) -> None:
        """An eviction was not, or not by us: the pod counts as before, and its workload wants as many as before."""
        self._store.forget_eviction(evict.pod)
        if evict.fewer:
            self._store.keep_replica(evict.victim, evict.victim_uid, self._clock.now())

    async def _evict(self, evict: Evict) -> None:
        namespace, _, name = evict.pod.partition("/")
        try:
            if evict.reason is Reason.GPU_UNHEALTHY:
                await self._care.write(evict.node)
            if evict.force:
                await self._port.delete(PODS, name, namespace=namespace, uid=evict.pod_uid, grace_seconds=0)
            else:
                await self._port.evict(name, namespace=namespace, uid=evict.pod_uid)
        except (NotFound, Conflict):
            self._forget(evict)  # gone, or another pod by now: the watch tells
            return
        except Disrupted as error:
            self._refuse_eviction(evict, error)
            return
        except LlmosError as error:
            log.warning("eviction failed", pod=evict.pod, error=error)
            self._refuse_eviction(evict, error)
            return
        self._evictions.succeed(evict.pod_uid)
        self._outcomes.evicted(evict)

    def _refuse_eviction(self, evict: Evict, error: LlmosError) -> None:
        after = error.after if isinstance(error, Retryable) else 0.0
        retry_at = self._evictions.fail(evict.pod_uid, self._clock.monotonic(), after=after)
        self._forget(evict)
        self._outcomes.eviction_refused(evict, error, retry_at)

    def move(self, move: Move) -> bool:
        """Queue the eviction of a replica that starts again elsewhere. Returns False if it is under way or must wait."""
        now = self._clock.now()
        if not self._evictions.ready(move.pod_uid, self._clock.monotonic()):
            return False
        pod = self._store.pod(move.pod)
        if pod is None or pod.uid != move.pod_uid:
            return False
        freed_at = now + pod.grace_seconds
        target = move.place(now, freed_at)
        if not self._store.assume_evicted(move.pod, now + _UNSEEN_GRACE, move.beneficiary, freed_at, target):
            return False
        self._submit(
            Rank.EVICT,
            f"move {move.pod}",
            move.workload,
            lambda: self._move(move),
            lambda: self._store.forget_eviction(move.pod),
        )
        return True

    async def _move(self, move: Move) -> None:
        namespace, _, name = move.pod.partition("/")
        try:
            await self._write_claim(move)
            await self._port.evict(name, namespace=namespace, uid=move.pod_uid)
        except (NotFound, Conflict):
            self._store.forget_eviction(move.pod)  # gone, or another pod by now: the watch tells
            return
        except LlmosError as error:
            log.warning("replica not moved", pod=move.pod, error=error)
            after = error.after if isinstance(error, Retryable) else 0.0
            retry_at = self._evictions.fail(move.pod_uid, self._clock.monotonic(), after=after)
            self._store.forget_eviction(move.pod)
            self._submit(Rank.EVICT, f"stay {move.pod}", move.workload, lambda: self._stay(move))
            self._outcomes.move_refused(move, error, retry_at)
            return
        self._evictions.succeed(move.pod_uid)
        self._outcomes.moved(move)

    async def _stay(self, move: Move) -> None:
        """Take the target off the pod of a replica that was not moved. Left there it is of no use: the pod does not leave."""
        try:
            await self._write_claim(move)
        except LlmosError as error:
            log.warning("target of a replica that was not moved stays on its pod", pod=move.pod, error=error)

    async def _write_claim(self, move: Move) -> None:
        """Write down the claim of a pod as it stands by now."""
        pod = self._store.pod(move.pod)
        if pod is None or pod.uid != move.pod_uid or pod.claim is None:
            raise NotFound(f"pod {move.pod} is gone")
        namespace, _, name = move.pod.partition("/")
        annotations = {names.ANNOTATION_CLAIM: claim_json(pod.claim)}
        patch = {"metadata": {"uid": move.pod_uid, "annotations": annotations}}
        await self._port.merge_patch(PODS, name, patch, namespace=namespace)

    def retire(self, retire: Retire) -> bool:
        """Queue the removal of one of our own pods. Returns False if that is under way or must wait."""
        key, now = f"retire {retire.pod}", self._clock.now()
        if self._queue.holds(key) or not self._evictions.ready(retire.pod_uid, self._clock.monotonic()):
            return False
        if not retire.orphan:
            self._store.assume_evicted(retire.pod, now + _UNSEEN_GRACE)
        self._submit(
            Rank.RETIRE,
            key,
            retire.workload,
            lambda: self._retire(retire),
            lambda: self._store.forget_eviction(retire.pod),
        )
        return True

    async def _retire(self, retire: Retire) -> None:
        namespace, _, name = retire.pod.partition("/")
        self._evictions.forget_before(
            self._clock.monotonic() - _REMEMBERED
        )  # UIDs of pods that are long gone
        # However it ends, it is not sent again at once: the deletion shows in the watch a moment later.
        self._evictions.fail(retire.pod_uid, self._clock.monotonic())
        try:
            if retire.orphan and await self._owner_lives(retire):
                return
            grace = 0 if retire.force else None
            await self._port.delete(PODS, name, namespace=namespace, uid=retire.pod_uid, grace_seconds=grace)
        except (NotFound, Conflict):
            return
        except LlmosError as error:
            self._store.forget_eviction(retire.pod)
            log.warning("pod not removed", pod=retire.pod, reason=retire.reason, error=error)
            return
        self._outcomes.retired(retire)

    async def _owner_lives(self, retire: Retire) -> bool:
        """Ask the API server itself: a cache that lags must not cost a running pod its life."""
        namespace, _, name = retire.workload.partition("/")
        try:
            owner = await self._port.get(MODEL_WORKLOADS, name, namespace=namespace)
        except NotFound:
            return False
        return str(owner["metadata"]["uid"]) == retire.workload_uid
