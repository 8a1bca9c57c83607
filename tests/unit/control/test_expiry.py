"""Workloads that have finished are deleted when their time is over, and no others."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING, Any

import pytest

from llmos_operator.clock import rfc3339
from llmos_operator.cluster.backoff import Curve, KeyedBackoff
from llmos_operator.cluster.failures import Forbidden, NotFound
from llmos_operator.cluster.port import MODEL_WORKLOADS
from llmos_operator.control.expiry import LONGEST_WAIT, Expiry, expires_at
from tests.support.executor import Bench, a_bench
from tests.support.replicas import a_work

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.anyio

FINISHED = {"conditions": [{"type": "Accepted"}, {"type": "Finished", "lastTransitionTime": rfc3339(1000.0)}]}
WORK = replace(a_work(ttlSecondsAfterFinished=60), finished=True)


def an_expiry(bench: Bench, failed: Callable[[str], None] = lambda _: None) -> Expiry:
    backoff = KeyedBackoff[str](Curve(base=10.0, cap=60.0), Random(1))
    return Expiry(bench.port, bench.queue, bench.clock, backoff, failed=failed)


async def exists(bench: Bench) -> bool:
    try:
        await bench.port.get(MODEL_WORKLOADS, WORK.name, namespace=WORK.namespace)
    except NotFound:
        return False
    return True


async def with_workload(bench: Bench, failed: Callable[[str], None] = lambda _: None) -> tuple[Expiry, Any]:
    body = {"metadata": {"name": WORK.name, "namespace": WORK.namespace}}
    made = await bench.port.create(MODEL_WORKLOADS, body, namespace=WORK.namespace)
    return an_expiry(bench, failed), replace(WORK, uid=str(made["metadata"]["uid"]))


def test_the_time_counts_from_the_end() -> None:
    assert expires_at(WORK, FINISHED) == 1060.0
    assert expires_at(replace(WORK, ttl_after_finished=0), FINISHED) == 1000.0


@pytest.mark.parametrize(
    ("work", "status"),
    [
        (a_work(), FINISHED),
        (replace(WORK, finished=False), FINISHED),
        (WORK, {}),
        (WORK, {"conditions": [{"type": "Finished", "lastTransitionTime": "yesterday"}]}),
    ],
)
def test_what_has_no_such_time_or_has_not_finished_stays(work: Any, status: dict[str, Any]) -> None:
    assert expires_at(work, status) is None


async def test_it_is_deleted_when_its_time_has_come_and_not_before() -> None:
    async with a_bench() as bench:
        expiry, work = await with_workload(bench)
        late = {"conditions": [{"type": "Finished", "lastTransitionTime": rfc3339(bench.clock.now())}]}
        again = expiry.look(work, late)
        await bench.idle()
        assert await exists(bench)
        assert again == pytest.approx(bench.clock.monotonic() + 60.0, abs=1.0)
        bench.clock.advance(60)
        expiry.look(work, late)
        await bench.idle()
        assert not await exists(bench)


async def test_a_far_end_is_looked_at_again_before() -> None:
    async with a_bench() as bench:
        late = {"conditions": [{"type": "Finished", "lastTransitionTime": rfc3339(bench.clock.now())}]}
        again = an_expiry(bench).look(replace(WORK, ttl_after_finished=10**6), late)
        assert again == bench.clock.monotonic() + LONGEST_WAIT


async def test_another_workload_of_the_name_stays() -> None:
    async with a_bench() as bench:
        expiry, work = await with_workload(bench)
        expiry.look(replace(work, uid="former"), FINISHED)
        await bench.idle()
        assert await exists(bench)


async def test_what_is_refused_is_tried_again_later() -> None:
    async with a_bench() as bench:
        failed: list[str] = []
        expiry, work = await with_workload(bench, failed.append)
        bench.port.fail("delete", "modelworkloads", Forbidden("no"))
        expiry.look(work, FINISHED)
        await bench.idle()
        assert failed == [work.key], "it is looked at again at once, which says when to try again"
        again = expiry.look(work, FINISHED)
        await bench.idle()
        assert await exists(bench)
        assert again is not None
        assert again - bench.clock.monotonic() <= 10.0, "when its backoff ends"
        bench.clock.advance(again - bench.clock.monotonic())
        expiry.look(work, FINISHED)
        await bench.idle()
        assert not await exists(bench)
