"""A changed spec that finds no room beside what serves: who has to go, where that would help, and nobody where it would not."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from llmos_operator.api.conditions import Reason
from llmos_operator.scheduler.cycle import plan
from llmos_operator.scheduler.policy import Policy
from llmos_operator.state.types import ClaimUse, DeviceSelector, Hold, Queue
from tests.support.builders import NOW, ClusterBuilder, WorkloadBuilder, a_cluster, a_node, a_workload

if TYPE_CHECKING:
    from llmos_operator.scheduler.plan import Decision

POLICY = Policy(require_queue=False)


def changed(name: str = "chat") -> WorkloadBuilder:
    """Return a workload whose spec has just changed to this; with_() what it was says what runs."""
    return a_workload(name).needing("10Gi").with_(max_surge=1, template_hash="new")


def serve(cluster: ClusterBuilder, was: WorkloadBuilder, node: str, *devices: int, ordinal: int = 0) -> None:
    pod = cluster.running(was, node, devices, ordinal)
    cluster.store.apply_pod(replace(pod, spec_hash="old"))


def decided(cluster: ClusterBuilder, key: str = "default/chat") -> Decision:
    return plan(cluster.snapshot(), POLICY, NOW).decisions[key]


def test_the_one_whose_devices_it_can_have_is_named() -> None:
    cluster = a_cluster(a_node("n1").with_gpus(1))
    serve(cluster, changed(), "n1", 0)
    assert decided(cluster).reason is Reason.NO_CAPACITY
    assert decided(cluster).instead in cluster.snapshot().nodes["n1"].pods


def test_nobody_goes_while_there_is_room_or_one_starts_beside() -> None:
    cluster = a_cluster(a_node("n1").with_gpus(2))
    serve(cluster, changed(), "n1", 0)
    (bind,) = plan(cluster.snapshot(), POLICY, NOW).binds
    assert bind.claim.ordinal == 1
    cluster = a_cluster(a_node("n1").with_gpus(3))
    work = changed().replicas(2).with_(max_surge=2)
    for ordinal in (0, 1):
        serve(cluster, work, "n1", ordinal, ordinal=ordinal)
    cluster.running(work, "n1", (2,), ordinal=2)
    assert decided(cluster).pending == 1
    assert decided(cluster).instead == ""


def test_nobody_goes_for_devices_of_another_product() -> None:
    cluster = a_cluster(a_node("n1").with_gpus(1, "A-80G"), a_node("n2").with_gpus(1, "H-80G"))
    cluster.running(a_workload("other").needing("10Gi"), "n2", (0,))
    serve(cluster, changed(), "n1", 0)
    cluster.add(changed().with_(selector=DeviceSelector(products=("H-80G",))))
    assert decided(cluster).instead == ""


def test_nobody_with_a_part_of_a_device_goes_for_work_that_needs_it_whole() -> None:
    cluster = a_cluster(a_node("n1").with_gpus(1))
    cluster.running(a_workload("other").needing("10Gi").shared(), "n1", (0,))
    serve(cluster, changed().shared(), "n1", 0)
    cluster.add(changed())
    assert decided(cluster).instead == ""


def test_of_several_the_one_that_leaves_enough_is_named() -> None:
    cluster = a_cluster(a_node("n1").with_gpus(1), a_node("n2").with_gpus(2))
    serve(cluster, changed().replicas(2), "n1", 0, ordinal=0)
    serve(cluster, changed().replicas(2), "n2", 0, 1, ordinal=1)
    cluster.add(changed().replicas(2).gpus(2))
    found = decided(cluster).instead
    assert found in cluster.snapshot().nodes["n2"].pods


def test_quota_that_it_holds_itself_is_freed_by_one_that_goes() -> None:
    cluster = ClusterBuilder().add(Queue("default", nominal_gpu_milli=1000))
    cluster.add(a_node("n1").with_gpus(2))
    serve(cluster, changed(), "n1", 0)
    assert decided(cluster).reason is Reason.EXCEEDS_QUOTA
    assert decided(cluster).instead in cluster.snapshot().nodes["n1"].pods


def test_one_that_has_the_claim_it_waits_for_is_named() -> None:
    cluster = a_cluster(a_node("n1").with_gpus(2))
    work = changed().with_(claims=(ClaimUse("spec.model.uri", "weights"),))
    serve(cluster, work, "n1", 0)
    cluster.store.set_hold(
        "default/chat", Hold(Reason.CLAIM_IN_USE, "in use", NOW + 60, work.value.generation)
    )
    assert decided(cluster).reason is Reason.CLAIM_IN_USE
    assert decided(cluster).instead in cluster.snapshot().nodes["n1"].pods


def test_a_plan_is_the_same_with_and_without_the_question() -> None:
    """What is tried for the answer is undone: who comes later in the line is placed as if nobody had asked."""
    cluster = a_cluster(a_node("n1").with_gpus(1), a_node("n2").with_gpus(1))
    serve(cluster, changed(), "n1", 0)
    cluster.running(a_workload("other").needing("10Gi"), "n2", (0,))
    cluster.add(a_workload("later").needing("10Gi").created(1))
    made = plan(cluster.snapshot(), POLICY, NOW)
    assert not made.binds
    assert made.decisions["default/later"].reason is Reason.NO_CAPACITY
