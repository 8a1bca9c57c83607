"""Islands of devices, domains of nodes, and on which nodes the pods of a gang go."""

from __future__ import annotations

import numpy as np
import pytest

from llmos_operator.scheduler.budget import UNLIMITED
from llmos_operator.scheduler.cycle import plan, prepare
from llmos_operator.scheduler.explain import explain
from llmos_operator.scheduler.policy import Policy
from llmos_operator.scheduler.topology import allot, islands
from llmos_operator.state.types import Link
from tests.support.builders import NOW, NodeBuilder, a_cluster, a_node, a_workload, gpu

POLICY = Policy()
RACK = "topology.llmos.dev/rack"


def islands_of(node: NodeBuilder, level: str) -> list[tuple[int, ...]]:
    state = a_cluster(node).snapshot().nodes["n1"]
    return islands(state.devices, level)


def test_devices_hang_together_by_the_links_of_a_level_and_tighter_ones() -> None:
    node = a_node("n1").with_gpus(6).linked([0, 1], [2, 3])
    both = (Link(gpu("n1", 0), "NVLink"), Link(gpu("n1", 2), "PCIeSwitch"), Link(gpu("n1", 4), "PCIeHost"))
    node.with_device(1, links=both)
    assert islands_of(node, "nvlink") == [(0, 1), (2, 3), (4,), (5,)]
    assert islands_of(node, "pcie") == [(0, 1, 2, 3), (4,), (5,)]
    assert islands_of(node, "numa") == [(0, 1, 2, 3, 4), (5,)]


def test_devices_of_one_numa_node_are_together_whatever_links_them() -> None:
    node = a_node("n1").with_gpus(4)
    for index in range(4):
        node.with_device(index, numa=index % 2)
    assert islands_of(node, "numa") == [(0, 2), (1, 3)]
    assert islands_of(node, "nvlink") == [(0,), (1,), (2,), (3,)]


@pytest.mark.parametrize(
    ("capacity", "needed", "expected"),
    [
        ([2, 8, 4], 4, [(2, 4)]),  # the smallest that takes all
        ([2, 8, 4], 9, [(1, 8), (0, 1)]),  # the largest first, the rest where it fits best
        ([2, 2, 2], 5, [(0, 2), (1, 2), (2, 1)]),
    ],
)
def test_few_nodes_are_used_and_large_ones_stay_whole(
    capacity: list[int], needed: int, expected: list[tuple[int, int]]
) -> None:
    by_row = dict(enumerate(capacity))
    assert allot(range(3), by_row, np.zeros(3, np.int64), (), needed) == expected


def test_few_preferred_domains_are_used() -> None:
    by_row = {0: 2, 1: 1, 2: 2, 3: 1}
    assert allot(range(4), by_row, np.zeros(4, np.int64), ([0, 1], [2, 3]), 3) == [(0, 2), (1, 1)]


def test_a_required_domain_with_a_preferred_one_inside_goes_first() -> None:
    zone = "topology.kubernetes.io/zone"
    cluster = a_cluster(
        a_node("a1").with_gpus(1).labelled(**{zone: "a", RACK: "a1"}),
        a_node("a2").with_gpus(1).labelled(**{zone: "a", RACK: "a2"}),
        a_node("b1").with_gpus(2).labelled(**{zone: "b", RACK: "b1"}),
        a_node("b2").with_gpus(2).labelled(**{zone: "b", RACK: "b2"}),
        a_workload("gang").of_pods(2).within("zone", "rack"),
    )
    made = plan(cluster.snapshot(), POLICY, NOW)
    assert {bind.claim.node for bind in made.binds} == {"b1"}


def test_levels_are_read_from_the_labels_the_administrator_names() -> None:
    policy = Policy(topology_labels={"rack": "example.org/row"})
    cluster = a_cluster(
        *(a_node(f"n{i}").with_gpus(1).labelled(**{"example.org/row": "x" if i else "y"}) for i in range(3)),
        a_workload("gang").of_pods(2).within("rack"),
    )
    assert {bind.claim.node for bind in plan(cluster.snapshot(), policy, NOW).binds} == {"n1", "n2"}


def test_ranks_are_in_order_and_each_has_a_name_of_its_own() -> None:
    cluster = a_cluster(
        a_node("n1").with_gpus(4), a_node("n2").with_gpus(2), a_workload("gang").of_pods(3, 2)
    )
    binds = plan(cluster.snapshot(), POLICY, NOW).binds
    assert [bind.claim.member for bind in binds] == list(range(6))
    assert [bind.claim.pod.rpartition("-")[2] for bind in binds] == [str(rank) for rank in range(6)]
    assert len({bind.gang for bind in binds}) == 1


def test_a_single_pod_is_placed_without_asking_for_gangs() -> None:
    cluster = a_cluster(a_node("n1").with_gpus(2), a_workload("one").within("rack"))
    attempts = prepare(cluster.snapshot(), POLICY, NOW, UNLIMITED, None)
    assert attempts.gangs.map._domains == {}
    (bind,) = plan(cluster.snapshot(), POLICY, NOW).binds
    assert bind.gang == ""


def test_explain_counts_how_many_pods_fit() -> None:
    racks = [a_node(f"n{i}").with_gpus(4).labelled(**{RACK: f"r{i}"}) for i in range(3)]
    cluster = a_cluster(*racks, a_workload("gang").of_pods(4).within("rack"))
    for i in range(3):
        cluster.running(a_workload(f"r{i}").gpus(2 + i % 2), f"n{i}", range(2 + i % 2))
    told = explain(cluster.snapshot(), POLICY, NOW, "default/gang")
    assert "in 3 racks at most 2 of 4 pods fit" in told.message
    assert {one.reason: one.nodes for one in told.rejected}["NotAllPodsFit"] == 3
    assert (told.replicas_wanted, told.replicas_placed) == (1, 0)
