"""Figures read off the store as a whole: waiting, silence, use without a claim."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry

from llmos_operator.control.metrics import OperatorMetrics
from llmos_operator.control.standing import Standing
from llmos_operator.state.types import Queue
from tests.support.builders import GIB, NOW, a_cluster, a_node, a_workload


class Shown:
    """A Standing on a registry of its own, and what it shows."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.standing = Standing(OperatorMetrics(self.registry), overuse_percent=10)

    def at(self, seconds: float, cluster) -> Shown:
        self.standing.show(cluster.snapshot(), NOW + seconds)
        return self

    def __call__(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"llmos_operator_{name}", labels)


@pytest.fixture
def shown() -> Shown:
    return Shown()


def test_a_queue_waits_since_its_oldest_waiting_workload(shown: Shown):
    cluster = a_cluster(a_node("n1").with_gpus(1), Queue("default"), Queue("research"))
    cluster.add(a_workload("new").created(60), a_workload("old").created(600))
    shown.at(0, cluster)
    assert shown("waiting_workloads", queue="default") == 2
    assert shown("waiting_since_timestamp_seconds", queue="default") == NOW - 600
    assert shown("waiting_workloads", queue="research") == 0
    assert shown("waiting_since_timestamp_seconds", queue="research") is None


def test_a_displaced_workload_waits_since_it_lost_its_place(shown: Shown):
    cluster = a_cluster(a_node("n1").with_gpus(1), Queue("default"))
    pod = cluster.running(a_workload("chat").created(90_000), "n1", [0])
    shown.at(0, cluster)
    assert shown("waiting_workloads", queue="default") == 0
    cluster.store.delete_pod(pod.key)
    shown.at(100, cluster)
    assert shown("waiting_since_timestamp_seconds", queue="default") == NOW + 100
    assert shown.at(200, cluster)("waiting_since_timestamp_seconds", queue="default") == NOW + 100


def test_gangs_are_shown_by_state(shown: Shown):
    cluster = a_cluster(a_node("n1").with_gpus(4), Queue("default"))
    work = a_workload("train").of_pods(2).replicas(2)
    cluster.running(work, "n1", [0], member=0)
    shown.at(0, cluster)
    states = ("ready", "starting", "incomplete", "waiting")
    assert [shown("gangs", state=state) for state in states] == [0, 0, 1, 1]


def test_a_node_never_heard_of_is_silent_since_it_is_known(shown: Shown):
    cluster = a_cluster(
        a_node("mute").with_gpus(1).last_heard(None), a_node("heard").with_gpus(1).last_heard(7)
    )
    shown.at(0, cluster).at(300, cluster)
    assert shown("telemetry_timestamp_seconds", node="mute") == NOW
    assert shown("telemetry_timestamp_seconds", node="heard") == NOW - 7
    cluster.store.delete_gpu_node("mute")
    assert shown.at(305, cluster)("telemetry_timestamp_seconds", node="mute") is None


def test_use_beyond_the_ledger_is_told_and_counts_as_overuse_above_the_policys_share(shown: Shown):
    node = a_node("n1").with_gpus(3).observed_using(0, "20Gi").observed_using(1, "4Gi")
    cluster = a_cluster(node, Queue("default"))
    cluster.running(a_workload("whole"), "n1", [2], memory="10Gi")
    shown.at(0, cluster)
    assert shown("unreserved_bytes", node="n1") == 24 * GIB
    assert shown("overused_devices", node="n1") == 1  # 4 of 80 GiB are within a tenth
