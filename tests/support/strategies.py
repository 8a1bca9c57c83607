"""Hypothesis strategies: small clusters with everything that can stand in a scheduler's way."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from hypothesis import strategies as st

from llmos_operator.api import names
from llmos_operator.api.mig import parse_profile
from llmos_operator.state.types import (
    DisruptionBudget,
    DisruptionStep,
    PodPhase,
    Queue,
    Requirement,
    Selector,
    Sharing,
    Topology,
    WorkloadKind,
)
from tests.support.builders import NOW, ClusterBuilder, NodeBuilder, a_node, a_workload

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmos_operator.state.types import Pod, Workload

PRIORITIES = {"low": 1, "mid": 2, "high": 3}
QUEUES = ("default", "red", "blue")
GIB = 1 << 30


@st.composite
def nodes(draw: st.DrawFn, least: int = 1, most: int = 4, *, instances: bool = False) -> ClusterBuilder:
    """A cluster of a few nodes, some of them in a bad state; with `instances` some have GPUs that are cut."""
    cluster = ClusterBuilder().with_priorities(**PRIORITIES)
    for i in range(draw(st.integers(least, most))):
        node = a_node(f"n{i}").with_host(cpu=str(draw(st.sampled_from([1, 2, 64]))), memory="64Gi")
        count = draw(st.integers(0, 4))
        if count:
            node.with_gpus(count, draw(st.sampled_from(["A-80G", "L-24G"])))
            if draw(st.integers(0, 4)) == 0:
                strained = draw(st.integers(0, count - 1))
                node.held_down(strained, draw(st.sampled_from([100, 500, 900])))
                node.ageing(strained, draw(st.sampled_from([0, 150, 300])))
            if draw(st.booleans()):
                limits = st.sampled_from([400, 400, 400, 300, None] if draw(st.booleans()) else [400])
                node.drawing(*draw(st.lists(limits, min_size=count, max_size=count)))
                if draw(st.booleans()):
                    node.within_watts(draw(st.integers(1, 5)) * 300)
            if draw(st.integers(0, 9)) == 0:
                node.unhealthy(draw(st.integers(0, count - 1)))
            if draw(st.integers(0, 9)) == 0:
                node.last_heard(600)
            if draw(st.integers(0, 9)) == 0:
                node.observed_using(draw(st.integers(0, count - 1)), "5Gi")
        cut(draw, node, instances=instances)
        cluster.add(node.cordoned() if draw(st.integers(0, 14)) == 0 else node)
    return cluster


@st.composite
def queues(draw: st.DrawFn) -> list[Queue]:
    """No limits, flat limits, or a cohort."""
    kind = draw(st.sampled_from(["free", "flat", "cohort"]))
    if kind == "free":
        return [Queue(name) for name in QUEUES]

    def amount() -> int:
        return draw(st.integers(0, 6)) * 1000

    parent = "org" if kind == "cohort" else ""
    found = [
        Queue(
            name,
            parent,
            nominal_gpu_milli=amount(),
            borrowing_gpu_milli=amount() if parent and draw(st.booleans()) else None,
            lending_gpu_milli=amount() if parent and draw(st.booleans()) else None,
            reclaim=draw(st.sampled_from(["Any", "LowerPriority", "Never"])),
            preempt_within=draw(st.booleans()),
        )
        for name in QUEUES
    ]
    return [*found, Queue("org")] if parent else found


def cut(draw: st.DrawFn, node: NodeBuilder, *, instances: bool) -> None:
    """With `instances`, add to some nodes a GPU that is cut into instances, of which the kubelet may advertise fewer."""
    if not instances or draw(st.booleans()):
        return
    profiles = st.sampled_from(["1g.10gb", "1g.20gb", "2g.20gb", "3g.40gb"])
    strategy = draw(
        st.sampled_from(["mixed", "mixed", "none"] if node.gpus else ["mixed", "single", "none", ""])
    )
    node.cut_into(*draw(st.lists(profiles, min_size=1, max_size=4)), strategy=strategy)
    if draw(st.integers(0, 4)) == 0:
        fewer = {resource: draw(st.integers(0, count)) for resource, count in node.node.partitions.items()}
        node.node = replace(node.node, partitions=fewer)


@st.composite
def cut_clusters(draw: st.DrawFn) -> ClusterBuilder:
    """Nodes of nothing but MIG instances, on which mig-manager works, and work of all sizes that runs and waits for some."""
    cluster = ClusterBuilder().with_priorities(**PRIORITIES).add(*(Queue(name) for name in QUEUES))
    profiles = st.sampled_from(["1g.10gb", "1g.20gb", "2g.20gb", "3g.40gb"])
    for i in range(draw(st.integers(1, 3))):
        node = a_node(f"n{i}").labelled(
            **{names.LABEL_MIG_STATE: draw(st.sampled_from(["success", "success", "failed"]))}
        )
        for _ in range(draw(st.integers(1, 2))):
            node.cut_into(*draw(st.lists(profiles, min_size=1, max_size=3)))
        cluster.add(node)
    for i in range(draw(st.integers(0, 3))):
        _run_somewhere(draw, cluster, _for_an_instance(draw(workloads(f"r{i}", instances=True))))
    for i in range(draw(st.integers(1, 6))):
        cluster.add(_for_an_instance(draw(workloads(f"p{i}", instances=True))))
    return cluster


def _for_an_instance(workload: Workload) -> Workload:
    return replace(workload, sharing=Sharing.MIG, accelerators=1)


def workloads(name: str, *, instances: bool = False) -> st.SearchStrategy[Workload]:
    """A workload of any kind of request; for MIG instances only with `instances`."""
    ways = [Sharing.EXCLUSIVE, Sharing.SHARED, *([Sharing.MIG] if instances else [])]

    def build(
        gpus: int,
        memory: int,
        asked: Sharing,
        priority: str,
        queue: str,
        replicas: int,
        kind: str,
        quiet: float | None,
    ) -> Workload:
        sharing = asked if gpus else Sharing.EXCLUSIVE
        count = gpus if sharing is Sharing.EXCLUSIVE else 1
        builder = a_workload(name).gpus(count).priority(priority).in_queue(queue)
        builder.with_(memory_bytes=memory * GIB, sharing=sharing, replicas=replicas, kind=WorkloadKind(kind))
        builder.with_(idle_since=None if quiet is None else NOW - quiet)
        if sharing is Sharing.MIG and replicas > 1:
            builder.with_(mig_profile=parse_profile("1g.20gb"))
        return builder.value

    return st.builds(
        build,
        st.sampled_from([0, 1, 1, 1, 2, 3]),
        st.sampled_from([1, 5, 12, 20, 40, 60]),
        st.sampled_from(ways),
        st.sampled_from(sorted(PRIORITIES)),
        st.sampled_from(QUEUES),
        st.sampled_from([1, 1, 1, 2]),
        st.sampled_from(["Inference", "FineTune", "Batch"]),
        st.sampled_from([None, None, 300.0, 20_000.0]),
    )


@st.composite
def clusters(
    draw: st.DrawFn, pending: int = 4, running: int = 8, with_quota: bool = True, *, instances: bool = False
) -> ClusterBuilder:
    """A cluster with running work (placed by the scheduler's own ledger rules) and pending work."""
    cluster = draw(nodes(instances=instances))
    cluster.add(*(draw(queues()) if with_quota else [Queue(name) for name in QUEUES]))
    for i in range(draw(st.integers(0, running))):
        _run_somewhere(draw, cluster, draw(workloads(f"r{i}", instances=instances)))
    if draw(st.integers(0, 3)) == 0:
        covers = Selector((Requirement("llmos.dev/workload", "In", ("r0", "r1", "r2")),))
        cluster.add(DisruptionBudget("default/guard", covers, draw(st.integers(0, 2))))
    for i in range(draw(st.integers(0, pending))):
        waiting = draw(workloads(f"p{i}", instances=instances))
        cluster.add(replace(waiting, created_at=NOW - draw(st.integers(0, 5000))))
    return cluster


def _run_somewhere(draw: st.DrawFn, cluster: ClusterBuilder, workload: Workload) -> Pod | None:
    """Let one replica run on a node with room by reservations; skip it if there is none."""
    workload = replace(workload, replicas=1)
    if draw(st.integers(0, 12)) == 0:
        workload = replace(workload, disruption_order=(DisruptionStep.SLEEP,))
    names = sorted(cluster.store.snapshot().nodes)
    node = draw(st.sampled_from(names))
    state = cluster.store.snapshot().nodes[node]
    need, shared = workload.memory_bytes or 0, workload.sharing is Sharing.SHARED
    free = [
        number
        for number, d in enumerate(state.devices)
        if (d.idle or (shared and not d.exclusive and d.compute_milli <= 900))
        and d.device.mig is (workload.sharing is Sharing.MIG)
        and d.device.memory_bytes - d.reserved_bytes >= need
    ]
    if len(free) < workload.accelerators or state.node is None:
        return None
    whole = workload.accelerators if workload.sharing is not Sharing.MIG else 0
    if state.node.cpu_milli - state.cpu_milli < 250 or state.node.gpus - state.gpus < whole:
        return None
    changes: dict[str, Any] = {}
    if draw(st.integers(0, 9)) == 0:
        changes = {"min_runtime": 1e9}
    phase = PodPhase.TERMINATING if draw(st.integers(0, 9)) == 0 else PodPhase.BOUND
    builder = a_workload("x")
    builder.value = workload
    pod = cluster.running(builder, node, free[: workload.accelerators], phase=phase, **changes)
    ran = draw(st.sampled_from([10, 1000, 50_000]))
    ends = NOW + 20 if draw(st.booleans()) else NOW - 600
    pod = replace(pod, started_at=NOW - ran, deletion_at=ends if phase is PodPhase.TERMINATING else 0.0)
    cluster.store.apply_pod(pod)
    return pod


def shuffled(draw: st.DrawFn, apply: Callable[[Any], Any], values: list[Any]) -> None:
    """Apply values in a drawn order."""
    for value in draw(st.permutations(values)):
        apply(value)


@st.composite
def gang_clusters(draw: st.DrawFn) -> ClusterBuilder:
    """A cluster of racks with running and waiting work of several pods and of several replicas that start together."""
    cluster = draw(nodes(2, 5))
    for name, state in sorted(cluster.store.snapshot().nodes.items()):
        rack = draw(st.sampled_from(["", "r1", "r2"]))
        assert name
        if rack and state.node is not None:
            labels = {**state.node.labels, "topology.llmos.dev/rack": rack}
            budget = draw(st.sampled_from([None, None, 500_000, 1_000_000, 2_000_000]))
            cluster.store.apply_node(replace(state.node, labels=labels, rack_milliwatts=budget))
    cluster.add(*draw(queues()))
    for i in range(draw(st.integers(0, 3))):
        _run_somewhere(draw, cluster, draw(workloads(f"r{i}")))
    for i in range(draw(st.integers(0, 3))):
        _run_gang(draw, cluster, replace(draw(gangs(f"g{i}")), topology=Topology()))
    for i in range(draw(st.integers(1, 3))):
        cluster.add(replace(draw(gangs(f"p{i}")), created_at=NOW - draw(st.integers(0, 5000))))
    return cluster


def gangs(name: str) -> st.SearchStrategy[Workload]:
    """A workload of several pods a replica, of several replicas that start together, or of both."""

    def build(one: Workload, copies: int, replicas: int, together: int, topology: Topology) -> Workload:
        least = min(together, replicas)
        return replace(
            one, copies=copies, replicas=replicas, together=least, min_replicas=least, topology=topology
        )

    levels = st.sampled_from(["", "", "rack", "node"])
    return st.builds(
        build,
        workloads(name),
        st.integers(1, 4),
        st.integers(1, 3),
        st.integers(1, 3),
        st.builds(Topology, levels, levels),
    )


def _run_gang(draw: st.DrawFn, cluster: ClusterBuilder, workload: Workload) -> None:
    """Let all replicas of a gang run where there is room, or none; now and then one of its pods has been lost."""
    builder = a_workload("x")
    builder.value = workload
    pods: list[Pod] = []
    for ordinal in range(workload.replicas):
        for member in range(workload.members):
            place = _room_for(cluster, workload)
            if place is None:
                for pod in pods:
                    cluster.store.delete_pod(pod.key, pod.uid)
                cluster.store.delete_workload(workload.key)
                return
            pods.append(cluster.running(builder, place[0], place[1], ordinal, member=member))
    if draw(st.integers(0, 5)) == 0:
        lost = draw(st.sampled_from(pods))
        cluster.store.delete_pod(lost.key, lost.uid)


def _room_for(cluster: ClusterBuilder, workload: Workload) -> tuple[str, list[int]] | None:
    need, shared = workload.memory_bytes or 0, workload.sharing is Sharing.SHARED
    for name, state in sorted(cluster.store.snapshot().nodes.items()):
        free = [
            d.device.index
            for d in state.devices
            if (d.idle or (shared and not d.exclusive and d.domain == "default" and d.compute_milli <= 900))
            and d.device.memory_bytes - d.reserved_bytes >= need
        ]
        node = state.node
        if len(free) < workload.accelerators or node is None or node.cpu_milli - state.cpu_milli < 250:
            continue
        if shared or node.gpus - state.gpus >= workload.accelerators:
            return name, free[: workload.accelerators]
    return None
