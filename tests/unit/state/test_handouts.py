"""Under which resource a device goes, who has it, and what is left."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llmos_operator.api import names
from llmos_operator.api.mig import parse_profile
from llmos_operator.errors import Conflict
from llmos_operator.state import convert, ledger
from llmos_operator.state.cutting import Recut, dump
from llmos_operator.state.handouts import refuses_devices, resource_of
from llmos_operator.state.types import Claim, Device, Pod, Sharing
from tests.support.builders import GIB, NOW, ClusterBuilder, NodeBuilder, a_node, a_workload, gpu

SMALL, LARGE = "nvidia.com/mig-1g.10gb", "nvidia.com/mig-3g.40gb"


def cluster(node: NodeBuilder) -> ClusterBuilder:
    return ClusterBuilder().add(node)


def told(builder: NodeBuilder) -> list[str]:
    """Return the resource of each device of a node."""
    assert builder.gpus is not None
    devices = builder.gpus.devices
    return [resource_of(one, builder.node, devices) for one in devices]


def free(found: ClusterBuilder) -> list[int]:
    """Return the numbers of the devices of n1 that somebody could be given."""
    state = found.snapshot().nodes["n1"]
    return [number for number, one in enumerate(state.devices) if one.idle]


def others(**resources: int) -> Pod:
    """A pod of somebody else that asks for instances, by profile."""
    asked = {f"nvidia.com/mig-{name.replace('_', '.')}": count for name, count in resources.items()}
    return Pod("kube/others", "uid-others", "n1", partitions=asked)


def an_instance(number: int, resource: str = SMALL) -> Claim:
    return Claim(
        workload="default/w",
        workload_uid="uid-w",
        ordinal=0,
        pod="default/w-0",
        node="n1",
        devices=(gpu("n1", number),),
        bytes_per_device=5 * GIB,
        sharing=Sharing.MIG,
        partition_resource=resource,
    )


def test_the_strategy_of_the_device_plugin_says_under_which_resource_an_instance_goes() -> None:
    assert told(a_node().cut_into("1g.10gb", "3g.40gb")) == [SMALL, LARGE]
    assert told(a_node().cut_into("1g.10gb", strategy="single")) == [names.RESOURCE_GPU]
    assert told(a_node().cut_into("1g.10gb", strategy="none")) == [""]
    assert told(a_node().cut_into("1g.10gb", strategy="")) == [""]
    assert told(a_node().with_gpus(1).cut_into("1g.10gb")) == [names.RESOURCE_GPU, SMALL]


def test_without_the_label_what_the_node_advertises_says_it() -> None:
    mixed = a_node().cut_into("1g.10gb").labelled(**{names.LABEL_MIG_STRATEGY: ""})
    assert told(mixed) == [SMALL]
    single = a_node().cut_into("1g.10gb", strategy="single").labelled(**{names.LABEL_MIG_STRATEGY: ""})
    assert told(single) == [names.RESOURCE_GPU]
    beside = a_node().with_gpus(1).cut_into("1g.10gb", strategy="")
    assert told(beside)[1] == "", "single would have cut the other GPU, too"


def test_what_the_kubelet_says_goes_first() -> None:
    node = a_node().cut_into("1g.10gb", strategy="none").with_device(0, resource=SMALL)
    assert told(node) == [SMALL]
    assert told(node.with_device(0, resource="example.org/gpu")) == [""], "no resource this operator asks for"


def test_instances_of_others_are_taken_by_profile() -> None:
    found = cluster(a_node().with_gpus(1).cut_into("1g.10gb", "3g.40gb", "1g.10gb"))
    found.add(others(**{"1g_10gb": 1}))
    assert free(found) == [0, 1, 2]
    found.add(Pod("kube/more", "uid-more", "n1", gpus=1))
    assert free(found) == [1, 2], "whole GPUs are no instances"
    found.store.delete_pod("kube/others")
    found.store.delete_pod("kube/more")
    assert free(found) == [0, 1, 2, 3]


def test_the_kubelet_says_which_instance_others_have() -> None:
    node = a_node().cut_into("1g.10gb", "1g.10gb")
    assert node.gpus is not None
    first = replace(node.gpus.devices[0], holders=("kube/others",))
    node.gpus = replace(node.gpus, devices=(first, *node.gpus.devices[1:]))
    assert free(cluster(node).add(others(**{"1g_10gb": 1}))) == [1]


def test_instances_the_kubelet_does_not_advertise_are_nobodys() -> None:
    node = a_node().cut_into("1g.10gb", "1g.10gb", "3g.40gb")
    node.node = replace(node.node, partitions={SMALL: 1, LARGE: 1})
    found = cluster(node)
    assert free(found) == [0, 2]
    found.add(others(**{"1g_10gb": 1}))
    assert free(found) == [2]
    with pytest.raises(Conflict, match=r"no unit of nvidia.com/mig-1g.10gb left"):
        found.store.assume(an_instance(0))


def test_what_the_node_advertises_later_counts_at_once() -> None:
    node = a_node().cut_into("1g.10gb", "1g.10gb")
    found = cluster(node)
    found.store.apply_node(replace(node.node, partitions={SMALL: 0}))
    assert free(found) == []
    found.store.apply_node(node.node)
    assert free(found) == [0, 1]


def test_a_kubelet_that_refused_gives_no_instances_for_a_while() -> None:
    found = cluster(a_node().cut_into("1g.10gb", "1g.10gb"))
    found.store.note_refusal("n1", NOW + 60)
    assert free(found) == []
    found.store.expire_refusals(NOW + 61)
    assert free(found) == [0, 1]


def test_a_claim_takes_its_instance_and_a_unit_of_its_resource() -> None:
    single = cluster(a_node().cut_into("1g.10gb", "1g.10gb", strategy="single"))
    single.store.assume(an_instance(1, names.RESOURCE_GPU))
    state = single.snapshot().nodes["n1"]
    assert (free(single), state.free_gpus()) == ([0], 1)
    mixed = cluster(a_node().with_gpus(1).cut_into("1g.10gb", "1g.10gb"))
    mixed.store.assume(an_instance(2))
    assert (free(mixed), mixed.snapshot().nodes["n1"].free_gpus()) == ([0, 1], 1)


def test_a_claim_follows_the_instance_the_kubelet_gave_its_pod() -> None:
    node = a_node().cut_into("1g.10gb", "1g.10gb")
    found = cluster(node)
    workload = a_workload().needing("5Gi").with_(sharing=Sharing.MIG)
    pod = found.running(workload, "n1", (0,))
    assert free(found) == [1]
    assert node.gpus is not None
    given = replace(node.gpus.devices[1], holders=(pod.key,))
    found.add(replace(node.gpus, devices=(node.gpus.devices[0], given)))
    assert free(found) == [0]
    assert [one.key for one in found.store.take_corrected()] == [pod.key]


def test_the_state_is_the_same_however_it_came_about() -> None:
    node = a_node().cut_into("1g.10gb", "1g.10gb", "3g.40gb")
    found = cluster(node).add(others(**{"1g_10gb": 1}))
    found.running(a_workload().needing("5Gi").with_(sharing=Sharing.MIG), "n1", (0,))
    found.store.apply_node(replace(node.node, partitions={SMALL: 2}))
    state = found.snapshot().nodes["n1"]
    assert state == ledger.build("n1", state.node, state.gpu, state.pods, state.observed)
    assert [one.withheld for one in state.devices] == [False, False, True]


@pytest.mark.parametrize(
    ("reason", "refused"),
    [
        ("UnexpectedAdmissionError", True),
        ("OutOfnvidia.com/gpu", True),
        ("OutOfnvidia.com/mig-1g.10gb", True),
        ("OutOfcpu", False),
        ("", False),
    ],
)
def test_words_of_a_kubelet_without_devices(reason: str, refused: bool) -> None:
    assert refuses_devices(reason) is refused


def test_a_device_without_a_node_goes_under_nothing() -> None:
    alone = Device("MIG-a", 0, "H100 MIG 1g.10gb", 10 * GIB, mig=True)
    assert resource_of(alone, None, [alone]) == ""


# -- GPUs that are being cut


def a_cut_node(state: str = "") -> NodeBuilder:
    builder = a_node().with_gpus(1).cut_into("1g.10gb").cut_before("all-2g.20gb", 60, "2g.20gb")
    return builder.labelled(**({names.LABEL_MIG_STATE: state} if state else {}))


@pytest.mark.parametrize(
    ("state", "given"),
    [("", []), ("pending", []), ("rebooting", []), ("success", [0, 1]), ("failed", [0, 1])],
)
def test_nothing_is_given_while_gpus_are_cut(state: str, given: list[int]) -> None:
    found = cluster(a_cut_node(state))
    assert free(found) == given
    node = found.snapshot().nodes["n1"]
    assert node == ledger.build("n1", node.node, node.gpu, node.pods, node.observed)


def test_a_node_that_somebody_else_has_cut_gives_nothing_either() -> None:
    node = a_node().with_gpus(2)
    found = cluster(node)
    assert free(found) == [0, 1]
    found.store.apply_node(replace(node.node, labels={names.LABEL_MIG_STATE: "pending"}))
    assert free(found) == []
    with pytest.raises(Conflict, match="cuts its GPUs"):
        found.store.assume(replace(an_instance(0), sharing=Sharing.EXCLUSIVE, partition_resource=""))
    found.store.apply_node(node.node)
    assert free(found) == [0, 1]


def test_a_node_gives_nothing_from_the_moment_it_is_to_be_cut_whatever_the_watch_still_shows() -> None:
    node = a_node().cut_into("1g.10gb").labelled(**{names.LABEL_MIG_STATE: "success"})
    found, recut = cluster(node), Recut(NOW, "all-2g.20gb", (parse_profile("2g.20gb"),))
    assert found.store.assume_cut("n1", recut)
    assert free(found) == []
    found.store.apply_node(replace(node.node, cpu_milli=1))
    assert free(found) == [], "a heartbeat from before says nothing"
    seen = replace(node.node, recut=recut, labels={**node.node.labels, names.LABEL_MIG_CONFIG: "all-2g.20gb"})
    found.store.apply_node(replace(seen, labels={**seen.labels, names.LABEL_MIG_STATE: "success"}))
    assert free(found) == [0]


def test_a_node_that_could_not_be_asked_gives_again() -> None:
    node = a_node().cut_into("1g.10gb").labelled(**{names.LABEL_MIG_STATE: "success"})
    found = cluster(node)
    assert found.store.assume_cut("n1", Recut(NOW, "all-2g.20gb", ()))
    found.store.forget_cut(node.node)
    assert free(found) == [0]


def test_a_node_in_use_is_not_cut() -> None:
    node = a_node().cut_into("1g.10gb", "1g.10gb")
    found = cluster(node)
    pod = found.running(a_workload().needing("5Gi").with_(sharing=Sharing.MIG), "n1", (0,))
    recut = Recut(NOW, "all-2g.20gb", ())
    assert not found.store.assume_cut("n1", recut)
    found.store.delete_pod(pod.key)
    found.add(others(**{"1g_10gb": 1}))
    assert not found.store.assume_cut("n1", recut)
    assert not found.store.assume_cut("nowhere", recut)


def test_what_was_asked_is_read_back_from_the_nodes_annotation() -> None:
    recut = Recut(NOW, "all-2g.20gb", (parse_profile("2g.20gb"),))
    meta = {"name": "n1", "annotations": {names.ANNOTATION_MIG_RECUT: dump(recut)}}
    assert convert.node({"metadata": meta}).recut == recut
    for text in ("", "{", "[]", "{}", '{"at": 1, "profiles": [], "layout": ""}', '{"profiles": ["x"]}'):
        meta["annotations"] = {names.ANNOTATION_MIG_RECUT: text}
        assert convert.node({"metadata": meta}).recut is None, text
