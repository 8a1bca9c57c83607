"""Copies of models on nodes: they decide between equals, and what a reload costs."""

from __future__ import annotations

import pytest

from llmos_operator.scheduler.cycle import plan
from llmos_operator.scheduler.plan import Bind
from llmos_operator.scheduler.policy import Policy
from llmos_operator.scheduler.recall import Recall
from llmos_operator.scheduler.table import NodeTable
from llmos_operator.scheduler.victims import _measured_load
from llmos_operator.state.types import Model
from llmos_operator.state.work import LoadTime
from tests.support.builders import NOW, a_cluster, a_node, a_profile, a_workload

MODEL = Model("hf://org/kept", kept=True)


def placed(*nodes, model: Model = MODEL) -> str:
    workload = a_workload("w").needing("10Gi").with_(model=model)
    made = plan(a_cluster(*nodes, workload).snapshot(), Policy(), NOW)
    (bind,) = made.actions
    assert isinstance(bind, Bind)
    return bind.claim.node


def test_of_equal_nodes_the_one_with_a_copy_is_taken() -> None:
    nodes = [
        a_node("n1").with_gpus(1),
        a_node("n2").with_gpus(1).keeping(MODEL.key),
        a_node("n3").with_gpus(1),
    ]
    assert placed(*nodes) == "n2"
    assert placed(*nodes, model=Model(MODEL.uri)) == "n1"  # it does not ask for the copy
    assert placed(*nodes, model=Model("hf://org/other", kept=True)) == "n1"


def test_who_does_not_ask_for_the_copy_does_not_follow_another_who_does() -> None:
    cluster = a_cluster()
    for name, model in (("a", MODEL), ("b", Model(MODEL.uri))):
        cluster.add(a_workload(name).needing("10Gi").with_(model=model))
    recall = Recall()
    for name, asked in (("a", MODEL.key), ("b", "")):
        workload = cluster.snapshot().workloads[f"default/{name}"]
        ((_, request),) = recall.shape(workload, "default", {}).options
        assert request.model == asked


def test_a_better_fit_counts_for_more_than_a_copy() -> None:
    nodes = [a_node("n1").with_gpus(1, "L4-24G"), a_node("n2").with_gpus(1, "A100-80G").keeping(MODEL.key)]
    assert placed(*nodes) == "n1"


@pytest.mark.parametrize(("downloads", "seconds"), [(False, 5.0), (True, 90.0)])
def test_a_reload_costs_a_download_where_no_node_has_a_copy(downloads: bool, seconds: float) -> None:
    times = (LoadTime("A100", "Warm", "int8", 5000), LoadTime("A100", "Cold", "int8", 90_000))
    profile = a_profile(MODEL.uri, load_times=times)
    assert _measured_load(profile, "int8", downloads=downloads) == seconds


def test_a_copy_that_comes_to_a_node_is_seen_in_a_table_that_is_kept() -> None:
    table = NodeTable()
    before = a_cluster(a_node("n1").with_gpus(1), a_node("n2").with_gpus(1)).snapshot()
    table.sync(before.nodes)
    assert table.without_copy(MODEL.key).tolist() == [1, 1]
    after = a_cluster(a_node("n2").with_gpus(1).keeping(MODEL.key)).snapshot()
    table.sync({**before.nodes, **after.nodes})
    assert table.without_copy(MODEL.key).tolist() == [1, 0]
