"""Invariants of any plan on any small cluster (design page, section 4)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import given, note

from llmos_operator.api.conditions import Reason
from llmos_operator.scheduler.cycle import plan
from llmos_operator.scheduler.explain import explain
from llmos_operator.scheduler.policy import PartitioningPolicy, Policy
from llmos_operator.scheduler.quota import Amount, QuotaTree
from llmos_operator.scheduler.table import NodeTable
from tests.support.builders import NOW
from tests.support.plans import MOST_CYCLES, assert_rests, carry_out
from tests.support.strategies import clusters, cut_clusters

if TYPE_CHECKING:
    from llmos_operator.scheduler.plan import Plan
    from llmos_operator.state.snapshot import Snapshot
    from tests.support.builders import ClusterBuilder

POLICY = Policy()
CUTTING = Policy(partitioning=PartitioningPolicy(enabled=True))


def made_for(snapshot: Snapshot, table: NodeTable | None = None) -> Plan:
    return plan(snapshot, POLICY, NOW, table=table)


@given(clusters(instances=True))
def test_every_bind_fits_the_ledger_and_the_observed_headroom(cluster: ClusterBuilder) -> None:
    snapshot = cluster.snapshot()
    for bind in made_for(snapshot).binds:
        claim = bind.claim
        for uuid in claim.devices:
            device = snapshot.nodes[claim.node].device(uuid)
            assert device is not None
            assert device.verdict in {"Healthy", "Degraded"}
            assert claim.bytes_per_device <= device.headroom_bytes()
        cluster.store.assume(claim)  # raises Conflict if the ledger cannot take it


@given(clusters(instances=True))
def test_the_same_snapshot_gives_the_same_plan_with_and_without_a_kept_table(cluster: ClusterBuilder) -> None:
    table = NodeTable()
    first = made_for(cluster.snapshot(), table)
    assert made_for(cluster.snapshot(), table) == first
    carry_out(cluster, first)
    assert made_for(cluster.snapshot(), table) == made_for(cluster.snapshot())


@given(clusters(instances=True))
def test_quota_is_not_exceeded_by_binds(cluster: ClusterBuilder) -> None:
    before = cluster.snapshot()
    made = made_for(before)
    tree = QuotaTree(before.queues)
    for queue, (milli, held) in before.charged.items():
        tree.add(queue, Amount(milli, held))
    for bind in made.binds:
        amount = Amount(bind.claim.gpu_milli, bind.claim.charged_bytes)
        assert tree.fits(bind.claim.queue, amount), f"{bind.claim.workload} exceeds its quota"
        tree.add(bind.claim.queue, amount)


@given(clusters(instances=True))
def test_victims_stand_lower_and_are_not_protected(cluster: ClusterBuilder) -> None:
    snapshot = cluster.snapshot()
    made = made_for(snapshot)
    spent = 0
    for eviction in made.evictions:
        if not eviction.preemptor:
            continue
        pod = next(p for p in snapshot.pods_of[eviction.victim_uid] if p.key == eviction.pod)
        claim = pod.claim
        assert claim is not None
        assert pod.phase == "Bound"
        assert claim.min_runtime < 1e9
        claimant = snapshot.workloads[eviction.preemptor]
        if eviction.reason is Reason.PREEMPTED:
            assert claim.priority < snapshot.priority_of(claimant)
        else:
            assert claim.queue != claimant.queue
        spent += claim.workload in {"default/r0", "default/r1", "default/r2"}
    for budget in snapshot.budgets.values():
        assert spent <= budget.allowed


@given(clusters(instances=True))
def test_each_claimant_that_displaces_fits_once_its_victims_have_gone(cluster: ClusterBuilder) -> None:
    made = made_for(cluster.snapshot())
    claimants = {e.preemptor for e in made.evictions if e.preemptor}
    if not claimants:
        return
    carry_out(cluster, made)
    for pod in cluster.snapshot().terminating:  # those that were waited for leave as well
        cluster.store.delete_pod(pod.key, pod.uid)
    second = made_for(cluster.snapshot())
    bound = {b.claim.workload for b in second.binds} | {b.claim.workload for b in made.binds}
    note(f"{made.evictions} then {second.waits}")
    assert claimants <= bound


@given(clusters(instances=True))
def test_no_victim_could_have_been_spared(cluster: ClusterBuilder) -> None:
    made = made_for(cluster.snapshot())
    claimants = {e.preemptor for e in made.evictions if e.preemptor}
    for claimant in sorted(claimants):
        victims = [e for e in made.evictions if e.preemptor == claimant]
        if len(claimants) > 1 or len(victims) < 2 or made.binds or cluster.snapshot().terminating:
            continue
        for spared in victims:
            _assert_needed(cluster, made, claimant, spared.pod)


def _assert_needed(cluster: ClusterBuilder, made: Plan, claimant: str, spared: str) -> None:
    """Without the others but with `spared` still there, the claimant must not fit without another eviction."""
    gone = [cluster.store.pod(e.pod) for e in made.evictions if e.pod != spared]
    for pod in gone:
        assert pod is not None
        cluster.store.delete_pod(pod.key, pod.uid)
    again = made_for(cluster.snapshot())
    for pod in gone:
        assert pod is not None
        cluster.store.apply_pod(pod)
    placed = [b for b in again.binds if b.claim.workload == claimant]
    wanted = cluster.snapshot().workloads[claimant].replicas
    assert len(placed) < wanted, f"{spared} did not have to go"


@given(clusters(instances=True))
def test_the_cluster_comes_to_rest_and_then_nothing_is_done(cluster: ClusterBuilder) -> None:
    assert_rests(cluster, made_for)


@given(clusters(instances=True))
def test_every_pending_replica_is_bound_or_waits_with_a_reason(cluster: ClusterBuilder) -> None:
    snapshot = cluster.snapshot()
    made = made_for(snapshot)
    for key in snapshot.unsettled:
        bound = sum(b.claim.workload == key for b in made.binds)
        waits = sum(w.replicas for w in made.waits if w.workload == key)
        have = len(snapshot.pods_of.get(snapshot.workloads[key].uid, ()))
        blocked = sum(
            p.phase in {"Terminating", "Finished"}
            for p in snapshot.pods_of.get(snapshot.workloads[key].uid, ())
        )
        assert bound + waits == snapshot.workloads[key].replicas - have + blocked
        decision = made.decisions[key]
        assert decision.message
        assert (decision.queue_position is not None) == (decision.pending > 0)


@given(clusters(instances=True))
def test_explaining_changes_nothing_and_agrees_with_the_plan(cluster: ClusterBuilder) -> None:
    snapshot = cluster.snapshot()
    made = made_for(snapshot)
    for key in snapshot.workloads:
        told = explain(snapshot, POLICY, NOW, key)
        if key in made.decisions:
            assert told.reason == made.decisions[key].reason
            assert told.queue_position == made.decisions[key].queue_position
    assert made_for(cluster.snapshot()) == made


@given(cut_clusters())
def test_gpus_are_cut_one_node_at_a_time_where_nobody_is_and_not_without_end(cluster: ClusterBuilder) -> None:
    cut: list[str] = []
    for _ in range(MOST_CYCLES + len(cluster.snapshot().nodes)):
        snapshot = cluster.snapshot()
        made = plan(snapshot, CUTTING, NOW)
        assert len(made.cuts) <= 1
        for one in made.cuts:
            assert not list(snapshot.nodes[one.node].claims())
            assert one.node not in {bind.claim.node for bind in made.binds}
            assert one.workloads
        cut += [one.node for one in made.cuts]
        if not made.actions:
            break
        carry_out(cluster, made)
        bound = {bind.claim.workload for bind in plan(cluster.snapshot(), CUTTING, NOW).binds}
        for one in made.cuts:
            assert set(one.workloads) & bound, "it was cut for nobody"
    assert not made.actions, f"still acting: {made.actions}"
    assert len(cut) == len(set(cut)), "a node was cut again before it had rested"
