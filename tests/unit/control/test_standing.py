"""Figures read off the store as a whole: waiting, silence, use without a claim."""

from __future__ import annotations

import pytest
from prometheus_client import CollectorRegistry

from llmos_operator.api import names
from llmos_operator.control.metrics import OperatorMetrics
from llmos_operator.control.standing import Standing
from llmos_operator.state.types import Queue
from tests.support.builders import GIB, NOW, a_cluster, a_node, a_workload, gpu


class Shown:
    """A Standing on a registry of its own, and what it shows."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.draws: dict[str, int] = {}
        self.standing = Standing(
            OperatorMetrics(self.registry),
            overuse_percent=10,
            rack_label=names.LABEL_RACK,
            draw=lambda uuid: self.draws.get(uuid),  # noqa: PLW0108 - the dictionary is put there later
        )

    def at(self, seconds: float, cluster) -> Shown:
        self.standing.show(cluster.snapshot(), NOW + seconds)
        return self

    def __call__(self, name: str, /, **labels: str) -> float | None:
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


def test_power_is_shown_against_the_budgets_of_nodes_and_racks(shown: Shown):
    nodes = [a_node(name).with_gpus(2).drawing(400).within_watts(600, "r1", 1500) for name in ("n1", "n2")]
    cluster = a_cluster(*nodes, a_node("n3").with_gpus(1).drawing(400))
    cluster.running(a_workload("chat"), "n1", [0])
    shown.draws = {gpu(name, index): 50_000 for name in ("n1", "n2") for index in (0, 1)}
    shown.at(0, cluster)
    assert shown("power_budget_watts", level="node", name="n1") == 600
    assert shown("power_expected_watts", level="node", name="n1") == 400 + 40
    assert shown("power_drawn_watts", level="node", name="n1") == 100
    assert shown("power_budget_watts", level="rack", name="r1") == 1500
    assert shown("power_expected_watts", level="rack", name="r1") == 440 + 80
    assert shown("power_drawn_watts", level="rack", name="r1") == 200
    assert shown("power_budget_watts", level="node", name="n3") is None


def test_a_device_that_does_not_tell_leaves_a_sum_out_and_is_no_zero(shown: Shown):
    cluster = a_cluster(a_node("n1").with_gpus(2).drawing(400, None).within_watts(600))
    shown.draws = {gpu("n1", 0): 50_000}
    shown.at(0, cluster)
    assert shown("power_budget_watts", level="node", name="n1") == 600
    assert shown("power_expected_watts", level="node", name="n1") is None
    assert shown("power_drawn_watts", level="node", name="n1") is None


def test_strain_is_shown_of_devices_that_have_some(shown: Shown):
    cluster = a_cluster(a_node("n1").with_gpus(3).held_down(0, 850).ageing(2, 150))
    shown.at(0, cluster)
    assert shown("device_strain_ratio", node="n1", gpu="0", kind="throttled") == pytest.approx(0.85)
    assert shown("device_strain_ratio", node="n1", gpu="2", kind="risk") == pytest.approx(0.15)
    assert shown("device_strain_ratio", node="n1", gpu="1", kind="throttled") is None
    assert shown("held_down_devices", node="n1") == 1
