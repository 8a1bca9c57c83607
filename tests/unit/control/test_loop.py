from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from llmos_operator.clock import FakeClock
from llmos_operator.control.batcher import Batcher
from llmos_operator.control.loop import Loop
from llmos_operator.control.metrics import OperatorMetrics
from llmos_operator.observability.heartbeat import Heartbeat
from llmos_operator.scheduler.policy import Policy
from llmos_operator.state.store import Store
from tests.support.builders import GIB, a_cluster, a_node, a_pod, a_workload

pytestmark = pytest.mark.anyio


class Reviewer:
    """Notes whom it looked at; raises for the workloads named."""

    def __init__(self, said: list[str], broken: tuple[str, ...] = ()) -> None:
        self.said, self.broken = said, broken
        self.timed: list[str] = []

    def review(self, key: str) -> None:
        if key in self.broken:
            raise ZeroDivisionError
        self.said.append(f"reviewed {key}")

    def due(self, _: float) -> list[str]:
        timed, self.timed = self.timed, []
        return timed

    def next_due(self) -> None:
        return None


def a_loop(said: list[str], reviewer: Reviewer, **changes: Any) -> Loop:
    store = Store(required=())
    parts: dict[str, Any] = {
        "store": store,
        "batcher": Batcher(),
        "reviewer": reviewer,
        "executor": SimpleNamespace(
            carry_out=lambda _: 0,
            lowering=SimpleNamespace(corrected=lambda pod: said.append(f"corrected {pod.key}")),
        ),
        "feedback": SimpleNamespace(decided=lambda _: None),
        "policy": Policy(),
        "metrics": OperatorMetrics(CollectorRegistry()),
        "heartbeat": Heartbeat(60),
        "clock": FakeClock(),
        "plan_seconds": 1.0,
        "search_seconds": 1.0,
        "may_act": lambda: True,
        "reviewed": lambda key: said.append(f"status of {key}"),
        "prices": lambda: None,
    }
    return Loop(**(parts | changes))


async def test_a_status_is_looked_at_after_its_workload_and_never_before() -> None:
    said: list[str] = []
    loop = a_loop(said, Reviewer(said))
    loop.review("team/chat")
    assert said == []
    await loop.cycle()
    assert said == ["reviewed team/chat", "status of team/chat"]


async def test_a_look_that_comes_with_time_brings_the_status_along() -> None:
    said: list[str] = []
    reviewer = Reviewer(said)
    reviewer.timed = ["team/chat"]
    await a_loop(said, reviewer).cycle()
    assert said == ["reviewed team/chat", "status of team/chat"]


async def test_one_workload_that_cannot_be_looked_at_does_not_stop_the_others() -> None:
    said: list[str] = []
    loop = a_loop(said, Reviewer(said, broken=("team/bad",)))
    loop.review("team/bad")
    loop.review("team/good")
    await loop.cycle()
    assert set(said) == {"status of team/bad", "reviewed team/good", "status of team/good"}


async def test_nothing_is_planned_twice_while_nothing_changes() -> None:
    loop = a_loop([], Reviewer([]))
    await loop.cycle()
    await loop.cycle()
    assert loop.cycles == 1


async def test_a_claim_on_other_devices_than_planned_is_written_down_by_who_leads() -> None:
    said: list[str] = []
    node = a_node("n1").with_gpus(2, "A-24G")
    assert node.gpus is not None
    store = a_cluster(node).store
    work = a_workload("w")
    pod = a_pod(store, work.value, "n1", (0,), 0, GIB, {})
    store.apply_pod(pod)
    given = node.with_device(1, holders=(pod.key,)).gpus
    assert given is not None
    store.apply_gpu_node(given)
    await a_loop(said, Reviewer(said), store=store).cycle()
    assert said == [f"corrected {pod.key}"]
