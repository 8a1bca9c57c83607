"""A cluster to look at: 1,000 GPUs with tenants, queues, sick devices and work that waits, and a console that shows it."""

from __future__ import annotations

import math
import random
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry

from llmos_operator.api.runtime.messages import RequestStats, RuntimeState, RuntimeStatus
from llmos_operator.api.telemetry import Verdict
from llmos_operator.clock import FakeClock, rfc3339
from llmos_operator.control.accounting import Accounts
from llmos_operator.control.console.history import EVERY_SECONDS, SAMPLES
from llmos_operator.control.console.server import ConsoleServer
from llmos_operator.control.metrics import OperatorMetrics
from llmos_operator.control.records import Record, Records
from llmos_operator.control.remedies import Remedies
from llmos_operator.control.working import DeviceWork
from llmos_operator.scheduler.policy import Policy
from llmos_operator.state.replicas import Replica
from llmos_operator.state.telemetry import Reading
from llmos_operator.state.types import Kind, Queue
from tests.support.builders import GIB, NOW, a_cluster, a_node, a_workload

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from llmos_operator.state.ledger import DeviceState
    from tests.support.builders import ClusterBuilder, WorkloadBuilder

SECRET = "hunter2hunter2"
HOSTILE = "<img src=x onerror=alert(1)>"
_PRODUCTS = (("H100-80G", 40), ("A100-80G", 60), ("L4-24G", 25))
_WATTS = {"H100-80G": 700, "A100-80G": 400, "L4-24G": 72}
_NAMES = ("chat", "search", "vision", "code", "speech", "rank", "draft", "agents")
_QUEUES = (("research", 400_000), ("product", 480_000), ("evaluation", 60_000))


@dataclass
class Shown:
    """A console and what stands behind it."""

    cluster: ClusterBuilder
    records: Records
    accounts: Accounts
    clock: FakeClock
    server: ConsoleServer
    leading: bool = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.port}/"

    def tell(self, key: str, **status: Any) -> None:
        """Let the API show a status of a workload."""
        workload = self.cluster.store.workload(key)
        record = self.records.get(key) or Record(key, workload.uid, 1, 0.0, workload)
        record.status = {"observedGeneration": 1, **status}
        self.records.put(record)

    async def remember(self, ago: float = 0.0, **stats: int) -> None:
        """Let the history have a sample of some seconds ago, at which a replica told of its requests."""
        then = self.clock.now() - ago
        self.records.put_replica(Replica("team-a/front-0", "uid-front-0", "uid-front"))
        report = RuntimeStatus(state=RuntimeState.READY, requests=RequestStats(**stats))
        self.records.put_report("uid-front-0", report, then)
        await self.server.history.sample(self.cluster.snapshot(), then)

    def later(self) -> None:
        """Let so much time pass that everything is put together anew."""
        self.clock.advance(2.0)


@asynccontextmanager
async def shown(cluster: ClusterBuilder) -> AsyncIterator[Shown]:
    """Serve a console of a cluster on a free port of loopback."""
    for kind in Kind:
        cluster.store.mark_synced(kind)
    records, clock, metrics = Records(), FakeClock(NOW), OperatorMetrics(CollectorRegistry())
    accounts, remedies = Accounts(metrics, records, DeviceWork()), Remedies(metrics)
    for seconds in (0.0, 60.0):
        remedies.look(cluster.snapshot(), seconds)
    found: list[Shown] = []
    server = ConsoleServer(
        cluster.store,
        records,
        accounts,
        remedies,
        clock,
        rack_label=Policy().rack_label,
        leading=lambda: found[0].leading,
    )
    found.append(Shown(cluster, records, accounts, clock, server))
    await server.start("127.0.0.1", 0)
    try:
        yield found[0]
    finally:
        await server.close()


def a_fleet() -> ClusterBuilder:
    """Return 125 nodes of 8 devices and three queues."""
    nodes = []
    for product, count in _PRODUCTS:
        nodes += [
            a_node(f"{product.partition('-')[0].lower()}-{i:03}")
            .with_gpus(8, product)
            .drawing(_WATTS[product])
            for i in range(count)
        ]
    for number, node in enumerate(nodes[:8]):
        node.within_watts(4500, f"r{number // 4}", 19_000)
    nodes[9].held_down(1, 300).held_down(6, 850).ageing(6, 120)
    nodes[3].unhealthy(5, "FallenOffBus")
    nodes[50].with_device(2, verdict=Verdict.DEGRADED, reason="Throttled")
    nodes[70].not_ready()
    nodes[90].cordoned()
    nodes[110].last_heard(600)
    queues = [Queue(name, nominal_gpu_milli=milli, weight=2) for name, milli in _QUEUES]
    return a_cluster(*nodes, *queues).with_priorities(batch=-100, standard=100, prod=1000)


def populate(fleet: Shown, seed: int = 7) -> None:
    """Put work onto about three quarters of the fleet, and let devices be used."""
    rng = random.Random(seed)
    cluster = fleet.cluster
    for number, (name, state) in enumerate(sorted(cluster.snapshot().nodes.items())):
        index = 0
        while index < 8:
            take = rng.choice((1, 1, 2, 4, 8))
            if index + take > 8 or rng.random() < 0.25:
                index += 1
                continue
            space = f"team-{rng.choice('abcd')}"
            base = a_workload(f"{rng.choice(_NAMES)}-{number}-{index}", space).in_queue(
                rng.choice(_QUEUES)[0]
            )
            _run(fleet, rng, base.priority("prod"), name, list(range(index, index + take)))
            index += take
        readings = []
        for one in state.devices:
            held = cluster.store.node(name).devices[one.device.index].claims
            used = int(one.device.memory_bytes * (rng.uniform(0.45, 0.92) if held else 0.004))
            busy = rng.choice((0, 35, 60, 85, 97)) if held else 0
            readings.append(_reading(one, used, busy))
        heard = cluster.store.snapshot().heard.get(name)
        if heard is not None and heard >= NOW - 60:
            cluster.store.observe(name, readings, NOW)
            fleet.accounts.sampled(readings)
    _waiting(fleet)


def _reading(one: DeviceState, used: int, busy: int) -> Reading:
    """Return a sample of a device; power follows from how busy it is."""
    limit = one.device.limit_milliwatts or 0
    return Reading(
        one.uuid,
        used,
        one.device.memory_bytes,
        busy_percent=busy,
        power_milliwatts=limit * (12 + busy * 8 // 10) // 100,
        throttled_milli=one.throttled_milli or None,
        risk_milli=one.risk_milli or None,
    )


def _run(fleet: Shown, rng: random.Random, work: WorkloadBuilder, node: str, devices: list[int]) -> None:
    size = fleet.cluster.store.node(node).devices[0].device.memory_bytes
    shared = len(devices) == 1 and rng.random() < 0.5
    memory = f"{int(size * rng.uniform(0.5, 0.95)) // GIB}Gi" if not shared else f"{size // GIB // 3}Gi"
    made = [work.shared() if shared else work.gpus(len(devices))]
    if shared and rng.random() < 0.6:
        other = a_workload(f"{work.value.name}-b", work.value.namespace).in_queue(work.value.queue)
        made.append(other.shared())
    for one in made:
        pod = fleet.cluster.running(one, node, devices, memory=memory)
        key = pod.claim.workload
        fleet.tell(
            key,
            phase="Running",
            summary={"ready": "1/1", "queue": one.value.queue, "priority": "1000", "nodes": node},
            model={"quantization": rng.choice(("bf16", "int8", "fp8"))},
            decision={"reason": "Bound", "message": f"bf16 on node {node}, best fit of 12 candidates"},
            usage={"gpuSeconds": rng.randrange(10_000, 9_000_000), "tokens": rng.randrange(10**8)},
        )


async def an_hour(fleet: Shown, seed: int = 11) -> None:
    """Let the fleet have been busy in waves for an hour, with a server that answers and was started anew once."""
    rng = random.Random(seed)
    states = list(fleet.cluster.snapshot().nodes.values())
    asked = waited = 0
    for number in range(SAMPLES):
        wave = 0.5 + 0.5 * math.sin(number / 19)
        for state in states:
            readings = [
                _reading(one, one.observed_bytes or 0, _wave(rng, one, wave)) for one in state.devices
            ]
            fleet.accounts.sampled(readings)
        requests = int(90 * wave) + rng.randrange(12)
        asked, waited = asked + requests, waited + requests * (140 + int(500 * wave**4))
        if number == SAMPLES // 2:
            asked = waited = 0
        ago = (SAMPLES - 1 - number) * EVERY_SECONDS
        await fleet.remember(ago, running=requests, first_tokens=asked, first_token_millis=waited)


def _wave(rng: random.Random, one: DeviceState, wave: float) -> int:
    return int(min(100, rng.uniform(0.4, 1.2) * 100 * wave)) if one.claims else 0


def misbehave(fleet: Shown) -> None:
    """Let a tenant bring what must not be shown, or not as markup."""
    _wait(fleet, "hostile", "Failed", "LoadFailed", f"{HOSTILE} token={SECRET}")


def _waiting(fleet: Shown) -> None:
    text = "needs 140 GiB per device at int4; the largest device has 80 GiB"
    _wait(fleet, "giant", "Pending", "LargerThanAnyDevice", text)
    text = "3 of 8 pods fit at once, each with bf16 (71 GiB): 94 DevicesInUse"
    _wait(fleet, "train-70b", "Pending", "NoCapacity", text)


def _wait(fleet: Shown, name: str, phase: str, reason: str, message: str) -> None:
    work = a_workload(name, "team-a").in_queue("research").gpus(8).replicas(8)
    fleet.cluster.add(work.serving(f"https://user:{SECRET}@models.example/{name}?sig={SECRET}"))
    turned_away = {"reason": "DevicesInUse", "count": 94, "message": "8 wanted, 3 free on h100-004"}
    condition = {"type": "Scheduled", "status": "False", "reason": reason, "message": message}
    told = {"reason": reason, "message": message}
    fleet.tell(
        f"team-a/{name}",
        phase=phase,
        summary={"ready": "0/8", "queue": "research", "priority": "100"},
        decision={**told, "time": rfc3339(NOW - 300), "rejected": [turned_away]},
        failure={**told, "time": rfc3339(NOW - 200)} if phase == "Failed" else None,
        conditions=[{**condition, "lastTransitionTime": rfc3339(NOW - 900)}],
    )
