"""Carries a Plan out: assume, write, confirm or forget.

A bind counts in the store before its pod is created. After that there are three ways: the create succeeds and the
answer goes through the mirror into the store like any watch event; it fails for sure and the claim is forgotten; or
nobody knows (connection lost, timeout), then it stays assumed and the same create is repeated until one of the first
two is true. Its name is deterministic, so the repetition finds what the first try made. Repetitions wait longer each time,
per pod and outside of the write queue's slots: one namespace's broken webhook costs nobody else anything.

Evictions go through the Eviction API with the pod's UID, once per pod: while one is under way the store counts the pod
as terminating and the planner does not name it again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmos_operator.actuators.writequeue import Job, Rank, WriteQueue
from llmos_operator.api.conditions import Reason
from llmos_operator.cluster.failures import Disrupted, NotFound
from llmos_operator.cluster.port import MODEL_WORKLOADS, PODS
from llmos_operator.errors import Conflict, LlmosError, Permanent, Retryable
from llmos_operator.manifests import pod as pod_manifest
from llmos_operator.observability.logging import logger
from llmos_operator.scheduler.plan import Bind, Evict

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmos_operator.actuators.outcomes import Outcomes, Retire
    from llmos_operator.actuators.support import Support
    from llmos_operator.clock import Clock
    from llmos_operator.cluster.backoff import KeyedBackoff
    from llmos_operator.cluster.mirror import Mirror
    from llmos_operator.cluster.port import ClusterPort, Json
    from llmos_operator.cluster.retry import Retrier
    from llmos_operator.manifests.settings import PodSettings
    from llmos_operator.scheduler.plan import Action, Plan
    from llmos_operator.state.store import Store

log = logger(__name__)

_UNSEEN_GRACE = 300.0  # seconds a pod counts as ending before the watch shows its real deletion time
_REMEMBERED = 600.0  # seconds for which refused evictions and removals of a pod lengthen its next wait


class Executor:
    """Turns actions into jobs of the write queue."""

    def __init__(
        self,
        *,
        port: ClusterPort,
        store: Store,
        queue: WriteQueue,
        retrier: Retrier,
        pods: Mirror,
        support: Support,
        outcomes: Outcomes,
        settings: PodSettings,
        clock: Clock,
        evictions: KeyedBackoff[str],
        creations: KeyedBackoff[str],
        is_simulated: Callable[[str], bool],
    ) -> None:
        """`evictions` and `creations` space refused evictions and failed creates per pod; `is_simulated` says whether a node's devices are simulated."""
        self._port = port
        self._store = store
        self._queue = queue
        self._retrier = retrier
        self._pods = pods
        self._support = support
        self._outcomes = outcomes
        self._settings = settings
        self._clock = clock
        self._evictions = evictions
        self._creations = creations
        self._is_simulated = is_simulated
        self._in_flight: dict[str, int] = {}  # workload -> jobs
        self._doubtful: list[Bind] = []

    def busy(self, workload: str) -> bool:
        """Return whether writes for the workload's pods are waiting or under way."""
        return self._in_flight.get(workload, 0) > 0

    def carry_out(self, plan: Plan) -> int:
        """Queue the plan's actions in their order. Returns how many were taken."""
        return sum(self._take(action) for action in plan.actions)

    def _take(self, action: Action) -> bool:
        if isinstance(action, Bind):
            return self._take_bind(action)
        if isinstance(action, Evict):
            return self._take_eviction(action)
        log.warning("action is not supported yet, left out", action=type(action).__name__)
        return False

    # -- binding --------------------------------------------------------------------------------------------

    def _take_bind(self, bind: Bind) -> bool:
        try:
            self._store.assume(bind.claim)
        except Conflict as error:
            # The world moved on while the plan was made; the change that did it has triggered the next cycle.
            log.debug("bind left out", pod=bind.claim.pod, error=error)
            return False
        self._submit(
            Rank.BIND,
            f"bind {bind.claim.pod}",
            bind.workload.key,
            lambda: self._bind(bind),
            lambda: self._store.forget(bind.claim.pod),
        )
        return True

    async def _bind(self, bind: Bind) -> None:
        claim, workload = bind.claim, bind.workload
        try:
            body = self._build(bind)
            await self._support.before_bind(workload)
            made, _ = await self._retrier.create(self._port, PODS, body, namespace=workload.namespace)
        except Retryable as error:
            self._try_bind_again(bind, error)
            return
        except LlmosError as error:
            self._creations.succeed(claim.pod)
            self._store.forget(claim.pod)
            log.warning("pod not created", pod=claim.pod, node=claim.node, error=error)
            self._outcomes.bind_failed(bind, error)
            return
        self._creations.succeed(claim.pod)
        if not _owned_by(made, workload.uid):
            self._store.forget(claim.pod)
            text = f"a pod {claim.pod} exists that is not the operator's; delete it"
            self._outcomes.bind_failed(bind, Permanent(text, reason=Reason.NAME_TAKEN))
            return
        self._store.confirm(claim.pod, str(made["metadata"]["uid"]))
        self._pods.observe("ADDED", made)
        self._outcomes.bound(bind)

    def _build(self, bind: Bind) -> Json:
        try:
            simulated = self._is_simulated(bind.claim.node)
            return pod_manifest.build(bind.workload, bind.claim, self._settings, simulated=simulated)
        except (TypeError, ValueError, AttributeError, LookupError, RecursionError) as error:
            # The parts of a template that no schema describes are the user's; none of them may end this process.
            text = f"no pod can be built from the spec: {type(error).__name__}: {error}"
            raise Permanent(text, reason=Reason.INVALID_SPEC) from error

    def _try_bind_again(self, bind: Bind, error: Retryable) -> None:
        now = self._clock.monotonic()
        wait = self._creations.fail(bind.claim.pod, now, after=error.after) - now
        log.warning(
            "pod creation in doubt, trying again", pod=bind.claim.pod, seconds=round(wait, 1), error=error
        )
        self._outcomes.bind_delayed(bind, error, wait)
        self._submit_doubtful(bind, wait)

    def _submit_doubtful(self, bind: Bind, wait: float = 0.0) -> None:
        """Repeat a create whose result is unknown; its claim stays assumed, also while this process may not write.

        While it waits the workload does not count as being written: its status says why it waits.
        """
        key = f"bind {bind.claim.pod}"

        def again() -> None:
            self._submit(
                Rank.BIND,
                key,
                bind.workload.key,
                lambda: self._settle(bind),
                lambda: self._doubtful.append(bind),
            )

        if wait <= 0.0:
            again()
            return

        async def its_time_has_come() -> None:
            again()

        self._queue.submit_after(
            wait, Job(Rank.BIND, key, its_time_has_come, lambda: self._doubtful.append(bind))
        )

    def resume(self) -> None:
        """Take up what was in doubt when this process had to stop writing."""
        doubtful, self._doubtful = self._doubtful, []
        for bind in doubtful:
            self._submit_doubtful(bind)

    async def _settle(self, bind: Bind) -> None:
        """Create again what is still wanted; else find out whether the lost create got through."""
        claim = bind.claim
        held = self._store.pod(claim.pod)
        if held is None or held.uid or held.claim != claim:
            # The watch has shown the pod since; what happened to it after that is not for this bind to mend.
            self._creations.succeed(claim.pod)
            if held is not None and held.claim == claim:
                self._outcomes.bound(bind)
            return
        current = self._store.workload(bind.workload.key)
        if current is not None and current.uid == bind.workload.uid:
            await self._bind(bind)
            return
        try:
            made = await self._retrier.call(
                lambda: self._port.get(PODS, claim.pod.partition("/")[2], namespace=bind.workload.namespace)
            )
        except Retryable as error:
            self._try_bind_again(bind, error)
        except LlmosError as error:
            # Not there; or nobody may tell us, then a pod that exists comes with the watch or the next list.
            self._creations.succeed(claim.pod)
            self._store.forget(claim.pod)
            if not isinstance(error, NotFound):
                log.warning("pod creation left in doubt", pod=claim.pod, error=error)
        else:
            self._creations.succeed(claim.pod)
            self._pods.observe("ADDED", made)

    # -- taking away ----------------------------------------------------------------------------------------

    def _take_eviction(self, evict: Evict) -> bool:
        now = self._clock.now()
        if not self._evictions.ready(evict.pod_uid, self._clock.monotonic()):
            return False
        pod = self._store.pod(evict.pod)
        if pod is None:
            return False
        freed_at = now + (0 if evict.force else pod.grace_seconds)
        if not self._store.assume_evicted(evict.pod, now + _UNSEEN_GRACE, evict.preemptor, freed_at):
            return False
        self._submit(
            Rank.EVICT,
            f"evict {evict.pod}",
            evict.victim,
            lambda: self._evict(evict),
            lambda: self._store.forget_eviction(evict.pod),
        )
        return True

    async def _evict(self, evict: Evict) -> None:
        namespace, _, name = evict.pod.partition("/")
        try:
            if evict.force:
                await self._port.delete(PODS, name, namespace=namespace, uid=evict.pod_uid, grace_seconds=0)
            else:
                await self._port.evict(name, namespace=namespace, uid=evict.pod_uid)
        except (NotFound, Conflict):
            self._store.forget_eviction(evict.pod)  # gone, or another pod by now: the watch tells
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
        self._store.forget_eviction(evict.pod)
        self._outcomes.eviction_refused(evict, error, retry_at)

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

    # -- bookkeeping ----------------------------------------------------------------------------------------

    def _submit(
        self,
        rank: Rank,
        key: str,
        workload: str,
        run: Callable[[], Any],
        dropped: Callable[[], Any] = lambda: None,
    ) -> None:
        self._in_flight[workload] = self._in_flight.get(workload, 0) + 1

        async def carry_out() -> None:
            try:
                await run()
            finally:
                self._end(workload)

        def drop() -> None:
            dropped()
            self._end(workload)

        self._queue.submit(Job(rank, key, carry_out, drop))

    def _end(self, workload: str) -> None:
        left = self._in_flight.get(workload, 1) - 1
        if left > 0:
            self._in_flight[workload] = left
            return
        self._in_flight.pop(workload, None)
        self._outcomes.settled(workload)


def _owned_by(body: dict[str, Any], uid: str) -> bool:
    return any(
        ref.get("uid") == uid and ref.get("controller")
        for ref in body["metadata"].get("ownerReferences") or ()
    )
