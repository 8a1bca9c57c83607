"""Workloads are busy at once and idle after a while, by requests and by what devices of their own do."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from llmos_operator.api.runtime.messages import RequestStats, RuntimeState, RuntimeStatus, WorkProgress
from llmos_operator.api.telemetry import DemandBatch, DemandItem
from llmos_operator.control.activity import FRESH_SECONDS, TOLD_SECONDS, Activities
from llmos_operator.control.demand import DemandBook
from llmos_operator.control.metrics import OperatorMetrics
from llmos_operator.control.records import Record, Records
from llmos_operator.control.working import QUIET_SECONDS, DeviceWork
from llmos_operator.state.replicas import Replica
from llmos_operator.state.telemetry import Reading
from llmos_operator.state.types import Pod, Sleeping, WorkloadKind
from tests.support.builders import NOW, ClusterBuilder, WorkloadBuilder, a_cluster, a_node, a_workload, gpu

STEP = 5

pytestmark = pytest.mark.anyio


@dataclass
class Watch:
    """A cluster whose workloads are looked at every five seconds."""

    cluster: ClusterBuilder = field(
        default_factory=lambda: a_cluster(a_node("n1").with_gpus(2).drawing(400)).with_priorities()
    )
    now: float = NOW
    news: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.registry = CollectorRegistry()
        self.records, self.demand, self.work = Records(), DemandBook(), DeviceWork()
        metrics = OperatorMetrics(self.registry)
        self.activities = Activities(metrics, self.records, self.demand, self.work)
        self.reports: dict[str, RuntimeStatus] = {}
        self.signs: dict[int, dict[str, int]] = {}

    def runs(self, workload: WorkloadBuilder, device: int = 0, **claim: Any) -> Pod:
        pod = self.cluster.running(workload, "n1", [device], **claim)
        value = workload.value
        if self.records.get(value.key) is None:
            self.records.put(Record(value.key, value.uid, 1, 0.0, value))
        self.records.put_replica(Replica(pod.key, pod.uid, value.uid))
        return pod

    def says(self, pod: Pod, state: RuntimeState = RuntimeState.READY, done: int = 0, **stats: int) -> None:
        progress = WorkProgress(unit="steps", done=done) if done else None
        self.reports[pod.uid] = RuntimeStatus(state=state, requests=RequestStats(**stats), progress=progress)

    async def passes(self, seconds: int) -> Watch:
        for _ in range(seconds // STEP):
            self.now += STEP
            for uid, report in self.reports.items():
                self.records.put_report(uid, report, self.now)
            readings = [Reading(gpu("n1", device), **signs) for device, signs in self.signs.items()]
            self.work.sampled(readings, self.now)
            self.news += await self.activities.look(self.cluster.snapshot(), self.now, self.now)
        return self

    def of(self, name: str) -> str:
        found = self.activities.of(f"uid-{name}")
        return f"{found.state}: {found.evidence}" if found is not None else ""

    def said(self, name: str, state: str) -> None:
        record = self.records.get(f"default/{name}")
        assert record is not None
        record.status["activity"] = {"state": state}


async def test_requests_make_busy_at_once_and_idle_takes_a_while() -> None:
    watch = Watch()
    pod = watch.runs(a_workload("chat"))
    watch.says(pod)
    await watch.passes(30)
    assert watch.of("chat") == "Idle: no request"
    watch.says(pod, running=2)
    await watch.passes(STEP)
    assert watch.of("chat") == "Busy: 2 requests in progress or waiting"
    watch.says(pod)
    await watch.passes(10)
    assert watch.of("chat").startswith("Busy")
    await watch.passes(int(QUIET_SECONDS))
    assert watch.of("chat") == "Idle: no request"


async def test_tokens_between_two_looks_are_work_though_nobody_was_seen_waiting() -> None:
    watch = Watch()
    pod = watch.runs(a_workload("chat"))
    for second in range(0, 120, STEP):
        watch.says(pod, generation_tokens=10 + second // 10)
        await watch.passes(STEP)
    assert watch.of("chat") == "Busy: it answered requests"


async def test_a_gateways_word_counts() -> None:
    watch = Watch()
    watch.says(watch.runs(a_workload("chat")))
    await watch.passes(30)
    item = DemandItem(namespace="default", name="chat", waiting=3, in_flight=0, requests=3)
    watch.demand.take(DemandBatch(gateway="g", items=[item]), watch.now + STEP)
    await watch.passes(STEP)
    assert watch.of("chat") == "Busy: 3 requests in progress or waiting"


async def test_an_idle_server_on_a_device_whose_counter_reads_full_is_idle() -> None:
    watch = Watch()
    watch.says(watch.runs(a_workload("chat")))
    watch.signs[0] = {"busy_percent": 100, "sm_active_milli": 5, "dram_active_milli": 1}
    await watch.passes(30)
    assert watch.of("chat").startswith("Idle: no request; multiprocessors active 0 % of the time")


async def test_a_device_of_its_own_that_works_makes_busy_without_requests() -> None:
    watch = Watch()
    watch.says(watch.runs(a_workload("chat")))
    watch.signs[0] = {"sm_active_milli": 600, "dram_active_milli": 300}
    await watch.passes(30)
    assert watch.of("chat") == "Busy: a device of its own works: multiprocessors active 60 % of the time"
    assert "multiprocessors" in watch.activities.working("uid-chat")


async def test_a_shared_device_that_works_says_nothing_of_its_tenants_and_one_that_is_quiet_of_all() -> None:
    watch = Watch()
    for name in ("a", "b"):
        watch.says(watch.runs(a_workload(name).shared(), memory="4Gi"))
    custom = watch.runs(a_workload("c").shared().with_(engine="custom"), memory="4Gi")
    assert custom.uid not in watch.reports
    watch.signs[0] = {"sm_active_milli": 600}
    await watch.passes(30)
    assert [watch.of(name)[:4] for name in ("a", "b", "c")] == ["Idle", "Idle", "Unkn"]
    watch.signs[0] = {"sm_active_milli": 0}
    await watch.passes(60)
    assert watch.of("c").startswith("Idle: its devices are quiet: multiprocessors active")


async def test_of_whom_nobody_tells_anything_is_unknown_and_not_idle() -> None:
    watch = Watch()
    watch.runs(a_workload("custom").with_(engine="custom"))
    await watch.passes(120)
    assert watch.of("custom").startswith("Unknown")
    assert watch.activities.working("uid-custom") == ""


async def test_reports_that_are_out_of_date_are_no_word_on_requests() -> None:
    watch = Watch()
    pod = watch.runs(a_workload("chat"))
    watch.says(pod)
    await watch.passes(30)
    watch.reports.clear()
    await watch.passes(int(FRESH_SECONDS) + 2 * STEP)
    assert watch.of("chat").startswith("Unknown")


async def test_training_works_while_its_steps_go_on_or_its_device_does() -> None:
    watch = Watch()
    pod = watch.runs(a_workload("tune").with_(kind=WorkloadKind.FINE_TUNE))
    for step in range(1, 10):
        watch.says(pod, done=step)
        await watch.passes(STEP)
    assert watch.of("tune") == "Busy: it came along with its work"
    watch.signs[0] = {"power_milliwatts": 350_000}
    await watch.passes(60)
    assert watch.of("tune").startswith("Busy")
    watch.signs[0] = {"power_milliwatts": 60_000}
    await watch.passes(120)
    assert watch.of("tune").startswith("Idle: its devices are quiet: ")
    assert "of its range of power drawn" in watch.of("tune")


async def test_a_replica_that_starts_is_busy_and_no_reason_to_keep_others() -> None:
    watch = Watch()
    pod = watch.runs(a_workload("chat"))
    watch.cluster.store.apply_pod(
        Pod(pod.key, pod.uid, pod.node, claim=pod.claim, ready=False, started_at=NOW)
    )
    await watch.passes(30)
    assert watch.of("chat") == "Busy: a replica starts"
    assert watch.activities.working("uid-chat") == ""


async def test_the_status_is_told_of_long_idleness_and_of_its_end_only() -> None:
    watch = Watch()
    pod = watch.runs(a_workload("chat"))
    watch.says(pod)
    await watch.passes(int(TOLD_SECONDS))
    assert watch.news == []
    await watch.passes(60)
    assert set(watch.news) == {"default/chat"}
    watch.said("chat", "Idle")
    watch.news.clear()
    await watch.passes(60)
    assert watch.news == []
    watch.says(pod, running=1)
    await watch.passes(STEP)
    assert watch.news == ["default/chat"]
    watch.said("chat", "Busy")
    watch.news.clear()
    for _ in range(20):  # a request every minute
        watch.says(pod, running=1)
        await watch.passes(STEP)
        watch.says(pod)
        await watch.passes(55)
    assert watch.news == []


async def test_the_metric_counts_workloads_by_what_says_so() -> None:
    watch = Watch()
    watch.says(watch.runs(a_workload("chat")))
    watch.runs(a_workload("custom").with_(engine="custom"), 1)
    watch.signs[1] = {"sm_active_milli": 500}
    await watch.passes(30)

    def count(activity: str, sign: str) -> float | None:
        labels = {"activity": activity, "sign": sign}
        return watch.registry.get_sample_value("llmos_operator_workload_activity", labels)

    assert (count("Idle", "requests"), count("Busy", "sm")) == (1, 1)
    assert count("Unknown", "none") is None


async def test_who_sleeps_is_idle() -> None:
    watch = Watch()
    pod = watch.runs(a_workload("chat").shared(), memory="4Gi")
    watch.says(pod, RuntimeState.ASLEEP)
    watch.cluster.store.ask_to_sleep(pod.key, pod.uid, Sleeping(1 << 20, 1 << 20, NOW))
    watch.cluster.store.note_asleep(pod.key, pod.uid)
    await watch.passes(30)
    assert watch.of("chat") == "Idle: every replica sleeps"
