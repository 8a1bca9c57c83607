"""Whole kinds of waiting work are parked, and what is said of each is kept, but never for work that would fare otherwise."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from llmos_operator.scheduler.cycle import plan
from llmos_operator.scheduler.policy import Policy
from llmos_operator.scheduler.recall import Recall
from tests.support.builders import NOW, SMALL_MODEL, a_cluster, a_node, a_profile, a_workload

if TYPE_CHECKING:
    import pytest

    from tests.support.builders import ClusterBuilder

POLICY = Policy(require_queue=False)


def full() -> ClusterBuilder:
    cluster = a_cluster().add(a_node("n1").with_gpus(1))
    cluster.running(a_workload("runs"), "n1", [0])
    return cluster


def test_short_work_is_not_parked_with_long_work_that_must_not_use_a_kept_place() -> None:
    cluster = a_cluster().add(a_node("n1").with_gpus(2))
    cluster.running(a_workload("runs").with_(max_runtime=600.0), "n1", [0], bound_at=NOW)
    cluster.add(
        a_workload("large").gpus(2).with_(created_at=NOW - 300.0),
        a_workload("long").with_(created_at=NOW - 200.0),
        a_workload("short").with_(created_at=NOW - 100.0, max_runtime=60.0),
    )
    made = plan(cluster.snapshot(), POLICY, NOW)
    assert [one.workload for one in made.reservations] == ["default/large"]
    assert [bind.claim.workload for bind in made.binds] == ["default/short"]


def test_words_of_those_that_still_wait_are_the_same_objects() -> None:
    cluster, recall = full(), Recall()
    cluster.add(a_workload("first"), a_workload("second"))
    before = plan(cluster.snapshot(), POLICY, NOW, recall=recall)
    cluster.add(a_workload("third"))
    after = plan(cluster.snapshot(), POLICY, NOW, recall=recall)
    assert set(after.decisions) == {"default/first", "default/second", "default/third"}
    assert all(after.decisions[key] is decision for key, decision in before.decisions.items())


def test_another_generation_is_spoken_of_anew() -> None:
    cluster, recall = full(), Recall()
    waits = a_workload("waits")
    cluster.add(waits)
    plan(cluster.snapshot(), POLICY, NOW, recall=recall)
    cluster.add(replace(waits.value, generation=2, memory_bytes=1 << 30))
    made = plan(cluster.snapshot(), POLICY, NOW, recall=recall)
    assert made.decisions["default/waits"].generation == 2
    assert made.decisions["default/waits"].bytes_per_device == 1 << 30


def test_places_move_up_when_the_head_starts() -> None:
    cluster, recall = full(), Recall()
    for number in range(3):
        cluster.add(a_workload(f"w{number}").with_(created_at=NOW - 100.0 + number))
    plan(cluster.snapshot(), POLICY, NOW, recall=recall)
    for pod in cluster.store.pods_of("uid-runs"):
        cluster.store.delete_pod(pod.key, pod.uid)
    cluster.store.delete_workload("default/runs")
    made = plan(cluster.snapshot(), POLICY, NOW, recall=recall)
    assert [bind.claim.workload for bind in made.binds] == ["default/w0"]
    assert [made.decisions[f"default/w{n}"].queue_position for n in range(3)] == [None, 1, 2]


def test_what_no_work_asks_for_any_more_is_not_kept_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmos_operator.scheduler.recall._SPARE", 3)
    cluster, recall = full(), Recall()
    cluster.add(a_workload("waits").serving("hf://org/one"))
    for number in range(20):
        cluster.add(a_profile("hf://org/one", replace(SMALL_MODEL, layers=SMALL_MODEL.layers + number)))
        plan(cluster.snapshot(), POLICY, NOW, recall=recall)
    kept = {name: len(one) for name, one in vars(recall).items() if isinstance(one, dict)}
    assert max(kept.values()) <= 8, kept


def test_another_policy_forgets_all() -> None:
    cluster, recall = full(), Recall()
    cluster.add(a_workload("waits").with_(created_at=NOW - 100.0))
    plan(cluster.snapshot(), POLICY, NOW, recall=recall)
    other = replace(POLICY, default_queue="elsewhere")
    made = plan(cluster.snapshot(), other, NOW, recall=recall)
    assert made == plan(cluster.snapshot(), other, NOW)
