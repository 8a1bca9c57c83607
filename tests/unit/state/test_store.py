"""The store's promises to the executor and to the watch."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llmos_operator.api.conditions import Reason
from llmos_operator.errors import Conflict
from llmos_operator.state.telemetry import Reading, Smoother
from llmos_operator.state.types import Claim, Hold, Kind, Pod, PodPhase, Sharing
from tests.support.builders import GIB, NOW, ClusterBuilder, a_cluster, a_node, a_workload, gpu


@pytest.fixture
def cluster() -> ClusterBuilder:
    return a_cluster(a_node("n1").with_gpus(2, "A-24G"), a_workload("w"))


def claim(ordinal: int = 0, device: int = 0, memory: int = 10) -> Claim:
    return Claim(
        "default/w",
        "uid-w",
        ordinal,
        f"default/w-{ordinal}",
        "n1",
        (gpu("n1", device),),
        memory * GIB,
        cpu_milli=100,
        memory_bytes=GIB,
        queue="default",
        gpu_milli=1000,
    )


def pod_of(one: Claim, uid: str = "p1") -> Pod:
    return Pod(one.pod, uid, one.node, claim=one, cpu_milli=one.cpu_milli, memory_bytes=one.memory_bytes)


def test_no_decision_before_everything_is_listed() -> None:
    store = ClusterBuilder().store
    assert not store.synced()
    assert store.snapshot().missing == tuple(Kind)
    for kind in Kind:
        store.mark_synced(kind)
    assert store.synced()
    assert store.snapshot().synced


def test_an_assumed_claim_counts_at_once_and_is_replaced_by_its_pod(cluster: ClusterBuilder) -> None:
    store = cluster.store
    store.assume(claim())
    assert store.snapshot().nodes["n1"].devices[0].reserved_bytes == 10 * GIB
    store.confirm("default/w-0", "p1")
    assert [a.uid for a in store.assumed()] == ["p1"]
    store.apply_pod(pod_of(claim()))
    assert store.assumed() == ()
    assert store.snapshot().nodes["n1"].devices[0].reserved_bytes == 10 * GIB
    assert store.snapshot().nodes["n1"].devices[0].claims == 1


def test_a_forgotten_claim_is_free_again_but_a_pod_that_was_seen_stays(cluster: ClusterBuilder) -> None:
    store = cluster.store
    store.assume(claim())
    assert store.forget("default/w-0")
    assert store.snapshot().nodes["n1"].devices[0].idle
    store.assume(claim())
    store.apply_pod(pod_of(claim()))
    assert not store.forget("default/w-0")
    assert not store.snapshot().nodes["n1"].devices[0].idle


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (claim(0, 1), "exists already"),
        (replace(claim(0, 1), pod="default/w-other"), "replica 0 of default/w holds a claim already"),
        (claim(1, 0), "device GPU-n1-0 is held by others"),
        (claim(1, 1, 30), "25769803776 bytes unreserved"),
        (replace(claim(1, 1), node="n9"), "node n9 is not registered"),
        (replace(claim(1, 1), cpu_milli=64_000), "63900 millicores of CPU free of 64000 needed"),
    ],
)
def test_what_does_not_fit_is_refused(cluster: ClusterBuilder, second: Claim, message: str) -> None:
    cluster.store.assume(claim())
    with pytest.raises(Conflict, match=message):
        cluster.store.assume(second)


def test_a_late_delete_of_a_former_pod_of_the_same_name_is_ignored(cluster: ClusterBuilder) -> None:
    store = cluster.store
    store.assume(claim())
    assert not store.delete_pod("default/w-0", "uid-of-the-former")
    store.apply_pod(pod_of(claim(), "new"))
    assert not store.delete_pod("default/w-0", "uid-of-the-former")
    assert store.delete_pod("default/w-0", "new")
    assert store.snapshot().nodes["n1"].devices[0].idle


def test_an_eviction_counts_as_terminating_until_it_is_refused(cluster: ClusterBuilder) -> None:
    store = cluster.store
    store.apply_pod(pod_of(claim()))
    assert store.assume_evicted("default/w-0", NOW + 30, "default/x")
    assert not store.assume_evicted("default/w-0", NOW + 30), "sent once"
    store.apply_pod(replace(pod_of(claim()), ready=True))  # an update that does not show the deletion yet
    assert [p.phase for p in store.pods_of("uid-w")] == [PodPhase.TERMINATING]
    assert store.forget_eviction("default/w-0")
    assert [p.phase for p in store.pods_of("uid-w")] == [PodPhase.BOUND]


def test_the_eviction_of_a_former_pod_does_not_count_for_its_successor(cluster: ClusterBuilder) -> None:
    store = cluster.store
    store.apply_pod(pod_of(claim(), "old"))
    store.assume_evicted("default/w-0", NOW + 30)
    store.apply_pod(pod_of(claim(), "new"))
    assert [p.phase for p in store.pods_of("uid-w")] == [PodPhase.BOUND]


def test_a_finished_pod_holds_its_name_but_no_capacity(cluster: ClusterBuilder) -> None:
    store = cluster.store
    store.apply_pod(replace(pod_of(claim()), phase=PodPhase.FINISHED))
    assert store.snapshot().nodes["n1"].devices[0].idle
    with pytest.raises(Conflict, match="exists already"):
        store.assume(claim())
    assert store.snapshot().unsettled == ("default/w",)


def test_pods_of_others_take_devices_and_are_dropped_when_they_end(cluster: ClusterBuilder) -> None:
    store = cluster.store
    other = Pod("kube/x", "x", "n1", gpus=1, cpu_milli=1000)
    store.apply_pod(other)
    state = store.snapshot().nodes["n1"]
    assert [d.foreign for d in state.devices] == [False, True]
    assert (state.gpus, state.cpu_milli) == (1, 1000)
    store.apply_pod(replace(other, phase=PodPhase.FINISHED))
    assert store.pod("kube/x") is None
    assert not any(d.foreign for d in store.snapshot().nodes["n1"].devices)


def test_pods_outlive_their_node(cluster: ClusterBuilder) -> None:
    store = cluster.store
    store.apply_pod(pod_of(claim()))
    store.delete_node("n1")
    store.delete_gpu_node("n1")
    assert "n1" in store.snapshot().nodes
    assert store.snapshot().charged == {"default": (1000, 0)}
    store.delete_pod("default/w-0", "p1")
    assert "n1" not in store.snapshot().nodes
    assert store.snapshot().charged == {}


def test_a_recreated_workload_inherits_nothing(cluster: ClusterBuilder) -> None:
    store = cluster.store
    store.set_replicas("default/w", 5)
    store.set_hold("default/w", Hold(Reason.BACK_OFF, "crashed", NOW + 60, 1))
    store.apply_workload(a_workload("w").with_(uid="another").value)
    assert store.snapshot().workloads["default/w"].replicas == 1
    assert store.snapshot().holds == {}
    assert not store.delete_workload("default/w", "uid-w"), "a late delete of the former one"
    assert store.workload("default/w") is not None


def test_an_edit_lifts_a_hold(cluster: ClusterBuilder) -> None:
    store = cluster.store
    store.set_hold("default/w", Hold(Reason.LOAD_FAILED, "corrupted", float("inf"), 1))
    store.apply_workload(a_workload("w").with_(generation=2).value)
    assert store.snapshot().holds == {}


def test_scaling_survives_an_update_of_the_spec(cluster: ClusterBuilder) -> None:
    store = cluster.store
    assert store.set_replicas("default/w", 3)
    assert not store.set_replicas("default/w", 3)
    store.apply_workload(a_workload("w").with_(generation=2).value)
    assert store.snapshot().workloads["default/w"].replicas == 3
    store.set_replicas("default/w", None)
    assert store.snapshot().workloads["default/w"].replicas == 1


def test_nothing_new_is_no_change(cluster: ClusterBuilder) -> None:
    store, version = cluster.store, cluster.store.version
    assert not store.apply_node(a_node("n1").with_gpus(2, "A-24G").node)
    assert not store.apply_workload(a_workload("w").value)
    assert not store.observe("n1", [Reading(gpu("n1", 0), 0, 24 * GIB)], NOW + 1)
    assert store.version == version
    assert store.snapshot().heard["n1"] == NOW + 1


def test_a_snapshot_does_not_change_with_the_store(cluster: ClusterBuilder) -> None:
    before = cluster.snapshot()
    cluster.store.assume(claim())
    assert before.nodes["n1"].devices[0].idle
    assert before.pods_of == {}


@pytest.mark.parametrize(
    ("samples", "believed"),
    [
        ([0, 100], [0, 0]),  # inside the band
        ([0, 5 * GIB], [0, 5 * GIB]),  # a rise counts at once
        ([5 * GIB, 0], [5 * GIB, 5 * GIB]),  # a single dip does not
        ([5 * GIB, 0, GIB, GIB], [5 * GIB, 5 * GIB, GIB, GIB]),  # a fall must be seen twice
        ([5 * GIB, 0, 5 * GIB, 0], [5 * GIB] * 4),
        ([5 * GIB, None, GIB], [5 * GIB, None, GIB]),  # unknown is never 0
    ],
)
def test_smoothing(samples: list[int | None], believed: list[int | None]) -> None:
    smoother, got = Smoother(), []
    last: int | None = None
    for sample in samples:
        folded = smoother.fold([Reading("g", sample, 24 * GIB)])
        last = folded["g"].used_bytes if folded is not None else last
        got.append(last)
    assert [v or 0 if b == 0 else v for v, b in zip(got, believed, strict=True)] == believed


def test_editing_the_claim_on_a_pod_changes_nothing(cluster: ClusterBuilder) -> None:
    store = cluster.store
    real = pod_of(claim())
    store.apply_pod(real)
    for edited in (replace(claim(), priority=10**6, bytes_per_device=1), None):
        store.apply_pod(replace(real, claim=edited))
        known = store.pod(real.key)
        assert known is not None
        assert known.claim == claim()
    store.apply_pod(replace(real, uid="p2", claim=None))
    assert store.pods_of("uid-w") == ()


def told(*holders: tuple[str, ...], node: str = "n1") -> ClusterBuilder:
    """A cluster whose node has one device for each tuple of pods the kubelet gave it to."""
    builder = a_node(node).with_gpus(len(holders), "A-24G")
    for index, pods in enumerate(holders):
        builder.with_device(index, holders=pods)
    return a_cluster(builder, a_workload("w"))


def foreign(name: str, gpus: int = 1) -> Pod:
    return Pod(f"kube/{name}", f"uid-{name}", "n1", gpus=gpus)


def test_a_pod_of_others_takes_the_device_the_kubelet_gave_it_and_no_guess() -> None:
    store = told(("kube/a",), (), ()).store
    store.apply_pod(foreign("a"))
    assert [one.foreign for one in store.snapshot().nodes["n1"].devices] == [True, False, False]
    store.apply_pod(foreign("b"))  # the kubelet has not told of this one yet: the guess is the last device
    assert [one.foreign for one in store.snapshot().nodes["n1"].devices] == [True, False, True]
    store.delete_pod("kube/a", "uid-a")
    assert [one.foreign for one in store.snapshot().nodes["n1"].devices] == [False, False, True]


def test_a_pod_of_others_that_holds_a_device_by_another_resource_takes_it_too() -> None:
    store = told((), ("kube/slice",)).store
    store.apply_pod(foreign("slice", gpus=0))
    (first, second) = store.snapshot().nodes["n1"].devices
    assert (first.idle, second.idle, second.headroom_bytes()) == (True, False, 0)


def test_a_claim_follows_the_device_the_kubelet_gave_its_pod() -> None:
    cluster = told((), ())
    store = cluster.store
    store.assume(claim(device=0))
    store.apply_pod(pod_of(claim(device=0)))
    given = a_node("n1").with_gpus(2, "A-24G").with_device(1, holders=("default/w-0",)).gpus
    assert given is not None
    assert store.apply_gpu_node(given)
    first, second = store.snapshot().nodes["n1"].devices
    assert (first.claims, second.claims, second.reserved_bytes) == (0, 1, 10 * GIB)
    (corrected,) = store.take_corrected()
    assert corrected.claim is not None
    assert corrected.claim.devices == (gpu("n1", 1),)
    assert store.take_corrected() == ()
    # The watch shows the annotation as it was written at first: what the kubelet gave still counts.
    store.apply_pod(replace(pod_of(claim(device=0)), ready=True))
    assert [one.claims for one in store.snapshot().nodes["n1"].devices] == [0, 1]
    assert store.take_corrected() == ()


def test_after_a_restart_a_claim_follows_its_device_whichever_is_listed_first() -> None:
    for late in (False, True):
        store = told((), () if late else ("default/w-0",)).store
        store.apply_pod(pod_of(claim(device=0)))
        if late:
            given = a_node("n1").with_gpus(2, "A-24G").with_device(1, holders=("default/w-0",)).gpus
            assert given is not None
            store.apply_gpu_node(given)
        assert [one.claims for one in store.snapshot().nodes["n1"].devices] == [0, 1]


@pytest.mark.parametrize("change", [{"sharing": Sharing.SHARED}, {"devices": (gpu("n1", 0), gpu("n1", 1))}])
def test_a_claim_stays_where_the_kubelet_cannot_have_given_its_devices(change: dict[str, object]) -> None:
    store = told((), (), ("default/w-0",)).store
    one = replace(claim(device=0), **change)  # type: ignore[arg-type]
    store.apply_pod(pod_of(one))
    pod = store.pod("default/w-0")
    assert pod is not None
    assert pod.claim == one


def test_a_node_that_refused_devices_grants_none_until_a_while_has_passed() -> None:
    store = told((), ()).store
    store.note_refusal("n1", NOW + 60)
    with pytest.raises(Conflict, match=r"0 nvidia\.com/gpu free of 1 needed"):
        store.assume(claim())
    assert store.snapshot().nodes["n1"].free_gpus() == 0
    store.observe(
        "n1", [Reading(gpu("n1", 0), 5 * GIB, 24 * GIB)], NOW
    )  # what is learned of it changes nothing
    store.advance(NOW + 59)
    assert store.snapshot().nodes["n1"].refusing
    store.advance(NOW + 60)
    assert store.snapshot().nodes["n1"].free_gpus() == 2
    store.assume(claim())
