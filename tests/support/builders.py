"""Fluent builders of domain values, so that a test reads as a sentence.

cluster = a_cluster(a_node("n1").with_gpus(8, "A100-80G"))
cluster.add(a_workload("chat").needing("10Gi"))
plan(cluster.snapshot(), Policy(), NOW)
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from llmos_operator.api import names
from llmos_operator.api.mig import parse_profile
from llmos_operator.api.quantity import parse_bytes, parse_milli
from llmos_operator.api.runtime.memory import ModelShape
from llmos_operator.api.telemetry import Verdict
from llmos_operator.api.v1alpha1.modelprofile import profile_name
from llmos_operator.state.handouts import resource_of
from llmos_operator.state.store import Store
from llmos_operator.state.telemetry import Reading
from llmos_operator.state.types import (
    FULL_MILLI,
    Claim,
    Device,
    DisruptionBudget,
    FormatProfile,
    GpuNode,
    Kind,
    Link,
    Model,
    Namespace,
    Node,
    Pod,
    PodPhase,
    PriorityClass,
    Profile,
    Quantization,
    QuantizationMode,
    Queue,
    Recut,
    Sharing,
    Taint,
    Topology,
    Workload,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llmos_operator.state.snapshot import Snapshot

NOW = 1_700_000_000.0
LONG_AGO = NOW - 86_400.0
GIB = 1 << 30

# 135 million parameters, the size of the model that the project's own tests serve.
SMALL_MODEL = ModelShape(
    architecture="LlamaForCausalLM",
    linear_parameters=106_168_320,
    embedding_parameters=28_311_552,
    other_parameters=35_136,
    layers=30,
    hidden=576,
    intermediate=1536,
    heads=9,
    kv_heads=3,
    head_dim=64,
    vocab=49152,
    max_positions=8192,
)
# 8 billion parameters, grouped-query attention.
LARGE_MODEL = ModelShape(
    architecture="LlamaForCausalLM",
    linear_parameters=6_979_321_856,
    embedding_parameters=1_050_673_152,
    other_parameters=266_240,
    layers=32,
    hidden=4096,
    intermediate=14336,
    heads=32,
    kv_heads=8,
    head_dim=128,
    vocab=128256,
    max_positions=131_072,
)


def gpu(node: str, index: int) -> str:
    """Return the UUID builders give to a device."""
    return f"GPU-{node}-{index}"


@dataclass
class NodeBuilder:
    """Builds a Node and its GpuNode."""

    node: Node
    gpus: GpuNode | None = None
    heard_at: float | None = NOW
    observed: dict[int, int] = field(default_factory=dict)
    strangers: dict[int, int] = field(default_factory=dict)
    throttled: dict[int, int] = field(default_factory=dict)
    risks: dict[int, int] = field(default_factory=dict)

    def with_gpus(
        self, count: int, product: str = "A100-80G", memory: str = "", mig: bool = False
    ) -> NodeBuilder:
        """Add devices; the memory is read off a product that ends in "-80G" unless given."""
        size = parse_bytes(memory or product.rpartition("-")[2] + "i")
        have = len(self.gpus.devices) if self.gpus else 0
        devices = tuple(
            Device(gpu(self.node.name, i), i, product, size, (8, 0), mig=mig)
            for i in range(have, have + count)
        )
        former = self.gpus.devices if self.gpus else ()
        self.gpus = GpuNode(self.node.name, (*former, *devices))
        self.node = replace(self.node, gpus=self.node.gpus + count)
        return self

    def cut_into(
        self, *profiles: str, product: str = "H100-80G", memory: str = "", strategy: str = "mixed"
    ) -> NodeBuilder:
        """Add a GPU that is cut into MIG instances, handed out by a device plugin of that strategy ("": none runs).

        Instances are numbered on from the devices there are, in `gpu` and where something runs.
        """
        whole = parse_bytes(memory or product.rpartition("-")[2] + "i")
        former = self.gpus.devices if self.gpus else ()
        index = max((one.index for one in former), default=-1) + 1
        found = [parse_profile(text) for text in profiles]
        devices = tuple(
            Device(
                gpu(self.node.name, len(former) + number),
                index,
                f"{product} MIG {one}",
                one.gigabytes * GIB,
                (9, 0),
                mig=True,
                parent=f"GPU-{self.node.name}-parent-{index}",
                profile=one,
                part_milli=max(one.slices * FULL_MILLI // 7, one.gigabytes * GIB * FULL_MILLI // whole),
            )
            for number, one in enumerate(found)
        )
        self.gpus = GpuNode(self.node.name, (*former, *devices))
        if strategy:
            self.labelled(**{names.LABEL_MIG_STRATEGY: strategy})
        if strategy == "mixed":
            counts = Counter(self.node.partitions) + Counter(one.resource for one in found)
            self.node = replace(self.node, partitions=dict(counts))
        elif strategy:
            self.node = replace(self.node, gpus=self.node.gpus + (len(found) if strategy == "single" else 1))
        return self

    def cut_before(self, layout: str, seconds_ago: float, *profiles: str) -> NodeBuilder:
        """Let the operator have asked for its GPUs to be cut; labels say how far mig-manager has come."""
        recut = Recut(NOW - seconds_ago, layout, tuple(map(parse_profile, profiles)))
        labels = {**self.node.labels, names.LABEL_MIG_CONFIG: layout}
        self.node = replace(self.node, labels=labels, recut=recut)
        return self

    def with_host(self, cpu: str = "64", memory: str = "512Gi", pods: int = 110) -> NodeBuilder:
        self.node = replace(
            self.node, cpu_milli=parse_milli(cpu), memory_bytes=parse_bytes(memory), pods=pods
        )
        return self

    def labelled(self, **labels: str) -> NodeBuilder:
        self.node = replace(self.node, labels={**self.node.labels, **labels})
        return self

    def tainted(self, key: str, value: str = "", effect: str = "NoSchedule") -> NodeBuilder:
        self.node = replace(self.node, taints=(*self.node.taints, Taint(key, value, effect)))
        return self

    def cordoned(self) -> NodeBuilder:
        self.node = replace(self.node, unschedulable=True)
        return self

    def not_ready(self) -> NodeBuilder:
        self.node = replace(self.node, ready=False)
        return self

    def with_device(self, index: int, **changes: Any) -> NodeBuilder:
        """Change fields of one device."""
        assert self.gpus is not None
        devices = tuple(replace(d, **changes) if d.index == index else d for d in self.gpus.devices)
        self.gpus = replace(self.gpus, devices=devices)
        return self

    def plugged(self) -> NodeBuilder:
        """Let a device plugin offer the devices, and the kubelet tell who has which."""
        assert self.gpus is not None
        devices = tuple(replace(d, offered=True) for d in self.gpus.devices)
        self.gpus = replace(self.gpus, devices=devices, told=True)
        return self

    def linked(self, *islands: Iterable[int], kind: str = "NVLink") -> NodeBuilder:
        """Connect the devices of each island with each other."""
        for island in islands:
            for index in island:
                others = tuple(Link(gpu(self.node.name, i), kind) for i in island if i != index)
                self.with_device(index, links=others)
        return self

    def drawing(self, *limits: int | None) -> NodeBuilder:
        """Give the devices power limits in watts, in order of index; a single one to all of them. None: it does not tell."""
        assert self.gpus is not None
        told = limits * len(self.gpus.devices) if len(limits) == 1 else limits
        for device, limit in zip(self.gpus.devices, told, strict=True):
            self.with_device(device.index, limit_milliwatts=None if limit is None else limit * 1000)
        return self

    def within_watts(
        self, budget: int | None = None, rack: str = "", of_rack: int | None = None
    ) -> NodeBuilder:
        """Give the node a power budget, a rack and the rack a budget."""
        labels = {names.LABEL_RACK: rack} if rack else {}
        for label, watts in ((names.LABEL_POWER_BUDGET, budget), (names.LABEL_RACK_POWER_BUDGET, of_rack)):
            if watts is not None:
                labels[label] = str(watts)
        self.node = replace(
            self.labelled(**labels).node,
            power_milliwatts=None if budget is None else budget * 1000,
            rack_milliwatts=None if of_rack is None else of_rack * 1000,
        )
        return self

    def keeping(self, *models: str) -> NodeBuilder:
        """Have whole copies of models, by key."""
        assert self.gpus is not None
        self.gpus = replace(self.gpus, models=frozenset(models))
        return self

    def unhealthy(self, index: int, reason: str = "XID79") -> NodeBuilder:
        return self.with_device(index, verdict=Verdict.UNHEALTHY, reason=reason)

    def observed_using(self, index: int, memory: str) -> NodeBuilder:
        self.observed[index] = parse_bytes(memory)
        return self

    def held_down(self, index: int, milli: int) -> NodeBuilder:
        """Let heat hold a device down for so many thousandths of its time."""
        self.throttled[index] = milli
        return self

    def ageing(self, index: int, milli: int) -> NodeBuilder:
        """Let the memory of a device be at risk."""
        self.risks[index] = milli
        return self

    def used_by_strangers(self, index: int, memory: str) -> NodeBuilder:
        """Let processes of a pod nobody knows use a device, as two process lists have told."""
        self.strangers[index] = self.observed[index] = parse_bytes(memory)
        return self

    def last_heard(self, seconds_ago: float | None) -> NodeBuilder:
        """Set the age of its telemetry; None: never heard."""
        self.heard_at = None if seconds_ago is None else NOW - seconds_ago
        return self


def a_node(name: str = "n1") -> NodeBuilder:
    return NodeBuilder(Node(name, f"uid-{name}", cpu_milli=64_000, memory_bytes=512 * GIB))


@dataclass
class WorkloadBuilder:
    """Builds a Workload; amounts are those of `resources.memory` unless it has a model of known shape."""

    value: Workload

    def needing(self, memory: str) -> WorkloadBuilder:
        return self.with_(memory_bytes=parse_bytes(memory))

    def gpus(self, count: int) -> WorkloadBuilder:
        return self.with_(accelerators=count)

    def shared(self, compute_milli: int | None = None) -> WorkloadBuilder:
        return self.with_(sharing=Sharing.SHARED, compute_milli=compute_milli)

    def priority(self, name: str) -> WorkloadBuilder:
        return self.with_(priority_class=name)

    def in_queue(self, name: str) -> WorkloadBuilder:
        return self.with_(queue=name)

    def replicas(self, count: int, least: int = 1) -> WorkloadBuilder:
        return self.with_(replicas=count, min_replicas=least)

    def of_pods(self, copies: int = 1, stages: int = 1) -> WorkloadBuilder:
        """Spread one replica over copies x stages pods."""
        return self.with_(copies=copies, stages=stages)

    def together(self, count: int) -> WorkloadBuilder:
        return self.with_(together=count, min_replicas=count)

    def within(self, required: str = "", preferred: str = "") -> WorkloadBuilder:
        return self.with_(topology=Topology(required, preferred))

    def created(self, seconds_ago: float) -> WorkloadBuilder:
        return self.with_(created_at=NOW - seconds_ago)

    def serving(self, model: str) -> WorkloadBuilder:
        """Take the size from the profile of a model instead of `resources.memory`."""
        return self.with_(model=Model(model), memory_bytes=None)

    def at(
        self, mode: str, fmt: str = "", allowed: tuple[str, ...] = ("bf16", "int8", "int4"), **more: Any
    ) -> WorkloadBuilder:
        return self.with_(quantization=Quantization(QuantizationMode(mode), fmt, allowed, **more))

    def with_(self, **changes: Any) -> WorkloadBuilder:
        self.value = replace(self.value, **changes)
        return self


def a_workload(name: str = "w", namespace: str = "default") -> WorkloadBuilder:
    return WorkloadBuilder(
        Workload(
            key=f"{namespace}/{name}",
            uid=f"uid-{name}",
            model=Model(f"hf://org/{name}"),
            created_at=LONG_AGO,
            memory_bytes=10 * GIB,
            min_runtime=0.0,
        )
    )


def a_profile(
    uri: str, shape: ModelShape | None = SMALL_MODEL, *formats: FormatProfile, **more: Any
) -> Profile:
    return Profile(
        profile_name(uri, "main"), uri=uri, shape=shape, formats={f.format: f for f in formats}, **more
    )


@dataclass
class ClusterBuilder:
    """A store that is filled through its public methods only."""

    store: Store = field(default_factory=Store)

    def add(self, *things: Any) -> ClusterBuilder:
        """Apply builders and domain values of any kind."""
        for thing in things:
            self._add(thing)
        return self

    def _add(self, thing: Any) -> None:
        store = self.store
        if isinstance(thing, NodeBuilder):
            self._add_node(thing)
        elif isinstance(thing, WorkloadBuilder):
            store.apply_workload(thing.value)
        else:
            {
                Workload: store.apply_workload,
                Queue: store.apply_queue,
                Profile: store.apply_profile,
                PriorityClass: store.apply_priority_class,
                DisruptionBudget: store.apply_budget,
                Namespace: store.apply_namespace,
                Pod: store.apply_pod,
                Node: store.apply_node,
                GpuNode: store.apply_gpu_node,
            }[type(thing)](thing)

    def _add_node(self, builder: NodeBuilder) -> None:
        self.store.apply_node(builder.node)
        if builder.gpus is None:
            return
        self.store.apply_gpu_node(builder.gpus)
        if builder.heard_at is not None:
            readings = [
                Reading(
                    d.uuid,
                    builder.observed.get(d.index, 0),
                    d.memory_bytes,
                    throttled_milli=builder.throttled.get(d.index),
                    risk_milli=builder.risks.get(d.index),
                )
                for d in builder.gpus.devices
            ]
            self.store.observe(builder.node.name, readings, builder.heard_at)
        lists = {gpu(builder.node.name, index): {"nobody": used} for index, used in builder.strangers.items()}
        for _ in range(2 if lists else 0):
            self.store.observe_processes(builder.node.name, lists)

    def with_priorities(self, **values: int) -> ClusterBuilder:
        for name, value in values.items():
            self.store.apply_priority_class(PriorityClass(name.replace("_", "-"), value))
        return self

    def running(
        self,
        workload: WorkloadBuilder,
        node: str,
        devices: Iterable[int] = (),
        ordinal: int = 0,
        memory: str = "",
        phase: PodPhase = PodPhase.BOUND,
        **claim: Any,
    ) -> Pod:
        """Let a replica of a workload run on a node since long ago; adds the workload if it is not known."""
        value = workload.value
        if self.store.workload(value.key) is None:
            self.store.apply_workload(value)
        pod = a_pod(
            self.store, value, node, tuple(devices), ordinal, parse_bytes(memory) if memory else None, claim
        )
        pod = replace(pod, phase=phase)
        self.store.apply_pod(pod)
        return pod

    def other(self, node: str, name: str, device: int | None = None) -> Pod:
        """Let a pod of another scheduler have a GPU of a node; with a device the kubelet has told which."""
        return self._given(Pod(f"kube/{name}", f"uid-{name}", node, gpus=1), device)

    def holder(
        self, node: str, slot: int = 0, device: int | None = None, phase: PodPhase = PodPhase.BOUND
    ) -> Pod:
        """Let a holder pod be on a node; with a device the kubelet has told which it got."""
        key = f"{names.SYSTEM_NAMESPACE}/{names.holder_name(node, slot)}"
        pod = Pod(
            key, f"uid-{node}-{slot}", node, phase, cpu_milli=1, memory_bytes=16 << 20, gpus=1, holder=True
        )
        return self._given(pod, device)

    def _given(self, pod: Pod, device: int | None) -> Pod:
        self.store.apply_pod(pod)
        if device is not None:
            self.tells(pod.node, {device: (pod.key,)})
        return pod

    def tells(self, node: str, holders: dict[int, tuple[str, ...]]) -> None:
        """Let the kubelet tell who has some devices of a node, by index."""
        state = self.store.node(node)
        assert state is not None
        assert state.gpu is not None
        devices = tuple(
            replace(one, holders=holders.get(one.index, one.holders)) for one in state.gpu.devices
        )
        self.store.apply_gpu_node(replace(state.gpu, devices=devices))

    def snapshot(self) -> Snapshot:
        """Return the store's snapshot with all kinds synchronised."""
        for kind in Kind:
            self.store.mark_synced(kind)
        return self.store.snapshot()


def a_pod(
    store: Store,
    workload: Workload,
    node: str,
    devices: tuple[int, ...],
    ordinal: int,
    memory: int | None,
    claim_changes: dict[str, Any],
) -> Pod:
    """Return the pod of a replica that was bound long ago."""
    shared = workload.sharing is Sharing.SHARED
    priority = store.snapshot().priority_of(workload)
    member = claim_changes.get("member", 0)
    rank = member if workload.members > 1 else None
    name = names.pod_name(workload.name, workload.uid, ordinal, member=rank)
    held = memory if memory is not None else workload.memory_bytes or 0
    state = store.snapshot().nodes[node]
    devices_of = {one.uuid: one.device for one in state.devices}
    held_on = [devices_of[gpu(node, i)] for i in devices]
    claim = Claim(
        workload=workload.key,
        workload_uid=workload.uid,
        ordinal=ordinal,
        pod=f"{workload.namespace}/{name}",
        node=node,
        devices=tuple(gpu(node, i) for i in devices),
        bytes_per_device=held if devices else 0,
        compute_milli=100 if shared else FULL_MILLI,
        sharing=workload.sharing,
        domain=workload.namespace if shared else "",
        format="bf16",
        cpu_milli=250,
        memory_bytes=512 << 20,
        priority=priority,
        queue=workload.queue or "default",
        gpu_milli=sum(-(-held * FULL_MILLI // d.memory_bytes) if shared else d.part_milli for d in held_on),
        charged_bytes=sum(held if shared else d.memory_bytes for d in held_on),
        bound_at=LONG_AGO,
        partition_resource=resource_of(held_on[0], state.node, list(devices_of.values()))
        if workload.sharing is Sharing.MIG
        else "",
    )
    claim = replace(claim, **claim_changes)
    return Pod(
        key=claim.pod,
        uid=f"pod-uid-{name}",
        node=node,
        claim=claim,
        labels={names.LABEL_WORKLOAD: workload.name},
        cpu_milli=claim.cpu_milli,
        memory_bytes=claim.memory_bytes,
        ready=True,
        started_at=LONG_AGO,
        mounts=tuple(one.claim for one in workload.claims),
    )


def a_cluster(*things: Any) -> ClusterBuilder:
    """Return a cluster with a default queue that takes every namespace."""
    return ClusterBuilder().add(Queue("default"), *things)
