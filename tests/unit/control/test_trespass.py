"""What is told of use beyond the ledger."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry

from llmos_operator.api.conditions import Reason
from llmos_operator.control.metrics import OperatorMetrics
from llmos_operator.control.trespass import Trespass
from llmos_operator.state.slices import Allocation, Handle, Slice, SliceDevice
from tests.support.builders import GIB, ClusterBuilder, a_cluster, a_node, a_workload, gpu


class Told:
    """A Trespass over a cluster, the Events it records and the figures it shows."""

    def __init__(self, cluster: ClusterBuilder) -> None:
        self.cluster = cluster
        self.events: list[tuple[str, str, Reason, str]] = []
        self.registry = CollectorRegistry()
        self.trespass = Trespass(OperatorMetrics(self.registry), self, lambda node: f"uid-of-{node}")  # type: ignore[arg-type]

    def record(self, subject: Any, _kind: str, reason: Reason, note: str, **_: str) -> bool:
        self.events.append((subject.kind, subject.name, reason, note))
        return True

    def lists(self, index: int, **uses: int) -> Told:
        told = {gpu("n1", index): uses}
        self.trespass.listed("n1", told)
        self.cluster.store.observe_processes("n1", told)
        self.trespass.look(self.cluster.snapshot())
        return self

    def __call__(self, name: str) -> float | None:
        return self.registry.get_sample_value(f"llmos_operator_{name}", {"node": "n1"})


def test_a_stranger_is_told_on_the_gpunode_once_and_again_when_it_comes_back() -> None:
    told = Told(a_cluster(a_node("n1").with_gpus(1)))
    told.lists(0, squatter=3 * GIB)
    assert (told.events, told("stranger_bytes")) == ([], 0)
    told.lists(0, squatter=3 * GIB).lists(0, squatter=3 * GIB)
    ((kind, name, reason, note),) = told.events
    assert (kind, name, reason) == ("GPUNode", "n1", Reason.STRANGER_OBSERVED)
    assert "3.0 GiB of device GPU-n1-0 are used by a pod that is gone (squatter)" in note
    assert told("stranger_bytes") == 3 * GIB
    told.lists(0).lists(0, squatter=2 * GIB).lists(0, squatter=2 * GIB)
    assert len(told.events) == 2


def test_a_replica_above_its_claim_is_told_on_its_workload() -> None:
    cluster = a_cluster(a_node("n1").with_gpus(1))
    pod = cluster.running(a_workload("chat").shared(), "n1", [0], memory="10Gi")
    told = Told(cluster).lists(0, **{pod.uid: 11 * GIB})
    assert (told.events, told("overusing_replicas")) == ([], 0)  # within an eighth
    told.lists(0, **{pod.uid: 14 * GIB}).lists(0, **{pod.uid: 14 * GIB})
    ((kind, name, reason, note),) = told.events
    assert (kind, name, reason) == ("ModelWorkload", "chat", Reason.OVERUSE_OBSERVED)
    assert "uses 14.0 GiB of device GPU-n1-0 and was given 10.0 GiB" in note
    assert told("overusing_replicas") == 1
    assert told("stranger_bytes") == 0


def test_a_claim_that_got_a_device_with_our_work_is_told_on_the_gpunode() -> None:
    cluster = a_cluster(a_node("n1").with_gpus(2))
    cluster.running(a_workload("chat").shared(), "n1", [0], memory="10Gi")
    told = Told(cluster)
    devices = tuple(SliceDevice(f"gpu-{number}", gpu("n1", number)) for number in range(2))
    cluster.store.apply_slice(Slice("s1", "n1", "n1", devices=devices))
    for number in (1, 0):
        handle = Handle("gpu.nvidia.com", "n1", f"gpu-{number}")
        assert told.lists(0).events == [], "of a device without our work nothing is told"
        cluster.store.apply_allocation(Allocation(f"other/c{number}", (handle,)))
    told.lists(0).lists(0)
    ((kind, name, reason, note),) = told.events
    assert (kind, name, reason) == ("GPUNode", "n1", Reason.DEVICE_CLAIMED)
    assert "GPU-n1-0 was given to ResourceClaim other/c0 while default/chat use it" in note
