"""What people read of queues in their status."""

from __future__ import annotations

import pytest

from llmos_operator.actuators.writequeue import WriteQueue
from llmos_operator.clock import FakeClock
from llmos_operator.cluster.fake import FakeCluster
from llmos_operator.cluster.port import WORKLOAD_QUEUES
from llmos_operator.control.summaries import Summaries, queue_statuses
from llmos_operator.state.types import Queue
from tests.support.builders import a_cluster, a_node, a_workload


def condition(status: dict) -> dict:
    (found,) = status["conditions"]
    return found


def test_use_beyond_nominal_is_borrowed_and_shares_count_by_weight() -> None:
    cluster = a_cluster(
        a_node("n1").with_gpus(4),
        Queue("all", nominal_gpu_milli=4000),
        Queue("a", parent="all", nominal_gpu_milli=1000, weight=2),
        Queue("b", parent="all", nominal_gpu_milli=2000),
    )
    cluster.running(a_workload("one").in_queue("a"), "n1", [0])
    cluster.running(a_workload("two").in_queue("a"), "n1", [1])
    cluster.add(a_workload("three").in_queue("b"))
    found = queue_statuses(cluster.snapshot())
    assert (found["a"]["usage"]["gpus"], found["a"]["borrowed"]["gpus"]) == ("2", "1")
    assert (found["a"]["admitted"], found["a"]["pending"], found["a"]["shareMilli"]) == (2, 0, 250)
    assert "borrowed" not in found["b"]
    assert (found["b"]["admitted"], found["b"]["pending"], found["b"]["shareMilli"]) == (0, 1, 0)
    assert condition(found["a"])["status"] == "True"


@pytest.mark.parametrize(
    ("queues", "words"),
    [
        ((Queue("a", parent="b"), Queue("b", parent="a")), "a -> b -> a"),
        ((Queue("a", parent="nowhere"),), "parent nowhere does not exist"),
    ],
)
def test_a_queue_that_cannot_be_used_says_why_and_what_to_do(queues: tuple[Queue, ...], words: str) -> None:
    found = condition(queue_statuses(a_cluster(*queues).snapshot())["a"])
    assert (found["status"], found["reason"]) == ("False", "QueueInvalid")
    assert words in found["message"]
    assert "spec.parent" in found["message"]


def test_the_time_of_a_condition_moves_only_with_its_status() -> None:
    cluster, clock = a_cluster(Queue("a")), FakeClock()
    made = Summaries(
        FakeCluster(clock), cluster.store, WriteQueue(1, lambda: True), clock, may_act=lambda: True
    )
    first = made._stamped("a", queue_statuses(cluster.snapshot())["a"])
    made.note(WORKLOAD_QUEUES, {"metadata": {"name": "a", "generation": 3}, "status": first}, exists=True)
    clock.advance(100)
    again = made._stamped("a", queue_statuses(cluster.snapshot())["a"])
    assert condition(again)["lastTransitionTime"] == condition(first)["lastTransitionTime"]
    assert (again["observedGeneration"], condition(again)["observedGeneration"]) == (3, 3)
    cluster.store.apply_queue(Queue("a", parent="gone"))
    broken = made._stamped("a", queue_statuses(cluster.snapshot())["a"])
    assert condition(broken)["lastTransitionTime"] > condition(first)["lastTransitionTime"]
