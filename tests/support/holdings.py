"""The operator's part that looks after holder pods, over an in-memory cluster, with a kubelet that gives devices as it likes."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry

from llmos_operator.actuators.holders import HolderWriter
from llmos_operator.actuators.writequeue import WriteQueue
from llmos_operator.api import names
from llmos_operator.clock import FakeClock
from llmos_operator.cluster.backoff import Curve, KeyedBackoff
from llmos_operator.cluster.events import EventRecorder
from llmos_operator.cluster.fake import FakeCluster
from llmos_operator.cluster.mirror import Change, Mirror
from llmos_operator.cluster.port import PODS
from llmos_operator.control.holding import Holding
from llmos_operator.control.metrics import OperatorMetrics
from llmos_operator.manifests.holder import HolderPodSettings
from llmos_operator.scheduler.cycle import plan
from llmos_operator.scheduler.policy import Policy
from llmos_operator.state import convert
from llmos_operator.state.types import PodPhase
from tests.support.builders import NOW, ClusterBuilder

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from llmos_operator.scheduler.plan import Plan
    from llmos_operator.state.types import Pod

SYSTEM = names.SYSTEM_NAMESPACE
REST = 30.0


class Bench:
    """A cluster, its API, and one operator's view of holder pods."""

    def __init__(self, port: FakeCluster, cluster: ClusterBuilder, owner: str) -> None:
        self.port, self.cluster, self.clock = port, cluster, FakeClock(NOW)
        self.queue = WriteQueue(4, lambda: True)
        self.recorder = EventRecorder(port, self.clock, instance="test")
        self.pods = Mirror(PODS, self._saw)
        self.restart(owner)

    def restart(self, owner: str = "") -> None:
        """Let the part begin anew, as in a process that has just begun to lead."""
        self.registry = CollectorRegistry()
        writer = HolderWriter(
            self.port,
            self.cluster.store,
            self.queue,
            self.pods,
            self.clock,
            KeyedBackoff(Curve(base=1.0, cap=60.0), Random(0)),
            HolderPodSettings(SYSTEM, "image"),
            owner=owner,
            done=self._done,
            refused=self._refused,
        )
        self.holding = Holding(
            self.cluster.store,
            writer,
            self.recorder,
            OperatorMetrics(self.registry),
            self.clock,
            rest=REST,
            gpu_node_uid=lambda _: "",
        )

    def _done(self, result: str) -> None:
        self.holding.done(result)

    def _refused(self, node: str, why: str) -> None:
        self.holding.refused(node, why)

    def _saw(self, change: Change, body: dict[str, Any]) -> None:
        if change is Change.DELETED:
            meta = body["metadata"]
            self.cluster.store.delete_pod(f"{meta['namespace']}/{meta['name']}", meta["uid"])
        else:
            self.cluster.store.apply_pod(convert.pod(body, holders_in=SYSTEM))

    def plan(self) -> Plan:
        return plan(self.cluster.snapshot(), Policy(), NOW)

    async def turn(self, seconds: float = 0.0, *, planned: bool = True) -> None:
        """Let time pass, plan, and let the operator do what it wants to holder pods; its deletions are seen."""
        self.clock.advance(seconds)
        self.holding.turn(self.plan() if planned else None)
        await asyncio.wait_for(self.queue.idle(), 90)
        await self.see()

    async def see(self) -> None:
        """Let kubelets end what was deleted, and the watch show which pods are there."""
        async for page in self.port.list_pages(PODS, namespace=SYSTEM):
            for one in page.items:
                if "deletionTimestamp" in one["metadata"]:
                    self.port.finish_deletion(PODS, one["metadata"]["name"], SYSTEM)
        found = set(await self.names())
        for pod in self.cluster.store.holders():
            if pod.key not in found:
                self.cluster.store.delete_pod(pod.key, pod.uid)

    async def names(self) -> list[str]:
        """Return the keys of the pods of the operator's namespace."""
        found = [
            f"{SYSTEM}/{one['metadata']['name']}"
            async for page in self.port.list_pages(PODS, namespace=SYSTEM)
            for one in page.items
        ]
        return sorted(found)

    def holders(self) -> tuple[Pod, ...]:
        return self.cluster.store.holders()

    def give(self, slot: int, device: int, node: str = "n1") -> None:
        """Let the kubelet tell that a holder pod got a device."""
        self.cluster.tells(node, {device: (f"{SYSTEM}/{names.holder_name(node, slot)}",)})

    def fail(self, pod: Pod) -> None:
        """Let the kubelet refuse a pod."""
        self.cluster.store.apply_pod(replace(pod, phase=PodPhase.FINISHED, failed=True))

    async def events(self) -> list[str]:
        """Return reason and note of all Events so far."""
        await self.recorder.flush()
        return [f"{one['reason']}: {one['note']}" for one in self.port.events]

    def counted(self, state: str) -> float | None:
        return self.registry.get_sample_value("llmos_operator_holders", {"state": state})


@asynccontextmanager
async def a_bench(cluster: ClusterBuilder, owner: str = "") -> AsyncIterator[Bench]:
    made = Bench(FakeCluster(), cluster, owner)
    running = asyncio.create_task(made.queue.run())
    try:
        yield made
    finally:
        running.cancel()
