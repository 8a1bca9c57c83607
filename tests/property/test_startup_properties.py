"""Starts on shared devices: one at a time while they load, and everybody gets a turn however long loads take."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from hypothesis import given
from hypothesis import strategies as st

from llmos_operator.api.conditions import Reason
from llmos_operator.scheduler.cycle import plan
from llmos_operator.scheduler.policy import Policy
from llmos_operator.state.types import Pod, PodPhase
from tests.support.builders import NOW, ClusterBuilder, a_cluster, a_node, a_workload

POLICY = Policy(startup_seconds=100.0)
HANGS = 1e9  # seconds
PAUSE = 10.0  # between plans


@dataclass
class Turns:
    """Workloads that fit onto the devices all together; each loads for as long as drawn."""

    loads: dict[str, float]  # by workload key
    cluster: ClusterBuilder
    now: float = NOW
    bound: dict[str, float] = field(default_factory=dict)

    def step(self) -> None:
        for pods in self.cluster.snapshot().pods_of.values():
            for pod in pods:
                if pod.claim is not None and self.now >= pod.claim.bound_at + self.loads[pod.claim.workload]:
                    self.cluster.store.apply_pod(replace(pod, ready=True))
        self.cluster.store.observe("n1", (), self.now)
        made = plan(self.cluster.snapshot(), POLICY, self.now)
        for bind in made.binds:
            claim = bind.claim
            self.cluster.store.assume(claim)
            pod = Pod(claim.pod, f"uid-{claim.pod}", claim.node, PodPhase.BOUND, claim)
            self.cluster.store.apply_pod(pod)
            self.bound[claim.workload] = self.now
        self.check_one_at_a_time()
        for wait in made.waits:
            assert wait.reason is Reason.WAITING_FOR_STARTUP, wait.message
            assert "to load on device" in wait.message

    def check_one_at_a_time(self) -> None:
        loading: dict[str, str] = {}
        for pods in self.cluster.snapshot().pods_of.values():
            for pod in pods:
                claim = pod.claim
                if claim is None or pod.ready or self.now >= claim.bound_at + POLICY.startup_seconds:
                    continue
                [device] = claim.devices
                assert device not in loading, f"{pod.key} loads beside {loading[device]}"
                loading[device] = pod.key


@st.composite
def turns(draw: st.DrawFn) -> Turns:
    devices = draw(st.integers(1, 3))
    cluster = a_cluster(a_node("n1").with_gpus(devices, "L4-24G"))
    loads = {}
    for number in range(draw(st.integers(1, 3 * devices))):
        builder = a_workload(f"w{number}").needing("5Gi").shared()
        builder.created(draw(st.integers(0, 100)))
        cluster.add(builder)
        loads[builder.value.key] = draw(st.sampled_from([0.0, 15.0, 40.0, 90.0, 250.0, HANGS]))
    return Turns(loads, cluster)


@given(turns())
def test_one_loads_at_a_time_and_nobody_starves(history: Turns) -> None:
    most = len(history.loads) * (POLICY.startup_seconds + PAUSE)
    while history.now <= NOW + most and len(history.bound) < len(history.loads):
        history.step()
        history.now += PAUSE
    assert history.bound.keys() == history.loads.keys(), "somebody never got a turn"
