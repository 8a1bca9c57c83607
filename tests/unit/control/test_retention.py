"""What was learned of a model is kept for a while after its last workload, and never taken from one that is there."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import CollectorRegistry

from llmos_operator.api.v1alpha1.modelprofile import profile_name
from llmos_operator.clock import FakeClock
from llmos_operator.cluster.backoff import Curve, KeyedBackoff
from llmos_operator.cluster.fake import FakeCluster
from llmos_operator.cluster.port import MODEL_PROFILES
from llmos_operator.control.metrics import OperatorMetrics
from llmos_operator.control.profiles import Profiles
from llmos_operator.control.retention import Retention

if TYPE_CHECKING:
    from llmos_operator.cluster.port import Json
    from llmos_operator.control.profiles import Model

pytestmark = pytest.mark.anyio

MODEL = ("hf://acme/tiny", "main")
OTHER = ("hf://acme/other", "v2")
KEEP = 3600.0


class World:
    """ModelProfiles on a port, and workloads that name some of the models."""

    def __init__(self, keep: float = KEEP) -> None:
        self.clock = FakeClock()
        self.port = FakeCluster(self.clock)
        self.used: set[Model] = set()
        self.acting = True
        self.registry = CollectorRegistry()
        metrics = OperatorMetrics(self.registry)
        nothing: Any = None
        backoff: KeyedBackoff[Model] = KeyedBackoff(Curve(), Random(1))
        self.profiles = Profiles(
            self.port,
            nothing,
            lambda: self,  # type: ignore[arg-type,return-value] - its `observe` is all that is asked of a mirror
            metrics,
            self.clock,
            backoff,
            may_write=lambda: self.acting,
            failed=lambda *_: None,
            used=lambda: self.used,
        )
        self.retention = Retention(
            self.port,
            self.profiles,
            metrics,
            self.clock,
            keep=keep,
            used=lambda: self.used,
            may_act=lambda: self.acting,
        )

    def observe(self, _: str, body: Json) -> None:
        """Show what was written as the watch does."""
        self.profiles.note(body, exists=True)

    async def learn(self, model: Model) -> None:
        await self.profiles.measured(*model, "bf16", predicted=1, peak=1000, weights=500, load=None)

    async def later(self, seconds: float) -> set[str]:
        """Let time pass, look, and return the profiles that are left."""
        self.clock.advance(seconds)
        await self.retention.sweep()
        return {body["metadata"]["name"] for body in await self.bodies()}

    async def bodies(self) -> list[Json]:
        return [item async for page in self.port.list_pages(MODEL_PROFILES) for item in page.items]

    def figure(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, labels)


async def test_an_unused_profile_goes_when_its_time_is_over() -> None:
    world = World()
    world.used = {OTHER}
    await world.learn(MODEL)
    await world.learn(OTHER)
    both = {profile_name(*MODEL), profile_name(*OTHER)}
    assert await world.later(60) == both
    assert world.figure("llmos_operator_model_profiles", use="unused") == 1
    assert await world.later(KEEP - 1) == both
    assert await world.later(1) == {profile_name(*OTHER)}
    assert world.figure("llmos_operator_model_profiles_deleted_total") == 1
    assert await world.later(100 * KEEP) == {profile_name(*OTHER)}


async def test_a_profile_that_is_used_again_starts_anew_and_loses_nothing() -> None:
    world = World()
    await world.learn(MODEL)
    await world.later(0)
    (marked,) = await world.bodies()
    assert marked["status"]["unusedSince"]
    world.used = {MODEL}
    assert await world.later(2 * KEEP)
    (found,) = await world.bodies()
    assert "unusedSince" not in found["status"]
    assert found["status"]["formats"] == marked["status"]["formats"]
    assert found["status"]["updated"] == marked["status"]["updated"], "nothing was learned"
    world.used = set()
    assert await world.later(1)
    assert await world.later(KEEP - 1)
    assert not await world.later(1)


async def test_a_restarted_operator_goes_on_counting() -> None:
    first = World()
    await first.learn(MODEL)
    await first.later(0)
    (body,) = await first.bodies()
    second = World()
    second.port = first.port
    second.profiles._port = second.retention._port = first.port
    second.profiles.note(body, exists=True)
    assert not await second.later(KEEP)


async def test_nothing_is_deleted_while_the_workloads_are_not_all_known() -> None:
    world = World()
    await world.learn(MODEL)
    await world.later(0)
    world.acting = False
    assert await world.later(10 * KEEP)
    world.acting = True
    assert not await world.later(0)


async def test_without_a_time_all_are_kept_and_nothing_is_written() -> None:
    world = World(keep=0.0)
    await world.learn(MODEL)
    before = await world.bodies()
    assert await world.later(100 * KEEP)
    assert await world.bodies() == before
    assert world.figure("llmos_operator_model_profiles", use="unused") == 1


async def test_a_profile_of_another_name_is_left_alone() -> None:
    world = World()
    body = {"metadata": {"name": "by-hand"}, "spec": {"uri": MODEL[0], "revision": MODEL[1]}}
    world.observe("ADDED", await world.port.apply(MODEL_PROFILES, body, manager="somebody"))
    await world.later(0)
    assert await world.later(10 * KEEP) == {"by-hand"}
