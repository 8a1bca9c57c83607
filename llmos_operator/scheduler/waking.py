"""Wakes replicas that sleep, and puts to sleep those nobody asks anything of.

Who sleeps stands in line with its own priority: before a claim of at most that priority is placed, it wakes where its
devices have the room again, now and when everything has happened that is under way. Room that was made for a claimant
(it is nominated) stays that claimant's. Who sleeps because nobody asked (`Snapshot.idle`) wakes when somebody does. Who
cannot wake does not sleep for ever: see `Waking.given_up`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from llmos_operator.api.conditions import Reason
from llmos_operator.scheduler import wording
from llmos_operator.scheduler.plan import Evict, Sleep, Wake
from llmos_operator.scheduler.sleeping import asleep_as, can_sleep
from llmos_operator.scheduler.victims import ENDS
from llmos_operator.state.snapshot import wanted_ordinals
from llmos_operator.state.types import PodPhase

if TYPE_CHECKING:
    from llmos_operator.scheduler.attempt import Attempts
    from llmos_operator.scheduler.queueing import Pending
    from llmos_operator.scheduler.world import World
    from llmos_operator.state.ledger import NodeState
    from llmos_operator.state.types import Claim, Pod, Workload


class Waking:
    """Those who sleep, in one plan."""

    def __init__(self, attempts: Attempts) -> None:
        self._attempts = attempts
        self._asleep = sorted(
            (
                (pod, pod.claim)
                for pod in attempts.snapshot.sleeping
                if pod.claim and self._wants(pod, pod.claim)
            ),
            key=lambda one: (-one[1].priority, one[1].sleeping.at if one[1].sleeping else 0.0, one[0].key),
        )

    def _wants(self, pod: Pod, claim: Claim) -> bool:
        """Return whether a replica is to be awake, and could be told so."""
        attempts = self._attempts
        return (
            claim.asleep
            and claim.workload not in attempts.snapshot.idle
            and pod.key not in attempts.worlds.leaving
            and attempts.scene.heard_lately(pod.node)
            and _rested(claim, attempts.now, attempts.policy.preemption.wake_after)
        )

    def before(self, pending: Pending) -> list[Wake]:
        """Return who wakes before a claim is placed."""
        if not self._asleep or pending.nominated:
            return []
        return self._wake(pending.priority)

    def rest(self) -> list[Wake]:
        """Return who else wakes, when everybody has been placed."""
        return self._wake(None)

    def _wake(self, least: int | None) -> list[Wake]:
        found, left = [], []
        for pod, claim in self._asleep:
            if pod.key in self._attempts.worlds.leaving:
                continue  # displaced in this plan
            if (least is None or claim.priority >= least) and self._fits(pod, claim):
                self._attempts.awake(pod)
                found.append(
                    Wake(
                        pod=pod.key,
                        pod_uid=pod.uid,
                        node=pod.node,
                        workload=claim.workload,
                        workload_uid=claim.workload_uid,
                        reason=Reason.AWAKE,
                        explanation=wording.woken(claim, self._attempts.now),
                    )
                )
            else:
                left.append((pod, claim))
        self._asleep = left
        return found

    def _fits(self, pod: Pod, claim: Claim) -> bool:
        worlds = self._attempts.worlds
        if self._attempts.reservations.keeps(claim.devices, claim.priority):
            return False
        return all(
            _room(world.node(pod.node), claim) and _power(world, claim)
            for world in (worlds.now, worlds.later)
        )

    def given_up(self) -> list[Evict]:
        """Return who of those that cannot wake ends, to be placed anew; to be asked after `rest`.

        Who makes room for another, once it has slept for as long as it would take to load it again (who does not know how
        long it will wait pays when waiting has cost as much as paying) and has another place now. Who was idle and is
        asked for: at once, because only as a pending replica it can displace whom it outranks. Protected as from eviction.
        """
        found = []
        for pod, claim in self._asleep:
            workload = self._attempts.snapshot.workloads.get(claim.workload)
            place = self._other_place(pod, claim, workload) if workload is not None else None
            if workload is None or place is None:
                continue
            self._attempts.worlds.leave(pod)
            found.append(
                Evict(
                    pod=pod.key,
                    pod_uid=pod.uid,
                    node=pod.node,
                    victim=claim.workload,
                    victim_uid=claim.workload_uid,
                    cost=0,
                    reason=Reason.ASLEEP,
                    explanation=wording.sleeps_no_more(claim, self._attempts.now, place),
                )
            )
        return found

    def _other_place(self, pod: Pod, claim: Claim, workload: Workload) -> str | None:
        """Return the node a replica would start on if it ended, "" if it is to stand in line; None: it sleeps on."""
        attempts, sleeping = self._attempts, claim.sleeping
        index = attempts.preemption.index
        if sleeping is None or index.place_of(pod, ENDS) is None or workload.uid != claim.workload_uid:
            return None
        pods = attempts.snapshot.pods_of.get(workload.uid, ())
        if workload.suspended or workload.finished or claim.ordinal not in wanted_ordinals(workload, pods):
            return None
        if not sleeping.beneficiary:
            return ""
        if attempts.now - sleeping.at < index.reload_seconds(claim, workload):
            return None
        return attempts.elsewhere(pod, claim, workload)

    def idle(self) -> list[Sleep]:
        """Return who goes to sleep because nobody asks anything of it; to be asked when everybody has been placed."""
        snapshot = self._attempts.snapshot
        found = []
        for key in sorted(snapshot.idle):
            workload = snapshot.workloads.get(key)
            for pod in snapshot.pods_of.get(workload.uid, ()) if workload is not None else ():
                if workload is not None and pod.claim is not None:
                    found += self._lie_down(pod, pod.claim, workload)
        return found

    def _lie_down(self, pod: Pod, claim: Claim, workload: Workload) -> list[Sleep]:
        attempts, worlds = self._attempts, self._attempts.worlds
        if pod.phase is not PodPhase.BOUND or pod.key in worlds.leaving or pod.key in worlds.dozing:
            return []
        if not can_sleep(pod, claim, workload, attempts.now):
            return []
        sleeping = asleep_as(claim, workload, attempts.profile(workload), attempts.policy, attempts.now)
        if sleeping is None or not worlds.has_beds_for(pod, sleeping):
            return []
        attempts.asleep(pod, sleeping)
        return [
            Sleep(
                pod=pod.key,
                pod_uid=pod.uid,
                node=pod.node,
                victim=claim.workload,
                victim_uid=claim.workload_uid,
                sleeping=sleeping,
                cost=0,
                reason=Reason.IDLE,
                explanation=wording.idle(claim, sleeping),
            )
        ]


def _rested(claim: Claim, now: float, least: float) -> bool:
    """Return whether a replica has slept for long enough: at once where it was not displaced."""
    sleeping = claim.sleeping
    return sleeping is not None and (not sleeping.beneficiary or now - sleeping.at >= least)


def _room(state: NodeState, claim: Claim) -> bool:
    """Return whether every device of a claim has what it gave up, by reservations and as observed."""
    missing = claim.awake_bytes - claim.held_bytes
    devices = [state.device(uuid) for uuid in claim.devices]
    return all(
        device is not None
        and device.headroom_bytes() >= missing
        and device.headroom_milli() >= claim.compute_milli - claim.held_milli
        for device in devices
    )


def _power(world: World, claim: Claim) -> bool:
    """Return whether the power budgets of node and rack take what a replica draws more when it is awake."""
    state = world.node(claim.node)
    more = state.added_by(replace(claim, sleeping=None)) - state.added_by(claim)
    return more <= 0 or more <= min(state.power_room(), world.rack_room(claim.node))
