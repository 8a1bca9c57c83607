"""Plans on nodes with a device plugin: who waits for holder pods, and what the plan needs of them."""

from __future__ import annotations

from dataclasses import replace

from llmos_operator.api.conditions import Reason
from llmos_operator.scheduler.cycle import plan
from llmos_operator.scheduler.explain import explain
from llmos_operator.scheduler.plan import HolderNeed, Plan
from llmos_operator.scheduler.policy import Policy
from llmos_operator.scheduler.recording import Recording, dump, load, plan_document, replay
from llmos_operator.sim.whatif import forecast
from llmos_operator.state.types import PodPhase
from tests.support.builders import NOW, ClusterBuilder, a_cluster, a_node, a_workload, gpu
from tests.support.plans import carry_out

POLICY = Policy(startup_seconds=0.0)  # starts beside each other: what waits here waits for holder pods


def a_plugged(devices: int = 2) -> ClusterBuilder:
    return a_cluster(a_node("n1").with_gpus(devices, "A-24G").plugged()).with_priorities(low=1, high=100)


def planned(cluster: ClusterBuilder) -> Plan:
    return plan(cluster.snapshot(), POLICY, NOW)


def bound(made: Plan) -> dict[str, tuple[str, ...]]:
    return {bind.claim.workload.partition("/")[2]: bind.claim.devices for bind in made.binds}


def test_shared_work_waits_until_a_holder_pod_has_its_device() -> None:
    cluster = a_plugged().add(a_workload("w").shared().needing("4Gi"))
    made = planned(cluster)
    assert made.actions == ()
    assert made.holders == {"n1": HolderNeed(take=1)}
    decision = made.decisions["default/w"]
    assert (decision.reason, decision.pending, decision.format) == (Reason.WAITING_FOR_HOLDER, 1, "bf16")
    assert (
        decision.message
        == "starts on node n1 as soon as a holder pod has taken a device from the device plugin there"
    )
    assert [wait.reason for wait in made.waits] == [Reason.WAITING_FOR_HOLDER]
    assert explain(cluster.snapshot(), POLICY, NOW, "default/w").reason is Reason.WAITING_FOR_HOLDER
    cluster.holder("n1")
    assert planned(cluster).holders == {"n1": HolderNeed(take=1)}, "it is on its way"
    cluster.tells("n1", {1: (cluster.store.holders()[0].key,)})
    made = planned(cluster)
    assert (bound(made), made.holders) == ({"w": (gpu("n1", 1),)}, {})


def test_work_that_shares_a_device_asks_for_one_holder_pod_together() -> None:
    cluster = a_plugged().add(*(a_workload(f"w{i}").shared().needing("4Gi") for i in range(3)))
    assert planned(cluster).holders == {"n1": HolderNeed(take=1)}
    cluster.holder("n1", device=0)
    made = planned(cluster)
    assert bound(made) == {f"w{i}": (gpu("n1", 0),) for i in range(3)}


def test_work_that_does_not_fit_together_asks_for_several() -> None:
    cluster = a_plugged().add(*(a_workload(f"w{i}").shared().needing("16Gi") for i in range(3)))
    made = planned(cluster)
    assert made.holders == {"n1": HolderNeed(take=2)}
    assert sorted(wait.reason for wait in made.waits) == [
        Reason.NO_CAPACITY,
        Reason.WAITING_FOR_HOLDER,
        Reason.WAITING_FOR_HOLDER,
    ]


def test_devices_that_others_took_are_not_asked_for() -> None:
    cluster = a_plugged()
    cluster.other("n1", "a", 0)
    cluster.other("n1", "b")
    cluster.add(a_workload("w").shared().needing("4Gi"))
    made = planned(cluster)
    assert (made.holders, made.decisions["default/w"].reason) == ({}, Reason.NO_CAPACITY)


def test_a_kubelet_that_refused_a_device_is_asked_for_none() -> None:
    cluster = a_plugged().add(a_workload("w").shared().needing("4Gi"))
    cluster.store.note_refusal("n1", NOW + 60)
    made = planned(cluster)
    assert made.holders == {}
    (rejection,) = made.decisions["default/w"].rejected
    assert (rejection.reason, rejection.nearest) == (
        "DevicesNotHeld",
        "the kubelet of n1 refused nvidia.com/gpu to a pod within the last minute",
    )


def test_nothing_is_placed_beside_work_that_lost_its_holder_pod() -> None:
    cluster = a_plugged(1)
    cluster.running(a_workload("old").shared(), "n1", [0], memory="4Gi")
    cluster.add(a_workload("new").shared().needing("4Gi"))
    made = planned(cluster)
    assert (made.actions, made.holders) == ((), {})
    (rejection,) = made.decisions["default/new"].rejected
    assert "1 devices with shared work have lost theirs" in rejection.nearest


def test_whole_work_waits_until_a_holder_pod_without_work_has_given_back_its_device() -> None:
    cluster = a_plugged(1).add(a_workload("w"))
    cluster.holder("n1", device=0)
    made = planned(cluster)
    assert (made.actions, made.holders) == ((), {"n1": HolderNeed(give=1)})
    assert made.decisions["default/w"].reason is Reason.WAITING_FOR_HOLDER
    assert "given back" in made.decisions["default/w"].message
    cluster.holder("n1", phase=PodPhase.TERMINATING)
    assert planned(cluster).actions == (), "the kubelet has not taken it back"
    cluster.store.delete_pod(cluster.store.holders()[0].key)
    assert bound(planned(cluster)) == {"w": (gpu("n1", 0),)}


def test_whole_work_goes_to_devices_that_nobody_holds_first() -> None:
    cluster = a_plugged(2).add(a_workload("w"))
    cluster.holder("n1", device=0)
    made = planned(cluster)
    assert (bound(made), made.holders) == ({"w": (gpu("n1", 1),)}, {})


def test_shared_and_whole_work_never_plan_on_more_than_the_node_has() -> None:
    cluster = a_plugged(2)
    cluster.add(
        a_workload("s").shared().needing("4Gi").priority("high"), *(a_workload(f"w{i}") for i in range(2))
    )
    made = planned(cluster)
    assert (len(made.binds), made.holders) == (1, {"n1": HolderNeed(take=1)})
    assert [made.decisions[f"default/w{i}"].reason for i in range(2)].count(Reason.NO_CAPACITY) == 1


def test_urgent_whole_work_displaces_shared_work_and_then_its_holder_pod() -> None:
    cluster = a_plugged(1)
    cluster.holder("n1", device=0)
    old = cluster.running(a_workload("old").shared().priority("low"), "n1", [0], memory="4Gi")
    cluster.add(a_workload("urgent").priority("high"))
    assert [evict.pod for evict in planned(cluster).evictions] == [old.key]
    cluster.store.delete_pod(old.key, old.uid)
    cluster.store.delete_workload("default/old")
    assert planned(cluster).holders == {"n1": HolderNeed(give=1)}


def test_a_gang_starts_with_all_its_devices_held_or_not_at_all() -> None:
    nodes = [a_node(name).with_gpus(1, "A-24G").plugged() for name in ("n1", "n2")]
    cluster = a_cluster(*nodes, a_workload("g").shared().needing("4Gi").of_pods(2))
    cluster.holder("n1", device=0)
    first = planned(cluster)
    cluster.holder("n2", device=0)
    assert (first.actions, first.holders) == ((), {"n2": HolderNeed(take=1)}) or len(first.binds) == 2
    assert len(planned(cluster).binds) == 2


def test_a_node_without_a_plugin_is_used_as_ever() -> None:
    cluster = a_cluster(a_node("n1").with_gpus(1, "A-24G"), a_workload("w").shared().needing("4Gi"))
    made = planned(cluster)
    assert (bound(made), made.holders) == ({"w": (gpu("n1", 0),)}, {})


def test_a_recorded_cycle_gives_the_same_needs_again() -> None:
    cluster = a_plugged().add(a_workload("w").shared().needing("4Gi"))
    cluster.holder("n1", 3, device=1)
    cluster.running(a_workload("v").shared(), "n1", [1], memory="22Gi")
    made = planned(cluster)
    assert made.holders
    text = dump(Recording(cluster.snapshot(), POLICY, NOW, None, plan_document(made)), "1")
    read = load(text)
    assert plan_document(replay(read)) == read.plan == plan_document(made)


def test_what_if_lets_holder_pods_come_and_go() -> None:
    cluster = a_plugged(2).add(a_workload("w").shared().needing("4Gi"), a_workload("v"))
    cluster.holder("n1", 7, device=0)
    cluster.holder("n1", 8, device=1)
    cluster.snapshot()
    found = forecast(cluster.store, POLICY, NOW, ["default/w", "default/v"])
    placed = {bind.claim.workload for cycle in found.cycles for bind in cycle.binds}
    assert placed == {"default/w", "default/v"}
    cluster = a_plugged(1).add(a_workload("w").shared().needing("4Gi"))
    cluster.snapshot()
    found = forecast(cluster.store, POLICY, NOW, ["default/w"])
    assert [len(cycle.binds) for cycle in found.cycles[:2]] == [0, 1]


def test_a_plan_carried_out_holds_what_it_needs() -> None:
    cluster = a_plugged(1).add(a_workload("w").shared().needing("4Gi"))
    cluster.holder("n1", device=0)
    made = planned(cluster)
    carry_out(cluster, made)
    state = cluster.store.node("n1")
    assert state is not None
    assert replace(state.devices[0]).claims == 1
