"""What is done with plans in tests: made of a scenario, carried out as time would, told in the words of scenario files."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from llmos_operator.api import names
from llmos_operator.control import gangs, reconcile
from llmos_operator.scheduler.cycle import plan
from llmos_operator.state.types import Pod, Recut
from tests.support.builders import NOW, a_node

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmos_operator.scheduler.plan import Plan, Reservation
    from llmos_operator.state.snapshot import Snapshot
    from tests.support.builders import ClusterBuilder
    from tests.support.scenario import Scenario

MOST_CYCLES = 6


def workload_name(key: str) -> str:
    """Return the name part of a workload's key."""
    return key.partition("/")[2]


def summary(made: Plan) -> dict[str, Any]:
    """Return a plan in the words of `expect`."""
    return {
        "evict": sorted(workload_name(e.victim) for e in made.evictions if not e.fewer),
        "fewer": sorted(
            f"{workload_name(e.victim)}-{e.pod.rpartition('-')[2]}" for e in made.evictions if e.fewer
        ),
        "grow": {workload_name(g.workload): g.replicas for g in made.grows},
        "shrink": sorted(workload_name(s.victim) for s in made.shrinks),
        "move": sorted(f"{workload_name(m.workload)} to {m.target.node}" for m in made.moves),
        "sleep": sorted(workload_name(s.victim) for s in made.sleeps),
        "wake": sorted(workload_name(w.workload) for w in made.wakes),
        "cut": sorted(f"{c.node} {'given up' if c.abandoned else f'into {c.layout}'}" for c in made.cuts),
        "restore": sorted(workload_name(r.workload) for r in made.restores),
        "left": {workload_name(s.victim): s.bytes_per_device for s in made.shrinks},
        "bind": sorted(f"{workload_name(b.claim.workload)} on {b.claim.node}" for b in made.binds),
        "wait": {workload_name(w.workload): str(w.reason) for w in made.waits},
        "format": {workload_name(b.claim.workload): b.claim.format for b in made.binds},
        "reasons": {workload_name(e.victim): str(e.reason) for e in made.evictions},
        "scored": {workload_name(b.claim.workload): b.scored_by for b in made.binds},
        "devices": {
            workload_name(b.claim.workload): [int(d.rpartition("-")[2]) for d in b.claim.devices]
            for b in made.binds
        },
        "context": {workload_name(b.claim.workload): b.claim.max_model_len for b in made.binds},
        "position": {
            workload_name(d.workload): d.queue_position for d in made.decisions.values() if d.queue_position
        },
        "reserve": {workload_name(r.workload): _kept(r, made.now) for r in made.reservations},
        "messages": {workload_name(d.workload): d.message for d in made.decisions.values()},
        "rejected": {
            workload_name(d.workload): {r.reason: r.nodes for r in d.rejected}
            for d in made.decisions.values()
        },
    }


def _kept(one: Reservation, now: float) -> str:
    """Return a reservation in words: "n1 in 630 s"."""
    when = "some day" if one.start is None else f"in {one.start - now:.0f} s"
    return f"{' '.join(sorted(one.nodes))} {when}"


def assert_rests(cluster: ClusterBuilder, made_for: Callable[[Snapshot], Plan]) -> None:
    """Carry plans out until nothing is left to do; nobody is evicted twice, and a look at what rests changes nothing."""
    evicted: list[str] = []
    for _ in range(MOST_CYCLES):
        made = made_for(cluster.snapshot())
        evicted += [e.pod_uid for e in made.evictions]
        if not made.actions:
            break
        carry_out(cluster, made)
    assert not made.actions, f"still acting: {made.actions}"
    assert len(evicted) == len(set(evicted)), "somebody was evicted twice"
    assert made_for(cluster.snapshot()) == made


def carry_out(cluster: ClusterBuilder, made: Plan) -> None:
    """Let evicted pods be gone, those who come down have done so and bound ones run, as happens in time."""
    for shrink in made.shrinks:
        cluster.store.ask_to_lower(
            shrink.pod,
            shrink.pod_uid,
            shrink.bytes_per_device,
            made.now,
            shrink.preemptor,
            made.now,
            lent=shrink.loan,
        )
        cluster.store.note_yielded(shrink.pod, shrink.pod_uid)
    for sleep in made.sleeps:
        cluster.store.ask_to_sleep(sleep.pod, sleep.pod_uid, sleep.sleeping, made.now)
        cluster.store.note_asleep(sleep.pod, sleep.pod_uid)
    for wake in made.wakes:
        cluster.store.wake(wake.pod, wake.pod_uid)
    for restore in made.restores:
        cluster.store.restore_memory(restore.pod, restore.pod_uid)
    for eviction in made.evictions:
        cluster.store.assume_evicted(eviction.pod, made.now, eviction.preemptor)
        if eviction.fewer:
            cluster.store.give_up_replica(eviction.victim, eviction.victim_uid, eviction.preemptor, made.now)
        cluster.store.delete_pod(eviction.pod, eviction.pod_uid)
    for move in made.moves:
        place = move.place(made.now, made.now)
        cluster.store.assume_evicted(move.pod, made.now, move.beneficiary, made.now, place)
        cluster.store.delete_pod(move.pod, move.pod_uid)
    _cut(cluster, made)
    for grow in made.grows:
        cluster.store.allow_replicas(grow.workload, grow.workload_uid, grow.replicas, made.now)
    for bind in made.binds:
        claim = bind.claim
        cluster.store.assume(claim)
        cluster.store.apply_pod(
            Pod(
                claim.pod,
                f"pod-uid-{claim.pod}",
                claim.node,
                claim=claim,
                cpu_milli=claim.cpu_milli,
                memory_bytes=claim.memory_bytes,
                started_at=NOW,
                ready=True,
                mounts=tuple(one.claim for one in bind.workload.claims),
            )
        )


def _cut(cluster: ClusterBuilder, made: Plan) -> None:
    """Let mig-manager do at once what it is asked for: new instances in the place of the old ones, and its word for it."""
    for cut in made.cuts:
        if cut.abandoned:
            _mark(cluster, cut.node, "failed")
            continue
        recut = Recut(made.now, cut.layout, tuple(profile for profile, _ in cut.counts))
        assert cluster.store.assume_cut(cut.node, recut), f"{cut.node} is in use"
        state = cluster.store.snapshot().nodes[cut.node]
        assert state.node is not None
        assert not any(one.idle for one in state.devices), "something could be given while GPUs are cut"
        product = state.devices[0].device.product.partition(" MIG ")[0]
        builder = a_node(cut.node)
        profiles = [str(profile) for profile, count in cut.counts for _ in range(count)]
        for _ in {one.device.parent for one in state.devices}:
            builder.cut_into(*profiles, product=product)
        assert builder.gpus is not None
        cluster.store.apply_node(replace(state.node, partitions=builder.node.partitions))
        cluster.store.apply_gpu_node(builder.gpus)
        _mark(cluster, cut.node, "success")


def _mark(cluster: ClusterBuilder, name: str, word: str) -> None:
    """Let mig-manager's label of a node say a word."""
    node = cluster.store.snapshot().nodes[name].node
    assert node is not None
    cluster.store.apply_node(replace(node, labels={**node.labels, names.LABEL_MIG_STATE: word}))


def retired(scenario: Scenario) -> list[str]:
    """Return the workloads of the pods that the operator gives back without the scheduler, sorted; once a pod."""
    found = []
    snapshot = scenario.cluster.snapshot()
    for workload in snapshot.workloads.values():
        pods = snapshot.pods_of.get(workload.uid, ())
        limits = gangs.GangLimits()
        missing = gangs.gaps(workload, pods)
        overdue = missing if scenario.lost_for.get(workload.name, 0.0) >= limits.grace else frozenset()
        situation = reconcile.Situation(workload, NOW, pods, overdue=overdue, limits=limits)
        found += [workload.name for _ in reconcile.rule(situation).retire]
    return sorted(found)


def plan_of(scenario: Scenario, now: float = NOW) -> Plan:
    """Return the plan of the scenario as it stands."""
    return plan(scenario.cluster.snapshot(), scenario.policy, now, prices=scenario.prices)
