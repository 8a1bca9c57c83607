"""Two ways to say "fits" hold to each other: the filters, over arrays, and `pick` and its parts, over the ledger's values."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from llmos_operator.scheduler.budget import UNLIMITED
from llmos_operator.scheduler.cycle import prepare
from llmos_operator.scheduler.placement import device_fits, fits_on, host_fits, pick, whole_fitting
from llmos_operator.scheduler.policy import Policy
from llmos_operator.scheduler.power import asked_on
from llmos_operator.scheduler.table import ALL
from llmos_operator.state import ledger
from llmos_operator.state.handouts import resource_of
from llmos_operator.state.types import Claim, Pod, Sharing
from tests.support.builders import NOW, ClusterBuilder
from tests.support.strategies import clusters, workloads

if TYPE_CHECKING:
    from llmos_operator.scheduler.attempt import Attempts
    from llmos_operator.scheduler.request import Request
    from llmos_operator.state.ledger import NodeState
    from llmos_operator.state.types import Workload

POLICY = Policy()
OVERUSE = POLICY.overuse_percent


@st.composite
def disturbed(draw: st.DrawFn) -> ClusterBuilder:
    """A cluster with pods of others, kubelets that refuse, devices that are gone and memory that strangers use."""
    cluster = draw(clusters(pending=0, running=10, instances=True))
    store = cluster.store
    for name, state in sorted(store.snapshot().nodes.items()):
        if draw(st.booleans()):
            cut = {"nvidia.com/mig-1g.10gb": draw(st.integers(0, 2))}
            store.apply_pod(
                Pod(f"others/{name}", f"uid-{name}", name, gpus=draw(st.integers(0, 3)), partitions=cut)
            )
        if state.node is not None and draw(st.booleans()):
            changes = replace(state.node, gpus=draw(st.integers(0, 4)), pods=draw(st.integers(0, 6)))
            store.apply_node(changes)
        if draw(st.integers(0, 5)) == 0:
            store.note_refusal(name, NOW + 60)
        if state.devices and draw(st.integers(0, 3)) == 0:
            uuid = draw(st.sampled_from([one.uuid for one in state.devices]))
            for _ in range(2):
                store.observe_processes(name, {uuid: {"nobody": draw(st.sampled_from([0, 1 << 33]))}})
    if draw(st.booleans()):
        in_racks(draw, cluster)
    return cluster


def in_racks(draw: st.DrawFn, cluster: ClusterBuilder) -> None:
    """Put nodes into racks, some of them with a power budget."""
    for state in list(cluster.store.snapshot().nodes.values()):
        rack = draw(st.sampled_from(["", "r1", "r2"]))
        if rack and state.node is not None:
            watts = draw(st.sampled_from([None, 500, 1000, 2000]))
            budget = None if watts is None else watts * 1000
            labels = {**state.node.labels, "topology.llmos.dev/rack": rack}
            cluster.store.apply_node(replace(state.node, labels=labels, rack_milliwatts=budget))


@given(disturbed(), workloads("asked", instances=True))
def test_filters_let_through_what_can_be_picked_and_nothing_else(
    cluster: ClusterBuilder, asked: Workload
) -> None:
    attempts = prepare(cluster.snapshot(), POLICY, NOW, UNLIMITED, None)
    for _, request in attempts.shape(asked).options:
        agree(attempts, request)


@given(disturbed(), workloads("asked", instances=True), workloads("first", instances=True))
def test_they_agree_after_placements_of_the_same_plan(
    cluster: ClusterBuilder, asked: Workload, first: Workload
) -> None:
    snapshot = cluster.add(first).snapshot()
    attempts = prepare(snapshot, POLICY, NOW, UNLIMITED, None)
    requests = [request for _, request in attempts.shape(asked).options]
    for request in requests:
        agree(attempts, request)  # what was kept before the placement must not outlive it
    for state in list(snapshot.nodes.values()):
        for key in list(state.pods):
            attempts.worlds.now.view.remove(state.name, key)
        attempts.scene.table.write(
            attempts.scene.table.row_of[state.name], attempts.worlds.now.node(state.name)
        )
    for request in requests:
        agree(attempts, request)


def held(request: Request, state: NodeState, uuids: list[str]) -> Claim:
    """Return a claim of what a request asks for."""
    devices = {one.uuid: one.device for one in state.devices}
    cut = bool(uuids) and request.constraints.sharing is Sharing.MIG
    resource = resource_of(devices[uuids[0]], state.node, list(devices.values())) if cut else ""
    return Claim(
        "default/asked",
        "uid",
        0,
        "default/asked-0",
        state.name,
        tuple(uuids),
        bytes_per_device=request.bytes_per_device,
        compute_milli=request.compute_milli,
        sharing=request.constraints.sharing,
        domain=request.domain,
        cpu_milli=request.cpu_milli,
        memory_bytes=request.memory_bytes,
        partition_resource=resource,
    )


def agree(attempts: Attempts, request: Request) -> None:
    """Compare both for every node and every device."""
    acceptable = attempts.feasibility.acceptable(request)
    fits, candidates = attempts.feasibility.check(request, ALL)
    assert (attempts.feasibility.fitting(request) == fits).all(), "kept answers are others than new ones"
    for row, name in enumerate(attempts.scene.table.names):
        state, columns = attempts.worlds.now.node(name), acceptable.devices[row]
        devices = pick(state, request, columns, OVERUSE)
        within = asked_on(state, request) <= attempts.worlds.now.rack_room(name)
        picked = bool(acceptable.nodes[row]) and devices is not None and (within or not request.devices)
        assert picked == bool(fits[row]), f"{name}: filters say {fits[row]}, pick {devices}"
        if not request.devices or not acceptable.nodes[row]:
            continue
        width = len(state.devices)
        singly = [bool(columns[i]) and device_fits(d, request, OVERUSE) for i, d in enumerate(state.devices)]
        assert candidates.devices[row][:width].tolist() == singly, f"{name}: devices differ"
        if request.whole:
            together = whole_fitting(attempts.scene.table, request, OVERUSE)[row]
            alone = [device_fits(d, request, OVERUSE) for d in state.devices]
            assert together[:width].tolist() == alone, f"{name}: whole devices differ"
            assert not together[width:].any()
        assert not candidates.devices[row][width:].any()
        if devices is not None:
            assert fits_on(state, request, [d.uuid for d in devices], OVERUSE)
            assert host_fits(state, request)
        _, one_by_one, host = attempts.feasibility.parts(request)
        assert np.array_equal(one_by_one[row][:width], np.array(singly, np.bool_))
        if not host[row]:
            assert not host_fits(state, request), f"{name}: its host suffices after all"
        if devices is not None:
            claim = held(request, state, [one.uuid for one in devices])
            assert state.added_by(claim) <= asked_on(state, request), "it draws more than it was judged by"
            assert not ledger.shortfall(state, claim), "the ledger would refuse what was picked"
