"""The books: devices times seconds, energy and tokens, by whom; and what a restart keeps of them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import CollectorRegistry

from llmos_operator.api.conditions import Reason
from llmos_operator.api.runtime.messages import RequestStats, RuntimeState, RuntimeStatus
from llmos_operator.clock import rfc3339
from llmos_operator.control.accounting import KEPT_SECONDS, MARKS, Accounts
from llmos_operator.control.metrics import OperatorMetrics
from llmos_operator.control.records import Record, Records
from llmos_operator.control.working import DeviceWork
from llmos_operator.manifests.status import USAGE_SECONDS
from llmos_operator.scheduler.plan import Evict
from llmos_operator.state.replicas import Exit, Replica
from llmos_operator.state.telemetry import Reading
from llmos_operator.state.types import Pod, PodPhase, Queue, WorkloadKind
from tests.support.builders import NOW, a_cluster, a_node, a_workload, gpu

if TYPE_CHECKING:
    from llmos_operator.manifests.observed import Usage

PRODUCT = "A100-80G"


class Books:
    """Accounts of one process over a cluster, and the registry they show."""

    def __init__(self, cluster: Any) -> None:
        self.cluster = cluster
        self.registry = CollectorRegistry()
        self.records = Records()
        self.last = 0.0
        self.work = DeviceWork()
        self.accounts = Accounts(OperatorMetrics(self.registry), self.records, self.work)

    def know(self, pod: Pod, **usage: Any) -> Books:
        workload = self.cluster.store.workload(pod.claim.workload)
        record = Record(workload.key, workload.uid, 1, 0.0, workload)
        record.status = {"usage": usage} if usage else {}
        self.records.put(record)
        self.records.put_replica(Replica(pod.key, pod.uid, workload.uid))
        return self

    def says_run(self, pod: Pod, **run: Any) -> Books:
        self.records.by_uid(pod.claim.workload_uid).status["run"] = run
        return self

    def says(self, pod: Pod, prompt: int, generation: int, **more: Any) -> Books:
        stats = RequestStats(prompt_tokens=prompt, generation_tokens=generation, **more)
        report = RuntimeStatus(state=RuntimeState.READY, requests=stats, load_seconds={"Loading": 20.0})
        self.records.put_report(pod.uid, report, NOW)
        return self

    def sampled(self, uuid: str, percent: int | None = None, joules: float | None = None) -> Books:
        energy = round(joules * 1000) if joules is not None else None
        self.accounts.sampled([Reading(uuid, busy_percent=percent, energy_millijoules=energy)])
        return self

    def tells(self, uuid: str, at: float, **signs: int) -> Books:
        self.work.sampled([Reading(uuid, **signs)], 50.0 + at)
        return self

    def at(self, seconds: float) -> Books:
        self.last = seconds
        self.accounts.charge(self.cluster.snapshot(), NOW + seconds, 50.0 + seconds)
        return self

    def usage(self, pod: Pod, at: float | None = None) -> Usage | None:
        """What the status would say, at a time (default: of the last charge)."""
        pods = self.cluster.snapshot().pods_of.get(pod.claim.workload_uid, ())
        return self.accounts.usage(pod.claim.workload_uid, pods, NOW + (self.last if at is None else at))

    def __call__(self, name: str, workload: str, queue: str = "default", **labels: str) -> float | None:
        if "kind" not in labels:
            labels.setdefault("product", PRODUCT)
        found = {"namespace": "default", "workload": workload, "queue": queue, **labels}
        return self.registry.get_sample_value(f"llmos_operator_{name}_total", found)


def one_gpu(name: str = "chat", **claim: Any) -> tuple[Books, Pod]:
    cluster = a_cluster(a_node("n1").with_gpus(2, PRODUCT), Queue("default"))
    pod = cluster.running(a_workload(name), "n1", [0], **claim)
    return Books(cluster).know(pod), pod


def test_held_devices_times_seconds_are_counted_and_outlive_the_workload_for_a_while() -> None:
    cluster = a_cluster(a_node("n1").with_gpus(4, PRODUCT), Queue("research"))
    pod = cluster.running(a_workload("train").gpus(2).in_queue("research"), "n1", [0, 1])
    books = Books(cluster).know(pod)
    books.at(0).at(10).at(15)
    assert books("gpu_seconds", "train", "research") == pytest.approx(2 * 15)
    cluster.store.delete_pod(pod.key)
    cluster.store.delete_workload(pod.claim.workload)
    books.records.drop("default/train")
    assert books.at(20)("gpu_seconds", "train", "research") == pytest.approx(2 * 15)
    assert books.at(16 + KEPT_SECONDS)("gpu_seconds", "train", "research") is None
    assert books.usage(pod) is None


def test_busy_and_idle_time_add_up_to_what_was_held_and_measured() -> None:
    books, _ = one_gpu()
    books.at(0).sampled(gpu("n1", 0), 20).sampled(gpu("n1", 0), 60).at(10)
    assert books("gpu_busy_seconds", "chat") == pytest.approx(4)
    assert books("gpu_idle_seconds", "chat") == pytest.approx(6)
    books.at(20)  # no sample came: nothing is claimed of that time
    assert books("gpu_seconds", "chat") == pytest.approx(20)
    assert books("gpu_busy_seconds", "chat") + books("gpu_idle_seconds", "chat") == pytest.approx(10)


def test_on_a_shared_device_a_server_without_requests_is_idle_while_its_neighbour_works() -> None:
    cluster = a_cluster(a_node("n1").with_gpus(1, PRODUCT), Queue("default"))
    works = cluster.running(a_workload("works").shared(), "n1", [0], memory="40Gi")
    rests = cluster.running(a_workload("rests").shared(), "n1", [0], memory="20Gi")
    books = Books(cluster).know(works).know(rests)
    books.says(works, 10, 10, running=1).says(rests, 10, 10).at(0)
    books.at(30).sampled(gpu("n1", 0), 100).at(40)
    part = works.claim.gpu_milli / 1000
    assert books("gpu_busy_seconds", "works") == pytest.approx(10 * part)
    assert books("gpu_busy_seconds", "rests") == 0
    assert books("gpu_idle_seconds", "rests") == pytest.approx(10 * rests.claim.gpu_milli / 1000)


def test_a_device_that_runs_a_kernel_that_does_nothing_is_idle_whatever_its_counter_says() -> None:
    books, _ = one_gpu("custom")
    uuid = gpu("n1", 0)
    books.at(0).sampled(uuid, 100).tells(uuid, 9, sm_active_milli=3, dram_active_milli=0).at(10)
    assert books("gpu_busy_seconds", "custom") == 0
    assert books("gpu_idle_seconds", "custom") == pytest.approx(10)


def test_a_device_without_the_counter_is_busy_for_the_part_it_tells() -> None:
    books, _ = one_gpu("mig")
    uuid = gpu("n1", 0)
    books.at(0).tells(uuid, 9, sm_active_milli=400, dram_active_milli=250).at(10)
    assert books("gpu_busy_seconds", "mig") == pytest.approx(4)
    assert books("gpu_idle_seconds", "mig") == pytest.approx(6)


def test_a_device_of_its_own_that_works_is_busy_though_the_runtime_tells_of_no_request() -> None:
    books, pod = one_gpu()
    uuid = gpu("n1", 0)
    books.says(pod, 10, 10).at(0).at(30)
    books.sampled(uuid, 80).tells(uuid, 39, sm_active_milli=700, dram_active_milli=100).at(40)
    assert books("gpu_busy_seconds", "chat") == pytest.approx(8)


def test_memory_counts_as_the_ledger_holds_it_and_less_once_a_claim_has_come_down() -> None:
    cluster = a_cluster(a_node("n1").with_gpus(2, PRODUCT), Queue("default"))
    pod = cluster.running(a_workload("chat").gpus(2), "n1", [0, 1], memory="40Gi")
    books = Books(cluster).know(pod).at(0).at(10)
    assert books("gpu_memory_byte_seconds", "chat") == pytest.approx(2 * 10 * 40 * 2**30)
    cluster.store.ask_to_lower(pod.key, pod.uid, 10 * 2**30, NOW)
    cluster.store.note_yielded(pod.key, pod.uid)
    assert books.at(20)("gpu_memory_byte_seconds", "chat") == pytest.approx(2 * 10 * 50 * 2**30)


def test_energy_is_what_the_devices_counter_grew_by_and_a_reset_counter_takes_nothing_back() -> None:
    books, pod = one_gpu()
    books.sampled(gpu("n1", 0), joules=5000).at(0)
    books.sampled(gpu("n1", 0), joules=5300).at(5)
    books.sampled(gpu("n1", 0), joules=10).sampled(gpu("n1", 0), joules=110).at(10)
    assert books("energy_joules", "chat") == pytest.approx(400)
    assert books.usage(pod).energy_joules == 400


def test_tokens_are_counted_by_kind_also_when_an_engine_starts_anew() -> None:
    books, pod = one_gpu(bound_at=NOW + 1)
    books.at(0).says(pod, 100, 20).at(5).says(pod, 150, 30).at(10).says(pod, 7, 1).at(15)
    assert books("tokens", "chat", kind="prompt") == 157
    assert books("tokens", "chat", kind="generation") == 31
    assert books.usage(pod).tokens == 188


def test_a_new_leader_goes_on_from_the_status_and_the_claims_of_the_pods() -> None:
    books, pod = one_gpu()
    books.know(pod, gpuSeconds=7000, energyJoules=300, tokens=50, time=rfc3339(NOW - 120))
    books.says(pod, 90, 10).at(0)
    usage = books.usage(pod)
    assert usage.gpu_seconds == 7120  # the two minutes nobody counted
    assert usage.tokens == 100  # more than the status said: the runtime has counted on
    assert usage.energy_joules == 300
    assert books("gpu_seconds", "chat") == 0  # counters begin anew
    assert books.at(5).usage(pod).gpu_seconds == 7125


def test_a_pod_bound_after_the_status_counts_from_its_binding() -> None:
    books, pod = one_gpu(bound_at=NOW - 30)
    books.know(pod, gpuSeconds=1000, time=rfc3339(NOW - 600)).at(0)
    assert books.usage(pod).gpu_seconds == 1030


def a_run(**claim: Any) -> tuple[Books, Pod]:
    cluster = a_cluster(a_node("n1").with_gpus(2, PRODUCT), Queue("default"))
    work = a_workload("batch").shared().with_(kind=WorkloadKind.BATCH)
    pod = cluster.running(work, "n1", [0, 1], memory="20Gi", **claim)
    return Books(cluster).know(pod), pod


def ends(books: Books, pod: Pod, at: float) -> Books:
    """Let a pod's program end, as the kubelet tells it."""
    books.cluster.store.apply_pod(replace(pod, phase=PodPhase.FINISHED))
    end = Exit("Completed", 0, "", NOW + at)
    books.records.put_replica(Replica(pod.key, pod.uid, pod.claim.workload_uid, ended=end))
    return books


def test_one_count_tells_what_a_run_received_and_what_it_used_to_the_second_it_ended() -> None:
    books, pod = a_run(bound_at=NOW + 2)
    books.at(0).at(5).at(10)
    assert books.usage(pod, 12).device_seconds == 2 * 10  # what came after the last charge counts along
    ends(books, pod, 13.0)
    for told in (books.usage(pod, 14), books.at(15).usage(pod), books.at(900).usage(pod)):
        assert told.device_seconds == 2 * 11
        assert told.gpu_seconds == 11 * pod.claim.gpu_milli // 1000
    assert books("gpu_seconds", "batch") == pytest.approx(11 * pod.claim.gpu_milli / 1000)


def test_a_run_shorter_than_the_time_between_two_charges_is_counted_too() -> None:
    books, pod = a_run(bound_at=NOW + 1)
    ends(books.at(0), pod, 4.0)
    assert books.usage(pod, 4.5).device_seconds == 2 * 3
    assert books.at(5).usage(pod).device_seconds == 2 * 3
    assert books.at(10).usage(pod).device_seconds == 2 * 3


def test_a_new_leader_counts_a_run_up_to_its_end_and_not_twice() -> None:
    books, pod = a_run(bound_at=NOW - 100)
    books.know(pod, gpuSeconds=40, time=rfc3339(NOW - 20)).says_run(pod, deviceSeconds=160)
    ends(books, pod, -5.0)
    assert books.at(0).usage(pod).device_seconds == 160 + 2 * 15
    assert books.at(60).usage(pod).device_seconds == 160 + 2 * 15


def test_energy_of_a_device_is_charged_for_the_time_it_was_held_only() -> None:
    books, pod = a_run(bound_at=NOW + 6)
    books.sampled(gpu("n1", 0), joules=1000).at(0)
    books.sampled(gpu("n1", 0), joules=2000).at(10)
    assert books.usage(pod).energy_joules == pytest.approx(1000 * 4 / 10 * pod.claim.gpu_milli / 2000, abs=1)


def test_a_run_is_due_for_its_count_every_minute() -> None:
    books, _ = a_run(bound_at=NOW)
    assert books.at(0).at(59).accounts.due() == []
    assert books.at(62).accounts.due() == ["default/batch"]


def test_an_eviction_loses_the_load_of_a_server_and_the_whole_run_of_a_job() -> None:
    books, pod = one_gpu(bound_at=NOW - 500)
    store = books.cluster.store
    evict = Evict(
        victim="default/chat",
        victim_uid=pod.claim.workload_uid,
        pod=pod.key,
        pod_uid=pod.uid,
        node="n1",
        preemptor="default/other",
        reason=Reason.PREEMPTED,
        cost=0,
        explanation="",
    )
    books.says(pod, 1, 1).at(0).accounts.evicted(evict, store, NOW)
    assert books("gpu_lost_seconds", "chat") == pytest.approx(20)
    store.apply_workload(a_workload("chat").with_(kind=WorkloadKind.FINE_TUNE).value)
    books.accounts.evicted(evict, store, NOW)
    assert books("gpu_lost_seconds", "chat") == pytest.approx(20 + 500)


def test_a_status_is_due_for_usage_alone_after_ten_minutes_and_only_if_it_grew() -> None:
    books, pod = one_gpu(bound_at=NOW)
    books.at(0)
    assert books.accounts.due() == []
    assert books.at(USAGE_SECONDS + 1).accounts.due() == ["default/chat"]
    usage = books.usage(pod)
    books.know(pod, gpuSeconds=usage.gpu_seconds, time=rfc3339(usage.time))
    assert books.accounts.due() == []
    books.cluster.store.delete_pod(pod.key)
    assert books.at(5 * USAGE_SECONDS).accounts.due() == []


def test_few_statuses_are_written_at_once_for_usage_the_oldest_first() -> None:
    cluster = a_cluster(
        a_node("n1").with_gpus(8, PRODUCT), a_node("n2").with_gpus(8, PRODUCT), Queue("default")
    )
    books = Books(cluster)
    for number in range(16):
        pod = cluster.running(a_workload(f"w{number:02}"), f"n{number // 8 + 1}", [number % 8])
        books.know(pod, gpuSeconds=1, time=rfc3339(NOW - 1000 - number))
    due = books.at(0).accounts.due()
    assert len(due) == MARKS
    assert due[0] == "default/w15"
