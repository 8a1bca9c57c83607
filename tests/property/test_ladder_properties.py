"""The disruption ladder against an exhaustive oracle: mildest first, never dearer than ending alone, nobody in vain."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import combinations
from typing import TYPE_CHECKING

from hypothesis import assume, given
from hypothesis import strategies as st

from llmos_operator.scheduler.budget import UNLIMITED
from llmos_operator.scheduler.claims import profile_of
from llmos_operator.scheduler.cycle import plan, prepare
from llmos_operator.scheduler.placement import pick
from llmos_operator.scheduler.policy import Policy, PreemptionLimits
from llmos_operator.scheduler.queueing import Pending
from llmos_operator.scheduler.sizing import sizes
from llmos_operator.scheduler.victims import total_cost
from llmos_operator.state.types import Busy, DisruptionStep, Model, Sharing
from tests.support.builders import GIB, LARGE_MODEL, NOW, ClusterBuilder, a_node, a_profile, a_workload, gpu
from tests.support.plans import assert_rests
from tests.support.strategies import PRIORITIES

if TYPE_CHECKING:
    from llmos_operator.scheduler.attempt import Attempts
    from llmos_operator.scheduler.victims import Victim
    from llmos_operator.state.types import Workload

LIMITS = PreemptionLimits(states=1 << 20, nodes=1 << 10)
LADDER = Policy(preemption=LIMITS, require_queue=False)
EVICT_ONLY = replace(LADDER, preemption=replace(LIMITS, steps=(DisruptionStep.EVICT,)))
MODEL = "hf://org/large"
ORDERS = [
    (DisruptionStep.SHRINK, DisruptionStep.SLEEP, DisruptionStep.EVICT),
    (DisruptionStep.SLEEP, DisruptionStep.EVICT),
    (DisruptionStep.SLEEP,),
    (DisruptionStep.SHRINK, DisruptionStep.EVICT),
    (DisruptionStep.SHRINK, DisruptionStep.EVICT),
    (DisruptionStep.SHRINK,),
    (DisruptionStep.EVICT,),
]


@st.composite
def shared_clusters(draw: st.DrawFn) -> ClusterBuilder:
    """Two nodes with one or two devices each, shared by replicas of which some can come down; some have a device alone."""
    cluster = ClusterBuilder().with_priorities(**PRIORITIES)
    cluster.add(a_profile(MODEL, LARGE_MODEL))
    for number in range(draw(st.integers(1, 2))):
        node = a_node(f"n{number}").with_gpus(draw(st.integers(1, 2)), "A100-48G", "48Gi")
        # Sometimes its memory holds the weights of one or two that sleep, sometimes of all.
        cluster.add(node.with_host("64", draw(st.sampled_from(["12Gi", "24Gi", "512Gi"]))))
    for number in range(draw(st.integers(1, 7))):
        _run(draw, cluster, number)
    return cluster


def _run(draw: st.DrawFn, cluster: ClusterBuilder, number: int) -> None:
    """Let a replica run on a device that has room for it; skip it where there is none."""
    builder = a_workload(f"r{number}").priority(draw(st.sampled_from(sorted(PRIORITIES))))
    whole = draw(st.integers(0, 5)) == 0
    builder.with_(sharing=Sharing.EXCLUSIVE if whole else Sharing.SHARED)
    builder.with_(disruption_order=draw(st.sampled_from(ORDERS)))
    builder.with_(idle_since=draw(st.sampled_from([None, NOW - 300, NOW - 20_000])))
    claim: dict[str, object] = {}
    if not whole and draw(st.integers(0, 3)):
        builder.with_(
            memory_bytes=None,
            model=Model(MODEL),
            max_model_len=draw(st.sampled_from([8192, 16384, 32768])),
            max_num_seqs=8,
        ).at("Fixed", draw(st.sampled_from(["int8", "int4"])))
        best = sizes(builder.value, profile_of(cluster.snapshot(), builder.value), LADDER).sizes[0]
        claim = {"format": best.format, "max_model_len": best.max_model_len, "kv_tokens": best.kv_tokens}
        held = best.bytes_per_device
    else:
        held = draw(st.integers(2, 12)) * GIB
        builder.with_(memory_bytes=held)
    replicas = draw(st.sampled_from([1, 1, 2, 3]))
    if replicas > 1:
        builder.with_(elastic=draw(st.booleans()), min_replicas=draw(st.integers(0, replicas)))
    ordinal = 0
    for _ in range(replicas):
        name = draw(st.sampled_from(sorted(cluster.store.snapshot().nodes)))
        state = cluster.store.snapshot().nodes[name]
        index = draw(st.integers(0, len(state.devices) - 1))
        device = state.devices[index]
        free = device.device.memory_bytes - device.reserved_bytes if not device.exclusive else 0
        if device.idle if whole else free >= held:
            builder.replicas(ordinal + 1)
            pod = cluster.running(builder, name, (index,), ordinal, memory=str(held), **claim)
            cluster.store.apply_pod(replace(pod, ready=draw(st.integers(0, 7)) > 0))
            busy = Busy(draw(st.integers(0, 20)), draw(st.integers(0, 2)) * GIB)
            cluster.store.set_busy(pod.key, busy)
            ordinal += 1


@st.composite
def pressed(draw: st.DrawFn) -> tuple[ClusterBuilder, Workload]:
    """A shared cluster and a workload that wants somewhat more than the roomiest device has; now and then a whole one."""
    cluster = draw(shared_clusters())
    builder = a_workload("asked").priority(draw(st.sampled_from(sorted(PRIORITIES))))
    devices = [d for state in cluster.snapshot().nodes.values() for d in state.devices]
    free = max(d.headroom_bytes() for d in devices)
    more = draw(st.integers(1, 40)) * GIB // 4
    whole = draw(st.integers(0, 9)) < 3
    builder.with_(
        memory_bytes=min(free + more, 46 * GIB), sharing=Sharing.EXCLUSIVE if whole else Sharing.SHARED
    )
    return cluster, builder.value


def pending_of(workload: Workload) -> Pending:
    return Pending(workload, "default", PRIORITIES[workload.priority_class], 1.0, (0,))


def fits(attempts: Attempts, pending: Pending) -> bool:
    later = attempts.worlds.later
    (_, request), *_ = attempts.shape(pending.workload).options
    acceptable = attempts.feasibility.acceptable(request)
    return any(
        pick(later.node(name), request, acceptable.devices[row], LADDER.overuse_percent) is not None
        for name, row in attempts.scene.table.row_of.items()
    )


def works(attempts: Attempts, pending: Pending, chosen: list[Victim]) -> bool:
    mark = attempts.worlds.later.checkpoint()
    for victim in chosen:
        attempts.worlds.later.displace(victim)
    nodes = (attempts.worlds.later.node(victim.pod.node) for victim in chosen)
    result = all(n.node is not None and n.memory_bytes <= n.node.memory_bytes for n in nodes)
    result = result and fits(attempts, pending)
    attempts.worlds.later.rollback(mark)
    return result


def within_spare(victims: list[Victim]) -> bool:
    """Return whether no workload gives up more replicas than it can do without."""
    given = Counter(victim.claim.workload_uid for victim in victims if victim.fewer)
    return all(given[v.claim.workload_uid] <= v.spare for v in victims if v.fewer)


def oracle(attempts: Attempts, pending: Pending) -> tuple[int, int] | None:
    """Return (rank, cost) of the best set of steps by trying every one; each pod takes one step at most."""
    preemption = attempts.preemption
    rights, ranks = preemption._rights(pending)
    best: tuple[int, int] | None = None
    for row in range(len(attempts.scene.table)):
        pool = preemption._on(row, rights, pending)
        for count in range(1, len(pool) + 1):
            for chosen in combinations(pool, count):
                victims = [victim for _, victim in chosen]
                if len({victim.pod.key for victim in victims}) < count or not within_spare(victims):
                    continue
                outage = LIMITS.outage_seconds
                key = (max(int(ranks[i]) for i, _ in chosen), total_cost(victims, outage))
                if (best is None or key < best) and works(attempts, pending, victims):
                    best = key
    return best


@given(pressed())
def test_the_mildest_and_then_cheapest_set_of_steps_is_found(
    case: tuple[ClusterBuilder, Workload],
) -> None:
    cluster, asked = case
    attempts = prepare(cluster.snapshot(), LADDER, NOW, UNLIMITED, None)
    pending = pending_of(asked)
    assume(not fits(attempts, pending))
    found = attempts.preemption.find(pending, attempts.shape(asked).options)
    got = (found.rank, found.cost) if found is not None else None
    assert got == oracle(attempts, pending)
    if found is None:
        return
    assert len({victim.pod.key for victim in found.victims}) == len(found.victims)
    assert within_spare(list(found.victims))
    assert works(attempts, pending, list(found.victims))
    for spared in found.victims:
        rest = [v for v in found.victims if v is not spared]
        assert not works(attempts, pending, rest), f"{spared.pod.key} is asked in vain"


@given(pressed())
def test_nobody_ends_or_sleeps_where_coming_down_suffices_and_the_ladder_is_never_harsher_than_ending_alone(
    case: tuple[ClusterBuilder, Workload],
) -> None:
    cluster, asked = case
    pending = pending_of(asked)
    ladder = prepare(cluster.snapshot(), LADDER, NOW, UNLIMITED, None)
    assume(not fits(ladder, pending))
    found = ladder.preemption.find(pending, ladder.shape(asked).options)
    soft = [v for v in ladder.preemption.index.victims if v.asked_bytes]
    everyone = [v for v in soft if ladder.preemption.right(pending, v) is not None]
    if asked.sharing is Sharing.SHARED and works(ladder, pending, everyone):
        assert found is not None
        assert all(victim.asked_bytes for victim in found.victims)
    alone = prepare(cluster.snapshot(), EVICT_ONLY, NOW, UNLIMITED, None)
    ended = alone.preemption.find(pending, alone.shape(asked).options)
    if ended is not None:
        assert found is not None
        assert (found.rank, found.cost) <= (ended.rank, ended.cost)


@given(pressed())
def test_the_cluster_comes_to_rest_and_no_device_is_given_away_twice(
    case: tuple[ClusterBuilder, Workload],
) -> None:
    cluster, asked = case
    cluster.add(asked)
    assert_rests(cluster, lambda snapshot: plan(snapshot, LADDER, NOW))
    for state in cluster.snapshot().nodes.values():
        for device in state.devices:
            assert device.reserved_bytes <= device.device.memory_bytes
            held = [c.held_bytes for c in state.claims() if device.uuid in c.devices]
            assert sum(held) == device.reserved_bytes
        assert state.node is None or state.memory_bytes <= state.node.memory_bytes
    assert gpu("n0", 0) in {d.uuid for s in cluster.snapshot().nodes.values() for d in s.devices}
