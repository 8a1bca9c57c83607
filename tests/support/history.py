"""A cluster that lives: work comes and goes, nodes and telemetry fail, writes are refused, all in virtual time.

`History` stands in for everything around `plan()`: it carries plans out the way the executor and kubelets do (creates
that are refused, evictions that take a while, memory that is free only some time after its pod), and lets things happen
to the cluster in between. Everything is drawn from one seed.
"""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING

from llmos_operator.api.telemetry import Verdict
from llmos_operator.control import gangs, reconcile
from llmos_operator.errors import Conflict
from llmos_operator.scheduler.cycle import plan
from llmos_operator.scheduler.plan import Bind, Evict, Grow, Move, Restore, Shrink, Sleep, Wake
from llmos_operator.scheduler.policy import ConsolidationPolicy, Policy
from llmos_operator.scheduler.recall import Recall
from llmos_operator.scheduler.table import NodeTable
from llmos_operator.state.telemetry import Reading
from llmos_operator.state.types import (
    DisruptionBudget,
    Model,
    Pod,
    PodPhase,
    Queue,
    Requirement,
    Selector,
    Sharing,
    WorkloadKind,
)
from tests.support.builders import LARGE_MODEL, NOW, ClusterBuilder, a_node, a_profile, a_workload

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from llmos_operator.scheduler.plan import Plan
    from llmos_operator.state.snapshot import Snapshot
    from llmos_operator.state.store import Store
    from llmos_operator.state.types import Claim, GpuNode, Node, Workload

GIB = 1 << 30
PRIORITIES = {"low": 1, "mid": 2, "high": 3}
QUEUES = ("default", "red", "blue")
MODEL = "hf://org/large"  # of those of whom it is known what they would keep asleep
# Half of all an hour instead of a hundredth: clusters are small here, and there is to be something to see.
POLICY = Policy(consolidation=ConsolidationPolicy(part=0.5, cool_down=600.0))


class History:
    """One cluster and what happens to it. `store` is what the operator would know."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.now = NOW
        self.cluster = ClusterBuilder().with_priorities(**PRIORITIES)
        self.cluster.add(a_profile(MODEL, LARGE_MODEL))
        self.evictions: list[tuple[float, Evict]] = []  # sent and accepted
        self.moves: list[tuple[float, Move]] = []  # the same
        self.sleeps = 0  # replicas that went to sleep
        self.happened: list[str] = []
        self.table, self.recall = NodeTable(), Recall()
        self._nodes: dict[str, tuple[Node, GpuNode | None]] = {}  # as they are when all is well
        self._quiet: set[str] = set()  # nodes whose agent is silent
        self._leaving: dict[str, float] = {}  # pod -> when it is gone
        self._held: dict[str, int] = {}  # device -> bytes in use beyond what pods hold
        self._loading: dict[str, float] = {}  # UID of a pod -> when it is ready
        self._hangs = 0.1  # part of loads that never end
        self._count = self._pods_made = 0
        self._alike = self._chance(
            0.3
        )  # small work of one standing comes and goes: what is free lies scattered
        for number in range(self.random.randint(2, 3) if self._alike else self.random.randint(1, 3)):
            self._add_node(f"n{number}")
        self._queues()

    @property
    def store(self) -> Store:
        """The operator's view."""
        return self.cluster.store

    def snapshot(self) -> Snapshot:
        """Return the view as it stands."""
        return self.cluster.snapshot()

    def plan(self) -> Plan:
        """Return what the scheduler would do now."""
        return plan(self.snapshot(), POLICY, self.now, table=self.table, recall=self.recall)

    def disturb(self) -> None:
        """Let one thing happen."""
        happenings: Sequence[tuple[int, Callable[[], str]]] = (
            (12, self._submit),
            (8 if self._alike else 2, self._delete),
            (2, self._finish),
            (2, self._lose_pod),
            (1, self._lose_node),
            (1, self._sicken),
            (1, self._silence),
            (1, self._hog),
            (1, self._change_quota),
            (1, self._guard),
            (1, self._restore),
            (2, self._fall_silent),
        )
        weights = [weight for weight, _ in happenings]
        (_, happening) = self.random.choices(happenings, weights)[0]
        self.happened.append(happening())

    def pass_time(self, seconds: float) -> None:
        """Let time pass: pods end, memory is freed, agents report."""
        self.now += seconds
        for key in [key for key, at in self._leaving.items() if at <= self.now]:
            del self._leaving[key]
            self._end(key)
        for uid in [uid for uid, at in self._loading.items() if at <= self.now]:
            del self._loading[uid]
            self._ready(uid)
        self.report()

    def _ready(self, uid: str) -> None:
        pod = next((p for p in self._pods() if p.uid == uid and p.phase is PodPhase.BOUND), None)
        if pod is not None:
            self.store.apply_pod(replace(pod, ready=True))

    def carry_out(self, made: Plan, *, refuse: bool = True) -> None:
        """Do what a plan says; now and then a write is refused when `refuse`."""
        refused: set[str] = set()
        for action in made.actions:
            if isinstance(action, Evict):
                self._evict(action, refused=refuse and self._chance(0.1))
            elif isinstance(action, Bind):
                if action.gang in refused and action.gang:
                    continue
                if refuse and self._chance(0.05) and not action.gang:
                    self.happened.append(f"create of {action.claim.pod} refused")
                    continue
                self._bind(action)
            elif isinstance(action, Shrink | Sleep | Wake | Restore):
                self._change(action)
            elif isinstance(action, Grow):
                self.store.allow_replicas(action.workload, action.workload_uid, action.replicas, self.now)
            elif isinstance(action, Move):
                self._move(action, refused=refuse and self._chance(0.1))
            else:
                raise TypeError(f"nobody carries out {action!r}")

    def tend(self) -> bool:
        """Give back what the operator gives back without the scheduler; return whether there was anything."""
        before = len(self._leaving)
        snapshot = self.snapshot()
        for workload in snapshot.workloads.values():
            pods = snapshot.pods_of.get(workload.uid, ())
            seen = reconcile.Situation(workload, self.now, pods, overdue=gangs.gaps(workload, pods))
            for retire in reconcile.rule(seen).retire:
                pod = self.store.pod(retire.pod)
                if pod is not None and pod.key not in self._leaving:
                    self._leave(pod)
        return len(self._leaving) > before

    def settle(self) -> None:
        """Make all well again, and let everything that is on its way arrive."""
        self.happened.append("all is well")
        for name in self._nodes:
            self._heal(name)
        self._held.clear()
        self._quiet.clear()
        self._hangs = 0.0
        for _ in range(3):
            self.pass_time(120.0)

    def report(self) -> None:
        """Let the agents that are not silent report what is in use."""
        for name, state in self.store.snapshot().nodes.items():
            if name in self._quiet or state.node is None or state.gpu is None:
                continue
            used = {device.uuid: self._held.get(device.uuid, 0) for device in state.gpu.devices}
            for pod in state.pods.values():
                if pod.claim is not None and pod.phase is not PodPhase.FINISHED and pod.uid:
                    for uuid in pod.claim.devices:
                        used[uuid] = used.get(uuid, 0) + pod.claim.held_bytes * 9 // 10
            readings = [
                Reading(d.uuid, used[d.uuid], d.memory_bytes, verdict=d.verdict) for d in state.gpu.devices
            ]
            for _ in range(2):  # a fall of what is in use must be seen twice
                self.store.observe(name, readings, self.now)

    def _fall_silent(self) -> str:
        """Nobody asks anything of a workload for a while, or somebody does again."""
        keys = sorted(self.snapshot().workloads)
        if not keys:
            return "nobody there to be asked"
        key = self.random.choice(keys)
        idle = key not in self.snapshot().idle
        self.store.set_idle(key, idle=idle)
        return f"{key} is {'not asked for' if idle else 'asked for'}"

    # -- what happens ---------------------------------------------------------------------------------------

    def _submit(self) -> str:
        self._count += 1
        pick = self.random.choice
        kind = pick(list(WorkloadKind))
        gpus = pick([0, 1, 1, 1, 2, 3])
        shared = gpus == 1 and self._chance(0.5)
        builder = a_workload(f"w{self._count}").gpus(gpus).priority(pick(sorted(PRIORITIES)))
        replicas = pick([1, 1, 1, 2, 3])
        builder.in_queue(pick(QUEUES)).replicas(replicas)
        builder.with_(elastic=replicas > 1 and pick([True, False]))
        builder.with_(
            kind=kind,
            created_at=self.now,
            memory_bytes=pick([1, 5, 12, 20, 40, 60]) * GIB,
            sharing=Sharing.SHARED if shared else Sharing.EXCLUSIVE,
            min_runtime=pick([0.0, 0.0, 60.0, 600.0]),
            max_runtime=pick([None, None, 300.0, 3000.0]),  # nobody ends it then: an estimate that is wrong
        )
        if shared and self._chance(0.7):
            builder.with_(model=Model(MODEL), kind=WorkloadKind.INFERENCE)
        if self._alike and self._chance(0.8):
            builder.in_queue("default").priority("mid").gpus(pick([1, 1, 1, 2, 3])).replicas(1)
            builder.with_(
                kind=WorkloadKind.INFERENCE,
                created_at=self.now - 3600.0,
                memory_bytes=pick([1, 5, 12]) * GIB,
                sharing=Sharing.EXCLUSIVE,
                min_runtime=0.0,
                max_runtime=None,
            )
        elif self._chance(0.2):
            builder.of_pods(pick([2, 2, 3])).with_(kind=WorkloadKind.INFERENCE)  # work that ends is one pod
        self.cluster.add(builder)
        return f"submitted {builder.value.key}"

    def _delete(self) -> str:
        workload = self._any_workload()
        if workload is None:
            return "nothing"
        self.store.delete_workload(workload.key)
        for pod in self.store.pods_of(workload.uid):
            self._leave(pod)
        return f"deleted {workload.key}"

    def _finish(self) -> str:
        pods = [p for p in self._pods() if p.phase is PodPhase.BOUND and self._ends(p)]
        if not pods:
            return "nothing"
        workload = self.store.workload(self._claim(pods[0]).workload)
        if workload is None:
            return "nothing"
        for pod in self.store.pods_of(workload.uid):
            self.store.apply_pod(replace(pod, phase=PodPhase.FINISHED))
        self.store.apply_workload(replace(workload, finished=True))
        return f"finished {workload.key}"

    def _ends(self, pod: Pod) -> bool:
        workload = self.store.workload(self._claim(pod).workload)
        return workload is not None and workload.kind is not WorkloadKind.INFERENCE

    def _lose_pod(self) -> str:
        pods = [p for p in self._pods() if p.uid]
        if not pods:
            return "nothing"
        pod = self.random.choice(pods)
        self._end(pod.key)
        return f"lost {pod.key}"

    def _lose_node(self) -> str:
        name = self.random.choice(sorted(self._nodes))
        self.store.delete_node(name)
        return f"lost {name}"

    def _sicken(self) -> str:
        name = self.random.choice(sorted(self._nodes))
        gpus = self._nodes[name][1]
        if gpus is None:
            return "nothing"
        sick = self.random.randrange(len(gpus.devices))
        devices = tuple(replace(d, verdict=Verdict.UNHEALTHY) if d.index == sick else d for d in gpus.devices)
        self.store.apply_gpu_node(replace(gpus, devices=devices))
        return f"device {sick} of {name} is unhealthy"

    def _silence(self) -> str:
        name = self.random.choice(sorted(self._nodes))
        self._quiet.add(name)
        return f"agent of {name} is silent"

    def _hog(self) -> str:
        name = self.random.choice(sorted(self._nodes))
        gpus = self._nodes[name][1]
        if gpus is None:
            return "nothing"
        uuid = self.random.choice(gpus.devices).uuid
        self._held[uuid] = self.random.randint(1, 20) * GIB
        return f"somebody uses memory of {uuid}"

    def _change_quota(self) -> str:
        self._queues()
        return "quotas changed"

    def _guard(self) -> str:
        names = tuple(f"w{self.random.randint(1, self._count + 1)}" for _ in range(3))
        covers = Selector((Requirement("llmos.dev/workload", "In", names),))
        self.cluster.add(DisruptionBudget("default/guard", covers, self.random.randint(0, 1)))
        return f"disruption budget over {names}"

    def _restore(self) -> str:
        name = self.random.choice(sorted(self._nodes))
        self._heal(name)
        return f"{name} is well again"

    # -- means ----------------------------------------------------------------------------------------------

    def _chance(self, part: float) -> bool:
        return self.random.random() < part

    def _add_node(self, name: str) -> None:
        cpu = "64" if self._alike else self.random.choice(["2", "64"])
        node = a_node(name).with_host(cpu=cpu, memory="64Gi")
        count = 4 if self._alike else self.random.randint(0, 4)
        if count:
            node.with_gpus(count, self.random.choice(["A-80G", "L-24G"]))
            if self._chance(0.4):
                budget = self.random.choice([None, 600, 1000, 1400])
                node.drawing(400).within_watts(budget, "r1", self.random.choice([None, 1500, 2500]))
        self.cluster.add(node)
        self._nodes[name] = (node.node, node.gpus)

    def _heal(self, name: str) -> None:
        node, gpus = self._nodes[name]
        self.store.apply_node(node)
        if gpus is not None:
            self.store.apply_gpu_node(gpus)
        self._quiet.discard(name)

    def _queues(self) -> None:
        limited = not self._alike and self._chance(0.5)
        parent = "org" if limited and self._chance(0.5) else ""
        for name in QUEUES:
            nominal = self.random.randint(0, 6) * 1000 if limited else None
            reclaim = self.random.choice(["Any", "LowerPriority", "Never"])
            self.cluster.add(Queue(name, parent, nominal_gpu_milli=nominal, reclaim=reclaim))
        if parent:
            self.cluster.add(Queue("org"))

    def _any_workload(self) -> Workload | None:
        workloads = self.store.snapshot().workloads
        return workloads[self.random.choice(sorted(workloads))] if workloads else None

    def _pods(self) -> list[Pod]:
        pods = (pod for pods in self.store.snapshot().pods_of.values() for pod in pods)
        found = sorted((p for p in pods if p.claim is not None), key=lambda p: p.key)
        self.random.shuffle(found)
        return found

    @staticmethod
    def _claim(pod: Pod) -> Claim:
        assert pod.claim is not None
        return pod.claim

    def _bind(self, bind: Bind) -> None:
        claim = bind.claim
        try:
            self.store.assume(claim)
        except Conflict as error:
            raise AssertionError(f"the ledger refuses what was planned on it: {error}") from error
        self._pods_made += 1
        uid = f"pod-{self._pods_made}"
        if not self._chance(self._hangs):
            self._loading[uid] = self.now + self.random.choice([0.0, 20.0, 100.0])
        pod = Pod(
            claim.pod,
            uid,
            claim.node,
            claim=claim,
            labels={"llmos.dev/workload": claim.workload.partition("/")[2]},
            cpu_milli=claim.cpu_milli,
            memory_bytes=claim.memory_bytes,
            started_at=self.now,
        )
        self.store.apply_pod(pod)

    def _evict(self, action: Evict, *, refused: bool) -> None:
        if not self.store.assume_evicted(action.pod, self.now + 30, action.preemptor):
            return
        if action.fewer:
            self.store.give_up_replica(action.victim, action.victim_uid, action.preemptor, self.now)
        if refused and not action.force:
            self.store.forget_eviction(action.pod)
            if action.fewer:
                self.store.keep_replica(action.victim, action.victim_uid, self.now)
            self.happened.append(f"eviction of {action.pod} refused")
            return
        self.evictions.append((self.now, action))
        self._leaving[action.pod] = self.now if action.force else self.now + self.random.choice([1, 10, 40])

    def _move(self, action: Move, *, refused: bool) -> None:
        ends = self.now + 30
        place = action.place(self.now, ends)
        if not self.store.assume_evicted(action.pod, ends, action.beneficiary, ends, place):
            return
        if refused:
            self.store.forget_eviction(action.pod)
            self.happened.append(f"move of {action.pod} refused")
            return
        self.moves.append((self.now, action))
        self._leaving[action.pod] = self.now + self.random.choice([1, 10, 40])

    def _change(self, action: Shrink | Sleep | Wake | Restore) -> None:
        if isinstance(action, Shrink):
            self._shrink(action)
        elif isinstance(action, Sleep):
            self._sleep(action)
        elif isinstance(action, Wake):
            assert self.store.wake(action.pod, action.pod_uid), f"no room to wake {action.pod}"
        else:
            self.store.restore_memory(action.pod, action.pod_uid)

    def _shrink(self, action: Shrink) -> None:
        asked = (
            action.pod,
            action.pod_uid,
            action.bytes_per_device,
            self.now,
            action.preemptor,
            self.now + 30,
        )
        if self.store.ask_to_lower(*asked, lent=action.loan) is None:
            return
        if self._chance(0.2):
            self.store.restore_memory(action.pod, action.pod_uid, firm_until=self.now + 600)
            self.happened.append(f"{action.pod} does not come down")
        else:
            self.store.note_yielded(action.pod, action.pod_uid)

    def _sleep(self, action: Sleep) -> None:
        if self.store.ask_to_sleep(action.pod, action.pod_uid, action.sleeping, self.now + 30) is None:
            return
        if self._chance(0.2):
            self.store.wake(action.pod, action.pod_uid, firm_until=self.now + 600)
            self.happened.append(f"{action.pod} does not go to sleep")
        else:
            self.sleeps += 1
            self.store.note_asleep(action.pod, action.pod_uid)

    def _leave(self, pod: Pod) -> None:
        if pod.phase is PodPhase.FINISHED:
            self._end(pod.key)
            return
        leaving = replace(pod, phase=PodPhase.TERMINATING, deletion_at=self.now + 30)
        self.store.apply_pod(leaving)
        self._leaving[pod.key] = self.now + 10

    def _end(self, key: str) -> None:
        pod = self.store.pod(key)
        if pod is not None:
            self.store.delete_pod(key, pod.uid)
