"""Which work nodes are asked for, in what order, and that the placeholders follow the plans."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import CollectorRegistry

from llmos_operator.actuators.placeholders import Placeholders
from llmos_operator.api.conditions import Reason
from llmos_operator.cluster.backoff import Curve, KeyedBackoff
from llmos_operator.cluster.failures import Forbidden
from llmos_operator.cluster.port import PODS
from llmos_operator.control.metrics import OperatorMetrics
from llmos_operator.control.scaleup import ScaleUp
from llmos_operator.scheduler.plan import Decision, Plan
from llmos_operator.scheduler.policy import Policy
from llmos_operator.settings import ScaleUpSettings
from llmos_operator.state.types import Requirement, Selector
from tests.support.builders import a_workload
from tests.support.executor import Bench, a_bench
from tests.support.operator_process import collect

if TYPE_CHECKING:
    from llmos_operator.state.types import Workload

pytestmark = pytest.mark.anyio


def selector_of(labels: dict[str, str]) -> Selector:
    return Selector(tuple(Requirement(key, "In", (value,)) for key, value in labels.items()))


class Asking:
    """A ScaleUp on an in-memory cluster whose node has two A-80G."""

    def __init__(self, bench: Bench, **settings: Any) -> None:
        self.bench = bench
        self.told: list[str] = []
        backoff = KeyedBackoff(Curve(base=10.0, cap=60.0), Random(1))
        self.placeholders = Placeholders(bench.port, bench.queue, bench.clock, backoff)
        self.scale_up = ScaleUp(
            bench.store,
            self.placeholders,
            Policy(),
            ScaleUpSettings(**{"enabled": True, "after": 0.0, **settings}),
            OperatorMetrics(CollectorRegistry()),
            bench.clock,
            lambda workload, note: self.told.append(f"{workload.name}: {note}"),
        )

    async def plan(self, *decisions: Decision, interrupted: bool = False) -> list[str]:
        """Take a plan and return whom the placeholders there are then stand for."""
        made = {one.workload: one for one in decisions}
        for _ in range(2):  # the first plan of all finds out what there is
            self.scale_up.planned(Plan(1, self.bench.clock.now(), decisions=made, interrupted=interrupted))
            await self.bench.idle()
        pods = await collect(self.bench.port, PODS, "")
        return sorted(pod["metadata"]["ownerReferences"][0]["name"] for pod in pods)

    def short(
        self, name: str, pending: int = 1, reason: Reason = Reason.NO_CAPACITY, position: int = 1, **spec: Any
    ) -> Decision:
        """Return the decision that a workload, which the store knows from now on, lacks capacity."""
        workload: Workload = replace(a_workload(name).value, **spec)
        self.bench.store.apply_workload(workload)
        return Decision(
            workload.key, workload.uid, 1, reason, "short of GPUs", queue_position=position, pending=pending
        )


@pytest.mark.parametrize(
    ("reason", "asked"),
    [
        (Reason.NO_CAPACITY, True),
        (Reason.LARGER_THAN_CLUSTER, True),
        (Reason.NO_MATCHING_DEVICE, True),
        (Reason.EXCEEDS_QUOTA, False),
        (Reason.WAITING_FOR_PREEMPTION, False),
        (Reason.WAITING_FOR_PROFILE, False),
        (Reason.LARGER_THAN_ANY_DEVICE, False),
        (Reason.BOUND, False),
    ],
)
async def test_nodes_are_asked_for_where_more_of_them_would_help(reason: Reason, asked: bool) -> None:
    async with a_bench() as bench:
        asking = Asking(bench)
        assert bool(await asking.plan(asking.short("chat", reason=reason))) is asked


async def test_one_for_each_pod_up_to_the_limit_and_first_come_first_served() -> None:
    async with a_bench() as bench:
        asking = Asking(bench, most=5)
        later, first = asking.short("later", pending=4, position=2), asking.short("first", pending=3)
        assert await asking.plan(later, first) == ["first"] * 3 + ["later"] * 2
        assert asking.told == [
            "first: asked for room on new nodes: 3 placeholder pods show what is needed",
            "later: asked for room on new nodes: 2 placeholder pods show what is needed",
        ]
        assert await asking.plan(later, replace(first, pending=1)) == ["first"] + ["later"] * 4
        assert await asking.plan(later, replace(first, reason=Reason.BOUND, pending=0)) == ["later"] * 4
        assert len(asking.told) == 2


async def test_each_pod_of_a_gang_is_stood_for() -> None:
    async with a_bench() as bench:
        asking = Asking(bench)
        assert await asking.plan(asking.short("gang", copies=4)) == ["gang"] * 4


async def test_a_lack_must_last_and_begins_anew_when_it_was_over() -> None:
    async with a_bench() as bench:
        asking = Asking(bench, after=30.0)
        lack = asking.short("chat")
        assert await asking.plan(lack) == []
        bench.clock.advance(20)
        assert await asking.plan(replace(lack, reason=Reason.WAITING_FOR_PREEMPTION)) == []
        bench.clock.advance(20)
        assert await asking.plan(lack) == []
        bench.clock.advance(30)
        assert await asking.plan(lack) == ["chat"]


async def test_a_plan_that_was_interrupted_says_nothing_of_what_it_left_out() -> None:
    async with a_bench() as bench:
        asking = Asking(bench)
        one, other = asking.short("one"), asking.short("other")
        await asking.plan(one, other)
        assert await asking.plan(replace(other, reason=Reason.BOUND, pending=0), interrupted=True) == ["one"]
        bench.store.delete_workload(one.workload)
        assert await asking.plan(interrupted=True) == []


@pytest.mark.parametrize(
    ("words", "selector", "values"),
    [
        (("A",), {}, ["A-80G"]),
        (("H200",), {}, None),
        (("H200",), {"pool": "h200"}, []),
        ((), {}, []),
    ],
)
async def test_products_are_asked_for_by_the_labels_their_nodes_have(
    words: tuple[str, ...], selector: dict[str, Any], values: list[str] | None
) -> None:
    async with a_bench() as bench:
        asking = Asking(bench)
        lack = asking.short("chat")
        workload = bench.store.workload(lack.workload)
        assert workload is not None
        wanted = replace(workload, selector=replace(workload.selector, products=words))
        if selector:
            wanted = replace(wanted, node_selector=selector_of(selector))
        bench.store.apply_workload(wanted)
        found = await asking.plan(lack)
        assert bool(found) is (values is not None)
        for pod in await collect(bench.port, PODS, ""):
            affinity = pod["spec"].get("affinity")
            if not values:
                assert affinity is None
                continue
            required = affinity["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
            (requirement,) = required["nodeSelectorTerms"][0]["matchExpressions"]
            assert requirement["values"] == values


async def test_what_may_not_be_made_is_tried_again_later_and_later() -> None:
    async with a_bench() as bench:
        asking = Asking(bench)
        lack = asking.short("chat")
        bench.port.fail("create", "pods", Forbidden("exceeded quota: team"), times=2)
        assert await asking.plan(lack) == []
        assert await asking.plan(lack) == []
        assert bench.pods_created() == 1
        bench.clock.advance(10)
        assert await asking.plan(lack) == []
        bench.clock.advance(10)
        assert await asking.plan(lack) == []
        bench.clock.advance(20)
        assert await asking.plan(lack) == ["chat"]


async def test_one_that_was_made_but_not_marked_is_marked_later() -> None:
    async with a_bench() as bench:
        asking = Asking(bench)
        lack = asking.short("chat")
        bench.port.fail("apply", "pods", Forbidden("no"))
        assert await asking.plan(lack) == ["chat"]
        bench.clock.advance(60)
        assert await asking.plan(lack) == ["chat"]
        (pod,) = await collect(bench.port, PODS, "")
        assert pod["status"]["conditions"][0]["reason"] == "Unschedulable"
        assert bench.pods_created() == 1
