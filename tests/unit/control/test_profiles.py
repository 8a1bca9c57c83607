from __future__ import annotations

import asyncio
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import CollectorRegistry

from llmos_operator.api.conditions import Reason
from llmos_operator.clock import FakeClock
from llmos_operator.cluster.backoff import Curve, KeyedBackoff
from llmos_operator.cluster.fake import FakeCluster
from llmos_operator.control.metrics import OperatorMetrics
from llmos_operator.control.profiles import Profiles
from llmos_operator.errors import Permanent

if TYPE_CHECKING:
    from llmos_operator.control.profiles import Model

pytestmark = pytest.mark.anyio


class NothingThere:
    """An inspector that finds no model."""

    async def inspect(self, uri: str, _: str) -> Any:
        raise Permanent(f"{uri} does not exist", reason=Reason.MODEL_NOT_FOUND)


async def test_what_is_remembered_of_a_model_goes_with_its_last_workload() -> None:
    clock, used = FakeClock(), set[tuple[str, str]]()
    inspector: Any = NothingThere()
    mirror: Any = None
    backoff: KeyedBackoff[Model] = KeyedBackoff(Curve(), Random(1))
    profiles = Profiles(
        FakeCluster(clock),
        inspector,
        lambda: mirror,
        OperatorMetrics(CollectorRegistry()),
        clock,
        backoff,
        may_write=lambda: True,
        failed=lambda *_: None,
        used=lambda: used,
    )
    running = asyncio.create_task(profiles.run())
    models = [(f"hf://acme/m{number}", "main") for number in range(20)]
    used.update(models)
    for model in models:
        profiles.want(*model)
    async with asyncio.timeout(60):
        while len(profiles._refused) < len(models):
            await asyncio.sleep(0)
    await asyncio.sleep(0)
    used.intersection_update({models[0]})
    profiles.forget_unused()
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    assert set(profiles._refused) == {models[0]}
    assert backoff.failures(models[0]) == 1
    assert [backoff.failures(model) for model in models[1:]] == [0] * 19
