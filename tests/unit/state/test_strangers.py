"""Strangers: processes on a device of nobody the ledger knows of there."""

from __future__ import annotations

from dataclasses import replace

from llmos_operator.state.types import Pod, PodPhase
from tests.support.builders import GIB, NOW, ClusterBuilder, a_cluster, a_node, a_workload, gpu

MIB = 1 << 20


def strange(cluster: ClusterBuilder, index: int = 0) -> int:
    return cluster.snapshot().nodes["n1"].devices[index].strange_bytes


def lists(cluster: ClusterBuilder, *each: dict[str, int | None], index: int = 0) -> list[bool]:
    """Tell one process list after the other; return which of them changed anything."""
    return [cluster.store.observe_processes("n1", {gpu("n1", index): uses}) for uses in each]


def test_a_stranger_is_believed_with_the_second_list_and_forgotten_with_the_first_without_it() -> None:
    cluster = a_cluster(a_node("n1").with_gpus(2))
    assert lists(cluster, {"other": 3 * GIB}) == [False]
    assert strange(cluster) == 0
    assert lists(cluster, {"other": 3 * GIB}) == [True]
    assert (strange(cluster), strange(cluster, 1)) == (3 * GIB, 0)
    assert lists(cluster, {"other": 3 * GIB + MIB}, {}) == [False, True]  # moving a little is no news
    assert strange(cluster) == 0


def test_a_tenant_is_no_stranger_and_is_one_when_its_claim_has_gone() -> None:
    cluster = a_cluster(a_node("n1").with_gpus(2))
    pod = cluster.running(a_workload("w"), "n1", [0])
    lists(cluster, {pod.uid: 5 * GIB}, {pod.uid: 5 * GIB})
    assert strange(cluster) == 0
    lists(cluster, {pod.uid: GIB}, {pod.uid: GIB}, index=1)  # it strayed to a device that it was not given
    assert strange(cluster, 1) == GIB
    cluster.store.apply_pod(replace(pod, phase=PodPhase.FINISHED))
    lists(cluster, {pod.uid: 5 * GIB}, {pod.uid: 5 * GIB})
    assert strange(cluster) == 5 * GIB


def test_processes_of_no_pod_are_strangers_on_idle_devices_only() -> None:
    cluster = a_cluster(a_node("n1").with_gpus(2))
    cluster.running(a_workload("w"), "n1", [0])
    lists(cluster, {"": 4 * GIB}, {"": 4 * GIB})
    lists(cluster, {"": 4 * GIB}, {"": 4 * GIB}, index=1)
    assert (strange(cluster), strange(cluster, 1)) == (0, 4 * GIB)


def test_what_drivers_and_monitors_use_is_no_stranger_and_neither_is_what_does_not_tell() -> None:
    cluster = a_cluster(a_node("n1").with_gpus(1))
    lists(cluster, {"monitor": 100 * MIB}, {"monitor": 100 * MIB, "silent": None})
    assert strange(cluster) == 0


def test_a_pod_that_got_its_gpu_from_the_device_plugin_is_no_stranger() -> None:
    cluster = a_cluster(a_node("n1").with_gpus(1))
    cluster.add(Pod("other/train", "uid-train", "n1", gpus=1))
    lists(cluster, {"uid-train": 40 * GIB}, {"uid-train": 40 * GIB})
    assert strange(cluster) == 0


def test_a_pod_that_runs_before_the_watch_shows_it_is_no_stranger_where_one_is_awaited() -> None:
    cluster = a_cluster(a_node("n1").with_gpus(2))
    other = cluster.running(a_workload("other"), "n1", [1])
    placed = cluster.running(a_workload("w"), "n1", [0])
    cluster.store.delete_pod(placed.key)
    assert placed.claim is not None
    cluster.store.assume(placed.claim)
    lists(cluster, {placed.uid: 5 * GIB}, {placed.uid: 5 * GIB})
    assert strange(cluster) == 0
    lists(cluster, {other.uid: 5 * GIB}, {other.uid: 5 * GIB})  # it is known, and has no business there
    assert strange(cluster) == 5 * GIB
    lists(cluster, {placed.uid: 5 * GIB}, {placed.uid: 5 * GIB}, index=1)  # nobody is awaited there
    assert strange(cluster, 1) == 5 * GIB


def test_samples_between_two_lists_leave_strangers_as_they_are() -> None:
    builder = a_node("n1").with_gpus(1).used_by_strangers(0, "3Gi")
    cluster = a_cluster(builder)
    assert strange(cluster) == 3 * GIB
    a_cluster_again = ClusterBuilder(cluster.store)
    a_cluster_again.add(builder.observed_using(0, "30Gi").last_heard(-1))
    assert cluster.snapshot().nodes["n1"].devices[0].observed_bytes == 30 * GIB
    assert strange(cluster) == 3 * GIB
    assert type(cluster.store).of(cluster.snapshot()).snapshot().nodes == cluster.snapshot().nodes
    assert cluster.snapshot().heard["n1"] == NOW + 1
