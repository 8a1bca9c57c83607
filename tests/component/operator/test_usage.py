"""What a workload has had, and what the console shows of it, by a real operator; and what a restart keeps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

from tests.support.tinymodels import write_model

if TYPE_CHECKING:
    from tests.support.operator_process import Bench, OperatorProcess

pytestmark = [pytest.mark.anyio, pytest.mark.component]


async def test_usage_is_counted_shown_and_survives_the_operator(bench: Bench) -> None:
    uri = write_model(bench.hub, "acme/tiny")
    await bench.node("n1")
    first = bench.operator("operator-a", LLMOS_CONSOLE__ENABLED="true", LLMOS_CONSOLE__PORT="0")
    await bench.apply("chat", uri)
    await bench.until_phase("chat", "Running")

    async def shown() -> bool:
        state = await _console(first)
        (node,) = state["nodes"]
        tenants = [state["tenants"][number] for number in node["devices"][0][9]]
        return tenants == ["team/chat"] and state["phases"] == {"Running": 1}

    await bench.until(shown, "the console shows the workload on its device")

    async def counted() -> bool:
        text = await _text(first, "health", "metrics")
        held = [line for line in text.splitlines() if line.startswith("llmos_operator_gpu_seconds_total{")]
        return any('workload="chat"' in line and float(line.split()[-1]) >= 2 for line in held)

    await bench.until(counted, "two device seconds are counted")
    await bench.apply("chat", uri, suspend=True)
    before = (await bench.until_phase("chat", "Suspended"))["status"]["usage"]
    assert before["gpuSeconds"] >= 2

    first.kill()
    bench.operator("operator-b")
    await bench.apply("chat", uri, suspend=False)
    after = (await bench.until_phase("chat", "Running"))["status"]["usage"]
    assert after["gpuSeconds"] >= before["gpuSeconds"]
    assert after["time"] >= before["time"]


async def _console(operator: OperatorProcess) -> dict[str, Any]:
    async with (
        aiohttp.ClientSession() as client,
        client.get(f"http://127.0.0.1:{operator.port_of('console')}/state.json") as response,
    ):
        found: dict[str, Any] = await response.json()
        return found


async def _text(operator: OperatorProcess, server: str, path: str) -> str:
    async with (
        aiohttp.ClientSession() as client,
        client.get(f"http://127.0.0.1:{operator.port_of(server)}/{path}") as response,
    ):
        return await response.text()
