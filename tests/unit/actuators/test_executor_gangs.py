"""Gangs are created all or none."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llmos_operator.api import names
from llmos_operator.api.conditions import Reason
from llmos_operator.cluster.failures import Ambiguous, Invalid
from llmos_operator.scheduler.plan import Bind
from llmos_operator.state.types import PodPhase
from tests.support.executor import Bench, a_bench
from tests.support.replicas import a_claim_of, a_work

pytestmark = pytest.mark.anyio


async def test_a_gang_is_created_as_a_whole() -> None:
    async with a_bench() as bench:
        binds = a_gang(bench)
        assert bench.carry_out(*binds) == 2
        await bench.idle()
        assert [bench.store.pod(bind.claim.pod).phase for bind in binds] == [PodPhase.BOUND] * 2
        assert len(bench.store.pods_of("uid-1")) == 2


async def test_a_gang_of_which_one_pod_is_refused_leaves_nothing_and_fails_once() -> None:
    async with a_bench() as bench:
        bench.port.fail("create", "pods", Invalid("bad field"))
        binds = a_gang(bench)
        bench.carry_out(*binds)
        await bench.idle()
        failed = [said for said in bench.heard.said if said.startswith("failed")]
        assert len(failed) == 1
        left = [pod for pod in bench.store.pods_of("uid-1") if pod.phase is not PodPhase.TERMINATING]
        assert left == []
        created = sum(said.startswith("retired") for said in bench.heard.said)
        assert bench.pods_created() - 1 == created, "what was created beside the refused one is deleted"


async def test_a_gang_of_which_one_claim_is_in_the_way_is_left_out() -> None:
    async with a_bench() as bench:
        rival = a_work("rival", "uid-2")
        bench.store.apply_workload(rival)
        bench.carry_out(Bind(rival, a_claim_of(rival, devices=("GPU-n1-1",)), 1, Reason.BOUND, ""))
        binds = a_gang(bench)
        assert bench.carry_out(*binds) == 0
        assert bench.store.pods_of("uid-1") == ()
        await bench.idle()


async def test_a_doubtful_pod_of_a_gang_that_was_given_up_is_not_created_any_more() -> None:
    async with a_bench() as bench:
        bench.port.fail("create", "pods", Ambiguous("lost"))
        bench.port.fail("create", "pods", Invalid("bad field"))
        bench.carry_out(*a_gang(bench))
        await bench.idle()
        assert bench.store.pods_of("uid-1") == ()
        assert sum(said.startswith("failed") for said in bench.heard.said) == 1
        assert bench.pods_created() == 2, "the one in doubt was not tried again"


def a_gang(bench: Bench) -> list[Bind]:
    """Return the binds of a replica of two pods."""
    work = a_work(parallelism={"data": 2}, engine={"name": "custom", "image": "host"})
    bench.store.apply_workload(work)
    claims = [
        replace(
            a_claim_of(work, 0, devices=(f"GPU-n1-{member}",)),
            member=member,
            pod=f"team/{names.pod_name('chat', 'uid-1', 0, member=member)}",
        )
        for member in range(2)
    ]
    return [Bind(work, claim, 1, Reason.BOUND, "fits", gang="uid-1/0") for claim in claims]
