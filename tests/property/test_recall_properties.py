"""What plans remember of each other changes their cost and nothing else: with and without memory they are equal.

The cluster is fuller than that of `tests.support.history`, and what waits is of few kinds, so that most of it is answered
from memory.
"""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from llmos_operator.api.conditions import Reason
from llmos_operator.scheduler.cycle import plan
from llmos_operator.scheduler.plan import Bind
from llmos_operator.scheduler.policy import Policy, ReservationPolicy
from llmos_operator.scheduler.quota import QuotaTree
from llmos_operator.scheduler.recall import Recall
from llmos_operator.scheduler.table import NodeTable
from llmos_operator.scheduler.victim_index import Roll, VictimIndex
from llmos_operator.state.types import (
    Busy,
    DisruptionBudget,
    Hold,
    LoadTime,
    Model,
    Namespace,
    Pod,
    Queue,
    Selector,
    Sharing,
    WorkloadKind,
)
from tests.support.builders import LARGE_MODEL, NOW, SMALL_MODEL, a_cluster, a_node, a_profile, a_workload

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmos_operator.scheduler.plan import Plan
    from llmos_operator.state.types import Workload

HISTORIES = 5_000 if settings.get_current_profile_name() == "stress" else 25
STEPS = 12
GIB = 1 << 30
MODELS = ("hf://org/one", "hf://org/two")
POLICIES = (
    Policy(require_queue=False),
    Policy(require_queue=False, reservation=ReservationPolicy(most=2, after=100.0)),
    Policy(require_queue=False, reservation=ReservationPolicy(most=0), min_runtime=30.0),
)


class Crowd:
    """A small cluster with many that wait, and what happens to it."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.now, self.policy = NOW, POLICIES[0]
        self.table, self.recall = NodeTable(), Recall()
        self.cluster = a_cluster().with_priorities(low=1, high=5)
        self.count = 0
        for number in range(self.random.randint(1, 4)):
            copies = [Model(uri).key for uri in MODELS if self.random.random() < 0.3]
            node = a_node(f"n{number}").with_gpus(self.random.randint(1, 4)).keeping(*copies)
            self.cluster.add(node.with_host(cpu="64", memory="512Gi"))
        self.cluster.add(a_profile(MODELS[0], SMALL_MODEL), Queue("red"))
        for _ in range(self.random.randint(5, 25)):
            self.submit()

    def submit(self) -> None:
        pick, self.count = self.random.choice, self.count + 1
        builder = a_workload(f"w{self.count}", pick(["default", "default", "other"])).gpus(
            pick([1, 1, 1, 2, 8])
        )
        builder.priority(pick(["low", "low", "high"])).in_queue(pick(["", "", "red"])).replicas(
            pick([1, 1, 2])
        )
        builder.with_(
            model=Model(pick(MODELS), kept=pick([True, False])),
            memory_bytes=pick([None, None, 5 * GIB]),
            kind=pick([WorkloadKind.INFERENCE, WorkloadKind.INFERENCE, WorkloadKind.BATCH]),
            sharing=pick([Sharing.EXCLUSIVE, Sharing.EXCLUSIVE, Sharing.SHARED]),
            created_at=self.now - pick([0.0, 50.0, 5000.0]),
            min_runtime=pick([None, 0.0, 0.0, 300.0]),
            max_runtime=pick([None, None, 600.0]),
            elastic=pick([True, False]),
        )
        if self.random.random() < 0.1:
            builder.of_pods(2).with_(kind=WorkloadKind.INFERENCE)
        self.cluster.add(builder)

    def workload(self) -> Workload | None:
        found = list(self.cluster.store.snapshot().workloads.values())
        return self.random.choice(found) if found else None

    def pod(self) -> Pod | None:
        found = [pod for pods in self.cluster.store.snapshot().pods_of.values() for pod in pods]
        return self.random.choice(found) if found else None

    def disturb(self) -> None:
        """Let one thing happen, most of them to what a memory is made from."""
        happenings: tuple[Callable[[], object], ...] = (
            self.submit,
            self.delete,
            self.change,
            self.inspect,
            self.end,
            self.tell_busy,
            self.govern,
            self.regulate,
            self.rebuild,
            self.settle,
        )
        self.random.choice(happenings)()

    def delete(self) -> None:
        workload = self.workload()
        if workload is not None:
            self.cluster.store.delete_workload(workload.key)

    def change(self) -> None:
        workload, pick = self.workload(), self.random.choice
        if workload is None:
            return
        changes = pick(
            (
                {"memory_bytes": pick([5 * GIB, 30 * GIB])},
                {"generation": workload.generation + 1},
                {"priority_class": pick(["low", "high"])},
                {"min_runtime": pick([0.0, 600.0])},
                {"max_runtime": pick([60.0, None])},
                {"idle_since": self.now - 30.0},
                {"replicas": pick([1, 2, 3])},
            )
        )
        self.cluster.store.apply_workload(replace(workload, **changes))

    def inspect(self) -> None:
        """Let more be known of a model, or nothing."""
        pick = self.random.choice
        times = [
            LoadTime("cpu", path, fmt, pick([900, 60_000]))
            for path in ("Cold", "Warm")
            for fmt in ("BF16", "F16", "")
            if self.random.random() < 0.7
        ]
        profile = a_profile(pick(MODELS), pick([SMALL_MODEL, LARGE_MODEL]), load_times=tuple(times))
        if self.random.random() < 0.2:
            self.cluster.store.delete_profile(profile.name)
        else:
            self.cluster.add(profile)

    def end(self) -> None:
        pod = self.pod()
        if pod is not None:
            self.cluster.store.delete_pod(pod.key, pod.uid)

    def tell_busy(self) -> None:
        pod = self.pod()
        if pod is not None:
            self.cluster.store.set_busy(
                pod.key, self.random.choice([None, Busy(self.random.randint(1, 9), GIB)])
            )

    def govern(self) -> None:
        pick, store = self.random.choice, self.cluster.store
        pick(
            (
                lambda: store.apply_queue(Queue("red", nominal_gpu_milli=pick([None, 1000, 4000]))),
                lambda: store.apply_namespace(
                    Namespace("other", {"llmos.dev/sharing-domain": pick(["a", "default"])})
                ),
                lambda: store.apply_budget(DisruptionBudget("default/all", Selector(), pick([0, 1]))),
                lambda: store.delete_budget("default/all"),
            )
        )()

    def regulate(self) -> None:
        workload = self.workload()
        if self.random.random() < 0.3:
            self.policy = self.random.choice(POLICIES)
        elif workload is not None:
            hold = Hold(Reason.LOAD_FAILED, "failed", self.now + 60.0, workload.generation)
            self.cluster.store.set_hold(workload.key, self.random.choice([hold, None]))

    def rebuild(self) -> None:
        """Let a node get other devices and copies of models, or go; one that has gone may come back."""
        pick, name = self.random.choice, f"n{self.random.randint(0, 3)}"
        if self.random.random() < 0.3:
            self.cluster.store.delete_gpu_node(name)
            return
        copies = [Model(uri).key for uri in MODELS if self.random.random() < 0.5]
        node = a_node(name).with_gpus(pick([1, 2, 4])).keeping(*copies)
        self.cluster.add(node.with_host(cpu="64", memory="512Gi"))

    def settle(self) -> None:
        """Let a pod become ready, or be a lender, or be held to a least runtime."""
        pod, pick = self.pod(), self.random.choice
        if pod is None or pod.claim is None:
            return
        claim = replace(pod.claim, lender=pick([True, False]), min_runtime=pick([0.0, 30.0]))
        self.cluster.store.apply_pod(
            replace(pod, claim=claim, ready=pick([True, False]), firm_until=self.now + pick([-1.0, 50.0]))
        )

    def index(self, roll: Roll | None) -> VictimIndex:
        snapshot = self.cluster.snapshot()
        rows = {name: row for row, name in enumerate(sorted(snapshot.nodes))}
        return VictimIndex(snapshot, self.policy, self.now, rows, QuotaTree.of(snapshot), roll)

    def plan(self) -> Plan:
        return plan(self.cluster.snapshot(), self.policy, self.now, table=self.table, recall=self.recall)

    def afresh(self) -> Plan:
        return plan(self.cluster.snapshot(), self.policy, self.now)

    def carry_out(self, made: Plan) -> None:
        for action in made.actions:
            if isinstance(action, Bind):
                claim, uid = action.claim, f"{action.claim.pod}@{self.now}"
                self.cluster.store.apply_pod(
                    Pod(claim.pod, uid, claim.node, claim=claim, started_at=self.now, ready=True)
                )
        for one in made.evictions:
            self.cluster.store.delete_pod(one.pod, one.pod_uid)


@settings(max_examples=HISTORIES, deadline=None)
@given(st.integers(0, 1 << 40))
def test_a_plan_with_memory_equals_one_from_scratch(seed: int) -> None:
    crowd = Crowd(seed)
    for step in range(STEPS):
        made = crowd.plan()
        assert made == crowd.afresh(), f"step {step} of history {seed}"
        if crowd.random.random() < 0.8:
            crowd.carry_out(made)
        for _ in range(crowd.random.randint(0, 2)):
            crowd.disturb()
        crowd.now += crowd.random.choice([0.0, 1.0, 200.0, -5.0])


ARRAYS = (
    *("rows", "costs", "parts", "priorities", "depths", "grades", "yields", "ends", "first_ends"),
    *("device_rows", "device_columns", "device_victims"),
)


@settings(max_examples=HISTORIES, deadline=None)
@given(st.integers(0, 1 << 40))
def test_an_index_of_victims_made_from_the_last_one_equals_one_from_scratch(seed: int) -> None:
    crowd, roll = Crowd(seed), Roll()
    policy = crowd.policy
    for step in range(2 * STEPS):
        crowd.policy = policy  # a roll is of one policy
        one, other = crowd.index(roll), crowd.index(None)
        where = f"step {step} of history {seed}"
        assert one.victims == other.victims, where
        for name in ARRAYS:
            assert np.array_equal(getattr(one, name), getattr(other, name)), f"{name} at {where}"
        queues = [[index.queue_names[number] for number in index.queues] for index in (one, other)]
        assert queues[0] == queues[1] == [victim.claim.queue for victim in one.victims], where
        assert [one.place_of(v.pod, v.depth) for v in one.victims] == list(range(len(one))), where
        crowd.carry_out(crowd.plan())
        for _ in range(crowd.random.randint(0, 3)):
            crowd.disturb()
        crowd.now += crowd.random.choice([0.0, 1.0, 20.0, 200.0, -5.0])
