"""Runtimes are told to sleep and to wake, and counted as asleep only once they are seen to be."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from llmos_operator.api.runtime.messages import MemoryReport, RuntimeState, RuntimeStatus
from llmos_operator.clock import FakeClock
from llmos_operator.control.records import Records
from llmos_operator.control.sleepers import Sleepers
from llmos_operator.errors import Retryable
from llmos_operator.state.replicas import Replica
from llmos_operator.state.store import Store
from llmos_operator.state.types import Sharing, Sleeping
from tests.support.builders import a_node, gpu
from tests.support.replicas import a_claim_of, a_pod_of, a_work

if TYPE_CHECKING:
    from llmos_operator.state.types import Pod

pytestmark = pytest.mark.anyio

GIB = 1 << 30
LEFT = 300 << 20
TIMEOUT = 30.0


class Runtime:
    """A runtime behind the control API; `obeys` says whether it does as it is told."""

    def __init__(self, *, obeys: bool = True, left: int = LEFT) -> None:
        self.obeys, self.left, self.state = obeys, left, RuntimeState.READY
        self.told: list[str] = []
        self.away = False

    async def status(self, namespace: str, address: str) -> RuntimeStatus:
        self._answer(namespace, address)
        used = self.left if self.state is RuntimeState.ASLEEP else GIB
        return RuntimeStatus(state=self.state, memory=MemoryReport(measured_bytes=used))

    async def sleep(self, namespace: str, address: str, seconds: float) -> None:
        assert seconds > 0
        self._answer(namespace, address)
        self.told.append("sleep")
        if self.obeys:
            self.state = RuntimeState.ASLEEP

    async def wake(self, namespace: str, address: str) -> None:
        self._answer(namespace, address)
        self.told.append("wake")
        if self.obeys:
            self.state = RuntimeState.READY

    def _answer(self, namespace: str, address: str) -> None:
        assert (namespace, address) == ("team", "10.0.0.1")
        if self.away:
            raise Retryable("connection refused")


class Case:
    """One replica with its runtime."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime, self.clock = runtime, FakeClock()
        self.store, self.records = Store(), Records()
        self.said: list[str] = []
        claim = a_claim_of(a_work(), devices=(gpu("n1", 0),), sharing=Sharing.SHARED, compute_milli=100)
        pod = a_pod_of(a_work(), ready=True, claim=claim)
        self.key = pod.key
        node = a_node("n1").with_host("8", "64Gi").with_gpus(1)
        assert node.gpus is not None
        self.store.apply_node(node.node)
        self.store.apply_gpu_node(node.gpus)
        self.store.apply_pod(pod)
        replica = Replica(pod.key, pod.uid, "uid-1", node="n1", ip="10.0.0.1", running=True, ready=True)
        self.records.put_replica(replica)
        self.lowering = SimpleNamespace(waking=set(), asleep=self._asleep, not_slept=self._not_slept)
        self.sleepers = Sleepers(
            self.store,
            self.records,
            runtime,  # type: ignore[arg-type]
            self.lowering,  # type: ignore[arg-type]
            self.clock,
            timeout=TIMEOUT,
            may_act=lambda: True,
        )

    @property
    def pod(self) -> Pod:
        found = self.store.pod(self.key)
        assert found is not None
        return found

    def _asleep(self, pod: Pod) -> None:
        self.said.append("asleep")
        self.store.note_asleep(pod.key, pod.uid)

    def _not_slept(self, pod: Pod, why: str) -> None:
        assert pod.key == self.key
        self.said.append(f"not slept {why}")
        self.wake()

    def ask(self) -> None:
        assert self.store.ask_to_sleep(self.key, self.pod.uid, Sleeping(LEFT, GIB, 0.0))

    def wake(self) -> None:
        assert self.store.wake(self.key, self.pod.uid)
        self.lowering.waking.add(self.key)

    async def turns(self, seconds: float) -> None:
        for _ in range(int(seconds / 0.5)):
            await self.sleepers.turn()
            self.clock.advance(0.5)


async def test_a_runtime_that_obeys_is_told_once_and_counts_as_asleep() -> None:
    case = Case(Runtime())
    case.ask()
    await case.turns(5)
    assert case.runtime.told == ["sleep"]
    assert case.said == ["asleep"]


async def test_one_that_sleeps_and_holds_too_much_stays_awake() -> None:
    case = Case(Runtime(left=LEFT + 1))
    case.ask()
    await case.turns(TIMEOUT - 1)
    assert case.said == []
    await case.turns(3)
    assert len(case.said) == 1
    assert "300.0 MiB may be" in case.said[0]
    assert case.runtime.told == ["sleep", "wake"]
    assert case.lowering.waking == set()


async def test_one_that_does_not_answer_is_given_up_in_the_same_time() -> None:
    case = Case(Runtime())
    case.runtime.away = True
    case.ask()
    await case.turns(TIMEOUT + 2)
    assert case.said == [f"not slept after {TIMEOUT:.0f} s connection refused"]


async def test_one_that_started_anew_is_told_anew_for_ever() -> None:
    case = Case(Runtime())
    case.ask()
    await case.turns(1)
    case.runtime.state, case.runtime.obeys = RuntimeState.READY, False
    case.records.put_report(case.pod.uid, await case.runtime.status("team", "10.0.0.1"), 0.0)
    await case.turns(2 * TIMEOUT)
    assert case.said == ["asleep"], "its place may be taken: it is not given up"
    case.runtime.obeys = True
    await case.turns(1)
    assert case.runtime.state is RuntimeState.ASLEEP


async def test_who_is_to_wake_is_told_until_it_does() -> None:
    case = Case(Runtime())
    case.ask()
    await case.turns(1)
    case.wake()
    case.runtime.obeys = False
    await case.turns(2)
    assert case.lowering.waking == {case.key}
    case.runtime.obeys = True
    await case.turns(1)
    assert case.lowering.waking == set()
    assert case.runtime.state is RuntimeState.READY
