"""A replica that its workload does without: evicted once, not placed again, and kept where the eviction was refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from llmos_operator.api.conditions import Reason
from llmos_operator.scheduler.plan import Evict, Grow
from tests.support.executor import Bench, a_bench

if TYPE_CHECKING:
    from llmos_operator.state.types import Workload

pytestmark = pytest.mark.anyio

SCALING = {"minReplicas": 1, "maxReplicas": 2}


async def two_replicas(bench: Bench) -> Evict:
    """Let two replicas run, and return the action that takes the first."""
    binds = [bench.bind(ordinal, scaling=SCALING) for ordinal in range(2)]
    bench.carry_out(*binds)
    bench.store.set_replicas("team/chat", 2)
    await bench.idle()
    bench.heard.said.clear()
    pod = bench.store.pod(binds[0].claim.pod)
    assert pod is not None
    return Evict(
        pod.key, pod.uid, "n1", "team/chat", "uid-1", 1, Reason.PREEMPTED, "room", "team/urgent", fewer=True
    )


def chat(bench: Bench) -> Workload:
    found = bench.store.workload("team/chat")
    assert found is not None
    return found


async def test_it_is_evicted_and_not_wanted_again() -> None:
    async with a_bench() as bench:
        evict = await two_replicas(bench)
        assert bench.carry_out(evict) == 1
        assert (chat(bench).replicas, chat(bench).wanted) == (1, 2)
        assert bench.carry_out(evict) == 0, "once"
        await bench.idle()
        assert bench.heard.said[0] == f"evicted {evict.pod}"
        assert "team/chat" not in bench.store.snapshot().unsettled


async def test_a_budget_that_refuses_leaves_it_as_many_as_before() -> None:
    async with a_bench() as bench:
        evict = await two_replicas(bench)
        bench.port.disruptions_allowed[evict.pod] = 0
        bench.carry_out(evict)
        await bench.idle()
        assert bench.heard.said[0] == f"refused {evict.pod}"
        assert (chat(bench).replicas, chat(bench).wanted) == (2, None)


async def test_a_process_that_may_not_write_any_more_takes_nothing() -> None:
    async with a_bench() as bench:
        evict = await two_replicas(bench)
        bench.leading = False
        bench.carry_out(evict)
        await bench.idle()
        assert (chat(bench).replicas, chat(bench).wanted) == (2, None)


async def test_it_may_have_replicas_again_once_there_is_room() -> None:
    async with a_bench() as bench:
        evict = await two_replicas(bench)
        bench.carry_out(evict)
        await bench.idle()
        grow = Grow("team/chat", "uid-1", 2, Reason.RESTORED, "room again")
        assert bench.carry_out(grow) == 1
        assert (chat(bench).replicas, chat(bench).wanted) == (2, None)
        assert "grown team/chat" in bench.heard.said
        assert bench.carry_out(Grow("team/chat", "another", 2, Reason.RESTORED, "room again")) == 0
