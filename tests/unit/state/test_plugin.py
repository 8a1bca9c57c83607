"""Who has which device from the device plugin, as the ledger counts it: holder pods, others, and shared work without one."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from llmos_operator.api import names
from llmos_operator.errors import Conflict
from llmos_operator.state import convert, ledger, plugin
from llmos_operator.state.nodebook import OFFER_SECONDS
from llmos_operator.state.snapshot import assumed_pod
from llmos_operator.state.types import PodPhase
from tests.support.builders import GIB, NOW, ClusterBuilder, a_cluster, a_node, a_pod, a_workload, gpu

if TYPE_CHECKING:
    from llmos_operator.state.ledger import DeviceState, NodeState

SYSTEM = names.SYSTEM_NAMESPACE


def a_plugged(devices: int = 2) -> ClusterBuilder:
    return a_cluster(a_node("n1").with_gpus(devices, "A-24G").plugged())


def node(cluster: ClusterBuilder) -> NodeState:
    state = cluster.store.node("n1")
    assert state is not None
    assert state == ledger.build("n1", state.node, state.gpu, state.pods, state.observed), (
        "a rebuild is equal"
    )
    return state


def device(cluster: ClusterBuilder, index: int = 0) -> DeviceState:
    found = node(cluster).device(gpu("n1", index))
    assert found is not None
    return found


def test_shared_work_may_use_a_device_of_the_plugin_only_once_a_holder_pod_has_it() -> None:
    cluster = a_plugged()
    assert not device(cluster).open
    assert device(cluster).shareable(1)
    assert not device(cluster).shareable(0)
    cluster.holder("n1", device=0)
    assert (device(cluster).secured, device(cluster).foreign, device(cluster).idle) == (True, False, True)
    assert device(cluster).open
    assert not device(cluster, 1).open


def test_a_device_that_no_plugin_offers_is_open_to_shared_work() -> None:
    cluster = a_cluster(a_node("n1").with_gpus(1, "A-24G"))
    assert device(cluster).open
    assert not node(cluster).plugged


def test_a_holder_pod_takes_a_unit_from_the_kubelet_and_none_from_a_plan_until_it_has_work() -> None:
    cluster = a_plugged()
    cluster.holder("n1", device=0)
    assert (node(cluster).free_gpus(), node(cluster).granted_gpus()) == (2, 1)
    cluster.running(a_workload("w").shared(), "n1", [0], memory="4Gi")
    cluster.running(a_workload("v").shared(), "n1", [0], memory="4Gi")
    assert (node(cluster).free_gpus(), node(cluster).granted_gpus()) == (1, 1)
    assert node(cluster).foreign_gpus == 0


def test_a_claim_that_is_planned_counts_its_device_before_a_holder_pod_has_it() -> None:
    cluster = a_plugged()
    work = a_workload("w").shared().value
    pod = a_pod(cluster.store, work, "n1", (0,), 0, GIB, {})
    assert pod.claim is not None
    planned = node(cluster).with_pod(assumed_pod(pod.claim))
    assert (planned.free_gpus(), planned.granted_gpus()) == (1, 2)
    assert planned.devices[0].shareable(0), "more shared work may be planned beside it"
    with pytest.raises(Conflict, match="has no holder pod"):
        cluster.store.assume(pod.claim)
    cluster.holder("n1", device=0)
    cluster.store.assume(pod.claim)


def test_a_holder_pod_on_its_way_out_holds_a_unit_but_no_device_for_shared_work() -> None:
    cluster = a_plugged()
    cluster.holder("n1", device=0, phase=PodPhase.TERMINATING)
    assert not device(cluster).secured
    assert node(cluster).granted_gpus() == 1


def test_nothing_joins_shared_work_that_lost_its_holder_pod() -> None:
    cluster = a_plugged()
    holder = cluster.holder("n1", device=0)
    cluster.running(a_workload("w").shared(), "n1", [0], memory="4Gi")
    assert plugin.bare(node(cluster)) == ()
    cluster.store.delete_pod(holder.key, holder.uid)
    assert plugin.bare(node(cluster)) == (gpu("n1", 0),)
    assert not device(cluster).shareable(2)
    cluster.other("n1", "train", 0)
    assert (plugin.bare(node(cluster)), plugin.lost(node(cluster))) == ((), (gpu("n1", 0),))


def test_a_pod_of_others_whose_device_nobody_told_is_not_believed_to_have_a_held_one() -> None:
    cluster = a_plugged()
    cluster.holder("n1", device=1)
    cluster.other("n1", "train")
    assert [one.foreign for one in node(cluster).devices] == [True, False]


def test_what_a_plugin_withdraws_stays_its_own_as_long_as_the_kubelet_tells() -> None:
    cluster = a_plugged()
    gpus = node(cluster).gpu
    assert gpus is not None
    starting = replace(gpus, devices=tuple(replace(d, offered=False) for d in gpus.devices))
    cluster.store.apply_gpu_node(starting)
    assert not device(cluster).open
    assert [state.name for state in cluster.store.plugged()] == ["n1"]
    cluster.running(a_workload("w").shared(), "n1", [0], memory="4Gi")
    assert plugin.bare(node(cluster)) == (), "nobody can be given it now"


def test_what_a_plugin_offered_is_forgotten_some_time_after_the_kubelet_ceased_to_tell() -> None:
    cluster = a_plugged()
    gpus = node(cluster).gpu
    assert gpus is not None
    silent = replace(gpus, devices=tuple(replace(d, offered=False) for d in gpus.devices), told=False)
    cluster.store.apply_gpu_node(silent)
    cluster.store.advance(NOW)
    cluster.store.advance(NOW + OFFER_SECONDS)
    assert not device(cluster).open, "the agent or the kubelet may be back at any moment"
    cluster.store.apply_gpu_node(replace(silent, told=True))
    cluster.store.apply_gpu_node(silent)
    cluster.store.advance(NOW + OFFER_SECONDS + 1)
    assert not device(cluster).open, "it was back"
    cluster.store.advance(NOW + 2 * OFFER_SECONDS + 2)
    assert device(cluster).open
    assert cluster.store.plugged() == []
    assert not node(cluster).plugged


def test_holder_pods_are_told_apart_by_what_they_have() -> None:
    cluster = a_plugged(3)
    cluster.holder("n1", 0, device=0)
    cluster.holder("n1", 1, device=1)
    cluster.holder("n1", 2)
    cluster.holder("n1", 3, phase=PodPhase.TERMINATING)
    cluster.running(a_workload("w").shared(), "n1", [0], memory="4Gi")
    found = [(one.device, one.used, one.leaving) for one in plugin.holders(node(cluster))]
    assert found == [
        (gpu("n1", 0), True, False),
        (gpu("n1", 1), False, False),
        ("", False, False),
        ("", False, True),
    ]


def test_a_holder_pod_that_ended_is_kept_until_it_is_deleted_and_holds_nothing() -> None:
    cluster = a_plugged()
    holder = cluster.holder("n1", device=0)
    cluster.store.apply_pod(replace(holder, phase=PodPhase.FINISHED, failed=True))
    assert node(cluster).granted_gpus() == 2
    assert [pod.key for pod in cluster.store.holders()] == [holder.key]
    cluster.store.delete_pod(holder.key, holder.uid)
    assert cluster.store.holders() == ()


def a_holder_body(namespace: str, **labels: str) -> dict[str, object]:
    return {
        "metadata": {
            "name": "x",
            "namespace": namespace,
            "uid": "u",
            "labels": {names.LABEL_ROLE: names.ROLE_HOLDER, **labels},
        },
        "spec": {
            "nodeName": "n1",
            "containers": [{"name": "c", "resources": {"limits": {"nvidia.com/gpu": "1"}}}],
        },
        "status": {},
    }


def test_a_label_makes_a_holder_pod_in_the_operators_namespace_only() -> None:
    assert convert.pod(a_holder_body(SYSTEM), holders_in=SYSTEM).holder
    assert not convert.pod(a_holder_body("team"), holders_in=SYSTEM).holder
    assert not convert.pod(a_holder_body(SYSTEM)).holder
    other = convert.pod(a_holder_body(SYSTEM, **{names.LABEL_ROLE: "runtime"}), holders_in=SYSTEM)
    assert (other.holder, other.gpus) == (False, 1)


def test_the_gpunode_says_what_a_plugin_offers() -> None:
    read = convert.gpu_node(
        {
            "metadata": {"name": "n1"},
            "status": {
                "devices": [
                    {"uuid": "a", "resource": "nvidia.com/gpu"},
                    {"uuid": "b", "index": 1, "resource": "nvidia.com/mig-1g.10gb"},
                    {"uuid": "c", "index": 2},
                ],
                "conditions": [{"type": "AllocationsKnown", "status": "True"}],
            },
        }
    )
    assert [one.offered for one in read.devices] == [True, False, False]
    assert read.told
