from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from llmos_operator.api.conditions import Reason
from llmos_operator.api.runtime.messages import RequestStats, RuntimeState, RuntimeStatus
from llmos_operator.api.telemetry import DemandBatch, DemandItem
from llmos_operator.control.autoscale import FRESH_SECONDS, Scalers
from llmos_operator.control.demand import LOST_SECONDS, DemandBook
from llmos_operator.control.records import Record, Records
from llmos_operator.manifests.observed import Scaling
from llmos_operator.state.replicas import Replica
from tests.support.builders import NOW, ClusterBuilder, WorkloadBuilder, a_cluster, a_node, a_workload

SLOTS = 4
SERVICE = 4  # seconds a request takes: one request per second and replica
SPEC: dict[str, Any] = {
    "scaling": {"minReplicas": 1, "maxReplicas": 12},
    "slo": {"ttft": "4s"},
}


@dataclass
class Stage:
    """A workload whose replicas serve as fast as they can, and a gateway that tells what arrives."""

    spec: dict[str, Any] = field(default_factory=lambda: SPEC)
    now: float = NOW
    waiting: float = 0.0
    wanted: int = 1
    verdict: Scaling = field(default_factory=Scaling)
    gateway: bool = True
    runtimes: bool = True
    works: str = ""  # what shows that it works without requests
    sizes: list[int] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.cluster: ClusterBuilder = a_cluster(a_node("n1").with_gpus(16, "A100-80G"))
        self.workload: WorkloadBuilder = a_workload("chat").with_(spec=self.spec, max_num_seqs=SLOTS)
        self.cluster.add(self.workload)
        self.records, self.book = Records(), DemandBook()
        value = self.workload.value
        self.record = Record(value.key, value.uid, 1, NOW, value)
        self.records.put(self.record)
        self.scalers = Scalers(
            self.cluster.store, self.records, self.book, lambda _uri, _revision: 20.0, self.working
        )
        self.done: dict[str, float] = {}
        self.recent: list[float] = []
        self.resize()

    def working(self, _uid: str) -> str:
        return self.works

    def resize(self) -> None:
        """Let as many replicas run as are wanted; a cold start takes no time here."""
        key = self.workload.value.uid
        have = sorted(self.cluster.store.pods_of(key), key=lambda pod: pod.claim.ordinal if pod.claim else 0)
        for ordinal in range(len(have), self.wanted):
            self.cluster.running(self.workload, "n1", (ordinal,), ordinal)
        for pod in have[self.wanted :]:
            self.cluster.store.delete_pod(pod.key)
            self.records.drop_replica(pod.key)
            self.done.pop(pod.uid, None)

    def second(self, arrived: int) -> None:
        """One second passes in which ``arrived`` requests come."""
        self.now += 1.0
        pods = self.cluster.store.pods_of(self.workload.value.uid)
        served = min(self.waiting + arrived, len(pods) * SLOTS / SERVICE)
        self.waiting += arrived - served
        self.recent = [*self.recent[1 - SERVICE :], served]
        busy = round(sum(self.recent))
        if self.runtimes:
            for pod in pods:
                self.done[pod.uid] = self.done.get(pod.uid, 0.0) + served / len(pods)
                if int(self.now) % 10 == 0:
                    self.report(pod.key, pod.uid, round(busy / len(pods)), int(self.done[pod.uid]))
        if self.gateway and (arrived or self.waiting or busy):
            item = DemandItem(
                namespace="default", name="chat", waiting=int(self.waiting), in_flight=busy, requests=arrived
            )
            self.book.take(DemandBatch(gateway="a", items=[item]), self.now)
        self.look()

    def report(self, pod: str, uid: str, running: int, finished: int) -> None:
        self.records.put_replica(Replica(pod, uid, self.workload.value.uid, running=True, ready=True))
        stats = RequestStats(running=running, finished=finished, generation_tokens=finished * 50)
        self.records.put_report(uid, RuntimeStatus(state=RuntimeState.READY, requests=stats), self.now)

    def look(self) -> None:
        found = self.scalers.scale(self.record, self.workload.value, self.now)
        assert found is not None
        if found.verdict.message != self.verdict.message:
            self.messages.append(found.verdict.message)
        self.wanted, self.idle, self.verdict = found.replicas, found.dozes, found.verdict
        self.lends = found.lends
        self.sizes.append(self.wanted)
        self.resize()

    def run(self, seconds: int, rate: float) -> None:
        owed = 0.0
        for _ in range(seconds):
            owed += rate
            self.second(int(owed))
            owed -= int(owed)


def test_replicas_follow_the_rate_and_the_queue_stays_empty() -> None:
    stage = Stage()
    stage.run(600, 1.0)
    assert stage.wanted <= 3
    stage.run(900, 4.0)
    assert 5 <= stage.wanted <= 9  # four serve it on average; one more waits for nobody
    assert stage.waiting < 1.0
    assert stage.verdict.reason is Reason.SCALING
    assert "requests/s" in stage.verdict.message


def test_an_even_rate_moves_nothing_and_writes_nothing() -> None:
    stage = Stage()
    stage.run(1200, 3.0)
    settled, said = stage.wanted, len(stage.messages)
    stage.run(900, 3.0)
    assert set(stage.sizes[-900:]) == {settled}
    assert len(stage.messages) == said


def test_without_reports_of_the_runtimes_the_number_is_kept() -> None:
    stage = Stage()
    stage.run(900, 4.0)
    before = stage.wanted
    stage.runtimes = stage.gateway = False
    stage.run(int(FRESH_SECONDS) + 60, 0.0)
    assert stage.wanted == before
    assert stage.verdict.reason is Reason.SIGNALS_STALE
    assert "no report from" in stage.verdict.message
    stage.run(1800, 0.0)
    assert stage.wanted == before


def test_a_gateway_that_falls_silent_in_traffic_is_not_taken_for_quiet() -> None:
    book = DemandBook()
    busy = DemandItem(namespace="default", name="chat", waiting=0, in_flight=3, requests=2)
    book.take(DemandBatch(gateway="a", items=[busy]), NOW)
    assert book.demand("default/chat", NOW + 1).lost == ""
    assert "gateway a" in book.demand("default/chat", NOW + 10).lost
    assert book.demand("default/chat", NOW + LOST_SECONDS + 10).lost == ""
    quiet = busy.model_copy(update={"in_flight": 0, "requests": 0})
    book.take(DemandBatch(gateway="a", items=[quiet]), NOW + 200)
    assert book.demand("default/chat", NOW + 210).lost == ""


def test_a_lost_gateway_means_nothing_where_every_runtime_says_it_is_idle() -> None:
    spec = {"scaling": {"minReplicas": 0, "maxReplicas": 4, "idle": {"scaleToZeroAfter": "30s"}}}
    stage = Stage(spec)
    stage.run(60, 0.5)
    stage.gateway = False
    for _ in range(70):
        stage.now += 1.0
        for pod in stage.cluster.store.pods_of(stage.workload.value.uid):
            stage.report(pod.key, pod.uid, 0, 30)
        stage.look()
    assert stage.wanted == 0
    assert stage.verdict.reason is Reason.SCALED_TO_ZERO


def test_zero_comes_after_the_idle_time_and_the_first_request_starts_one_replica() -> None:
    spec = SPEC | {"scaling": {"minReplicas": 0, "maxReplicas": 8, "idle": {"scaleToZeroAfter": "5m"}}}
    stage = Stage(spec)
    stage.run(900, 3.0)
    assert stage.wanted >= 3
    stage.run(290, 0.0)
    assert stage.wanted >= 1
    stage.run(120, 0.0)
    assert stage.wanted == 0
    stage.now += 3600.0
    stage.second(1)
    assert stage.wanted == 1


def test_a_device_that_works_without_requests_keeps_the_last_replica() -> None:
    spec = {"scaling": {"minReplicas": 0, "maxReplicas": 4, "idle": {"scaleToZeroAfter": "30s"}}}
    stage = Stage(spec)
    stage.works = "a device of its own works: 80 % of its range of power drawn"
    stage.run(120, 0.0)
    assert stage.wanted == 1
    assert stage.works in stage.verdict.message
    stage.works = ""
    stage.run(40, 0.0)
    assert stage.wanted == 0


def test_more_than_may_run_is_said() -> None:
    stage = Stage(SPEC | {"scaling": {"minReplicas": 1, "maxReplicas": 3}})
    stage.run(900, 5.0)
    assert stage.wanted == 3
    assert stage.verdict.reason is Reason.TOO_MANY_REPLICAS
    assert "raise maxReplicas" in stage.verdict.message


def test_a_number_that_somebody_else_owns_is_left_alone() -> None:
    stage = Stage({"scaling": {"minReplicas": 1, "maxReplicas": 3}})
    fixed = a_workload("chat").with_(spec={"replicas": 2, "slo": {"ttft": "2s"}}).value
    assert stage.scalers.scale(stage.record, fixed, NOW) is None


def test_a_new_leader_begins_with_what_runs() -> None:
    stage = Stage()
    stage.run(900, 4.0)
    before = stage.wanted
    stage.scalers = Scalers(
        stage.cluster.store, stage.records, DemandBook(), lambda _uri, _revision: None, stage.working
    )
    stage.look()
    assert stage.wanted == before


def test_a_former_leader_does_not_go_back_to_the_number_it_remembers() -> None:
    stage = Stage()
    stage.run(900, 4.0)
    stage.wanted = 10
    stage.resize()
    for pod in stage.cluster.store.pods_of(stage.workload.value.uid):
        stage.report(pod.key, pod.uid, 4, 5)
    stage.now += 600.0
    for pod in stage.cluster.store.pods_of(stage.workload.value.uid):
        stage.report(pod.key, pod.uid, 4, 900)
    stage.look()
    assert stage.wanted == 10


def test_a_measured_cold_start_counts_and_a_slow_one_takes_more_replicas() -> None:
    quick, slow = Stage(), Stage()
    slow.scalers = Scalers(
        slow.cluster.store, slow.records, slow.book, lambda _uri, _revision: 3000.0, slow.working
    )
    for stage in (quick, slow):
        stage.run(700, 1.0)
    for minute in range(30):
        for stage in (quick, slow):
            stage.run(60, 1.0 + minute * 0.1)
    assert "30 s to start one" in quick.verdict.message
    assert "3010 s to start one" in slow.verdict.message
