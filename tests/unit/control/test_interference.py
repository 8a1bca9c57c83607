"""Interference is learned from speeds that compare, alone and together; noise and changes of the load teach nothing."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

import pytest
from prometheus_client import CollectorRegistry

from llmos_operator.api.runtime.messages import RequestStats, RuntimeState, RuntimeStatus
from llmos_operator.control.interference import LEAST, WEEK, Interference
from llmos_operator.control.metrics import OperatorMetrics
from llmos_operator.control.records import Records
from llmos_operator.scheduler.interference import MOST, subject_of
from llmos_operator.state.types import Model, Pod, WorkloadKind
from tests.support.builders import NOW, ClusterBuilder, WorkloadBuilder, a_cluster, a_node, a_workload

POLL = 10.0

pytestmark = pytest.mark.anyio


@dataclass
class Pair:
    """Two models on one shared device: how fast `a` is alone, and how much of that it keeps beside `b`."""

    keeps: float = 1.0
    noise: float = 0.1
    seed: int = 0
    speed: float = 100.0
    now: float = NOW
    requests: int = 4  # of a
    cluster: ClusterBuilder = field(default_factory=lambda: a_cluster(a_node("n1").with_gpus(1)))

    def __post_init__(self) -> None:
        self.random = Random(self.seed)
        self.registry = CollectorRegistry()
        self.records = Records()
        self.learner = Interference(OperatorMetrics(self.registry), self.records)
        self.tokens = {"a": 0.0, "b": 0.0}
        self.pods = {name: self.runs(a_workload(name)) for name in ("a", "b")}

    def runs(self, workload: WorkloadBuilder) -> Pod:
        return self.cluster.running(workload.shared(), "n1", [0], memory="8Gi")

    async def works(self, seconds: float, together: bool) -> None:
        for _ in range(int(seconds / POLL)):
            speed = self.speed * (self.keeps if together else 1.0) * self.random.lognormvariate(0, self.noise)
            await self.poll({"a": speed, "b": 50.0 if together else 0.0})

    async def poll(self, speeds: dict[str, float]) -> None:
        self.now += POLL
        for name, speed in speeds.items():
            self.tokens[name] += speed * POLL
            running = (self.requests if name == "a" else 1) if speed else 0
            stats = RequestStats(running=running, generation_tokens=int(self.tokens[name]))
            report = RuntimeStatus(state=RuntimeState.READY, requests=stats)
            self.records.put_report(self.pods[name].uid, report, self.now)
        await self.learner.look(self.cluster.snapshot(), self.cluster.store, self.now)

    async def days(self, episodes: int = 8, seconds: float = 300.0) -> Pair:
        for _ in range(episodes):
            await self.works(seconds, together=False)
            await self.works(seconds, together=True)
        return self

    def lost(self) -> int:
        pair = tuple(subject_of(a_workload(name).value) for name in ("a", "b"))
        return self.cluster.snapshot().interference.get((pair[0], pair[1]), 0)


async def test_what_is_slower_together_than_alone_is_learned() -> None:
    pair = await Pair(keeps=0.6).days()
    assert 350 <= pair.lost() <= 450
    labels = {"model": "hf://org/a", "beside": "hf://org/b"}
    shown = pair.registry.get_sample_value("llmos_operator_interference_ratio", labels)
    assert shown == pytest.approx(pair.lost() / 1000)


@pytest.mark.parametrize("seed", range(20))
async def test_noise_alone_teaches_nothing(seed: int) -> None:
    pair = Pair(noise=Random(seed).choice([0.05, 0.2, 0.5]), seed=seed)
    for _ in range(3):
        await pair.days(4)
        assert pair.lost() == 0


async def test_a_little_is_nothing() -> None:
    assert (await Pair(keeps=0.97, noise=0.01).days()).lost() == 0


async def test_what_is_lost_is_bounded() -> None:
    assert (await Pair(keeps=0.001, noise=0.01, speed=1000.0).days()).lost() == MOST


async def test_few_samples_teach_nothing() -> None:
    pair = Pair(keeps=0.3, noise=0.01)
    for _ in range(4):
        await pair.works(POLL * (LEAST // 4), together=False)
        await pair.works(POLL * (LEAST // 8), together=True)
    assert pair.lost() == 0


async def test_one_change_of_speed_teaches_nothing_though_a_neighbour_came_then() -> None:
    pair = Pair(noise=0.01)
    await pair.works(3000, together=False)
    pair.speed = 40.0  # of requests that have grown longer
    await pair.works(3000, together=True)
    assert pair.lost() == 0


async def test_another_load_is_not_compared() -> None:
    pair = Pair(noise=0.01)
    for _ in range(8):
        pair.requests, pair.speed = 8, 200.0
        await pair.works(300, together=False)
        pair.requests, pair.speed = 1, 40.0
        await pair.works(300, together=True)
    assert pair.lost() == 0


async def test_a_neighbour_that_does_not_tell_makes_it_unclear() -> None:
    pair = Pair(keeps=0.5, noise=0.01)
    pair.runs(a_workload("c").with_(engine="custom"))
    await pair.days()
    assert pair.lost() == 0
    unclear = pair.registry.get_sample_value(
        "llmos_operator_interference_samples_total", {"company": "unclear"}
    )
    assert unclear
    assert unclear > LEAST


async def test_what_is_not_seen_any_more_is_forgotten() -> None:
    pair = await Pair(keeps=0.5, noise=0.01).days()
    assert pair.lost()
    pair.now += WEEK + 1
    await pair.poll({"a": 0.0, "b": 0.0})
    assert pair.lost() == 0


async def test_what_was_learned_moves_with_what_is_seen() -> None:
    pair = await Pair(keeps=0.4, noise=0.02).days()
    assert pair.lost() >= 550
    pair.keeps = 0.8
    await pair.days(40)
    assert 150 <= pair.lost() <= 250


async def test_the_same_evidence_again_makes_no_new_plan() -> None:
    pair = await Pair(keeps=0.6, noise=0.05).days()
    version = pair.cluster.store.version
    await pair.days(2)
    assert pair.cluster.store.version == version


async def test_serving_and_training_of_one_model_are_not_alike() -> None:
    tune = a_workload("a").with_(kind=WorkloadKind.FINE_TUNE).value
    assert subject_of(tune) != subject_of(a_workload("a").value)
    assert subject_of(a_workload("x").with_(model=Model("")).value) == ""
