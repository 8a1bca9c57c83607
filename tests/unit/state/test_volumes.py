"""Where claims can be mounted: what follows for workloads from claims, volumes and the pods that mount them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llmos_operator.api.conditions import Reason
from llmos_operator.scheduler.cycle import plan
from llmos_operator.scheduler.policy import Policy
from llmos_operator.state import convert
from llmos_operator.state.store import Store
from llmos_operator.state.types import ClaimUse, Pod, PodPhase
from llmos_operator.state.volumes import VolumeBook
from tests.support.builders import NOW, ClusterBuilder, WorkloadBuilder, a_cluster, a_node, a_workload
from tests.support.plans import carry_out

Json = dict[str, Any]
FIELD = "spec.model.uri"


def a_claim(name: str = "models", mode: str = "ReadWriteMany", phase: str = "Bound", **spec: Any) -> Json:
    told = {"accessModes": [mode], "volumeName": f"pv-{name}" if phase == "Bound" else ""} | spec
    meta = {"name": name, "namespace": "default"}
    return {"metadata": meta, "spec": told, "status": {"phase": phase}}


def a_volume(name: str, *nodes: str, key: str = "metadata.name") -> Json:
    terms = [{"matchFields": [{"key": key, "operator": "In", "values": [node]}]} for node in nodes]
    return {
        "metadata": {"name": name},
        "spec": {"nodeAffinity": {"required": {"nodeSelectorTerms": terms}}} if terms else {},
    }


def reader(name: str = "w", *claims: str) -> WorkloadBuilder:
    made = a_workload(name)
    made.value = replace(made.value, claims=tuple(ClaimUse(FIELD, one) for one in claims or ("models",)))
    return made


def three_nodes(*objects: Json) -> ClusterBuilder:
    cluster = a_cluster(*(a_node(f"n{number}").with_gpus(8) for number in (1, 2, 3)))
    take(cluster.store, *objects)
    return cluster


def take(store: Store, *objects: Json) -> None:
    for one in objects:
        if "accessModes" in one["spec"]:
            store.apply_volume_claim(convert.volume_claim(one))
        else:
            store.apply_volume(convert.volume(one))


def nodes_of(cluster: ClusterBuilder) -> list[str]:
    """Plan until nothing more is bound; return the nodes of what was."""
    found: list[str] = []
    while (made := plan(cluster.snapshot(), Policy(), NOW)).binds:
        found += [one.claim.node for one in made.binds]
        carry_out(cluster, made)
    return found


def trouble(cluster: ClusterBuilder, key: str = "default/w") -> tuple[Reason, str]:
    found = cluster.store.claim_trouble(key)
    assert found is not None
    return found


# -- what is told


def test_a_claim_that_does_not_exist_is_told_with_its_field_until_it_does() -> None:
    cluster = three_nodes().add(reader())
    reason, message = trouble(cluster)
    assert reason is Reason.CLAIM_NOT_FOUND
    assert message.startswith(
        f"{FIELD}: there is no PersistentVolumeClaim models in namespace default; create it"
    )
    take(cluster.store, a_claim())
    assert cluster.store.take_remounted() == ("default/w",)
    assert cluster.store.claim_trouble("default/w") is None
    assert cluster.store.delete_volume_claim("default/models")
    assert trouble(cluster)[0] is Reason.CLAIM_NOT_FOUND


def test_a_claim_of_another_namespace_is_none() -> None:
    cluster = three_nodes().add(reader())
    other = a_claim()
    other["metadata"]["namespace"] = "other"
    take(cluster.store, other)
    assert trouble(cluster)[0] is Reason.CLAIM_NOT_FOUND


@pytest.mark.parametrize(
    ("phase", "words"),
    [
        ("Pending", "of StorageClass slow is not bound to a volume; kubectl describe pvc models tells why"),
        ("Lost", "has lost its volume"),
    ],
)
def test_a_claim_without_a_volume_is_told_and_what_to_do(phase: str, words: str) -> None:
    cluster = three_nodes(a_claim(phase=phase, storageClassName="slow")).add(reader())
    reason, message = trouble(cluster)
    assert reason is Reason.CLAIM_PENDING
    assert message.startswith(f"{FIELD}: PersistentVolumeClaim models")
    assert words in message


def test_nothing_is_said_of_claims_while_no_replica_needs_a_place() -> None:
    cluster = three_nodes()
    cluster.running(reader(), "n1", [0])
    assert cluster.store.claim_trouble("default/w") is None


def test_a_claim_of_one_pod_waits_for_that_pod_to_end() -> None:
    cluster = three_nodes(a_claim(mode="ReadWriteOncePod")).add(reader())
    cluster.add(Pod("default/filler", "uid-filler", "n2", mounts=("models",)))
    reason, message = trouble(cluster)
    assert reason is Reason.CLAIM_IN_USE
    assert "pod default/filler uses it" in message
    cluster.store.take_remounted()
    cluster.add(Pod("default/filler", "uid-filler", "n2", PodPhase.FINISHED, mounts=("models",)))
    assert cluster.store.take_remounted() == ("default/w",)
    assert cluster.store.claim_trouble("default/w") is None


# -- where replicas go


def test_replicas_go_where_the_volume_is() -> None:
    cluster = three_nodes(a_claim(), a_volume("pv-models", "n3", "n2")).add(reader().replicas(12))
    assert set(nodes_of(cluster)) == {"n2", "n3"}


def test_a_decision_names_the_claim_that_no_node_with_room_can_mount() -> None:
    cluster = three_nodes(a_claim(), a_volume("pv-models", "n9")).add(reader())
    made = plan(cluster.snapshot(), Policy(), NOW)
    (rejection,) = made.decisions["default/w"].rejected
    assert (rejection.reason, rejection.nodes) == ("VolumeElsewhere", 3)
    assert (
        rejection.nearest == "3 cannot mount claim models: its volume pv-models is elsewhere (nodeAffinity)"
    )
    take(cluster.store, a_volume("pv-models", "n1"))
    assert nodes_of(cluster) == ["n1"]


def test_all_claims_have_to_be_there() -> None:
    cluster = three_nodes(
        a_claim("a"), a_volume("pv-a", "n1", "n2"), a_claim("b"), a_volume("pv-b", "n2", "n3")
    )
    assert nodes_of(cluster.add(reader("w", "a", "b"))) == ["n2"]


@pytest.mark.parametrize("mode", ["ReadWriteMany", "ReadOnlyMany"])
def test_a_claim_of_many_nodes_binds_nobody_to_one(mode: str) -> None:
    cluster = three_nodes(a_claim(mode=mode)).add(reader().replicas(24))
    assert set(nodes_of(cluster)) == {"n1", "n2", "n3"}


def test_a_claim_of_one_node_keeps_to_the_node_where_somebody_has_it() -> None:
    cluster = three_nodes(a_claim(mode="ReadWriteOnce"))
    filler = Pod("default/filler", "uid-filler", "n3", mounts=("models",))
    cluster.add(reader(), filler)
    assert nodes_of(cluster) == ["n3"]


def test_a_claim_of_one_node_is_free_again_when_nobody_has_it() -> None:
    cluster = three_nodes(a_claim(mode="ReadWriteOnce"), a_volume("pv-models", "n1"))
    filler = Pod("default/filler", "uid-filler", "n3", mounts=("models",))
    cluster.add(reader(), filler)
    assert nodes_of(cluster) == []
    cluster.store.delete_pod("default/filler")
    assert nodes_of(cluster) == ["n1"]


def test_all_replicas_on_a_claim_of_one_node_are_on_one_whoever_they_belong_to() -> None:
    cluster = three_nodes(a_claim(mode="ReadWriteOnce"))
    cluster.add(reader("a").replicas(3), reader("b").replicas(3), reader("c").replicas(3))
    found = nodes_of(cluster)
    assert len(found) == 8, "one node has so many devices"
    assert len(set(found)) == 1


def test_who_cannot_be_placed_keeps_nobody_from_the_claim() -> None:
    cluster = three_nodes(a_claim(mode="ReadWriteOnce"))
    cluster.add(reader("a").gpus(9), reader("b"))
    assert len(nodes_of(cluster)) == 1


def test_a_copy_of_a_store_keeps_the_limits() -> None:
    cluster = three_nodes(a_claim(), a_volume("pv-models", "n3")).add(reader())
    copy = Store.of(cluster.snapshot())
    copy.set_replicas("default/w", 2)
    workload = copy.workload("default/w")
    assert workload is not None
    assert [one.claim for one in workload.mounts] == ["models"]


def test_replicas_with_devices_to_be_near_follow_the_first_one() -> None:
    cluster = three_nodes(a_claim(mode="ReadWriteOnce"))
    cluster.add(reader().gpus(4).replicas(2).within(preferred="nvlink"))
    cluster.running(a_workload("full").gpus(4), "n1", range(4))
    cluster.running(a_workload("fuller").gpus(4), "n2", range(4))
    cluster.running(a_workload("fullest").gpus(4), "n3", range(4))
    made = plan(cluster.snapshot(), Policy(), NOW)
    assert len(made.binds) == 1, "no other node could mount the claim then"
    assert made.decisions["default/w"].reason is Reason.CLAIM_IN_USE


@pytest.mark.parametrize("level", ["", "nvlink"])
def test_replicas_that_wait_for_room_to_be_made_wait_on_one_node(level: str) -> None:
    cluster = three_nodes(a_claim(mode="ReadWriteOnce")).with_priorities(low=1, high=9)
    for node in ("n1", "n2", "n3"):
        cluster.running(a_workload(f"runs-{node}").gpus(8).priority("low"), node, range(8))
    cluster.add(reader().gpus(8).replicas(2).within(preferred=level).priority("high"))
    made = plan(cluster.snapshot(), Policy(), NOW)
    assert len(made.evictions) == 1
    assert made.decisions["default/w"].reason is Reason.WAITING_FOR_PREEMPTION
    (wait,) = made.waits
    assert wait.replicas == 2


def test_pods_that_start_together_are_held_back_where_a_claim_might_end_up_on_two_nodes() -> None:
    cluster = three_nodes(a_claim(mode="ReadWriteOnce"))
    cluster.add(reader().gpus(1).of_pods(2))
    reason, message = trouble(cluster)
    assert reason is Reason.CLAIM_IN_USE
    assert message == (
        f"{FIELD}: PersistentVolumeClaim models is ReadWriteOnce, and nothing keeps the 2 pods of a replica on one node; set "
        "spec.scheduling.topology.required to node, or use a claim with ReadOnlyMany or ReadWriteMany."
    )
    cluster.add(Pod("default/filler", "uid-filler", "n2", mounts=("models",)))
    assert cluster.store.claim_trouble("default/w") is None, "all of them go where it is mounted"
    assert nodes_of(cluster) == ["n2", "n2"]


def test_pods_that_are_kept_on_one_node_may_share_its_claim() -> None:
    cluster = three_nodes(a_claim(mode="ReadWriteOnce"))
    cluster.add(reader().gpus(1).of_pods(2).within("node"))
    assert cluster.store.claim_trouble("default/w") is None
    assert len(set(nodes_of(cluster))) == 1

    local = three_nodes(a_claim(mode="ReadWriteOnce"), a_volume("pv-models", "n3"))
    local.add(reader().gpus(1).of_pods(2))
    assert local.store.claim_trouble("default/w") is None, "its volume is on one node only"
    assert nodes_of(local) == ["n3", "n3"]


def test_replicas_that_start_together_are_held_back_on_a_claim_of_one_node() -> None:
    cluster = three_nodes(a_claim(mode="ReadWriteOnce"))
    cluster.add(reader().gpus(1).replicas(2).together(2))
    reason, message = trouble(cluster)
    assert reason is Reason.CLAIM_IN_USE
    assert "2 replicas start together, on any nodes; set spec.scheduling.minReplicas to 1, or use" in message


def test_pods_that_start_together_cannot_have_a_claim_of_one_pod() -> None:
    cluster = three_nodes(a_claim(mode="ReadWriteOncePod"))
    cluster.add(reader().gpus(1).of_pods(2).within("node"))
    reason, message = trouble(cluster)
    assert reason is Reason.CLAIM_IN_USE
    assert (
        "is ReadWriteOncePod, and 2 pods start together; use a claim with ReadOnlyMany or ReadWriteMany."
        in message
    )


# -- what is kept


def test_what_is_gone_leaves_nothing_behind() -> None:
    book = VolumeBook()
    workload = reader().value
    claim = convert.volume_claim(a_claim(mode="ReadWriteOnce"))
    book.apply_claim(claim)
    book.note_workload(None, workload)
    assert book.note_pod("default/p", "n1", ["default/models", "default/models"]) == {"default/w"}
    assert book.note_pod("default/p", "n1", ["default/models"]) == set(), "nothing has changed"
    assert book.note_pod("default/p", "n1", ()) == {"default/w"}
    book.note_workload(workload, None)
    book.delete_claim(claim.key)
    assert not any(getattr(book, name) for name in vars(book))


def test_a_volume_concerns_those_whose_claims_are_bound_to_it() -> None:
    book = VolumeBook()
    book.note_workload(None, reader().value)
    book.apply_claim(convert.volume_claim(a_claim()))
    assert book.apply_volume(convert.volume(a_volume("pv-models", "n1"))) == {"default/w"}
    assert book.apply_volume(convert.volume(a_volume("pv-other", "n1"))) == set()
    book.apply_claim(convert.volume_claim(a_claim(volumeName="pv-other")))
    assert book.delete_volume("pv-models") == set()
    assert book.delete_volume("pv-other") == {"default/w"}


def test_a_pod_has_mounted_what_its_spec_says_not_what_its_workload_names_by_now() -> None:
    cluster = three_nodes(a_claim(mode="ReadWriteOnce"))
    pod = cluster.running(a_workload("w"), "n3", [0])
    cluster.add(reader("w").replicas(2))
    cluster.store.apply_pod(replace(pod, ready=False))
    workload = cluster.store.workload("default/w")
    assert workload is not None
    assert [limit.places for limit in workload.mounts] == [()], "a pod of before the change does not have it"


# -- which claims a workload names


def test_every_place_that_names_a_claim_is_known_by_its_field() -> None:
    spec = {
        "type": "FineTune",
        "model": {"uri": "pvc://models/a"},
        "adapters": [{"name": "x", "uri": "pvc://adapters/x"}],
        "fineTune": {"dataset": {"uri": "pvc://data/in"}, "output": {"uri": "pvc://data/out"}},
        "podTemplate": {
            "spec": {"volumes": [{"name": "v", "persistentVolumeClaim": {"claimName": "extra"}}]}
        },
    }
    meta = {"name": "w", "namespace": "default", "uid": "u"}
    assert {one.claim: one.field for one in convert.workload({"metadata": meta, "spec": spec}).claims} == {
        "models": "spec.model.uri",
        "adapters": "spec.adapters[0].uri",
        "data": "spec.fineTune.dataset.uri",
        "extra": "spec.podTemplate.spec.volumes[0].persistentVolumeClaim.claimName",
    }


def test_the_claims_of_any_pod_are_known() -> None:
    volumes = [{"name": "a", "emptyDir": {}}, {"name": "b", "persistentVolumeClaim": {"claimName": "models"}}]
    body = {"metadata": {"name": "p", "namespace": "x"}, "spec": {"nodeName": "n1", "volumes": volumes}}
    assert convert.pod(body).mounts == ("models",)
