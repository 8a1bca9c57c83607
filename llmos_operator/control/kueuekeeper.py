"""Keeps the Workloads of Kueue that stand for ModelWorkloads: watches them, and does what `control.kueue` rules."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Final

from llmos_operator.actuators.writequeue import Job, Rank
from llmos_operator.api import names
from llmos_operator.cluster import port as ports
from llmos_operator.cluster.backoff import Curve
from llmos_operator.cluster.failures import NotFound
from llmos_operator.cluster.mirror import Change, Mirror
from llmos_operator.cluster.reflector import Reflector
from llmos_operator.control import kueue
from llmos_operator.control.kueue import Step
from llmos_operator.errors import LlmosError, Permanent
from llmos_operator.manifests import kueue as manifests
from llmos_operator.observability.logging import logger
from llmos_operator.state.convert import kueue as convert
from llmos_operator.state.types import Gate, PodPhase

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from random import Random

    from llmos_operator.actuators.writequeue import WriteQueue
    from llmos_operator.clock import Clock
    from llmos_operator.cluster.backoff import KeyedBackoff
    from llmos_operator.cluster.port import ClusterPort, Json
    from llmos_operator.state.reservation import Reservation
    from llmos_operator.state.store import Store
    from llmos_operator.state.types import Requirement, Toleration, Workload

log = logger(__name__)

READ_AGAIN: Final = Curve(base=1.0, cap=60.0)  # while Kueue is not installed
COMPARE_SECONDS: Final = 300.0  # between complete lists, as a watch may lose events
_ABSENT: Final = (
    "Workloads of Kueue (kueue.x-k8s.io/v1beta2) cannot be listed: is Kueue 0.15 or later installed? Or take the label "
    f"{names.LABEL_KUEUE_QUEUE} off."
)


class KueueKeeper:
    """Everything that is asked of Kueue. One caller."""

    def __init__(
        self,
        port: ClusterPort,
        store: Store,
        queue: WriteQueue,
        clock: Clock,
        rng: Random,
        backoff: KeyedBackoff[str],
        *,
        enabled: bool,
        review: Callable[[str], None],
        host_needs: Callable[[Workload], tuple[int, int]],
    ) -> None:
        """`review` marks a workload to be looked at; `host_needs` are thousandths of a core and bytes of a pod."""
        self._port = port
        self._store = store
        self._queue = queue
        self._clock = clock
        self._backoff = backoff
        self._enabled = enabled
        self._review = review
        self._host_needs = host_needs
        self._found: dict[str, Reservation] = {}  # by UID of the ModelWorkload
        self._places: dict[str, tuple[Reservation, Gate]] = {}  # by the same: where an admission lets it be
        self._troubles: dict[str, str] = {}  # by the same
        self._waiting: set[str] = set()  # keys of ModelWorkloads looked at before the first list
        self._mirror = Mirror(ports.KUEUE_WORKLOADS, self._take, on_synced=self._synced)
        self._reflector = Reflector(
            port,
            self._mirror,
            label_selector=f"{names.LABEL_MANAGED_BY}={names.MANAGED_BY}",
            rng=rng,
            curve=READ_AGAIN,
        )

    async def run(self) -> None:
        """List and watch until cancelled; without Kueue in the settings nothing is read."""
        if not self._enabled:
            return
        async with asyncio.TaskGroup() as group:
            group.create_task(self._reflector.run(), name="reflect Kueue's workloads")
            group.create_task(self._compare(), name="compare Kueue's workloads")

    async def _compare(self) -> None:
        while True:
            await asyncio.sleep(COMPARE_SECONDS)
            self._reflector.relist()

    def _synced(self) -> None:
        for key in self._waiting:
            self._review(key)
        self._waiting.clear()

    def _take(self, change: Change, body: Json) -> None:
        meta = body["metadata"]
        if change is Change.DELETED:
            uid = next((one for one, found in self._found.items() if _is(found, meta)), "")
            self._found.pop(uid, None)
        else:
            try:
                found = convert.reservation(body)
            except Permanent as error:
                log.warning("Workload of Kueue left out: it cannot be read", name=meta["name"], error=error)
                return
            uid = found.owner
            self._found[uid] = found
        workload = self._store.workload_of(uid)
        if workload is not None:
            self._review(workload.key)

    # -- looks ----------------------------------------------------------------------------------------------

    def look(self, workload: Workload, verdict: tuple[str, str], *, ready: bool) -> float | None:
        """Set the workload's gate and queue what is to be done; return when to look again (monotonic), None: at an event.

        `verdict` is reason and message of how it has ended.
        """
        if not self._enabled:
            return None
        uid, key = workload.uid, f"kueue {workload.uid}"
        own = self._store.applied(workload.key) or workload  # as its user wants it, without the gate
        asked = manifests.ask(own, self._host_needs(own))
        found = self._found.get(uid)
        ruling = kueue.rule(
            kueue.Seen(
                asked,
                found,
                pods=sum(one.phase is not PodPhase.FINISHED for one in self._store.pods_of(uid)),
                ready=ready,
                finished=workload.finished,
                known=self._mirror.synced,
                placed=found is not None and self._placed(uid, found) is not None,
                trouble=self._troubles.get(uid, "" if self._mirror.synced else _ABSENT),
            )
        )
        if not self._mirror.synced and asked.queue:
            self._waiting.add(workload.key)
        gate = ruling.gate
        if gate is not None and gate.open and found is not None:
            gate = self._placed(uid, found)
        self._store.set_gate(workload.key, gate)
        if ruling.step is None:
            return None
        if not self._backoff.ready(key, self._clock.monotonic()):
            return self._backoff.ready_at(key)
        if not self._queue.holds(key):
            run = self._writer(ruling.step, own, asked, found, verdict, ready=ready)
            self._queue.submit(Job(Rank.SUPPORT, key, partial(self._try, key, own, ruling.step, run)))
        return None

    def _placed(self, uid: str, found: Reservation) -> Gate | None:
        """Return the open gate of this admission, if what was read is of it."""
        of, gate = self._places.get(uid, (None, None))
        same = of is not None and (of.uid, of.flavors, of.updates) == (
            found.uid,
            found.flavors,
            found.updates,
        )
        return gate if same else None

    def forget(self, uid: str) -> None:
        """Drop what is remembered of a workload that is gone; its Workload goes with its owner."""
        self._places.pop(uid, None)
        self._troubles.pop(uid, None)
        self._backoff.succeed(f"kueue {uid}")

    # -- writes ---------------------------------------------------------------------------------------------

    def _writer(
        self,
        step: Step,
        workload: Workload,
        asked: manifests.Ask,
        found: Reservation | None,
        verdict: tuple[str, str],
        *,
        ready: bool,
    ) -> Callable[[], Awaitable[None]]:
        if found is None:
            return partial(self._create, workload, asked)
        now = self._clock.now()
        match step:
            case Step.RELEASE:
                return partial(self._patch, found, manifests.released(found, now))
            case Step.FINISH:
                reason = "Succeeded" if verdict[0] == "Succeeded" else "Failed"
                return partial(self._patch, found, manifests.finished(found, reason, verdict[1], now))
            case Step.TELL_READY:
                return partial(self._patch, found, manifests.pods_ready(found, now, ready=ready))
            case Step.PLACE:
                return partial(self._read_places, workload, found)
            case _:
                return partial(self._delete, found)

    async def _try(
        self, key: str, workload: Workload, step: Step, run: Callable[[], Awaitable[None]]
    ) -> None:
        try:
            await run()
        except LlmosError as error:
            self._backoff.fail(key, self._clock.monotonic())
            self._troubles[workload.uid] = f"Kueue: {step} failed: {error}"
            log.warning("not done with Kueue", workload=workload.key, step=step, error=error)
        else:
            self._backoff.succeed(key)
            self._troubles.pop(workload.uid, None)
            log.info("done with Kueue", workload=workload.key, step=step)
        self._review(workload.key)

    async def _create(self, workload: Workload, asked: manifests.Ask) -> None:
        body = manifests.build(workload, asked, await self._priority(workload))
        made = await self._port.create(ports.KUEUE_WORKLOADS, body, namespace=workload.namespace)
        self._mirror.observe("ADDED", made)

    async def _priority(self, workload: Workload) -> manifests.Priority | None:
        name = workload.kueue_priority
        if name:
            try:
                found = await self._port.get(ports.KUEUE_PRIORITIES, name)
            except NotFound as error:
                text = f"label {names.LABEL_KUEUE_PRIORITY}: there is no WorkloadPriorityClass {name}; create it or name another"
                raise Permanent(text, reason="PriorityClassNotFound") from error
            return manifests.Priority(name, int(found.get("value", 0)), kueue=True)
        if workload.priority_class:
            value = self._store.snapshot().priority_of(workload)
            return manifests.Priority(workload.priority_class, value, kueue=False)
        return None

    async def _delete(self, found: Reservation) -> None:
        try:
            await self._port.delete(
                ports.KUEUE_WORKLOADS, found.name, namespace=found.namespace, uid=found.uid
            )
        except NotFound:
            return

    async def _patch(self, found: Reservation, patch: Json) -> None:
        made = await self._port.merge_patch(
            ports.KUEUE_WORKLOADS, found.name, patch, namespace=found.namespace, subresource="status"
        )
        self._mirror.observe("MODIFIED", made)

    async def _read_places(self, workload: Workload, found: Reservation) -> None:
        selectors: list[Requirement] = list(found.updates)
        tolerated: list[Toleration] = []
        for name in found.flavors:
            labels, tolerations = convert.flavor(await self._port.get(ports.KUEUE_FLAVORS, name))
            selectors += labels
            tolerated += tolerations
        self._places[workload.uid] = (
            found,
            Gate(closed=False, node_selector=tuple(dict.fromkeys(selectors)), tolerations=tuple(tolerated)),
        )


def _is(found: Reservation, meta: Json) -> bool:
    return (found.namespace, found.name) == (meta.get("namespace"), meta.get("name"))
