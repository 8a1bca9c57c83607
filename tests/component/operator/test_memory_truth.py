"""The ledger against what is measured, by a real operator: strangers on a device, and a request that was too small."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from llmos_operator.cluster import port as ports
from tests.support.fakekubelet import Script
from tests.support.operator_process import collect
from tests.support.tinymodels import write_model

if TYPE_CHECKING:
    from tests.support.operator_process import Bench

pytestmark = [pytest.mark.anyio, pytest.mark.component]
MIB = 1 << 20


async def test_a_device_that_strangers_use_is_left_alone_until_they_are_gone(bench: Bench) -> None:
    uri = write_model(bench.hub, "acme/tiny")
    await bench.node("n1")
    agent = await bench.telemetry(bench.operator(), "n1")
    (device,) = (await bench.port.get(ports.GPU_NODES, "n1"))["status"]["devices"]
    agent.used[device["uuid"]] = 96 * MIB
    agent.processes[device["uuid"]] = {"a-pod-that-is-gone": 96 * MIB}

    async def told() -> bool:
        found = await collect(bench.port, ports.EVENTS, "default")
        return any(
            one["reason"] == "StrangerObserved" and one["regarding"]["kind"] == "GPUNode" for one in found
        )

    await bench.until(told, "the stranger is told")
    await bench.apply("chat", uri, resources={"memory": "300Mi"})

    async def rejected() -> list[Any]:
        status = (await bench.workload("chat")).get("status") or {}
        return [one for one in (status.get("decision") or {}).get("rejected", []) if one["count"]]

    (why,) = await bench.until(rejected, "a decision")
    assert why["reason"] == "StrangerOnDevice"
    assert f"96.0 MiB of {device['uuid']} on n1" in why["message"]
    agent.used.clear()
    agent.processes[device["uuid"]] = {}
    await bench.until_phase("chat", "Running")


async def test_a_request_that_was_too_small_is_corrected_and_explained(bench: Bench) -> None:
    uri = write_model(bench.hub, "acme/tiny")
    await bench.node("n1", memory="4Gi")
    bench.kubelet.script = lambda pod: Script(oom_killed=_reserved(pod) == 200 * MIB)
    bench.operator()
    await bench.apply("small", uri, resources={"memory": "200Mi"})
    running = await bench.until_phase("small", "Running")
    sizing = running["status"]["sizing"]
    assert sizing["outOfMemoryBytes"] == 200 * MIB
    assert "resources.memory is 200.0 MiB; with 200.0 MiB it ran out of memory" in sizing["message"]
    (pod,) = await bench.pods("small")
    assert _reserved(pod) > 300 * MIB  # the model's own size, which half as much again would not have reached
    events = await bench.events("small")
    assert any(one["reason"] == "EstimateRaised" and "200.0 MiB" in one["note"] for one in events)


def _reserved(pod: dict[str, Any]) -> int:
    env = {one["name"]: one.get("value") for one in pod["spec"]["containers"][0]["env"]}
    return int(env["LLMOS_MEMORY_LIMIT_BYTES"])
