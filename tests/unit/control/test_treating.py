"""Treatments carried out on an in-memory cluster: written down, cordoned, reset, released; and across a restart."""

from __future__ import annotations

import asyncio
import random
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import CollectorRegistry

from llmos_operator.actuators.care import CareWriter
from llmos_operator.actuators.nursing import Nursing
from llmos_operator.actuators.writequeue import WriteQueue
from llmos_operator.api.telemetry import Verdict
from llmos_operator.clock import FakeClock
from llmos_operator.cluster import port as ports
from llmos_operator.cluster.events import EventRecorder
from llmos_operator.cluster.fake import FakeCluster
from llmos_operator.control.metrics import OperatorMetrics
from llmos_operator.control.remedies import Mode, Remedies
from llmos_operator.control.treating import Treating
from llmos_operator.scheduler.policy import Policy
from llmos_operator.state import convert
from llmos_operator.state.care import NODE, Phase
from llmos_operator.state.telemetry import Reading
from llmos_operator.telemetry.treatment import Course
from tests.support.builders import NOW, ClusterBuilder, NodeBuilder, a_cluster, a_node, a_workload, gpu

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from llmos_operator.state.care import Treatment

pytestmark = pytest.mark.anyio

JOB: dict[str, Any] = {"template": {"spec": {"containers": [{"name": "reset", "image": "reset:1"}]}}}


class Ward:
    """An operator's health part over a fleet of nodes of two devices, and the API it writes to."""

    def __init__(self, port: FakeCluster, nodes: int, mode: Mode, job: dict[str, Any]) -> None:
        self.port, self.clock = port, FakeClock(NOW)
        self.cluster: ClusterBuilder = a_cluster(*(a_node(f"n{i}").with_gpus(2) for i in range(nodes)))
        self.queue = WriteQueue(4, lambda: True)
        self.registry = CollectorRegistry()
        self.recorder = EventRecorder(port, self.clock, instance="test")
        metrics, policy = OperatorMetrics(self.registry), Policy()
        care = CareWriter(port, self.cluster.store)
        nursing = Nursing(port, self.queue, care, namespace="llmos", job=job, reset_ended=self._ended)
        course = Course(clean=300.0, hook=bool(job))
        self.treating = Treating(
            self.cluster.store, nursing, self.recorder, metrics, policy, course, act=mode == "Act"
        )
        self.remedies = Remedies(metrics, policy, mode=mode, treating=self.treating, recorder=self.recorder)

    def _ended(self, node: str, one: Treatment, failure: str) -> None:
        self.treating.reset_ended(node, one, failure)

    def restored(self, bodies: list[dict[str, Any]]) -> None:
        """Take GPUNodes as a new leader reads them."""
        for body in bodies:
            name = body["metadata"]["name"]
            devices = a_node(name).with_gpus(2).gpus
            assert devices is not None
            self.cluster.store._care.pop(name, None)
            self.cluster.store.apply_gpu_node(
                type(devices)(name, devices.devices, care=convert.gpu_node(body).care)
            )

    def verdict(self, node: str, verdict: Verdict, reason: str = "FallenOffBus", *devices: int) -> None:
        builder: NodeBuilder = a_node(node).with_gpus(2)
        for index in devices or (0,):
            builder.with_device(index, verdict=verdict, reason=reason)
        assert builder.gpus is not None
        self.cluster.store.apply_gpu_node(builder.gpus)

    async def look(self, seconds: float = 5.0, *, heard: bool = True) -> None:
        self.clock.advance(seconds)
        now = self.clock.now()
        for name in list(self.cluster.store.snapshot().nodes):
            if heard:
                self.cluster.store.observe(name, [Reading(gpu(name, i), 0, 1 << 36) for i in (0, 1)], now)
            body = await self.port.get(ports.NODES, name)
            state = self.cluster.store.node(name)
            assert state is not None
            assert state.node is not None
            cordoned = bool((body.get("spec") or {}).get("unschedulable"))
            builder = a_node(name).with_gpus(2)
            self.cluster.store.apply_node((builder.cordoned() if cordoned else builder).node)
        self.remedies.look(self.cluster.snapshot(), now)
        async with asyncio.timeout(60):
            await self.queue.idle()
        await self.recorder.flush()

    async def looks(self, seconds: float, step: float = 5.0) -> None:
        for _ in range(int(seconds / step)):
            await self.look(step)

    def phase(self, node: str, target: str = NODE) -> Phase | None:
        care = self.cluster.store.care(node)
        one = care.of(target) if care is not None else None
        return one.phase if one is not None else None

    async def cordoned(self, node: str) -> bool:
        body = await self.port.get(ports.NODES, node)
        return bool((body.get("spec") or {}).get("unschedulable"))

    async def jobs(self) -> list[dict[str, Any]]:
        return [
            one async for page in self.port.list_pages(ports.JOBS, namespace="llmos") for one in page.items
        ]

    def reasons(self) -> list[str]:
        return [event["reason"] for event in self.port.events]


@asynccontextmanager
async def a_ward(
    nodes: int = 1, mode: Mode = "Act", job: dict[str, Any] | None = None, port: FakeCluster | None = None
) -> AsyncIterator[Ward]:
    made = port or FakeCluster(FakeClock(NOW))
    if port is None:
        for i in range(nodes):
            await made.create(ports.NODES, {"metadata": {"name": f"n{i}"}, "spec": {}})
            await made.create(ports.GPU_NODES, {"metadata": {"name": f"n{i}"}})
    ward = Ward(made, nodes, mode, job or {})
    task = asyncio.create_task(ward.queue.run())
    try:
        yield ward
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_node_with_a_lost_device_is_cordoned_reset_watched_and_let_back() -> None:
    async with a_ward(job=JOB) as ward:
        ward.verdict("n0", Verdict.UNHEALTHY)
        await ward.look()
        assert ward.phase("n0") is None, "the verdict has to stand a moment"
        await ward.looks(15)
        assert await ward.cordoned("n0")
        assert ward.phase("n0") is Phase.RESETTING
        (job,) = await ward.jobs()
        assert job["spec"]["template"]["spec"]["nodeName"] == "n0"
        await ward.port.merge_patch(
            ports.JOBS,
            job["metadata"]["name"],
            {"status": {"conditions": [{"type": "Complete", "status": "True"}]}},
            namespace="llmos",
        )
        await ward.looks(15)
        assert ward.phase("n0") is Phase.WAITING
        ward.verdict("n0", Verdict.HEALTHY, "")
        await ward.look()
        assert ward.phase("n0") is Phase.PROBATION
        await ward.looks(290)
        assert ward.phase("n0") is Phase.PROBATION
        assert await ward.cordoned("n0")
        await ward.looks(20)
        assert ward.phase("n0") is Phase.RELEASED
        assert not await ward.cordoned("n0")
        assert len(await ward.jobs()) == 1
        words = ["Quarantined", "Resetting", "WaitingForRepair", "OnProbation", "Released"]
        assert [one for one in ward.reasons() if one in words] == words


@pytest.mark.parametrize("mode", ["Off", "DryRun"])
async def test_unless_told_to_act_nothing_is_written(mode: Mode) -> None:
    async with a_ward(mode=mode, job=JOB) as ward:
        before = len(ward.port.writes())
        ward.verdict("n0", Verdict.UNHEALTHY)
        await ward.looks(60)
        assert [call for call in ward.port.writes()[before:] if call[1] != "events"] == []
        assert bool(ward.remedies.proposals) == (mode == "DryRun")


async def test_a_reset_job_that_fails_is_told_and_leaves_the_node_to_a_person() -> None:
    async with a_ward(job=JOB) as ward:
        ward.verdict("n0", Verdict.UNHEALTHY, "GspError")
        await ward.looks(20)
        (job,) = await ward.jobs()
        conditions = [{"type": "Failed", "status": "True"}]
        name = job["metadata"]["name"]
        await ward.port.merge_patch(
            ports.JOBS, name, {"status": {"conditions": conditions}}, namespace="llmos"
        )
        await ward.looks(600)
        assert ward.phase("n0", gpu("n0", 0)) is Phase.WAITING
        assert "ResetFailed" in ward.reasons()
        assert len(await ward.jobs()) == 1
        assert not await ward.cordoned("n0"), "one sick device is no reason to close a node"


async def test_without_a_job_in_the_settings_none_is_ever_made() -> None:
    async with a_ward() as ward:
        ward.verdict("n0", Verdict.UNHEALTHY)
        await ward.looks(60)
        assert ward.phase("n0") is Phase.WAITING
        assert await ward.jobs() == []


async def test_a_restarted_operator_goes_on_where_the_former_one_was() -> None:
    async with a_ward(nodes=20, job=JOB) as ward:
        for i in range(4):
            ward.verdict(f"n{i}", Verdict.UNHEALTHY)
        await ward.looks(20)
        port = ward.port
        jobs = [job["metadata"]["name"] for job in await ward.jobs()]
        assert len(jobs) == 2
    async with a_ward(nodes=20, job=JOB, port=port) as again:
        bodies = [one async for page in port.list_pages(ports.GPU_NODES) for one in page.items]
        again.restored(bodies)
        for i in range(4):
            again.verdict(f"n{i}", Verdict.UNHEALTHY)
        await again.looks(30)
        assert [job["metadata"]["name"] for job in await again.jobs()] == jobs, "no Job is made twice"
        treated = [i for i in range(20) if again.phase(f"n{i}") is not None]
        assert treated == [0, 1], "the breaker counts what was done before"
        assert again.reasons().count("RemedyHeld") >= 2


async def test_out_of_mode_act_a_cordon_that_stays_is_told_until_somebody_lifts_it() -> None:
    async with a_ward() as ward:
        ward.verdict("n0", Verdict.UNHEALTHY)
        await ward.looks(20)
        assert await ward.cordoned("n0")
        assert "CordonLeft" not in ward.reasons()
        port = ward.port
    async with a_ward(mode="DryRun", port=port) as dry:
        dry.restored([one async for page in port.list_pages(ports.GPU_NODES) for one in page.items])
        dry.verdict("n0", Verdict.HEALTHY, "")
        care = dry.cluster.store.care("n0")
        assert care is not None
        assert care.cordoned
        await dry.looks(400, 20)
        assert dry.phase("n0") is Phase.RELEASED, "what has begun comes back"
        assert await dry.cordoned("n0"), "it has no right to lift it"
        (told,) = {one["note"] for one in port.events if one["reason"] == "CordonLeft"}
        assert told.endswith("kubectl uncordon n0")
        await port.merge_patch(ports.NODES, "n0", {"spec": {"unschedulable": None}})
        await dry.looks(20)
        care = dry.cluster.store.care("n0")
        assert care is not None
        assert not care.cordoned, "there is nothing of ours left to lift"


async def test_a_treatment_of_a_gpu_names_its_mig_instances() -> None:
    async with a_ward() as ward:
        node = a_node("n0").cut_into("1g.10gb", "2g.20gb")
        assert node.gpus is not None
        first, second = node.gpus.devices
        failed = replace(first, verdict=Verdict.UNHEALTHY, reason="GspError")
        ward.cluster.store.apply_gpu_node(replace(node.gpus, devices=(failed, second)))
        await ward.looks(20)
        assert ward.phase("n0", first.parent) is Phase.WAITING
        (note,) = [one["note"] for one in ward.port.events if one["reason"] == "Quarantined"]
        named = f"GPU {first.parent} with its MIG instances 1g.10gb {first.uuid}, 2g.20gb {second.uuid} ("
        assert note.startswith(named)


@pytest.mark.parametrize("seed", range(6))
async def test_in_a_storm_no_more_than_the_share_is_touched(seed: int) -> None:
    rng = random.Random(seed)
    nodes = rng.choice([5, 20, 30])
    async with a_ward(nodes=nodes, job=JOB) as ward:
        sick = rng.sample(range(nodes), max(1, round(nodes * rng.uniform(0.05, 1.0))))
        for i in sick:
            ward.verdict(f"n{i}", Verdict.UNHEALTHY, rng.choice(["FallenOffBus", "GspError", "DoubleBitEcc"]))
        await ward.looks(540, 20)
        treated = {name for name, care in ward.cluster.store.cares() if care.treatments}
        touched = {i for i in range(nodes) if await ward.cordoned(f"n{i}") or f"n{i}" in treated}
        assert 1 <= len(touched) <= max(1, nodes // 10)
        assert touched <= set(sick)
        held = ward.registry.get_sample_value("llmos_operator_breaker_held_nodes")
        assert held == len(sick) - len(touched)


async def test_a_person_who_uncordons_while_it_waits_is_not_overruled() -> None:
    async with a_ward() as ward:
        ward.verdict("n0", Verdict.UNHEALTHY)
        await ward.looks(20)
        await ward.looks(10)
        await ward.port.merge_patch(ports.NODES, "n0", {"spec": {"unschedulable": None}})
        await ward.looks(60)
        assert not await ward.cordoned("n0")
        ward.cluster.add(a_workload("w"))
        assert ward.phase("n0") is Phase.WAITING
