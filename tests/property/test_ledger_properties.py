"""Random histories of the store: the ledger never promises more than there is, and can always be rebuilt."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from llmos_operator.errors import Conflict
from llmos_operator.state import ledger
from llmos_operator.state.snapshot import settled
from llmos_operator.state.store import Store
from llmos_operator.state.tally import Tally
from llmos_operator.state.telemetry import Reading
from llmos_operator.state.types import FULL_MILLI, Claim, Pod, PodPhase, Sharing, Sleeping
from tests.support.builders import GIB, NOW, a_node, a_workload, gpu

NODES = ("n0", "n1")
NAMES = ("a", "b", "c", "d")


class History(RuleBasedStateMachine):
    """Everything that may happen to a store, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.store = Store()
        self.served = 0
        self.given = (
            False  # the kubelet gave other devices than planned: claims may meet on one until it has told all
        )

    @initialize()
    def start(self) -> None:
        for name in NODES:
            self.apply_node(name)

    def _claim(
        self, name: str, ordinal: int, node: str, devices: list[int], memory: int, shared: bool
    ) -> Claim:
        held = tuple(gpu(node, i) for i in sorted(set(devices)))
        return Claim(
            workload=f"default/{name}",
            workload_uid=f"uid-{name}",
            ordinal=ordinal,
            pod=f"default/{name}-{ordinal}",
            node=node,
            devices=held,
            bytes_per_device=memory * GIB,
            compute_milli=300 if shared else FULL_MILLI,
            sharing=Sharing.SHARED if shared else Sharing.EXCLUSIVE,
            domain="default" if shared else "",
            cpu_milli=500,
            memory_bytes=GIB,
            priority=ordinal,
            queue=f"q{ordinal}",
            gpu_milli=FULL_MILLI * len(held),
            charged_bytes=memory * GIB * len(held),
        )

    @rule(
        name=st.sampled_from(NAMES),
        ordinal=st.integers(0, 1),
        node=st.sampled_from(NODES),
        devices=st.lists(st.integers(0, 2), max_size=2),
        memory=st.integers(1, 30),
        shared=st.booleans(),
    )
    def assume(
        self, name: str, ordinal: int, node: str, devices: list[int], memory: int, shared: bool
    ) -> None:
        claim = self._claim(name, ordinal, node, devices, memory, shared)
        taken = self.store.pod(claim.pod) is not None
        state = self.store.snapshot().nodes.get(node, ledger.NodeState(node))
        refused = taken or bool(ledger.shortfall(state, claim))
        try:
            self.store.assume(claim)
        except Conflict:
            assert refused
        else:
            assert not refused

    @rule(name=st.sampled_from(NAMES), ordinal=st.integers(0, 1))
    def confirm(self, name: str, ordinal: int) -> None:
        self.served += 1
        self.store.confirm(f"default/{name}-{ordinal}", f"uid-{self.served}")

    @rule(name=st.sampled_from(NAMES), ordinal=st.integers(0, 1))
    def forget(self, name: str, ordinal: int) -> None:
        key = f"default/{name}-{ordinal}"
        assumed = any(a.claim.pod == key for a in self.store.assumed())
        assert self.store.forget(key) == assumed

    @rule(name=st.sampled_from(NAMES), ordinal=st.integers(0, 1))
    def seen_in_the_watch(self, name: str, ordinal: int) -> None:
        key = f"default/{name}-{ordinal}"
        for assumption in self.store.assumed():
            if assumption.claim.pod == key:
                self.served += 1
                uid = assumption.uid or f"uid-{self.served}"
                claim = assumption.claim
                pod = Pod(key, uid, claim.node, claim=claim, cpu_milli=500, memory_bytes=GIB)
                self.store.apply_pod(pod)

    @rule(name=st.sampled_from(NAMES), ordinal=st.integers(0, 1), stale=st.booleans())
    def deleted(self, name: str, ordinal: int, stale: bool) -> None:
        key = f"default/{name}-{ordinal}"
        pod = self.store.pod(key)
        uid = "uid-of-a-former-pod" if stale else (pod.uid if pod else "")
        known = self.store.delete_pod(key, uid)
        if stale:
            assert not known

    @rule(name=st.sampled_from(NAMES), ordinal=st.integers(0, 1), undo=st.booleans())
    def evicted(self, name: str, ordinal: int, undo: bool) -> None:
        key = f"default/{name}-{ordinal}"
        before = self.store.pod(key)
        if self.store.assume_evicted(key, NOW + 30) and undo:
            self.store.forget_eviction(key)
            assert self.store.pod(key) == before

    @rule(
        name=st.sampled_from(NAMES),
        ordinal=st.integers(0, 1),
        left=st.integers(1, 8),
        host=st.integers(0, 12),
        down=st.booleans(),
    )
    def asked_to_sleep(self, name: str, ordinal: int, left: int, host: int, down: bool) -> None:
        pod = self.store.pod(f"default/{name}-{ordinal}")
        if pod is None or pod.claim is None or pod.claim.sharing is not Sharing.SHARED:
            return
        claim = self.store.ask_to_sleep(pod.key, pod.uid, Sleeping(left * GIB, host * GIB, NOW))
        if claim is None:
            return
        assert claim.held_bytes == pod.claim.held_bytes, "it counts in full until it is seen to sleep"
        if down:
            slept = self.store.note_asleep(pod.key, pod.uid)
            assert slept is not None
            assert (slept.held_bytes, slept.held_milli) == (left * GIB, 0)

    @rule(name=st.sampled_from(NAMES), ordinal=st.integers(0, 1))
    def woken(self, name: str, ordinal: int) -> None:
        pod = self.store.pod(f"default/{name}-{ordinal}")
        if pod is None or pod.claim is None or pod.claim.sleeping is None:
            return
        state = self.store.snapshot().nodes[pod.node]
        claim = self.store.wake(pod.key, pod.uid)
        assert (claim is not None) == state.may_wake(pod.claim)
        if claim is not None:
            assert (claim.held_bytes, claim.held_milli) == (pod.claim.awake_bytes, pod.claim.compute_milli)

    @rule(name=st.sampled_from(NAMES), ordinal=st.integers(0, 1), phase=st.sampled_from(list(PodPhase)[1:]))
    def updated(self, name: str, ordinal: int, phase: PodPhase) -> None:
        pod = self.store.pod(f"default/{name}-{ordinal}")
        if pod is not None and pod.uid:
            self.store.apply_pod(replace(pod, phase=phase))

    @rule(
        node=st.sampled_from(NODES), gpus=st.integers(0, 2), number=st.integers(0, 2), finished=st.booleans()
    )
    def foreign_pod(self, node: str, gpus: int, number: int, finished: bool) -> None:
        phase = PodPhase.FINISHED if finished else PodPhase.BOUND
        self.store.apply_pod(Pod(f"kube/{number}", f"f{number}", node, phase, cpu_milli=100, gpus=gpus))

    @rule(number=st.integers(0, 2))
    def foreign_pod_deleted(self, number: int) -> None:
        self.store.delete_pod(f"kube/{number}", f"f{number}")

    @rule(
        node=st.sampled_from(NODES), holders=st.lists(st.none() | st.integers(0, 2), min_size=3, max_size=3)
    )
    def kubelet_tells_of_others(self, node: str, holders: list[int | None]) -> None:
        self._told(node, [() if one is None else (f"kube/{one}",) for one in holders])

    @rule(node=st.sampled_from(NODES), device=st.integers(0, 2), name=st.sampled_from(NAMES))
    def kubelet_gives_another_device(self, node: str, device: int, name: str) -> None:
        pod = self.store.pod(f"default/{name}-0")
        self.given = True
        self._told(node, [(f"default/{name}-0",) if i == device else () for i in range(3)])
        admitted = pod is not None and pod.phase in {PodPhase.BOUND, PodPhase.TERMINATING}
        if admitted and pod and pod.claim and pod.node == node and len(pod.claim.devices) == 1:
            shared = pod.claim.sharing is Sharing.SHARED
            after = self.store.pod(pod.key)
            assert after is not None
            assert after.claim is not None
            assert after.claim.devices == (pod.claim.devices if shared else (gpu(node, device),))

    @rule(node=st.sampled_from(NODES), slot=st.integers(0, 1), phase=st.sampled_from(PodPhase))
    def holder_pod(self, node: str, slot: int, phase: PodPhase) -> None:
        key = f"llmos/{node}-{slot}"
        self.store.apply_pod(Pod(key, f"uid-{key}", node, phase, gpus=1, holder=True))

    @rule(node=st.sampled_from(NODES), slot=st.integers(0, 1))
    def holder_pod_goes(self, node: str, slot: int) -> None:
        self.store.delete_pod(f"llmos/{node}-{slot}")

    @rule(
        node=st.sampled_from(NODES), holders=st.lists(st.none() | st.integers(0, 1), min_size=3, max_size=3)
    )
    def kubelet_tells_of_holder_pods(self, node: str, holders: list[int | None]) -> None:
        self._told(node, [() if one is None else (f"llmos/{node}-{one}",) for one in holders], plugged=True)

    def _told(self, node: str, holders: list[tuple[str, ...]], *, plugged: bool = False) -> None:
        builder = a_node(node).with_gpus(3, "A-24G")
        builder = builder.plugged() if plugged else builder
        for index, pods in enumerate(holders):
            builder.with_device(index, holders=pods)
        assert builder.gpus is not None
        self.store.apply_gpu_node(builder.gpus)

    @rule(name=st.sampled_from(NODES))
    def apply_node(self, name: str) -> None:
        node = a_node(name).with_gpus(3, "A-24G").with_host(cpu="4", memory="16Gi")
        assert node.gpus is not None
        self.store.apply_node(node.node)
        self.store.apply_gpu_node(node.gpus)

    @rule(name=st.sampled_from(NODES))
    def node_deleted(self, name: str) -> None:
        self.store.delete_node(name)

    @rule(name=st.sampled_from(NODES))
    def devices_deleted(self, name: str) -> None:
        self.store.delete_gpu_node(name)

    @rule(name=st.sampled_from(NODES), used=st.integers(0, 24))
    def telemetry(self, name: str, used: int) -> None:
        self.store.observe(name, [Reading(gpu(name, 0), used * GIB, 24 * GIB)], NOW)

    @rule(name=st.sampled_from(NAMES), replicas=st.integers(0, 2), suspended=st.booleans())
    def workload(self, name: str, replicas: int, suspended: bool) -> None:
        self.store.apply_workload(a_workload(name).with_(replicas=replicas, suspended=suspended).value)

    @rule(name=st.sampled_from(NAMES))
    def workload_deleted(self, name: str) -> None:
        self.store.delete_workload(f"default/{name}")

    @rule(name=st.sampled_from(NAMES), replicas=st.none() | st.integers(0, 2))
    def scaled(self, name: str, replicas: int | None) -> None:
        self.store.set_replicas(f"default/{name}", replicas)

    @invariant()
    def incremental_state_equals_a_rebuild(self) -> None:
        observed = self.store._observed
        for name, state in self.store.snapshot().nodes.items():
            assert state == ledger.build(name, state.node, state.gpu, state.pods, observed.get(name, {}))

    @invariant()
    def nothing_is_promised_twice(self) -> None:
        for state in self.store.snapshot().nodes.values():
            for device in state.devices:
                if self.given:
                    continue
                assert device.reserved_bytes <= device.device.memory_bytes
                assert device.compute_milli <= FULL_MILLI
                assert not device.exclusive or device.claims == 1

    @invariant()
    def weights_of_who_sleeps_fit_into_the_memory_of_nodes(self) -> None:
        for state in self.store.snapshot().nodes.values():
            if state.node is not None and state.sleep_bytes:
                assert state.memory_bytes <= state.node.memory_bytes

    @invariant()
    def what_the_kubelet_gave_to_others_is_free_to_nobody(self) -> None:
        for state in self.store.snapshot().nodes.values():
            for device in state.devices:
                others = [
                    key for key in device.device.holders if key.startswith("kube/") and key in state.pods
                ]
                if any(state.pods[key].phase is not PodPhase.FINISHED for key in others):
                    assert device.foreign
                    assert device.headroom_bytes() == device.headroom_milli() == 0

    @invariant()
    def a_holder_pod_is_counted_once_and_never_as_somebody_elses(self) -> None:
        for state in self.store.snapshot().nodes.values():
            held = [p for p in state.pods.values() if p.holder and p.phase is not PodPhase.FINISHED]
            assert state.holder_gpus == len(held)
            assert state.granted_gpus() <= max(0, (state.node.gpus if state.node else 0) - len(held))
            for device in state.devices:
                firm = {p.key for p in held if p.phase is PodPhase.BOUND}
                assert device.secured == bool(firm & set(device.device.holders))
                assert not (device.secured and device.bare)

    @invariant()
    def a_replica_holds_one_claim(self) -> None:
        for uid, pods in self.store.snapshot().pods_of.items():
            ordinals = [p.claim.ordinal for p in pods if p.claim is not None]
            assert len(ordinals) == len(set(ordinals)), uid

    @invariant()
    def sums_are_those_of_all_pods(self) -> None:
        snapshot, tally = self.store.snapshot(), Tally()
        for pods in snapshot.pods_of.values():
            for pod in pods:
                tally.add(pod)
        assert snapshot.charged == tally.charged
        assert snapshot.standing == tally.standing
        assert sorted(p.key for p in snapshot.terminating) == sorted(tally.terminating)
        assert [p.key for p in snapshot.sleeping] == sorted(tally.sleeping)

    @invariant()
    def unsettled_are_those_with_a_replica_to_place(self) -> None:
        snapshot = self.store.snapshot()
        expected = [
            k for k, w in snapshot.workloads.items() if not settled(w, snapshot.pods_of.get(w.uid, ()))
        ]
        assert list(snapshot.unsettled) == sorted(expected)

    @precondition(lambda self: not self.store.assumed())
    @rule(data=st.data())
    def restart(self, data: st.DataObject) -> None:
        """A new store that is told everything in another order knows the same (I11)."""
        former, new = self.store.snapshot(), Store()
        events = [(new.apply_node, s.node) for s in former.nodes.values() if s.node]
        events += [(new.apply_gpu_node, s.gpu) for s in former.nodes.values() if s.gpu]
        pods = {p.key: p for ps in former.pods_of.values() for p in ps}
        pods |= {p.key: p for s in former.nodes.values() for p in s.pods.values()}
        events += [(new.apply_pod, p) for p in pods.values()]
        events += [(new.apply_workload, w) for w in former.workloads.values()]
        for apply, value in data.draw(st.permutations(events)):
            apply(value)
        for name, observed in self.store._observed.items():
            readings = [Reading(u, o.used_bytes, 24 * GIB) for u, o in observed.items()]
            new.observe(name, readings, former.heard[name])
        rebuilt = new.snapshot()
        assert rebuilt.nodes == former.nodes
        assert rebuilt.pods_of == former.pods_of
        assert rebuilt.unsettled == former.unsettled


TestHistory = History.TestCase


def test_a_claim_is_refused_with_the_shortage_in_the_message() -> None:
    store = Store()
    node = a_node("n0").with_gpus(1, "A-24G")
    assert node.gpus is not None
    store.apply_node(node.node)
    store.apply_gpu_node(node.gpus)
    claim = History()._claim("a", 0, "n0", [0], 30, shared=False)
    with pytest.raises(
        Conflict, match="device GPU-n0-0 has 25769803776 bytes unreserved of 32212254720 needed"
    ):
        store.assume(claim)
