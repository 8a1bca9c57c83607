"""Gangs: never partly bound, never partly displaced, in the domain they need, and without a trace when they do not fit."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING

from hypothesis import example, given, note
from hypothesis import strategies as st

from llmos_operator.scheduler.budget import UNLIMITED
from llmos_operator.scheduler.cycle import plan, prepare
from llmos_operator.scheduler.policy import Policy
from llmos_operator.scheduler.queueing import lines
from llmos_operator.state.snapshot import complete
from llmos_operator.state.types import PodPhase
from tests.support.builders import NOW, ClusterBuilder, a_cluster, a_node, a_workload
from tests.support.plans import assert_rests, carry_out
from tests.support.strategies import gang_clusters

if TYPE_CHECKING:
    from llmos_operator.scheduler.plan import Plan
    from llmos_operator.state.snapshot import Snapshot
    from llmos_operator.state.types import Workload

POLICY = Policy()
RACK = POLICY.topology_labels["rack"]


def made_for(snapshot: Snapshot) -> Plan:
    return plan(snapshot, POLICY, NOW)


def whole_replicas(snapshot: Snapshot, workload: Workload) -> set[int]:
    """Return the ordinals of which every member holds a place."""
    found = defaultdict(list)
    for pod in snapshot.pods_of.get(workload.uid, ()):
        if pod.claim is not None:
            found[pod.claim.ordinal].append(pod)
    return {ordinal for ordinal, mates in found.items() if complete(workload, mates)}


@given(gang_clusters())
def test_a_replica_is_bound_with_all_its_pods_or_not_at_all(cluster: ClusterBuilder) -> None:
    snapshot = cluster.snapshot()
    made = made_for(snapshot)
    count = Counter((b.claim.workload, b.claim.ordinal) for b in made.binds)
    for (key, _), pods in count.items():
        assert pods == snapshot.workloads[key].members
    for bind in made.binds:
        cluster.store.assume(bind.claim)  # raises Conflict if the ledger cannot take it


@given(gang_clusters())
def test_fewer_replicas_than_start_together_are_never_started(cluster: ClusterBuilder) -> None:
    snapshot = cluster.snapshot()
    made = made_for(snapshot)
    bound = defaultdict(set)
    for bind in made.binds:
        bound[bind.claim.workload].add(bind.claim.ordinal)
    for key, ordinals in bound.items():
        workload = snapshot.workloads[key]
        there = whole_replicas(snapshot, workload) | ordinals
        assert len(there) >= min(workload.together, workload.replicas)


@given(gang_clusters())
def test_all_pods_of_a_replica_are_in_the_domain_it_needs(cluster: ClusterBuilder) -> None:
    snapshot = cluster.snapshot()
    places = defaultdict(set)
    for bind in made_for(snapshot).binds:
        node = snapshot.nodes[bind.claim.node].node
        workload = snapshot.workloads[bind.claim.workload]
        required = workload.topology.required if workload.members > 1 else ""
        assert node is not None
        if required:
            name = node.name if required == "node" else node.labels[RACK]
            places[bind.claim.workload, bind.claim.ordinal].add(name)
    assert all(len(domains) == 1 for domains in places.values()), places


@given(gang_clusters())
def test_what_runs_together_is_displaced_together(cluster: ClusterBuilder) -> None:
    snapshot = cluster.snapshot()
    made = made_for(snapshot)
    going = {e.pod for e in made.evictions if e.preemptor}  # not those whose device broke
    for uid, pods in snapshot.pods_of.items():
        workload = next(w for w in snapshot.workloads.values() if w.uid == uid)
        bound = [p for p in pods if p.phase is PodPhase.BOUND and p.claim is not None]
        gone = {p.claim.ordinal for p in bound if p.claim is not None and p.key in going}
        for pod in bound:
            assert pod.claim is not None
            if pod.claim.ordinal in gone:
                assert pod.key in going, f"{pod.key} is left of a replica that goes"
        left = {p.claim.ordinal for p in bound if p.claim is not None} - gone
        if gone and workload.together > 1 and left:
            assert len(left) >= workload.together


@given(gang_clusters())
def test_each_gang_that_displaces_fits_once_its_victims_have_gone(cluster: ClusterBuilder) -> None:
    made = made_for(cluster.snapshot())
    claimants = {e.preemptor for e in made.evictions if e.preemptor}
    carry_out(cluster, made)
    for pod in cluster.snapshot().terminating:
        cluster.store.delete_pod(pod.key, pod.uid)
    second = made_for(cluster.snapshot())
    bound = {b.claim.workload for b in (*made.binds, *second.binds)}
    note(f"{made.evictions} then {second.waits}")
    assert claimants <= bound


def with_a_broken_device() -> ClusterBuilder:
    """Return a cluster in which one goes because its device broke, in the same plan in which another makes way."""
    cluster = a_cluster().with_priorities(low=1, high=3)
    cluster.add(a_node("n0").with_host(cpu="1").with_gpus(1).unhealthy(0), a_node("n1").with_host(cpu="1"))
    cluster.running(a_workload("broken").priority("high"), "n0", (0,), cpu_milli=1000)
    cluster.running(a_workload("low").gpus(0).priority("low"), "n1", cpu_milli=1000)
    return cluster.add(a_workload("claimant").gpus(0).priority("high").with_(cpu_milli=500))


@example(with_a_broken_device())
@given(gang_clusters())
def test_no_victim_of_a_gang_could_have_been_spared(cluster: ClusterBuilder) -> None:
    """Without one of its victims (and those that go with it) the gang must not fit."""
    snapshot = cluster.snapshot()
    made = made_for(snapshot)
    claimants = {e.preemptor for e in made.evictions if e.preemptor}
    if len(claimants) != 1 or made.binds or snapshot.terminating:
        return
    victims = (e for e in made.evictions if e.preemptor)  # not those whose device broke: they go for nobody
    for spared in {(e.victim_uid, cluster.store.pod(e.pod).claim.ordinal) for e in victims}:  # type: ignore[union-attr]
        workload = next(w for w in snapshot.workloads.values() if w.uid == spared[0])
        if workload.together > 1:
            continue
        pods = [cluster.store.pod(e.pod) for e in made.evictions]
        gone = [p for p in pods if p and p.claim and (p.claim.workload_uid, p.claim.ordinal) != spared]
        for pod in gone:
            cluster.store.delete_pod(pod.key, pod.uid)
        again = made_for(cluster.snapshot())
        for pod in gone:
            cluster.store.apply_pod(pod)
        assert not any(b.claim.workload in claimants for b in again.binds), f"{spared} did not have to go"


@given(gang_clusters())
def test_the_cluster_comes_to_rest(cluster: ClusterBuilder) -> None:
    assert_rests(cluster, made_for)


@given(gang_clusters(), st.data())
def test_a_gang_that_does_not_fit_leaves_no_trace(cluster: ClusterBuilder, data: st.DataObject) -> None:
    snapshot = cluster.snapshot()
    attempts = prepare(snapshot, POLICY, NOW, UNLIMITED, None)
    waiting = [
        p for line in lines(snapshot, POLICY, NOW, attempts.worlds.now.tree).lines.values() for p in line
    ]
    if not waiting:
        return
    pending = data.draw(st.sampled_from(waiting))
    worlds, table = attempts.worlds, attempts.scene.table

    def state() -> object:
        uses = [{q: w.tree.use(q) for q in snapshot.queues} for w in (worlds.now, worlds.later)]
        views = [dict(w.view.nodes) for w in (worlds.now, worlds.later)]
        return uses, views, dict(worlds.leaving), table.node.tolist(), table.device[[0, 1, 2, 4, 5]].tolist()

    before = state()
    shape, unit = attempts.shape(pending.workload), tuple(range(pending.workload.replicas))
    bound = attempts.gangs._bind(pending, shape, 0, unit) if shape.options else None
    if bound is None:
        assert state() == before
    size, request = shape.options[0]
    before = state()
    attempts.gangs._displacement._try(pending, unit, size, request)
    assert state() == before


@given(gang_clusters())
def test_every_replica_is_bound_or_waits_with_a_reason(cluster: ClusterBuilder) -> None:
    snapshot = cluster.snapshot()
    made = made_for(snapshot)
    for key in snapshot.unsettled:
        workload = snapshot.workloads[key]
        bound = {b.claim.ordinal for b in made.binds if b.claim.workload == key}
        waits = sum(w.replicas for w in made.waits if w.workload == key)
        assert len(bound) + waits == workload.replicas - len(whole_replicas(snapshot, workload))
        assert made.decisions[key].message
