"""One scheduling cycle: `plan(snapshot, policy, now, budget) -> Plan`.

Everybody who waits is asked in queue order. For each replica, sizes best first: the first that fits now is bound;
else, if room is already being made, it waits for that; else others may come down, move or be displaced for it; else it
waits and the filters say why. Who has lent memory and works again calls it back, and replicas that are being moved have their places held, before anybody is asked. What has been tried in vain once is not tried again for identical work. Who sleeps wakes before anybody of its
priority is placed, if its room is there. At the end those who came down, or gave up replicas, get back what nobody waits for, and those sleep of
whom nobody asks anything, and GPUs that nobody uses may be cut into the instances that are waited for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmos_operator.errors import NotSynced
from llmos_operator.scheduler.attempt import Attempts
from llmos_operator.scheduler.budget import UNLIMITED, Budget
from llmos_operator.scheduler.feasibility import Feasibility
from llmos_operator.scheduler.growing import growing
from llmos_operator.scheduler.interference import Harm
from llmos_operator.scheduler.outcome import Outcome
from llmos_operator.scheduler.placement import Placer
from llmos_operator.scheduler.policy import ScoreKind
from llmos_operator.scheduler.preemption import Preemption
from llmos_operator.scheduler.queueing import lines
from llmos_operator.scheduler.quota import Amount
from llmos_operator.scheduler.recall import Recall
from llmos_operator.scheduler.recutting import Recutting
from llmos_operator.scheduler.repair import repairs
from llmos_operator.scheduler.restoring import restores
from llmos_operator.scheduler.scene import Scene
from llmos_operator.scheduler.table import CAPACITY, PART, NodeTable
from llmos_operator.scheduler.waking import Waking
from llmos_operator.scheduler.world import Worlds

if TYPE_CHECKING:
    from llmos_operator.scheduler.fragmentation.prices import Prices
    from llmos_operator.scheduler.plan import Plan
    from llmos_operator.scheduler.policy import Policy
    from llmos_operator.state.snapshot import Snapshot


def plan(
    snapshot: Snapshot,
    policy: Policy,
    now: float,
    budget: Budget = UNLIMITED,
    table: NodeTable | None = None,
    prices: Prices | None = None,
    recall: Recall | None = None,
) -> Plan:
    """Return what to do now. Pure: the same snapshot, policy, time and prices give the same plan.

    `now` is epoch seconds. `table` and `recall` are caches the caller may keep between cycles; they change the cost of a
    plan, never its content. `prices` are those of the fragmentation value; without them, or when they are too old, best fit is
    used. Raises NotSynced before every list is complete.
    """
    if not snapshot.synced:
        raise NotSynced(f"still listing {', '.join(snapshot.missing)}; no decision may be taken yet")
    attempts = prepare(snapshot, policy, now, budget, table, prices, recall)
    outcome = Outcome(snapshot, policy, now, attempts.recall)
    broken = repairs(snapshot, policy, now).evictions
    outcome.repair(broken)
    for one in broken:  # on its way out: nobody displaces it a second time, its room is counted on
        attempts.worlds.leave(snapshot.nodes[one.node].pods[one.pod])
    outcome.call_back(*attempts.lending.call_back())
    waiting = lines(snapshot, policy, now, attempts.worlds.now.tree)
    outcome.refuse(waiting.refused)
    attempts.moving.hold(waiting)
    waking = Waking(attempts)
    recutting = Recutting(attempts)
    for pending in waiting.picks(attempts.worlds.now.tree, total_of(attempts.scene.table)):
        if budget.exhausted():
            outcome.interrupt()
            break
        outcome.wake(waking.before(pending))
        result = attempts.place(pending)
        outcome.record(pending, result)
        recutting.note(pending, result)
    else:
        outcome.wake(waking.rest())
        outcome.give_up(waking.given_up())
        outcome.restore(restores(attempts))
        outcome.grow(growing(attempts))
        outcome.rest(waking.idle())
        outcome.cut(recutting.decide())
    if budget.search_exhausted():
        outcome.interrupt()
    return outcome.plan(waiting)


def prepare(
    snapshot: Snapshot,
    policy: Policy,
    now: float,
    budget: Budget,
    table: NodeTable | None,
    prices: Prices | None = None,
    recall: Recall | None = None,
) -> Attempts:
    """Return the means to place replicas on a snapshot."""
    recall = recall if recall is not None else Recall()
    recall.begin(policy)
    table = table if table is not None else NodeTable()
    worlds = Worlds.of(snapshot, now, policy.preemption.stuck_after)
    table.sync(worlds.now.view.nodes)
    scene = Scene.of(table, policy, now, snapshot.heard)
    if snapshot.interference and policy.interference_weight > 0:
        scene.harm = Harm(snapshot, policy.interference_weight, table)
    if scene.racks is not None:
        worlds.now.racks = worlds.later.racks = scene.racks.racks
    feasibility = Feasibility(scene)
    placer = Placer(scene, feasibility, prices if usable(prices, policy, now) else None)
    preemption = Preemption(snapshot, policy, now, worlds, scene, feasibility, budget, recall.victims)
    return Attempts(snapshot, policy, now, worlds, scene, feasibility, placer, preemption, recall)


def usable(prices: Prices | None, policy: Policy, now: float) -> bool:
    """Return whether the policy wants prices and they are not too old."""
    if prices is None or policy.score is not ScoreKind.FRAGMENTATION:
        return False
    return (
        abs(now - prices.at) <= policy.price_seconds
    )  # a clock that was set back does not make old prices new


def total_of(table: NodeTable) -> Amount:
    """Return all devices of the cluster, instances by the part of a GPU they are, and their memory."""
    return Amount(int(table.fixed[PART].sum()), int(table.fixed[CAPACITY].sum()))
