"""Random histories of a cluster: after whatever happened, plans keep the invariants of the design, and all comes to rest.

`make stress` tries 20,000 of them. A failure names the seed and what happened; `History(seed)` is that history again.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from llmos_operator.api.conditions import Reason
from llmos_operator.scheduler.cycle import plan
from llmos_operator.scheduler.plan import Evict, Sleep
from llmos_operator.scheduler.power import Racks
from llmos_operator.scheduler.quota import Amount, QuotaTree
from llmos_operator.state import ledger
from llmos_operator.state.labels import matches
from llmos_operator.state.snapshot import assumed_pod
from llmos_operator.state.types import FULL_MILLI, PodPhase, Sharing
from tests.support.history import POLICY, History

if TYPE_CHECKING:
    from llmos_operator.scheduler.plan import Plan
    from llmos_operator.state.snapshot import Snapshot

STEPS = 20
HISTORIES = 20_000 if settings.get_current_profile_name() == "stress" else 60
LONGEST_REST = 40  # plans after which a cluster that is left alone must be at rest
AWAKE = {PodPhase.ASSUMED, PodPhase.BOUND, PodPhase.TERMINATING}


@settings(max_examples=HISTORIES)
@given(st.integers(0, 1 << 40))
def test_invariants_hold_in_any_history_and_it_comes_to_rest(seed: int) -> None:
    history = History(seed)
    for _ in range(STEPS):
        history.disturb()
        history.pass_time(history.random.choice([0.0, 1.0, 20.0, 300.0]))
        step(history)
    history.settle()
    rest(history)


def step(history: History) -> None:
    """Plan and carry out once, with every check."""
    try:
        before = history.snapshot()
        made = history.plan()
        assert plan(before, POLICY, history.now) == made, "I14: another plan of the same snapshot"
        check_plan(before, made, history)
        history.carry_out(made)
        history.tend()
        check_ledger(history)
    except AssertionError as error:
        raise AssertionError(f"{error}\nhistory: {'; '.join(history.happened)}") from error


def rest(history: History) -> None:
    """Leave the cluster alone: it comes to rest, nobody is evicted for the same claimant again and again."""
    begun = len(history.evictions)
    for _ in range(LONGEST_REST):
        before = history.snapshot()
        made = history.plan()
        check_plan(before, made, history)
        taking_turns = any(wait.reason is Reason.WAITING_FOR_STARTUP for wait in made.waits)
        if not made.actions and not before.terminating and not history.tend() and not taking_turns:
            break
        history.carry_out(made, refuse=False)
        check_ledger(history)
        history.pass_time(60.0)
    else:
        raise AssertionError(f"I9: still acting: {made.actions}\nhistory: {'; '.join(history.happened)}")
    turns = Counter((e.pod, e.preemptor) for _, e in history.evictions[begun:] if e.preemptor)
    pods = Counter(e.pod_uid for _, e in history.evictions)
    assert max(pods.values(), default=1) == 1, f"I6: evicted twice: {pods.most_common(1)}"
    assert max(turns.values(), default=1) == 1, f"I6: {turns.most_common(1)}"
    moved = Counter(m.pod_uid for _, m in history.moves)
    assert max(moved.values(), default=1) == 1, f"I6: moved twice: {moved.most_common(1)}"
    again = history.plan()
    assert not again.actions, f"I8: a second look acts: {again.actions}"
    check_whole(history.snapshot())


def check_plan(before: Snapshot, made: Plan, history: History) -> None:
    """Check what a plan says against the snapshot it was made of."""
    check_quota(before, made)
    check_evictions(before, made, history)
    check_moves(before, made, history)
    check_power(before, made)
    check_startups(before, made, history)
    for bind in made.binds:
        state = before.nodes[bind.claim.node]
        assert state.node is not None
        assert state.node.ready
        if bind.claim.sharing is Sharing.SHARED:
            assert fresh(before, bind.claim.node, history.now), "I13: shared on stale telemetry"
    for key in before.unsettled:  # I2
        assert key in made.decisions, f"I2: nothing is said of {key}"
        assert made.decisions[key].message


def check_power(before: Snapshot, made: Plan) -> None:
    """No bind takes a node or a rack beyond its power budget; what has not left yet still draws."""
    nodes = dict(before.nodes)
    for bind in made.binds:
        nodes[bind.claim.node] = nodes[bind.claim.node].with_pod(assumed_pod(bind.claim))
    racks = Racks.among(nodes.values(), POLICY.rack_label)
    draws = {name: state.power_draw() for name, state in nodes.items()}
    for bind in made.binds:
        if bind.claim.devices:
            assert nodes[bind.claim.node].power_room() >= 0, (
                f"{bind.claim.pod} takes more than its node may draw"
            )
            assert racks.room(bind.claim.node, draws) >= 0, (
                f"{bind.claim.pod} takes more than its rack may draw"
            )


def check_startups(before: Snapshot, made: Plan, history: History) -> None:
    """On a shared device one loads at a time, for as long as it may; what starts together does not wait for its own."""
    loading: dict[str, set[str]] = {}
    for state in before.nodes.values():
        for pod in state.pods.values():
            claim = pod.claim
            starts = pod.phase in {PodPhase.ASSUMED, PodPhase.BOUND} and not pod.ready
            if claim is None or not starts or claim.sleeping is not None:
                continue
            if history.now < claim.bound_at + POLICY.startup_seconds:
                for uuid in claim.devices:
                    loading.setdefault(uuid, set()).add(claim.workload_uid)
    for bind in made.binds:
        claim = bind.claim
        if claim.sharing is not Sharing.SHARED:
            continue
        own = {claim.workload_uid} if bind.workload.members > 1 else set()
        for uuid in claim.devices:
            assert loading.get(uuid, set()) <= own, f"{claim.pod} starts beside {loading[uuid]} on {uuid}"
            loading.setdefault(uuid, set()).add(claim.workload_uid)


def fresh(snapshot: Snapshot, node: str, now: float) -> bool:
    """Return whether a node has been heard of lately."""
    heard = snapshot.heard.get(node)
    return heard is not None and now - heard <= POLICY.stale_seconds


def check_quota(before: Snapshot, made: Plan) -> None:
    """I4: no bind takes a queue beyond what it may use."""
    tree = QuotaTree(before.queues)
    for queue, (milli, held) in before.charged.items():
        tree.add(queue, Amount(milli, held))
    for bind in made.binds:
        amount = Amount(bind.claim.gpu_milli, bind.claim.charged_bytes)
        assert tree.fits(bind.claim.queue, amount), f"I4: {bind.claim.workload} exceeds its quota"
        tree.add(bind.claim.queue, amount)


def check_evictions(before: Snapshot, made: Plan, history: History) -> None:
    """I5: victims stand lower, are not protected, and disruption budgets hold."""
    pods = {pod.key: pod for found in before.pods_of.values() for pod in found}
    gone = []
    limited = any(queue.nominal_gpu_milli is not None for queue in before.queues.values())
    for action in made.actions:
        if not isinstance(action, Evict | Sleep) or not action.preemptor:
            continue
        pod, claimant = pods[action.pod], before.workloads[action.preemptor]
        claim = pod.claim
        assert claim is not None
        assert pod.phase is PodPhase.BOUND
        assert history.now - pod.started_at >= claim.min_runtime, f"I5: {pod.key} is within its minRuntime"
        if action.reason is Reason.PREEMPTED:
            assert claim.priority < before.priority_of(claimant), f"I5: {pod.key} does not stand lower"
        else:
            assert claim.queue != (claimant.queue or POLICY.default_queue)
        alone = claim.member == 0 and before.workloads[claim.workload].members == 1
        if (
            claimant.accelerators and not limited and alone
        ):  # CPU, quota and company do not depend on what agents see
            assert fresh(before, pod.node, history.now), f"I13: {pod.key} displaced unseen"
        gone.append(pod)
    for budget in before.budgets.values():
        covered = [p for p in gone if budget.selector is not None and matches(budget.selector, p.labels)]
        assert len(covered) <= budget.allowed, f"I5: {budget.key} allows {budget.allowed}"


def check_moves(before: Snapshot, made: Plan, history: History) -> None:
    """Who moves stands no higher, is not protected, and everybody has a place afterwards: the claimant and all who move."""
    pods = {pod.key: pod for found in before.pods_of.values() for pod in found}
    nodes, gone = dict(before.nodes), []
    for move in made.moves:
        pod, claimant = pods[move.pod], before.workloads[move.beneficiary]
        claim = pod.claim
        assert claim is not None
        assert pod.phase is PodPhase.BOUND
        assert claim.priority <= before.priority_of(claimant), f"{pod.key} stands higher"
        assert history.now - pod.started_at >= claim.min_runtime, f"{pod.key} is within its minRuntime"
        assert history.now - claim.moved_at >= POLICY.consolidation.cool_down, f"{pod.key} moves again"
        assert before.workloads[claim.workload].members == 1
        assert (move.target.format, move.target.max_model_len) == (claim.format, claim.max_model_len)
        assert fresh(before, pod.node, history.now), f"I13: {pod.key} moved unseen"
        assert not claim.devices or fresh(before, move.target.node, history.now), (
            f"I13: {pod.key} moves to the unseen"
        )
        nodes[pod.node] = nodes[pod.node].without_pod(pod.key)
        gone.append(pod)
    for budget in before.budgets.values():
        covered = [p for p in gone if budget.selector is not None and matches(budget.selector, p.labels)]
        assert len(covered) <= budget.allowed, f"I5: {budget.key} allows {budget.allowed}"
    for evict in made.evictions:
        nodes[evict.node] = nodes[evict.node].without_pod(evict.pod)
    for claim in (*(bind.claim for bind in made.binds), *(move.target for move in made.moves)):
        assert not ledger.shortfall(nodes[claim.node], claim), f"{claim.pod} has no place: {claim}"
        nodes[claim.node] = nodes[claim.node].with_pod(assumed_pod(claim))
    if made.moves:
        begun = history.now - POLICY.consolidation.window
        spent = sum(pod.claim is not None and pod.claim.moved_at >= begun for pod in before.moved)
        most = max(1, int(sum(before.standing.values()) * POLICY.consolidation.part))
        assert spent + len(made.moves) <= most, "beyond the migration budget"


def check_ledger(history: History) -> None:
    """I1, I2, I11: nothing is held twice, nothing beyond what there is, and the ledger can be made again from its pods."""
    snapshot = history.snapshot()
    for state in snapshot.nodes.values():
        assert ledger.build(state.name, state.node, state.gpu, state.pods, state.observed) == state, "I11"
        for device in state.devices:
            holders = [
                p.claim
                for p in state.pods.values()
                if p.claim is not None and p.phase in AWAKE and device.uuid in p.claim.devices
            ]
            assert sum(c.held_bytes for c in holders) <= device.device.memory_bytes, f"I1: {device.uuid}"
            assert sum(c.held_milli for c in holders) <= FULL_MILLI, f"I1: compute of {device.uuid}"
            if any(c.sharing is not Sharing.SHARED for c in holders):
                assert len(holders) == 1, f"I1: {device.uuid} is shared with a whole claim"
        if state.node is not None:
            assert state.cpu_milli <= state.node.cpu_milli, f"I1: CPU of {state.name}"
            assert state.memory_bytes <= state.node.memory_bytes, f"I1: host memory of {state.name}"
    for uid, pods in snapshot.pods_of.items():
        places = Counter(
            (p.claim.ordinal, p.claim.member) for p in pods if p.claim is not None and p.phase in AWAKE
        )
        assert max(places.values(), default=0) <= 1, f"I2: a replica of {uid} runs twice"


def check_whole(snapshot: Snapshot) -> None:
    """I7: at rest a replica of several pods has all of them or none, unless some were lost and the rest is not given back yet."""
    for workload in snapshot.workloads.values():
        if workload.members == 1 or workload.finished:
            continue
        replicas = Counter(
            p.claim.ordinal for p in snapshot.pods_of.get(workload.uid, ()) if p.claim is not None
        )
        assert set(replicas.values()) <= {workload.members}, f"I7: {workload.key} runs in part: {replicas}"
