"""Starts on a shared device, on a real API server: one after the other, and not behind a load that hangs for ever."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

import pytest

from llmos_operator.api import names
from tests.support.fakekubelet import Script
from tests.support.tinymodels import write_model

if TYPE_CHECKING:
    from tests.support.operator_process import Bench

pytestmark = [pytest.mark.anyio, pytest.mark.component]

SHARED = {"accelerators": 1, "sharing": "Shared", "memory": "300Mi"}


async def bound_at(bench: Bench, name: str) -> float:
    """Return when the replica of a workload was given its place, by its claim."""
    (pod,) = await bench.pods(name)
    claim: dict[str, Any] = json.loads(pod["metadata"]["annotations"][names.ANNOTATION_CLAIM])
    return float(claim["boundAtMilli"]) / 1000


async def two_on_one_device(bench: Bench, first: Script, **settings: str) -> None:
    """Let a first workload start, and a second one wait for its load."""
    bench.kubelet.script = lambda pod: first if pod["metadata"]["name"].startswith("first") else Script()
    await bench.node("n1", devices=1)
    operator = bench.operator(**settings)
    await bench.telemetry(operator, "n1")
    uri = write_model(bench.hub, "acme/tiny")
    await bench.apply("first", uri, resources=SHARED)

    async def is_placed() -> bool:
        return len(await bench.pods("first")) == 1

    await bench.until(is_placed, "a place for the first")
    await bench.apply("second", uri, resources=SHARED)


async def waits(bench: Bench) -> None:
    """Wait until the second says for whose load it waits."""

    async def said() -> bool:
        decision = ((await bench.workload("second")).get("status") or {}).get("decision") or {}
        return decision.get("reason") == "WaitingForStartup" and "team/first" in decision["message"]

    await bench.until(said, "the second waits for the load of the first")
    assert await bench.pods("second") == []


async def test_the_second_starts_when_the_first_is_ready(bench: Bench) -> None:
    await two_on_one_device(bench, Script(ready_after=8.0))
    await waits(bench)
    await bench.until_phase("second", "Running", 60)
    assert await bound_at(bench, "second") - await bound_at(bench, "first") >= 8.0
    await bench.until_phase("first", "Running")


async def test_a_load_that_hangs_is_not_waited_for_for_ever(bench: Bench) -> None:
    await two_on_one_device(bench, Script(ready_after=math.inf), LLMOS_SCHEDULING__STARTUP_WAIT="15")
    await waits(bench)
    await bench.until_phase("second", "Running", 60)
    assert await bound_at(bench, "second") - await bound_at(bench, "first") >= 15.0
    (pod,) = await bench.pods("first")
    ready = [one["status"] for one in pod["status"]["conditions"] if one["type"] == "Ready"]
    assert ready != ["True"], "the first still loads"
