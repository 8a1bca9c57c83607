"""Random lives of nodes with a device plugin whose kubelet gives devices as it likes: nothing is ever used twice.

Shared and whole work, holder pods and pods of others come and go. The kubelet gives free devices at random and tells of it
late. No shared pod starts on a device that its kubelet would give to somebody else, and once nothing changes any more all
that has room runs and no holder pod is left without work.
"""

from __future__ import annotations

from dataclasses import replace
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from llmos_operator.scheduler.cycle import plan
from llmos_operator.scheduler.policy import ConsolidationPolicy, Policy
from llmos_operator.state import plugin
from llmos_operator.state.types import Pod, PodPhase, Sharing
from tests.support.builders import NOW, a_cluster, a_node, a_workload, gpu

NODES, GPUS = ("n0", "n1"), 3
POLICY = Policy(consolidation=ConsolidationPolicy(part=0.0))  # nobody moves here


class Life:
    """The cluster, and what its kubelets really gave."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.cluster = a_cluster(*(a_node(name).with_gpus(GPUS, "A-24G").plugged() for name in NODES))
        self.store = self.cluster.store
        self.given: dict[str, tuple[str, ...]] = {}  # pod -> devices, as the kubelet knows
        self.made = 0

    # -- kubelets

    def free(self, node: str) -> list[str]:
        taken = {uuid for devices in self.given.values() for uuid in devices}
        return [uuid for i in range(GPUS) if (uuid := gpu(node, i)) not in taken]

    def admit(self, pod: Pod, units: int) -> bool:
        """Give devices to a pod, or refuse it."""
        free = self.free(pod.node)
        if len(free) < units:
            return False
        self.given[pod.key] = tuple(self.random.sample(free, units))
        self.store.apply_pod(pod)
        return True

    def end(self, key: str) -> None:
        self.given.pop(key, None)
        self.store.delete_pod(key)

    def tell(self, node: str) -> None:
        state = self.store.node(node)
        assert state is not None
        assert state.gpu is not None
        who = {uuid: key for key, devices in self.given.items() for uuid in devices}
        devices = tuple(
            replace(one, holders=(who[one.uuid],) if one.uuid in who else ()) for one in state.gpu.devices
        )
        self.store.apply_gpu_node(replace(state.gpu, devices=devices))

    # -- what happens

    def others_come(self) -> None:
        self.made += 1
        self.admit(Pod(f"kube/o{self.made}", f"o{self.made}", self.random.choice(NODES), gpus=1), 1)

    def somebody_leaves(self, kind: str) -> None:
        found = sorted(
            key
            for name in NODES
            if (state := self.store.node(name)) is not None
            for key, pod in state.pods.items()
            if (pod.claim is not None) == (kind == "work") and pod.holder == (kind == "holder")
        )
        if found:
            key = self.random.choice(found)
            pod = self.store.pod(key)
            self.end(key)
            if pod is not None and pod.claim is not None:
                self.store.delete_workload(pod.claim.workload)

    def work_comes(self) -> None:
        self.made += 1
        work = a_workload(f"w{self.made}").needing("10Gi")
        self.cluster.add(work.shared() if self.random.random() < 0.6 else work)

    # -- the operator

    def operate(self) -> None:
        """Plan and carry out, holder pods as `control.holding` does without their rest."""
        made = plan(self.cluster.snapshot(), POLICY, NOW)
        for bind in made.binds:
            self.store.assume(bind.claim)
            self.start(bind.claim.pod)
        for name in NODES:
            state = self.store.node(name)
            assert state is not None
            need = made.holders.get(name)
            wanted = (need.take if need else 0) + len(plugin.bare(state))
            held = plugin.holders(state)
            coming = [one for one in held if not one.device]
            for slot in range(min(wanted - len(coming), state.granted_gpus())):
                self.made += 1
                key = f"llmos/h{self.made}-{slot}"
                assert self.admit(Pod(key, key, name, gpus=1, holder=True), 1), "granted, and not there"
            if not wanted or not state.granted_gpus():
                for one in (*(h for h in held if h.device and not h.used), *coming[wanted:]):
                    self.end(one.pod.key)

    def start(self, key: str) -> None:
        """Let the kubelet start a pod of ours: whole devices are its to give, a shared one must be held."""
        pod = self.store.pod(key)
        assert pod is not None
        assert pod.claim is not None
        running = replace(pod, uid=key, phase=PodPhase.BOUND)
        if pod.claim.sharing is Sharing.EXCLUSIVE:
            assert self.admit(running, len(pod.claim.devices)), "planned on more than the kubelet has"
            return
        for uuid in pod.claim.devices:
            who = next((one for one, devices in self.given.items() if uuid in devices), "")
            holder = self.store.pod(who)
            assert holder is not None, f"{uuid} is the kubelet's to give to anybody"
            assert holder.holder
        self.store.apply_pod(running)


@given(st.integers(0, 1 << 30))
def test_no_device_is_used_twice_and_everything_settles(seed: int) -> None:
    life = Life(seed)
    happenings = (
        life.work_comes,
        life.work_comes,
        life.others_come,
        lambda: life.somebody_leaves("work"),
        lambda: life.somebody_leaves("others"),
        lambda: life.somebody_leaves("holder"),
    )
    for _ in range(25):
        life.random.choice(happenings)()
        for name in NODES:
            life.tell(name)  # before the operator acts on it; what it makes is told only with the next
        life.operate()
    for _ in range(20):
        for name in NODES:
            life.tell(name)
        life.operate()
    for name in NODES:
        state = life.store.node(name)
        assert state is not None
        assert plugin.bare(state) == ()
        assert all(one.used for one in plugin.holders(state))
    settled = plan(life.cluster.snapshot(), POLICY, NOW)
    assert (settled.holders, settled.actions) == ({}, ())
