"""Runtimes are told what the ledger wants of them, and counted with less only once they are seen to keep to it."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from llmos_operator.api.runtime.messages import (
    ChangeState,
    Failure,
    FormatChange,
    MemoryReport,
    ModelInfo,
    RuntimeState,
    RuntimeStatus,
)
from llmos_operator.clock import FakeClock
from llmos_operator.control.records import Records
from llmos_operator.control.yielding import Yielding
from llmos_operator.errors import Retryable
from llmos_operator.state.replicas import Replica
from llmos_operator.state.store import Store
from tests.support.builders import a_node, gpu
from tests.support.replicas import a_claim_of, a_pod_of, a_work

if TYPE_CHECKING:
    from llmos_operator.state.types import Pod

pytestmark = pytest.mark.anyio

GIB = 1 << 30
LESS = 600 << 20
TIMEOUT = 20.0
NARROWING = 60.0


class Runtime:
    """A runtime behind the control API; `obeys` says whether it takes the budgets it is told."""

    def __init__(self, *, obeys: bool = True, used: int = 500 << 20) -> None:
        self.obeys, self.used, self.limit = obeys, used, GIB
        self.told: list[int] = []
        self.away = False
        self.format = "bf16"
        self.change: FormatChange | None = None
        self.changes: list[tuple[str, int]] = []  # that were ordered

    async def status(self, namespace: str, address: str) -> RuntimeStatus:
        assert (namespace, address) == ("team", "10.0.0.1")
        if self.away:
            raise Retryable("connection refused")
        memory = MemoryReport(limit_bytes=self.limit, measured_bytes=self.used)
        model = ModelInfo(format=self.format)
        return RuntimeStatus(state=RuntimeState.READY, memory=memory, model=model, change=self.change)

    async def requantise(
        self, namespace: str, address: str, precision: str, memory_bytes: int, seconds: float
    ) -> None:
        assert (namespace, address) == ("team", "10.0.0.1")
        assert 0 < seconds < NARROWING
        self.changes.append((precision, memory_bytes))
        self.change = FormatChange(format=precision, former=self.format)

    def end_change(self, failure: Failure | None = None) -> None:
        """The change that goes on ends."""
        assert self.change is not None
        state = ChangeState.DONE if failure is None else ChangeState.FAILED
        if failure is None:
            self.format, self.limit = self.changes[-1]
        self.change = self.change.model_copy(update={"state": state, "failure": failure})

    async def set_budget(self, namespace: str, address: str, memory_bytes: int) -> None:
        assert (namespace, address) == ("team", "10.0.0.1")
        if self.away:
            raise Retryable("connection refused")
        self.told.append(memory_bytes)
        if self.obeys:
            self.limit = memory_bytes


class Case:
    """One replica with its runtime."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime, self.clock = runtime, FakeClock()
        self.store, self.records = Store(), Records()
        self.said: list[str] = []
        self.may_act = True
        self.key = self._run()
        self.lowering = SimpleNamespace(raised=set(), yielded=self._yielded, refused=self._refused)
        self.yielding = Yielding(
            self.store,
            self.records,
            runtime,  # type: ignore[arg-type]
            self.lowering,  # type: ignore[arg-type]
            self.clock,
            timeout=TIMEOUT,
            narrowing_timeout=NARROWING,
            may_act=lambda: self.may_act,
        )

    def _run(self) -> str:
        node, work = a_node("n1").with_host("8", "64Gi").with_gpus(1), a_work()
        assert node.gpus is not None
        self.store.apply_node(node.node)
        self.store.apply_gpu_node(node.gpus)
        pod = a_pod_of(work, ready=True, claim=a_claim_of(work, devices=(gpu("n1", 0),)))
        self.store.apply_pod(pod)
        replica = Replica(pod.key, pod.uid, "uid-1", node="n1", ip="10.0.0.1", running=True, ready=True)
        self.records.put_replica(replica)
        return pod.key

    def _yielded(self, pod: Pod) -> None:
        self.said.append("yielded")
        self.store.note_yielded(pod.key, pod.uid)

    def _refused(self, pod: Pod, why: str) -> None:
        self.said.append(f"refused {why}")
        self.store.restore_memory(pod.key, pod.uid)
        self.lowering.raised.add(pod.key)

    def ask(self, fmt: str = "") -> None:
        pod = self.store.pod(self.key)
        assert pod is not None
        assert self.store.ask_to_lower(pod.key, pod.uid, LESS, self.clock.now(), fmt=fmt)

    def give_back(self) -> None:
        pod = self.store.pod(self.key)
        assert pod is not None
        assert self.store.restore_memory(pod.key, pod.uid)
        self.lowering.raised.add(pod.key)

    async def turns(self, seconds: float) -> None:
        for _ in range(int(seconds / 0.5)):
            await self.yielding.turn()
            self.clock.advance(0.5)


async def test_a_runtime_that_obeys_is_told_once_and_counts_with_less() -> None:
    case = Case(Runtime())
    case.ask()
    await case.turns(5)
    assert case.runtime.told == [LESS]
    assert case.said == ["yielded"]


async def test_a_limit_alone_is_not_believed_while_more_is_in_use() -> None:
    case = Case(Runtime(used=LESS + 1))
    case.ask()
    await case.turns(TIMEOUT / 2)
    assert case.said == []
    case.runtime.used = LESS
    await case.turns(1)
    assert case.said == ["yielded"]


async def test_a_runtime_that_refuses_gets_its_time_and_then_all_of_its_memory_back() -> None:
    case = Case(Runtime(obeys=False))
    case.ask()
    await case.turns(TIMEOUT - 1)
    assert case.said == []
    case.runtime.obeys = True
    case.runtime.used = GIB
    await case.turns(3)
    assert len(case.said) == 1
    assert "600.0 MiB were asked for" in case.said[0]
    assert case.runtime.told[-1] == GIB
    assert case.lowering.raised == set()


async def test_a_runtime_that_does_not_answer_is_given_up_in_the_same_time() -> None:
    case = Case(Runtime())
    case.runtime.away = True
    case.ask()
    await case.turns(TIMEOUT - 1)
    assert case.said == []
    await case.turns(3)
    assert case.said == ["refused after 20 s connection refused"]
    assert case.lowering.raised == {case.key}


async def test_a_runtime_that_started_again_is_told_again_and_is_not_given_up() -> None:
    case = Case(Runtime())
    case.ask()
    await case.turns(1)
    case.runtime.limit = GIB  # a new container knows what its pod was created with
    pod = case.store.pod(case.key)
    assert pod is not None
    case.records.put_report(pod.uid, await case.runtime.status("team", "10.0.0.1"), case.clock.now())
    case.runtime.obeys = False
    await case.turns(TIMEOUT * 2)
    assert case.said == ["yielded"]
    case.runtime.obeys = True
    await case.turns(1)
    assert case.runtime.limit == LESS


async def test_memory_given_back_is_told_until_it_arrives() -> None:
    case = Case(Runtime())
    case.runtime.limit, case.runtime.away = LESS, True
    case.lowering.raised.add(case.key)
    await case.turns(2)
    assert case.lowering.raised == {case.key}
    case.runtime.away = False
    await case.turns(1)
    assert case.runtime.told == [GIB]
    assert case.lowering.raised == set()


async def test_a_pod_that_is_gone_is_not_talked_to() -> None:
    case = Case(Runtime())
    case.lowering.raised.add(case.key)
    case.store.delete_pod(case.key)
    await case.turns(1)
    assert case.runtime.told == []
    assert case.lowering.raised == set()


async def test_an_address_of_a_former_pod_is_not_used() -> None:
    case = Case(Runtime())
    case.ask()
    replica = case.records.replica(case.key)
    assert replica is not None
    case.records.put_replica(replace(replica, uid="another"))
    await case.turns(2)
    assert case.runtime.told == []


# ------------------------------------------------------------ a narrower format


async def test_a_narrower_format_is_told_once_and_counts_when_it_serves_and_the_old_engine_is_gone() -> None:
    case = Case(Runtime(used=GIB))
    case.ask("int8")
    await case.turns(TIMEOUT * 2)  # longer than a smaller cache may take
    assert case.runtime.changes == [("int8", LESS)]
    assert case.said == []
    case.runtime.end_change()
    await case.turns(2)
    assert case.said == []  # the former engine holds its memory still
    case.runtime.used = LESS
    await case.turns(1)
    assert case.said == ["yielded"]
    assert (case.runtime.changes, case.runtime.told) == ([("int8", LESS)], [])
    pod = case.store.pod(case.key)
    assert pod is not None
    assert pod.claim is not None
    assert (pod.claim.held_bytes, pod.claim.served_format) == (LESS, "int8")


async def test_a_format_that_does_not_come_up_is_refused_at_once_with_the_runtimes_reason() -> None:
    case = Case(Runtime())
    case.ask("int8")
    await case.turns(1)
    case.runtime.end_change(Failure(reason="QualityLossExceeded", message="int8 loses 9 %"))
    await case.turns(2)
    assert case.said == ["refused QualityLossExceeded: int8 loses 9 %"]
    assert case.runtime.changes == [("int8", LESS)]
    assert case.runtime.told == [GIB]


async def test_a_change_that_takes_too_long_is_undone_when_it_is_over() -> None:
    case = Case(Runtime(used=GIB))
    case.ask("int8")
    await case.turns(NARROWING + 2)
    assert len(case.said) == 1
    assert "after 60 s it serves at bf16" in case.said[0]
    assert case.lowering.raised == {case.key}
    case.runtime.end_change()
    await case.turns(1)
    assert case.runtime.changes == [("int8", LESS), ("bf16", GIB)]
    case.runtime.end_change()
    await case.turns(1)
    assert case.lowering.raised == set()


async def test_what_is_given_back_is_the_format_first() -> None:
    case = Case(Runtime())
    case.ask("int8")
    await case.turns(1)
    case.runtime.end_change()
    await case.turns(1)
    case.give_back()
    await case.turns(3)
    assert case.runtime.changes[1:] == [("bf16", GIB)]
    assert case.lowering.raised == {case.key}
    case.runtime.end_change()
    await case.turns(1)
    assert (case.lowering.raised, case.runtime.format, case.runtime.limit) == (set(), "bf16", GIB)


async def test_a_runtime_that_cannot_go_back_keeps_the_narrower_format_with_all_of_its_memory() -> None:
    case = Case(Runtime())
    case.ask("int8")
    await case.turns(1)
    case.runtime.end_change()
    await case.turns(1)
    case.give_back()
    await case.turns(1)
    case.runtime.end_change(Failure(reason="OutOfMemory", message="too large"))
    await case.turns(3)
    assert len(case.runtime.changes) == 2
    assert (case.lowering.raised, case.runtime.format, case.runtime.limit) == (set(), "int8", GIB)


async def test_a_runtime_that_started_again_at_its_own_format_is_told_again_and_not_over_and_over() -> None:
    case = Case(Runtime())
    case.ask("int8")
    await case.turns(1)
    case.runtime.end_change()
    await case.turns(1)
    case.runtime.format, case.runtime.limit, case.runtime.change = "bf16", GIB, None
    pod = case.store.pod(case.key)
    assert pod is not None
    case.records.put_report(pod.uid, await case.runtime.status("team", "10.0.0.1"), case.clock.now())
    await case.turns(1)
    assert len(case.runtime.changes) == 2
    case.runtime.end_change(Failure(reason="OutOfMemory", message="too large"))
    await case.turns(5)
    assert len(case.runtime.changes) == 2
    assert case.said == ["yielded"]
