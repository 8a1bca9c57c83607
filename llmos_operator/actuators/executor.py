"""Carries a Plan out: assume, write, confirm or forget.

A bind counts in the store before its pod is created. After that there are three ways: the create succeeds and the
answer goes through the mirror into the store like any watch event; it fails for sure and the claim is forgotten; or
nobody knows (connection lost, timeout), then it stays assumed and the same create is repeated until one of the first
two is true. Its name is deterministic, so the repetition finds what the first try made. Repetitions wait longer each time,
per pod and outside of the write queue's slots: one namespace's broken webhook costs nobody else anything.

The pods of a gang are created all or none (`actuators.gangs`); pods are taken away by `actuators.removals`, and asked for
memory by `actuators.lowering`.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from llmos_operator.actuators.deviceclaims import Contested
from llmos_operator.actuators.gangs import Attempts, in_gangs
from llmos_operator.actuators.lowering import Lowering
from llmos_operator.actuators.pods import body_of, claimed_share, owned_by
from llmos_operator.actuators.removals import Removals
from llmos_operator.actuators.writequeue import Job, Rank, WriteQueue
from llmos_operator.api.conditions import Reason
from llmos_operator.cluster.failures import NotFound
from llmos_operator.cluster.port import PODS
from llmos_operator.errors import Conflict, LlmosError, Permanent, Retryable
from llmos_operator.observability.logging import logger
from llmos_operator.scheduler.plan import Bind, Cut, Evict, Grow, Move

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmos_operator.actuators.care import CareWriter
    from llmos_operator.actuators.cutting import Cutting
    from llmos_operator.actuators.deviceclaims import DeviceClaims
    from llmos_operator.actuators.outcomes import Outcomes, Retire
    from llmos_operator.actuators.support import Support
    from llmos_operator.clock import Clock
    from llmos_operator.cluster.backoff import KeyedBackoff
    from llmos_operator.cluster.mirror import Mirror
    from llmos_operator.cluster.port import ClusterPort
    from llmos_operator.cluster.retry import Retrier
    from llmos_operator.manifests.settings import PodSettings
    from llmos_operator.scheduler.plan import Action, Plan
    from llmos_operator.state.breaker import Breaker
    from llmos_operator.state.store import Store

log = logger(__name__)


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
        device_claims: DeviceClaims,
        outcomes: Outcomes,
        settings: PodSettings,
        clock: Clock,
        evictions: KeyedBackoff[str],
        creations: KeyedBackoff[str],
        care: CareWriter,
        breaker: Breaker,
        is_simulated: Callable[[str], bool],
        has_copy: Callable[[str, str], bool] = lambda _node, _key: False,
        cutting: Cutting | None = None,
    ) -> None:
        """`evictions` and `creations` space refused evictions and failed creates per pod; `is_simulated` says whether a node's devices are simulated, `has_copy` whether it has a model (by key) or is downloading it; without `cutting` no GPU is cut."""
        self._port = port
        self._store = store
        self._queue = queue
        self._retrier = retrier
        self._pods = pods
        self._support = support
        self._device_claims = device_claims
        self._outcomes = outcomes
        self._settings = settings
        self._clock = clock
        self._creations = creations
        self._is_simulated = is_simulated
        self._has_copy = has_copy
        self._cutting = cutting
        self._in_flight: dict[str, int] = {}  # workload -> jobs
        self._doubtful: list[Bind] = []
        self._gangs = Attempts()
        self._removals = Removals(
            port, store, queue, outcomes, clock, evictions, care=care, breaker=breaker, submit=self._submit
        )
        self.lowering = Lowering(port, store, queue, outcomes, clock, submit=self._submit)

    def busy(self, workload: str) -> bool:
        """Return whether writes for the workload's pods are waiting or under way."""
        return self._in_flight.get(workload, 0) > 0

    def carry_out(self, plan: Plan) -> int:
        """Queue the plan's actions in their order. Returns how many were taken."""
        return sum(self._take(actions) for actions in in_gangs(plan.actions))

    def _take(self, actions: list[Action]) -> int:
        action = actions[0]
        if isinstance(action, Bind):
            return self._take_binds([one for one in actions if isinstance(one, Bind)])
        if isinstance(action, Evict):
            return int(self._removals.evict(action))
        if isinstance(action, Move):
            return int(self._removals.move(action))
        if isinstance(action, Grow):
            return int(self._grow(action))
        if isinstance(action, Cut):
            return int(self._cutting is not None and self._cutting.carry_out(action))
        return int(self.lowering.carry_out(action))

    def _grow(self, grow: Grow) -> bool:
        """Let a workload have replicas again. Returns False if it is gone."""
        allowed = self._store.allow_replicas(
            grow.workload, grow.workload_uid, grow.replicas, self._clock.now()
        )
        if allowed:
            self._outcomes.grown(grow)
        return allowed

    # -- binding --------------------------------------------------------------------------------------------

    def _take_binds(self, binds: list[Bind]) -> int:
        """Take a bind, or all binds of a gang, or none of them."""
        for number, bind in enumerate(binds):
            try:
                self._store.assume(bind.claim)
            except Conflict as error:
                # The world moved on while the plan was made; the change that did it has triggered the next cycle.
                log.debug("bind left out", pod=bind.claim.pod, gang=bind.gang, error=error)
                for other in binds[:number]:
                    self._store.forget(other.claim.pod)
                return 0
        if binds[0].gang:
            self._gangs.begin(binds)
        for bind in binds:
            self._submit(
                Rank.BIND,
                f"bind {bind.claim.pod}",
                bind.workload.key,
                partial(self._bind, bind),
                partial(self._drop, bind),
            )
        return len(binds)

    def _drop(self, bind: Bind) -> None:
        """A pod is not created, for sure; nor are the others of its gang then."""
        self._store.forget(bind.claim.pod)
        for retire in self._gangs.give_up(bind) or ():
            self.retire(retire)

    def _mounts_copy(self, bind: Bind) -> bool:
        model = bind.workload.model
        return bool(
            self._settings.model_cache_path and model.kept and self._has_copy(bind.claim.node, model.key)
        )

    async def _bind(self, bind: Bind, *, doubtful: bool = False) -> None:
        """Create a bind's pod; where that is `doubtful` an earlier try may have done so."""
        claim, workload = bind.claim, bind.workload
        if self._gangs.given_up(bind):
            self._drop(bind)
            return
        node = self._store.node(claim.node)
        try:
            body = body_of(
                bind,
                self._settings,
                simulated=self._is_simulated(claim.node),
                kept=self._mounts_copy(bind),
                share=claimed_share(claim, node.gpu if node is not None else None),
            )
            await self._support.before_bind(workload)
            await self._device_claims.take(claim)
            made, _ = await self._retrier.create(self._port, PODS, body, namespace=workload.namespace)
        except Retryable as error:
            self._try_bind_again(bind, error)
            return
        except Contested as error:
            log.info("bind left out, its device is another's", pod=claim.pod, node=claim.node, error=error)
            if doubtful:
                await self._find_out(bind)
                return
            self._creations.succeed(claim.pod)
            self._drop(bind)
            return
        except LlmosError as error:
            log.warning("pod not created", pod=claim.pod, node=claim.node, error=error)
            self._fail(bind, error)
            return
        self._creations.succeed(claim.pod)
        if not owned_by(made, workload.uid):
            text = f"a pod {claim.pod} exists that is not the operator's; delete it"
            self._fail(bind, Permanent(text, reason=Reason.NAME_TAKEN))
            return
        self._store.confirm(claim.pod, str(made["metadata"]["uid"]))
        self._pods.observe("ADDED", made)
        self._exists(bind, str(made["metadata"]["uid"]))
        await self._device_claims.reserve(claim, str(made["metadata"]["uid"]))

    def _exists(self, bind: Bind, uid: str) -> None:
        """The pod is there; it goes again if its gang was given up meanwhile."""
        unwanted = self._gangs.created(bind, uid)
        if unwanted is not None:
            self.retire(unwanted)
            return
        self._outcomes.bound(bind)

    def _fail(self, bind: Bind, error: LlmosError) -> None:
        """The pod cannot be created: release its claim, and what else exists of its gang. A gang fails once."""
        self._creations.succeed(bind.claim.pod)
        self._store.forget(bind.claim.pod)
        others = self._gangs.give_up(bind)
        for retire in others or ():
            self.retire(retire)
        if others is not None:
            self._outcomes.bind_failed(bind, error)

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
        self.lowering.resume()
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
                self._exists(bind, held.uid)
            else:
                self._gangs.settle(bind)
            return
        current = self._store.workload(bind.workload.key)
        wanted = current is not None and current.uid == bind.workload.uid
        if wanted and not self._gangs.given_up(bind):
            await self._bind(bind, doubtful=True)
        else:
            await self._find_out(bind)

    async def _find_out(self, bind: Bind) -> None:
        """Find out whether a create that was lost got through, where it is not to be repeated."""
        claim = bind.claim
        try:
            made = await self._retrier.call(
                lambda: self._port.get(PODS, claim.pod.partition("/")[2], namespace=bind.workload.namespace)
            )
        except Retryable as error:
            self._try_bind_again(bind, error)
        except LlmosError as error:
            # Not there; or nobody may tell us, then a pod that exists comes with the watch or the next list.
            self._creations.succeed(claim.pod)
            self._drop(bind)
            if not isinstance(error, NotFound):
                log.warning("pod creation left in doubt", pod=claim.pod, error=error)
        else:
            self._creations.succeed(claim.pod)
            self._pods.observe("ADDED", made)
            if not owned_by(made, bind.workload.uid):
                self._drop(bind)  # somebody else's pod of that name: ours was never made
                return
            unwanted = self._gangs.created(bind, str(made["metadata"]["uid"]))
            if unwanted is not None:
                self.retire(unwanted)

    def retire(self, retire: Retire) -> bool:
        """Queue the removal of one of our own pods. Returns False if that is under way or must wait."""
        return self._removals.retire(retire)

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
