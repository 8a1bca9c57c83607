"""What would be done about sick devices, told and not done."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry

from llmos_operator.control.metrics import OperatorMetrics
from llmos_operator.control.remedies import Remedies
from tests.support.builders import a_cluster, a_node


class Watched:
    """Remedies over a cluster, and the gauge they show."""

    def __init__(self, *nodes: object) -> None:
        self.cluster = a_cluster(*nodes)
        self.registry = CollectorRegistry()
        self.remedies = Remedies(OperatorMetrics(self.registry))

    def at(self, seconds: float) -> Watched:
        self.remedies.look(self.cluster.snapshot(), seconds)
        return self

    def count(self, action: str, state: str) -> float:
        labels = {"action": action, "state": state}
        return self.registry.get_sample_value("llmos_operator_remedies", labels) or 0


def test_a_fleet_in_health_needs_nothing() -> None:
    assert Watched(a_node("n1").with_gpus(8)).at(0).remedies.proposals == ()


def test_a_verdict_has_to_last_before_it_counts() -> None:
    watched = Watched(a_node("n1").with_gpus(8).unhealthy(3, "FallenOffBus"), a_node("n2").with_gpus(8))
    (one,) = watched.at(0).remedies.proposals
    action = one.action.value
    assert watched.count(action, "young") == 1
    watched.at(60)
    assert (watched.count(action, "young"), watched.count(action, "allowed")) == (0, 1)


@pytest.mark.parametrize("sick", [2, 10, 20])
def test_in_a_storm_the_breaker_lets_a_tenth_of_the_nodes_through(sick: int) -> None:
    nodes = [a_node(f"n{i:02}").with_gpus(1) for i in range(20)]
    for node in nodes[:sick]:
        node.unhealthy(0, "FallenOffBus")
    watched = Watched(*nodes).at(0).at(60)
    action = watched.remedies.proposals[0].action.value
    assert watched.count(action, "allowed") == 2
    assert watched.count(action, "breaker") == sick - 2


def test_what_has_healed_is_no_longer_told() -> None:
    watched = Watched(a_node("n1").with_gpus(1).unhealthy(0, "FallenOffBus")).at(0).at(60)
    action = watched.remedies.proposals[0].action.value
    watched.cluster.store.delete_gpu_node("n1")
    assert watched.at(65).count(action, "allowed") == 0
