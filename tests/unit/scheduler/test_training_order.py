"""The order in which waiting FineTune and Batch work is asked."""

from __future__ import annotations

from dataclasses import replace

from llmos_operator.scheduler.cycle import plan
from llmos_operator.scheduler.policy import Policy
from llmos_operator.state.finished import FinishedLog
from llmos_operator.state.types import WorkloadKind
from tests.support.builders import NOW, ClusterBuilder, WorkloadBuilder, a_cluster, a_node, a_workload

HOUR = 3600
DAY = 24 * HOUR


def tuning(name: str) -> WorkloadBuilder:
    return a_workload(name).with_(kind=WorkloadKind.FINE_TUNE)


def past(cluster: ClusterBuilder, queue: str, seconds: int, count: int = 100, gpus: int = 1) -> None:
    for i in range(count):
        one = tuning(f"past-{queue}-{gpus}-{i}").gpus(gpus).in_queue(queue)
        cluster.add(one.with_(finished=True, gpu_seconds=(seconds + i) * gpus))


def first(cluster: ClusterBuilder, policy: Policy | None = None) -> list[str]:
    """Return who waits, in order, when one device is free: the one that is bound first."""
    made = plan(cluster.snapshot(), policy or Policy(), NOW)
    waits = sorted((d.queue_position, d.workload) for d in made.decisions.values() if d.queue_position)
    return [b.claim.workload for b in made.binds] + [name for _, name in waits]


def one_device() -> ClusterBuilder:
    return a_cluster(a_node("n1").with_gpus(1))


def test_without_a_history_new_work_goes_by_age() -> None:
    cluster = one_device()
    cluster.add(tuning("b").created(30), tuning("a").created(20), tuning("c").created(10))
    assert first(cluster) == ["default/b", "default/a", "default/c"]


def test_work_that_has_received_much_stands_behind_newer_work() -> None:
    cluster = one_device()
    cluster.add(tuning("old").with_(gpu_seconds=8 * HOUR).created(10 * HOUR), tuning("new").created(60))
    assert first(cluster) == ["default/new", "default/old"]


def test_work_near_the_usual_length_of_its_queue_goes_before_newer_work() -> None:
    cluster = one_device()
    newer = tuning("new").with_(gpu_seconds=3 * HOUR).created(4 * HOUR)
    past(cluster, "", 10 * HOUR, count=400)
    cluster.add(tuning("nearly").with_(gpu_seconds=30_800).created(10 * HOUR), newer)
    assert first(cluster) == ["default/nearly", "default/new"]


def test_nothing_waits_beyond_the_bound_behind_newer_work() -> None:
    bound = Policy().thrift.bound_seconds
    cluster = one_device()
    newer = tuning("new").with_(gpu_seconds=3 * HOUR).created(4 * HOUR)
    cluster.add(tuning("old").with_(gpu_seconds=8 * HOUR).created(8 * HOUR + bound + 1), newer)
    assert first(cluster) == ["default/old", "default/new"]


def test_the_younger_goes_first_within_the_bound() -> None:
    cluster = one_device()
    newer = tuning("new").with_(gpu_seconds=3 * HOUR).created(4 * HOUR)
    cluster.add(tuning("old").with_(gpu_seconds=8 * HOUR).created(9 * HOUR), newer)
    assert first(cluster) == ["default/new", "default/old"]


def test_fresh_work_is_not_held_up_by_overdue_work() -> None:
    cluster = one_device()
    cluster.add(tuning("old").with_(gpu_seconds=8 * HOUR).created(9 * DAY), tuning("new").created(60))
    assert first(cluster) == ["default/new", "default/old"]


def test_devices_count() -> None:
    cluster = a_cluster(a_node("n1").with_gpus(8))
    cluster.running(a_workload("busy").gpus(1), "n1", [0])
    cluster.add(tuning("wide").gpus(8).created(60), tuning("narrow").created(30))
    assert first(cluster) == ["default/narrow", "default/wide"]
    decided = plan(cluster.snapshot(), Policy(), NOW)
    assert [b.claim.workload for b in decided.binds] == ["default/narrow"]


def test_serving_keeps_its_place_by_response_ratio() -> None:
    cluster = one_device()
    cluster.add(tuning("old").with_(gpu_seconds=8 * HOUR).created(40 * HOUR), tuning("new").created(60))
    cluster.add(a_workload("chat").created(HOUR))
    assert first(cluster) == ["default/new", "default/chat", "default/old"]


def test_the_log_keeps_the_newest_of_each_queue_once() -> None:
    log = FinishedLog(kept=3)
    made = tuning("w").with_(finished=True, gpu_seconds=7200, accelerators=2).value
    assert log.note(made)
    assert not log.note(made)
    assert [(f.devices, f.seconds) for f in log.all()] == [(2, 3600.0)]
    for i in range(5):
        log.note(replace(made, uid=f"u{i}"))
        log.note(replace(made, uid=f"v{i}", queue="other"))
    assert [f.uid for f in log.all()] == ["u2", "u3", "u4", "v2", "v3", "v4"]


def test_serving_unfinished_and_unmeasured_work_teaches_nothing() -> None:
    log = FinishedLog()
    done = tuning("w").with_(finished=True, gpu_seconds=60).value
    assert not log.note(replace(done, kind=WorkloadKind.INFERENCE))
    assert not log.note(replace(done, finished=False))
    assert not log.note(replace(done, gpu_seconds=0))
    assert log.all() == ()


def test_the_record_outlives_the_workload_and_is_rebuilt_from_a_list() -> None:
    cluster = one_device()
    past(cluster, "", HOUR, count=5)
    before = cluster.snapshot().finished
    assert len(before) == 5
    again = one_device()
    for workload in cluster.snapshot().workloads.values():
        again.store.apply_workload(workload)
    assert again.snapshot().finished == before
    cluster.store.delete_workload("default/past--1-0")
    assert cluster.snapshot().finished == before
