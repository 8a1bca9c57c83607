"""Lent memory in any history: nobody who stays ever stands in it, lenders get it back at once, and all comes to rest.

Clusters of shared devices live in virtual time: lenders fall silent and are asked again, work of every priority comes and
goes, replicas refuse to come down or take their time, pods take their time to end.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from llmos_operator.api.conditions import Reason
from llmos_operator.scheduler.claims import profile_of
from llmos_operator.scheduler.cycle import plan
from llmos_operator.scheduler.policy import Policy
from llmos_operator.scheduler.sizing import sizes
from llmos_operator.state import ledger, loans
from llmos_operator.state.store import Store
from llmos_operator.state.types import DisruptionStep, Model, Pod, PodPhase, Sharing
from tests.support.builders import GIB, LARGE_MODEL, NOW, ClusterBuilder, a_node, a_profile, a_workload
from tests.support.strategies import PRIORITIES

if TYPE_CHECKING:
    from llmos_operator.scheduler.plan import Plan, Shrink
    from llmos_operator.state.snapshot import Snapshot
    from llmos_operator.state.types import Claim

MODEL = "hf://org/large"
POLICY = Policy(require_queue=False)
STEPS = 25
REST = 12  # plans after which a cluster that is left alone must be at rest
BACK = 3  # plans within which a lender has its memory, once its borrowers' pods end in time
# A history is 25 disturbances with two plans each, about 0.3 s of CPU: 500 for each of three properties are some ten minutes
# of `make stress`; 5,000 were most of its two hours.
HISTORIES = 500 if settings.get_current_profile_name() == "stress" else 40
ORDERS = [
    (DisruptionStep.SHRINK, DisruptionStep.SLEEP, DisruptionStep.EVICT),
    (DisruptionStep.SHRINK, DisruptionStep.EVICT),
    (DisruptionStep.EVICT,),
    (DisruptionStep.SLEEP,),
]


class Life:
    """One cluster of shared devices and what happens to it."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.now = NOW
        self.cluster = ClusterBuilder().with_priorities(**PRIORITIES)
        self.cluster.add(a_profile(MODEL, LARGE_MODEL))
        self.store = self.cluster.store
        self.lenders: list[str] = []
        self.evicted: Counter[str] = Counter()
        self._leaving: dict[str, float] = {}
        self._coming_down: dict[str, float] = {}
        self._count = 0
        for number in range(self.random.randint(1, 2)):
            node = a_node(f"n{number}").with_gpus(
                self.random.randint(1, 2), "A100-32G", self.random.choice(["24Gi", "32Gi"])
            )
            self.cluster.add(node.with_host("64", self.random.choice(["24Gi", "512Gi"])))
        for _ in range(4):
            self._lender()
        for key in self.lenders:
            self.store.set_lending(key, lending=self.random.choice([True, True, None]))

    def snapshot(self) -> Snapshot:
        return self.cluster.snapshot()

    def disturb(self) -> None:
        what = self.random.choice([*[self._submit] * 4, *[self._flip] * 3, self._drop])
        what()

    def _lender(self) -> None:
        """Let a model that could lend be there; it runs where it has room."""
        self._count += 1
        builder = a_workload(f"l{self._count}").priority(self.random.choice(["low", "mid", "mid", "high"]))
        builder.with_(
            sharing=Sharing.SHARED,
            memory_bytes=None,
            model=Model(MODEL),
            max_model_len=self.random.choice([16384, 32768, 65536]),
            max_num_seqs=8,
            disruption_order=self.random.choice(ORDERS[:2]),
        ).at("Fixed", self.random.choice(["int8", "int4"]))
        best = sizes(builder.value, profile_of(self.snapshot(), builder.value), POLICY).sizes[0]
        claim = {"format": best.format, "max_model_len": best.max_model_len, "kv_tokens": best.kv_tokens}
        for name, state in sorted(self.snapshot().nodes.items()):
            for index, device in enumerate(state.devices):
                if device.headroom_bytes() >= best.bytes_per_device:
                    pod = self.cluster.running(
                        builder, name, (index,), memory=str(best.bytes_per_device), **claim
                    )
                    self.store.apply_pod(replace(pod, ready=True))
                    self.lenders.append(builder.value.key)
                    return

    def _submit(self) -> None:
        self._count += 1
        builder = a_workload(f"w{self._count}").priority(
            self.random.choice(["low", "low", "low", "mid", "high"])
        )
        self.cluster.add(
            builder.with_(
                memory_bytes=self.random.randint(2, 12) * GIB,
                sharing=Sharing.SHARED if self.random.random() < 0.9 else Sharing.EXCLUSIVE,
                created_at=self.now,
                min_runtime=self.random.choice([None, None, 0.0, 600.0]),
                disruption_order=self.random.choice(ORDERS),
            )
        )

    def _flip(self) -> None:
        if self.lenders:
            key = self.random.choice(self.lenders)
            workload = self.store.workload(key)
            if workload is None:
                return
            lends = not self.snapshot().may_lend(key)
            lent = any(pod.claim is not None and pod.claim.lent for pod in self.store.pods_of(workload.uid))
            self.store.set_lending(key, lending=True if lends else False if lent else None)

    def _drop(self) -> None:
        keys = sorted(self.snapshot().workloads)
        workload = self.store.workload(self.random.choice(keys)) if keys else None
        if workload is not None:
            for pod in self.store.pods_of(workload.uid):
                self.store.delete_pod(pod.key)
                self._leaving.pop(pod.key, None)
            self.store.delete_workload(workload.key)

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        for key in [key for key, at in self._leaving.items() if at <= self.now]:
            del self._leaving[key]
            self.store.delete_pod(key)
        for key in [key for key, at in self._coming_down.items() if at <= self.now]:
            del self._coming_down[key]
            pod = self.store.pod(key)
            if pod is not None and pod.claim is not None and pod.claim.lowered:
                self.store.note_yielded(key, pod.uid)
        for name in self.snapshot().nodes:
            self.store.observe(name, (), self.now)

    def carry_out(self, made: Plan, *, well: bool = False) -> None:
        for shrink in made.shrinks:
            self._shrink(shrink, well=well)
        for evict in made.evictions:
            if self.store.assume_evicted(evict.pod, self.now + 30, evict.preemptor):
                self.evicted[evict.pod_uid] += 1
                self._leaving[evict.pod] = self.now + (0 if well else self.random.choice([0, 10, 25]))
        for sleep in made.sleeps:
            if self.store.ask_to_sleep(sleep.pod, sleep.pod_uid, sleep.sleeping, self.now):
                self.store.note_asleep(sleep.pod, sleep.pod_uid)
        for wake in made.wakes:
            assert self.store.wake(wake.pod, wake.pod_uid), f"no room to wake {wake.pod}"
        for move in made.moves:
            place = move.place(self.now, self.now)
            self.store.assume_evicted(move.pod, self.now, move.beneficiary, self.now, place)
            self.store.delete_pod(move.pod)
        for bind in made.binds:
            self.store.assume(bind.claim)  # a Conflict here: the plan gave more than there is
            uid = f"uid-{bind.claim.pod}-{self.now}"
            self.store.apply_pod(
                Pod(bind.claim.pod, uid, bind.claim.node, claim=bind.claim, started_at=self.now, ready=True)
            )
        for restore in made.restores:
            back = self.store.restore_memory(restore.pod, restore.pod_uid)
            assert back is not None, f"no room to restore {restore.pod}"

    def _shrink(self, shrink: Shrink, *, well: bool) -> None:
        asked = (
            shrink.pod,
            shrink.pod_uid,
            shrink.bytes_per_device,
            self.now,
            shrink.preemptor,
            self.now + 20,
        )
        if self.store.ask_to_lower(*asked, lent=shrink.loan) is None:
            return
        pod = self.store.pod(shrink.pod)
        if pod is not None and claim_of(pod).yielded:
            return  # what it had lent was taken for good: it has come down before
        if not well and self.random.random() < 0.2:
            self.store.restore_memory(shrink.pod, shrink.pod_uid, firm_until=self.now + 300)
        else:
            self._coming_down[shrink.pod] = self.now + (0 if well else self.random.choice([0, 5, 15]))


def standing(pod: Pod, lenders: set[str]) -> int:
    """Return what a pod holds of each device when every lender has been given back what it lent."""
    claim = pod.claim
    if claim is None or pod.phase is PodPhase.FINISHED or claim.lender in lenders:
        return 0
    return claim.held_bytes + claim.lent_bytes


def check_ledger(snapshot: Snapshot) -> None:
    """I1, for those who are there and for those who will be: nobody who stays stands in memory that was lent."""
    for state in snapshot.nodes.values():
        pods = {key: pod for key, pod in state.pods.items() if pod.claim is not None}
        lenders = {key for key, pod in pods.items() if pod.claim is not None and pod.claim.lent}
        for device in state.devices:
            on = [p for p in pods.values() if p.claim is not None and device.uuid in p.claim.devices]
            held = sum(p.claim.held_bytes for p in on if p.claim is not None)
            assert held <= device.device.memory_bytes, f"{device.uuid}: more is held than there is"
            whole = sum(standing(p, lenders) for p in on)
            assert whole <= device.device.memory_bytes, f"{device.uuid}: what was lent is not there any more"
        again = ledger.build(state.name, state.node, state.gpu, state.pods, state.observed)
        assert again.devices == state.devices, "I11: another ledger from the same pods"
    assert Store.of(snapshot).snapshot().nodes == snapshot.nodes


def check_plan(before: Snapshot, made: Plan) -> None:
    """Borrowers stand lower, may go, and are sent away for a lender that calls back only."""
    pods = {pod.key: pod for pods in before.pods_of.values() for pod in pods}
    for bind in made.binds:
        if bind.claim.lender:
            lender = pods[bind.claim.lender].claim
            assert lender is not None
            assert before.may_lend(lender.workload)
            assert lender.priority > bind.claim.priority
            assert bind.claim.min_runtime == 0.0
            assert DisruptionStep.EVICT in bind.workload.disruption_order
    for evict in made.evictions:
        if evict.reason is Reason.CALLED_BACK:
            claim = claim_of(pods[evict.pod])
            assert before.calls_back(claim_of(pods[claim.lender]).workload)
    for shrink in made.shrinks:
        if shrink.loan:
            assert before.may_lend(shrink.victim)
    for restore in made.restores:
        claim = claim_of(pods[restore.pod])
        if restore.loan and not before.calls_back(claim.workload):
            rest = made.now - claim.asked_at
            assert rest >= POLICY.preemption.restore_after, "a loan that nobody uses comes and goes"
            assert not loans.borrowers(before.nodes[restore.node], restore.pod)


def claim_of(pod: Pod) -> Claim:
    assert pod.claim is not None
    return pod.claim


def step(life: Life) -> None:
    before = life.snapshot()
    made = plan(before, POLICY, life.now)
    assert plan(before, POLICY, life.now) == made, "I14: another plan of the same snapshot"
    check_plan(before, made)
    life.carry_out(made)
    check_ledger(life.snapshot())


def lived(seed: int) -> Life:
    life = Life(seed)
    for _ in range(STEPS):
        life.disturb()
        life.pass_time(life.random.choice([0.0, 1.0, 10.0, 30.0, 90.0]))
        check_ledger(life.snapshot())
        step(life)
    life.pass_time(60.0)
    return life


@settings(max_examples=HISTORIES)
@given(st.integers(0, 1 << 40))
def test_nobody_who_stays_stands_in_lent_memory(seed: int) -> None:
    lived(seed)


@settings(max_examples=HISTORIES)
@given(st.integers(0, 1 << 40))
def test_who_works_again_has_all_of_it_back_in_as_many_plans_as_that_takes(seed: int) -> None:
    life = lived(seed)
    for key in life.lenders:
        workload = life.store.workload(key)
        if workload is not None:
            lent = any(claim_of(pod).lent for pod in life.store.pods_of(workload.uid))
            life.store.set_lending(key, lending=False if lent else None)
    for _ in range(BACK):
        made = plan(life.snapshot(), POLICY, life.now)
        life.carry_out(made, well=True)
        life.pass_time(1.0)
        check_ledger(life.snapshot())
    for pod in life.snapshot().lowered:
        claim = claim_of(pod)
        assert not claim.lent or claim.sleeping is not None, f"{pod.key} still lends"
        assert not loans.borrowers(life.snapshot().nodes[pod.node], pod.key) or not claim.lent


@settings(max_examples=HISTORIES)
@given(st.integers(0, 1 << 40))
def test_left_alone_all_comes_to_rest_and_nobody_is_evicted_twice(seed: int) -> None:
    life = lived(seed)
    for _ in range(REST):
        made = plan(life.snapshot(), POLICY, life.now)
        check_plan(life.snapshot(), made)
        if not made.actions and not life.snapshot().terminating:
            break
        life.carry_out(made, well=True)
        check_ledger(life.snapshot())
        life.pass_time(100.0)
    assert not made.actions, f"still acting: {made.actions}"
    assert max(life.evicted.values(), default=1) == 1
