"""Everything that brings facts in: reflectors for big kinds, kopf for ModelWorkloads and small ones, and the resync.

All of them feed one mirror per kind, so it does not matter who sees a change first. A kind is synced when its first
complete list has been passed on; kopf's kinds are listed here too, because kopf does not say when it is complete.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from llmos_operator.api import names
from llmos_operator.cluster import port as ports
from llmos_operator.cluster.mirror import Mirror
from llmos_operator.cluster.reflector import Reflector
from llmos_operator.control.intake import STORE_KINDS
from llmos_operator.control.resync import Resync, Source
from llmos_operator.errors import LlmosError
from llmos_operator.observability.logging import logger

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from llmos_operator.cluster.mirror import Change
    from llmos_operator.cluster.port import ClusterPort, Json, Kind
    from llmos_operator.control.intake import Intake
    from llmos_operator.control.metrics import OperatorMetrics
    from llmos_operator.state.store import Store

log = logger(__name__)

# Kind -> (label selector, field selector). Pods without a node hold nothing and are left out.
REFLECTED: dict[Kind, tuple[str, str]] = {
    ports.NODES: ("", ""),
    ports.GPU_NODES: ("", ""),
    ports.PODS: ("", "spec.nodeName!="),
    ports.MODEL_CACHES: ("", ""),
    ports.PRIORITY_CLASSES: ("", ""),
    ports.POD_DISRUPTION_BUDGETS: ("", ""),
    ports.NAMESPACES: ("", ""),
    ports.RESOURCE_SLICES: ("", ""),
    ports.RESOURCE_CLAIMS: ("", ""),
    ports.VOLUME_CLAIMS: ("", ""),
    ports.VOLUMES: ("", ""),
    ports.SERVICES: (f"{names.LABEL_MANAGED_BY}={names.MANAGED_BY}", ""),
}
# Kinds that an API server need not serve: then there are no objects of them.
_OPTIONAL = frozenset({ports.RESOURCE_SLICES, ports.RESOURCE_CLAIMS})
KOPF_KINDS = (ports.MODEL_WORKLOADS, ports.WORKLOAD_QUEUES, ports.MODEL_PROFILES)
# Kinds whose lost events would leave work undone are compared in every round, the others in every second one.
_EVERY_ROUND = frozenset({ports.PODS, ports.NODES, ports.MODEL_WORKLOADS})
STALE_ROUNDS = 3.0  # age of a view, in resync intervals, from which it is not fresh any more


class Watching:
    """Mirrors of all kinds and what feeds them."""

    def __init__(
        self,
        port: ClusterPort,
        store: Store,
        metrics: OperatorMetrics,
        rng: Random,
        *,
        sink: Callable[[Kind], Callable[[Change, Json], None]],
        interval: float,
        begin: Callable[[], int],
        confirmed: Callable[[int], None],
        synced: Callable[[], None],
    ) -> None:
        """`synced` is called when the last kind is complete; `begin` and `confirmed` are the resync's."""
        self._store = store
        self._metrics = metrics
        self._stale = interval * STALE_ROUNDS
        self._synced = synced
        self.mirrors = {kind: self._mirror(kind, sink(kind)) for kind in (*REFLECTED, *KOPF_KINDS)}
        self._reflectors = {
            kind: Reflector(
                port,
                mirror,
                label_selector=REFLECTED.get(kind, ("", ""))[0],
                field_selector=REFLECTED.get(kind, ("", ""))[1],
                rng=rng,
                on_recovery=self._recovered,
                optional=kind in _OPTIONAL,
            )
            for kind, mirror in self.mirrors.items()
        }
        self.resync = Resync(
            [
                Source(reflector, every=1 if kind in _EVERY_ROUND else 2, watched=kind in REFLECTED)
                for kind, reflector in self._reflectors.items()
            ],
            metrics,
            interval=interval,
            begin=begin,
            after=confirmed,
        )

    def _mirror(self, kind: Kind, sink: Callable[[Change, Json], None]) -> Mirror:
        def on_synced() -> None:
            log.info("listed", kind=kind.kind, objects=len(self.mirrors[kind]))
            if kind in STORE_KINDS:
                self._store.mark_synced(STORE_KINDS[kind])
            if all(mirror.synced for mirror in self.mirrors.values()):
                self._synced()

        return Mirror(kind, sink, on_synced=on_synced)

    def _recovered(self) -> None:
        self.resync.ask()

    async def run(self) -> None:
        """List and watch until cancelled."""
        async with asyncio.TaskGroup() as group:
            for kind in REFLECTED:
                group.create_task(self._reflectors[kind].run(), name=f"reflect {kind.plural}")
            for kind in KOPF_KINDS:
                group.create_task(self._first_list(kind), name=f"list {kind.plural}")
            group.create_task(self.resync.run(), name="resync")
            group.create_task(self._measure(), name="view age")

    async def _first_list(self, kind: Kind) -> None:
        while not self.mirrors[kind].synced:
            try:
                await self._reflectors[kind].refill()
            except LlmosError as error:
                log.warning("cannot list yet", kind=kind.kind, error=error)
                await asyncio.sleep(1.0)

    async def _measure(self) -> None:
        while True:
            for kind, mirror in self.mirrors.items():
                self._metrics.view_age.labels(kind.kind).set(mirror.age() if mirror.synced else -1)
            await asyncio.sleep(5.0)

    def deliver(self, kind: Kind, event_type: str, body: Json) -> None:
        """Take an event from kopf; on the loop's thread."""
        self.mirrors[kind].touch()
        self.mirrors[kind].observe(event_type, body)

    def check_synced(self) -> str:
        """Readiness: "" when every list is complete."""
        missing = [kind.kind for kind, mirror in self.mirrors.items() if not mirror.synced]
        return f"not listed yet: {', '.join(missing)}" if missing else ""

    def check_fresh(self) -> str:
        """Readiness: "" while every view had a sign of life not long ago."""
        old = [
            f"{kind.kind} ({mirror.age():.0f} s)"
            for kind, mirror in self.mirrors.items()
            if mirror.age() > self._stale
        ]
        return f"views are not fresh: {', '.join(old)}" if old else ""


def wired(
    intake: Intake, tap: Callable[[Kind, Change, Json], None]
) -> Callable[[Kind], Callable[[Change, Json], None]]:
    """Return sinks that tell ``tap`` of every change before the intake takes it."""

    def sink(kind: Kind) -> Callable[[Change, Json], None]:
        if kind == ports.MODEL_CACHES:  # of no part in decisions: what nodes keep stands in their GPUNodes
            return lambda change, body: tap(kind, change, body)
        take = intake.sink(kind)

        def both(change: Change, body: Json) -> None:
            tap(kind, change, body)
            take(change, body)

        return both

    return sink
