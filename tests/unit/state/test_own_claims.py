"""Devices that the operator's pods get by ResourceClaims of their own: which those are, who counts on them, and what is planned."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from llmos_operator.manifests import deviceclaim
from llmos_operator.manifests import pod as pod_manifest
from llmos_operator.scheduler.cycle import plan
from llmos_operator.scheduler.policy import Policy
from llmos_operator.state import convert, ledger
from llmos_operator.state.slices import Allocation, Handle, Slice, SliceDevice
from llmos_operator.state.store import Store
from llmos_operator.state.types import PodPhase, Queue, Sharing
from tests.support.builders import ClusterBuilder, a_node, a_workload, gpu
from tests.support.replicas import SETTINGS, a_claim_of, a_work

if TYPE_CHECKING:
    from llmos_operator.scheduler.plan import Bind, Plan
    from llmos_operator.state.ledger import NodeState
    from llmos_operator.state.types import Claim, Pod

NOW = 1_700_000_000.0
HANDLES = tuple(Handle("gpu.nvidia.com", "n1", f"gpu-{number}") for number in range(2))


def a_cluster(*devices: SliceDevice, claims_devices: bool = True, plugin: int = 0) -> ClusterBuilder:
    """Return a cluster of one node with two devices that a driver publishes, plainly unless told otherwise."""
    store = Store((), claims_devices=claims_devices)
    node = a_node("n1").with_gpus(2)
    node.node = replace(node.node, gpus=plugin)
    cluster = ClusterBuilder(store).add(Queue("default"), node)
    told = devices or tuple(SliceDevice(f"gpu-{number}", gpu("n1", number)) for number in range(2))
    store.apply_slice(Slice("s1", "n1", "n1", devices=told))
    return cluster


def state_of(cluster: ClusterBuilder) -> NodeState:
    state = cluster.store.node("n1")
    assert state is not None
    return state


def planned(cluster: ClusterBuilder, *workloads: Any) -> Plan:
    return plan(cluster.add(*workloads).snapshot(), Policy(), NOW)


def the_bind(made: Plan) -> Bind:
    (bind,) = made.binds
    return bind


def bound(cluster: ClusterBuilder, claim: Claim) -> Pod:
    """Let the pod of a bind exist, with what its claim has."""
    store = cluster.store
    store.assume(claim)
    (pod,) = [one for one in state_of(cluster).pods.values() if one.claim == claim]
    store.apply_pod(replace(pod, uid="pod-uid", phase=PodPhase.BOUND))
    taken = tuple(HANDLES[int(uuid.rpartition("-")[2])] for uuid in claim.devices)
    key = f"{pod.namespace}/{claim.resource_claim}"
    store.apply_allocation(Allocation(key, taken, pod=pod.key, users=("pod-uid",)))
    return pod


def test_whole_devices_without_a_plugin_are_claimed_under_a_name_of_pod_place_and_time() -> None:
    claim = the_bind(planned(a_cluster(), a_workload("w"))).claim
    assert claim.resource_claim.startswith(claim.pod.partition("/")[2][:40])
    assert claim.resource == ""
    assert claim.whole_units == 1
    again = the_bind(planned(a_cluster(), a_workload("w"))).claim
    assert again.resource_claim == claim.resource_claim
    later = plan(a_cluster().add(a_workload("w")).snapshot(), Policy(), NOW + 1)
    assert the_bind(later).claim.resource_claim != claim.resource_claim


@pytest.mark.parametrize(
    "cluster",
    [
        a_cluster(claims_devices=False),
        a_cluster(*(SliceDevice(f"gpu-{n}", gpu("n1", n), reserved=True) for n in range(2))),
        a_cluster(*(SliceDevice(f"gpu-{n}", gpu("n1", n), frozenset({"all"})) for n in range(2))),
        a_cluster(*(SliceDevice(f"gpu-{n}") for n in range(2))),
    ],
    ids=["not enabled", "reserved", "cut into parts", "no UUIDs"],
)
def test_what_cannot_be_claimed_is_not_given(cluster: ClusterBuilder) -> None:
    made = planned(cluster, a_workload("w"))
    assert made.binds == ()
    assert state_of(cluster).whole_units == 0


def test_where_a_device_plugin_offers_devices_it_goes_first() -> None:
    claim = the_bind(planned(a_cluster(plugin=2), a_workload("w"))).claim
    assert claim.resource_claim == ""
    assert claim.resource == "nvidia.com/gpu"


def test_of_a_node_with_both_only_devices_that_can_be_claimed_are_given() -> None:
    mixed = (SliceDevice("gpu-0", gpu("n1", 0), reserved=True), SliceDevice("gpu-1", gpu("n1", 1)))
    cluster = a_cluster(*mixed)
    assert [one.idle for one in state_of(cluster).devices] == [False, True]
    assert the_bind(planned(cluster, a_workload("w"))).claim.devices == (gpu("n1", 1),)


def test_nothing_is_shared_where_devices_are_claimed_and_the_decision_says_so() -> None:
    cluster = a_cluster()
    made = planned(cluster, a_workload("w").shared())
    assert made.binds == ()
    (decision,) = made.decisions.values()
    assert "are given by ResourceClaims" in str(decision)


def test_two_pods_get_two_devices_and_a_third_waits() -> None:
    cluster = a_cluster()
    made = planned(cluster, a_workload("a"), a_workload("b"), a_workload("c"))
    assert len({uuid for bind in made.binds for uuid in bind.claim.devices}) == 2
    assert len(made.waits) == 1


def test_a_claim_of_ours_takes_nothing_beyond_its_pod_and_keeps_the_device_until_it_has_gone() -> None:
    cluster = a_cluster()
    claim = the_bind(planned(cluster, a_workload("w"))).claim
    pod = bound(cluster, claim)
    number = int(claim.devices[0].rpartition("-")[2])
    held = state_of(cluster).devices[number]
    assert (held.claims, held.foreign) == (1, False)
    assert state_of(cluster).free_gpus() == 1
    cluster.store.delete_pod(pod.key)
    assert state_of(cluster).devices[number].foreign, "its claim still has the device"
    cluster.store.delete_allocation(f"{pod.namespace}/{claim.resource_claim}")
    assert state_of(cluster).devices[number].idle


def test_a_claim_under_our_label_that_no_pod_has_frees_nothing() -> None:
    cluster = a_cluster()
    cluster.store.apply_allocation(Allocation("team/forged", (HANDLES[0],), pod="team/w-0"))
    assert [one.idle for one in state_of(cluster).devices] == [False, True]


def test_the_ledger_is_the_same_in_any_order() -> None:
    cluster = a_cluster()
    bound(cluster, the_bind(planned(cluster, a_workload("w"))).claim)
    state = state_of(cluster)
    assert ledger.build("n1", state.node, state.gpu, state.pods, state.observed) == state


def test_the_pod_names_its_claim_and_is_read_back_with_it() -> None:
    work = a_work()
    claim = a_claim_of(work, resource_claim="chat-0-abc")
    body = pod_manifest.build(work, claim, SETTINGS)
    assert body["spec"]["resourceClaims"] == [{"name": "llmos-devices", "resourceClaimName": "chat-0-abc"}]
    (container,) = body["spec"]["containers"]
    assert container["resources"]["claims"] == [{"name": "llmos-devices"}]
    assert "limits" not in container["resources"]
    assert "NVIDIA_VISIBLE_DEVICES" not in {one["name"] for one in container["env"]}
    body["metadata"]["uid"] = "uid-pod"
    read = convert.pod(body)
    assert read.claim == claim
    assert read.problem == ""
    body["metadata"]["annotations"]["llmos.dev/claim"] = "{"
    read = convert.pod(body)
    assert read.claim is None
    assert read.resource_claim == "chat-0-abc", "what its spec says nobody can edit"


def test_a_claim_is_made_for_all_devices_of_a_pod_and_owned_by_its_workload() -> None:
    claim = a_claim_of(a_work(), devices=("a", "b"), resource_claim="chat-0-abc")
    body = deviceclaim.build(claim, "gpu.nvidia.com", "mig.nvidia.com")
    (request,) = body["spec"]["devices"]["requests"]
    assert request["exactly"] == {
        "deviceClassName": "gpu.nvidia.com",
        "allocationMode": "ExactCount",
        "count": 2,
    }
    (owner,) = body["metadata"]["ownerReferences"]
    assert owner["uid"] == "uid-1"
    assert deviceclaim.is_for(body, claim)
    other = replace(claim, workload_uid="uid-2")
    assert not deviceclaim.is_for(body, other)
    read = convert.resource_claim(body)
    assert (read.key, read.pod, read.users, read.handles) == ("team/chat-0-abc", claim.pod, (), ())


@pytest.mark.parametrize(
    "told",
    [
        {"taints": [{"key": "k", "effect": "NoSchedule"}]},
        {"allowMultipleAllocations": True},
        {"bindingConditions": ["ready"]},
    ],
    ids=str,
)
def test_devices_with_conditions_of_their_driver_are_not_claimed(told: dict[str, Any]) -> None:
    pool = {"name": "n1", "generation": 1}
    spec = {"driver": "gpu.nvidia.com", "nodeName": "n1", "pool": pool, "devices": [{"name": "gpu-0"} | told]}
    (device,) = convert.resource_slice({"metadata": {"name": "s1"}, "spec": spec}).devices
    assert device.reserved


def test_an_instance_that_is_a_device_of_its_own_is_claimed_by_the_class_of_instances() -> None:
    store = Store((), claims_devices=True)
    node = a_node("n1").with_gpus(1, "A100-10G", mig=True).labelled(**{"nvidia.com/mig.strategy": "mixed"})
    node.node = replace(node.node, gpus=0)
    cluster = ClusterBuilder(store).add(Queue("default"), node)
    uuid = state_of(cluster).devices[0].uuid
    store.apply_slice(Slice("s1", "n1", "n1", devices=(SliceDevice("gpu-0-mig-1g", uuid),)))
    asks = a_workload("w").needing("8Gi").with_(sharing=Sharing.MIG)
    claim = the_bind(planned(cluster, asks)).claim
    assert (bool(claim.resource_claim), claim.partition_resource, claim.whole_units) == (True, "", 0)
    (request,) = deviceclaim.build(claim, "gpu.nvidia.com", "mig.nvidia.com")["spec"]["devices"]["requests"]
    assert request["exactly"]["deviceClassName"] == "mig.nvidia.com"
