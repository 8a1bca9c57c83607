from __future__ import annotations

import asyncio
from random import Random
from typing import TYPE_CHECKING, Any, cast

import pytest
from prometheus_client import CollectorRegistry

from llmos_operator.api.conditions import Reason
from llmos_operator.api.v1alpha1.modelprofile import ModelProfileStatus, profile_name
from llmos_operator.clock import FakeClock
from llmos_operator.cluster.backoff import Curve, KeyedBackoff
from llmos_operator.cluster.fake import FakeCluster
from llmos_operator.cluster.mirror import Mirror
from llmos_operator.cluster.port import MODEL_PROFILES
from llmos_operator.control.drawing import Finding, Subject
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


def learning() -> Profiles:
    """Return profiles that write to a cluster nothing is in."""
    clock = FakeClock()
    port = FakeCluster(clock)
    seen = Mirror(MODEL_PROFILES, lambda *_: None)
    return Profiles(
        port,
        cast("Any", NothingThere()),
        lambda: seen,
        OperatorMetrics(CollectorRegistry()),
        clock,
        KeyedBackoff(Curve(), Random(1)),
        may_write=lambda: True,
        failed=lambda *_: None,
        used=set,
    )


def known(profiles: Profiles) -> ModelProfileStatus:
    return profiles._known.get(profile_name("hf://acme/m", "main"), ModelProfileStatus())


async def measured(*runs: dict[str, Any]) -> ModelProfileStatus:
    """Return what a profile knows after these measurements of runs at bf16."""
    profiles = learning()
    for run in runs:
        await profiles.measured("hf://acme/m", "main", "bf16", weights=0, load=None, **run)
    return known(profiles)


@pytest.mark.parametrize(
    ("runs", "learned"),
    [
        ([{"predicted": 1000, "peak": 900}], None),  # idle so far: it has not shown its peak
        ([{"predicted": 1000, "peak": 1100}], (1100, 1000)),
        ([{"predicted": 1000, "peak": 950, "proven": True}], (950, 1000)),
        ([{"predicted": 1000, "peak": 300, "proven": True}], (875, 1000)),  # an eighth less at most
        (
            [{"predicted": 1000, "peak": 1100}, {"predicted": 9000, "peak": 9110}],
            (1100, 1000),
        ),  # the same error
        (
            [{"predicted": 1000, "peak": 1100}, {"predicted": 1000, "peak": 1000, "proven": True}],
            (1000, 1000),
        ),
        ([{"predicted": 1000, "peak": 1100}, {"predicted": 1000, "peak": 1000}], (1100, 1000)),
    ],
)
async def test_an_estimate_is_corrected_by_peaks_that_say_something(
    runs: list[dict[str, Any]], learned: tuple[int, int] | None
) -> None:
    formats = (await measured(*runs)).formats
    told = [(one.measured_peak_bytes, one.estimated_peak_bytes) for one in formats if one.measured_peak_bytes]
    assert told == ([learned] if learned else [])


async def test_the_largest_memory_of_a_runtime_without_a_model_is_kept() -> None:
    run = {"predicted": 1000, "peak": 900}
    status = await measured(run | {"base": 400}, run | {"base": 300}, run | {"base": 500})
    assert status.base_bytes == 500


async def test_the_highest_draw_by_product_and_precision_is_kept() -> None:
    profiles = learning()
    for product, fmt, milliwatts in (
        ("A100", "bf16", 300_000),
        ("A100", "bf16", 250_000),  # a quiet hour after a restart
        ("A100", "int8", 200_000),
        ("H100", "bf16", 500_000),
        ("A100", "bf16", 320_000),
    ):
        await profiles.drew(Finding(Subject("hf://acme/m", "main", fmt, product), milliwatts))
    draws = {(one.product, one.format.value): one.milliwatts for one in known(profiles).draws}
    assert draws == {("A100", "bf16"): 320_000, ("A100", "int8"): 200_000, ("H100", "bf16"): 500_000}
