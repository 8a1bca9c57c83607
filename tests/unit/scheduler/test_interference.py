"""Harm: what is expected to be lost on each device, bounded, a term of the scores and of nothing else."""

from __future__ import annotations

import pytest

from llmos_operator.scheduler.cycle import plan
from llmos_operator.scheduler.interference import MOST, subject_of
from llmos_operator.scheduler.policy import Policy
from llmos_operator.state.store import Store
from llmos_operator.state.types import WorkloadKind
from tests.support.builders import NOW, ClusterBuilder, a_cluster, a_node, a_workload, gpu

NEW, QUIET, LOUD = (subject_of(a_workload(name).value) for name in ("new", "quiet", "loud"))


def two_devices() -> ClusterBuilder:
    """A device with `loud` that fits `new` better, and one with `quiet`."""
    cluster = a_cluster(a_node("n1").with_gpus(2, "L4-24G"))
    cluster.running(a_workload("loud").shared(), "n1", [0], memory="12Gi")
    cluster.running(a_workload("quiet").shared(), "n1", [1], memory="4Gi")
    return cluster.add(a_workload("new").needing("6Gi").shared())


def chosen(cluster: ClusterBuilder, policy: Policy | None = None) -> str:
    [bind] = plan(cluster.snapshot(), policy or Policy(), NOW).binds
    return bind.claim.devices[0]


def test_without_knowledge_the_better_fit_is_taken() -> None:
    assert chosen(two_devices()) == gpu("n1", 0)


@pytest.mark.parametrize("pair", [(NEW, LOUD), (LOUD, NEW)])
def test_the_device_is_taken_where_less_is_lost_by_either(pair: tuple[str, str]) -> None:
    cluster = two_devices()
    cluster.store.set_interference(*pair, 300)
    assert chosen(cluster) == gpu("n1", 1)
    cluster.store.set_interference(*pair, 0)
    assert chosen(cluster) == gpu("n1", 0)


def test_weight_zero_ignores_it() -> None:
    cluster = two_devices()
    cluster.store.set_interference(NEW, LOUD, 300)
    assert chosen(cluster, Policy(interference_weight=0.0)) == gpu("n1", 0)


def test_the_decision_says_who_slows_whom_down() -> None:
    cluster = two_devices()
    cluster.store.set_interference(NEW, LOUD, 500)
    cluster.store.set_interference(NEW, QUIET, 250)
    cluster.store.set_interference(QUIET, NEW, 100)
    [bind] = plan(cluster.snapshot(), Policy(), NOW).binds
    assert bind.claim.devices == (gpu("n1", 1),)
    assert (
        "beside default/quiet, by what was seen of their like, it loses 25 % of its speed" in bind.explanation
    )
    assert "and takes 10 % of its speed" in bind.explanation


def test_no_idle_device_is_broken_up_for_it() -> None:
    cluster = a_cluster(a_node("n1").with_gpus(2, "L4-24G"))
    cluster.running(a_workload("loud").shared(), "n1", [0], memory="12Gi")
    cluster.add(a_workload("new").needing("6Gi").shared())
    cluster.store.set_interference(NEW, LOUD, 10_000)
    assert chosen(cluster) == gpu("n1", 0)


def test_work_on_whole_devices_is_not_concerned() -> None:
    cluster = two_devices().add(a_node("n2").with_gpus(1, "L4-24G"))
    cluster.add(a_workload("whole").needing("6Gi"))
    cluster.store.set_interference(subject_of(a_workload("whole").value), LOUD, MOST)
    binds = {bind.claim.workload: bind.claim for bind in plan(cluster.snapshot(), Policy(), NOW).binds}
    assert binds["default/whole"].node == "n2"


def test_a_copy_of_the_store_knows_it_too() -> None:
    cluster = two_devices()
    cluster.store.set_interference(NEW, LOUD, 300)
    assert Store.of(cluster.snapshot()).snapshot().interference == {(NEW, LOUD): 300}


def test_only_news_are_a_reason_to_plan_again() -> None:
    store = two_devices().store
    assert store.set_interference(NEW, LOUD, 300)
    version = store.version
    assert not store.set_interference(NEW, LOUD, 300)
    assert store.version == version


def test_kinds_are_told_apart() -> None:
    value = a_workload("new").value
    kinds = {subject_of(a_workload("new").with_(kind=kind).value) for kind in WorkloadKind}
    assert len(kinds) == len(WorkloadKind)
    assert subject_of(value) in kinds
