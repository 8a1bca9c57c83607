"""An executor on an in-memory cluster, and ears for what it says."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from random import Random
from typing import TYPE_CHECKING, Any

from llmos_operator.actuators.care import CareWriter
from llmos_operator.actuators.deviceclaims import DeviceClaims
from llmos_operator.actuators.executor import Executor
from llmos_operator.actuators.support import ControlTokens, Support
from llmos_operator.actuators.writequeue import WriteQueue
from llmos_operator.api.conditions import Reason
from llmos_operator.clock import FakeClock
from llmos_operator.cluster.backoff import Curve, KeyedBackoff
from llmos_operator.cluster.fake import FakeCluster
from llmos_operator.cluster.mirror import Change, Mirror
from llmos_operator.cluster.port import PODS, RESOURCE_CLAIMS, SERVICES
from llmos_operator.cluster.retry import ONCE, Retrier
from llmos_operator.scheduler.plan import Bind, Evict, Grow, Move, Plan, Restore, Shrink, Sleep, Wake
from llmos_operator.settings import ResourceClaimSettings
from llmos_operator.state import convert
from llmos_operator.state.breaker import Breaker
from llmos_operator.state.store import Store
from llmos_operator.state.types import GpuNode, Node, Pod
from tests.support.builders import a_node
from tests.support.replicas import SETTINGS, a_claim_of, a_work

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from llmos_operator.actuators.outcomes import Retire


class Heard:
    """Notes every outcome."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.errors: list[Exception] = []
        self.retry_at = 0.0

    def bound(self, bind: Bind) -> None:
        self.said.append(f"bound {bind.claim.pod}")

    def bind_failed(self, bind: Bind, error: Exception) -> None:
        self.said.append(f"failed {bind.claim.pod}")
        self.errors.append(error)

    def bind_delayed(self, bind: Bind, error: Exception, seconds: float) -> None:
        assert seconds > 0
        self.said.append(f"delayed {bind.claim.pod}")
        self.errors.append(error)

    def evicted(self, evict: Evict) -> None:
        self.said.append(f"evicted {evict.pod}")

    def eviction_refused(self, evict: Evict, error: Exception, retry_at: float) -> None:
        self.said.append(f"refused {evict.pod}")
        self.errors.append(error)
        self.retry_at = retry_at

    def moved(self, move: Move) -> None:
        self.said.append(f"moved {move.pod}")

    def move_refused(self, move: Move, error: Exception, retry_at: float) -> None:
        self.said.append(f"not moved {move.pod}")
        self.errors.append(error)
        self.retry_at = retry_at

    def shrunk(self, shrink: Shrink) -> None:
        self.said.append(f"shrunk {shrink.pod}")

    def yielded(self, pod: Pod) -> None:
        self.said.append(f"yielded {pod.key}")

    def not_shrunk(self, pod: Pod, why: str) -> None:
        assert why
        self.said.append(f"not shrunk {pod.key}")

    def restored(self, restore: Restore) -> None:
        self.said.append(f"restored {restore.pod}")

    def grown(self, grow: Grow) -> None:
        self.said.append(f"grown {grow.workload}")

    def put_to_sleep(self, sleep: Sleep) -> None:
        self.said.append(f"put to sleep {sleep.pod}")

    def fell_asleep(self, pod: Pod) -> None:
        self.said.append(f"fell asleep {pod.key}")

    def not_slept(self, pod: Pod, why: str) -> None:
        assert why
        self.said.append(f"not slept {pod.key}")

    def woken(self, wake: Wake) -> None:
        self.said.append(f"woken {wake.pod}")

    def retired(self, retire: Retire) -> None:
        self.said.append(f"retired {retire.pod}")

    def settled(self, workload: str) -> None:
        self.said.append(f"settled {workload}")


class Bench:
    """An executor on an in-memory cluster with one node of two devices."""

    def __init__(self) -> None:
        self.clock = FakeClock()
        self.port = FakeCluster(self.clock)
        self.store = Store(claims_devices=True)
        self.heard = Heard()
        self.leading = True
        node = a_node("n1").with_gpus(2, "A-80G").with_host()
        assert isinstance(node.node, Node)
        assert isinstance(node.gpus, GpuNode)
        self.store.apply_node(node.node)
        self.store.apply_gpu_node(node.gpus)
        self.mirror = Mirror(PODS, self._sink)
        self.delays: list[float] = []
        self.kept: list[Callable[[], None]] = []  # calls whose time comes when the test says so
        self.patient = False
        self.queue = WriteQueue(4, lambda: self.leading, later=self._later)

        retrier = Retrier(Random(1), ONCE)
        services = Mirror(SERVICES, lambda *_: None)
        support = Support(self.port, retrier, services, ControlTokens(b"k" * 16), "llmos-runtime-control")
        self.claims = Mirror(RESOURCE_CLAIMS, self._claim_shown)
        self.device_claims = DeviceClaims(
            self.port,
            self.store,
            self.queue,
            retrier,
            self.claims,
            self.clock,
            KeyedBackoff(Curve(base=1.0, cap=8.0), Random(1)),
            ResourceClaimSettings(enabled=True),
        )
        self.care, self.breaker = CareWriter(self.port, self.store), Breaker()
        self.executor = Executor(
            port=self.port,
            store=self.store,
            queue=self.queue,
            retrier=retrier,
            pods=self.mirror,
            support=support,
            device_claims=self.device_claims,
            outcomes=self.heard,
            settings=SETTINGS,
            care=self.care,
            breaker=self.breaker,
            clock=self.clock,
            evictions=KeyedBackoff(Curve(base=2.0, cap=30.0), Random(1)),
            creations=KeyedBackoff(Curve(base=1.0, cap=8.0), Random(1)),
            is_simulated=lambda _: True,
        )

    def _later(self, seconds: float, call: Callable[[], None]) -> None:
        self.delays.append(seconds)
        if self.patient:
            self.kept.append(call)
        else:
            asyncio.get_running_loop().call_soon(call)

    def _sink(self, change: Change, body: dict[str, Any]) -> None:
        if change is Change.APPLIED:
            self.store.apply_pod(convert.pod(body))
        else:
            meta = body["metadata"]
            self.store.delete_pod(f"{meta['namespace']}/{meta['name']}", meta["uid"])

    def _claim_shown(self, change: Change, body: dict[str, Any]) -> None:
        self.device_claims.note(body)
        if change is Change.APPLIED:
            self.store.apply_allocation(convert.resource_claim(body))
        else:
            self.store.delete_allocation(f"{body['metadata']['namespace']}/{body['metadata']['name']}")

    def bind(self, ordinal: int = 0, **spec: Any) -> Bind:
        work = a_work(**spec)
        self.store.apply_workload(work)
        claim = a_claim_of(work, ordinal, devices=(f"GPU-n1-{ordinal}",))
        return Bind(work, claim, score=1, reason=Reason.BOUND, explanation="fits")

    def carry_out(self, *actions: Any) -> int:
        return self.executor.carry_out(Plan(version=1, now=self.clock.now(), actions=actions))

    async def idle(self) -> None:
        async with asyncio.timeout(60):
            await self.queue.idle()

    def pods_created(self) -> int:
        return sum(1 for verb, plural, _ in self.port.calls if (verb, plural) == ("create", "pods"))


@asynccontextmanager
async def a_bench() -> AsyncIterator[Bench]:
    bench = Bench()
    task = asyncio.create_task(bench.queue.run())
    try:
        yield bench
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
