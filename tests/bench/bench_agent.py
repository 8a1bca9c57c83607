"""The agent: CPU, memory and API writes for 8 GPUs at 1 Hz.

A real `llmos agent` over the NVML test double, with a small API server and operator in this process. The double's own
work (reading its control file for each answer) is part of the CPU measured.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from aiohttp import web

from llmos_operator.telemetry.ingest import Ingest
from tests.bench.report import Table
from tests.support.agent_process import AgentProcess
from tests.support.nvml import Double

NODE = "bench-node"
SECONDS = 25
GPUS = 8
BUDGETS = {"cpu": 0.005, "rss": 60.0, "import": 1.5, "lists": 0.1}


class Surroundings:
    """As much of an API server and an operator as an agent talks to."""

    def __init__(self) -> None:
        self.gpunode: dict[str, Any] = {}
        self.writes = 0
        self.batches = 0
        self.bytes = 0
        self.ingest = Ingest()
        self.url = ""

    async def start(self) -> web.AppRunner:
        app = web.Application()
        app.router.add_get(f"/api/v1/nodes/{NODE}", self._node)
        app.router.add_get(f"/apis/llmos.dev/v1alpha1/gpunodes/{NODE}", self._read)
        for path in (
            f"/apis/llmos.dev/v1alpha1/gpunodes/{NODE}",
            f"/apis/llmos.dev/v1alpha1/gpunodes/{NODE}/status",
        ):
            app.router.add_patch(path, self._write)
        app.router.add_post("/v1/telemetry", self._take)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        return runner

    async def _node(self, _: web.Request) -> web.Response:
        return web.json_response({"metadata": {"name": NODE, "uid": "uid"}})

    async def _read(self, _: web.Request) -> web.Response:
        return web.json_response(self.gpunode, status=200 if self.gpunode else 404)

    async def _write(self, request: web.Request) -> web.Response:
        self.writes += 1
        self.gpunode.update(json.loads(await request.read()))
        return web.json_response(self.gpunode)

    async def _take(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.ingest.accept(body, NODE, time.monotonic())
        self.batches += 1
        self.bytes += len(body)
        return web.Response()


def import_seconds() -> float:
    """Return the best of three cold starts of the interpreter with the agent imported, less those without."""

    def best(code: str) -> float:
        times = []
        for _ in range(3):
            started = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True)
            times.append(time.perf_counter() - started)
        return min(times)

    modules = "import llmos_operator.telemetry.agent, llmos_operator.telemetry.nvml.backend"
    return best(modules) - best("pass")


async def measure(seconds: int, gpus: int) -> list[tuple[str, str, str, str]]:
    """Run the agent and return the rows of the table."""
    folder = Path(tempfile.mkdtemp(prefix="llmos-agent-cost-"))
    double = Double(folder)
    for index in range(gpus):
        double.with_gpu(index, **{f"process__{n}": f"{4_000_000 + n} {1 << 30}" for n in range(4)})
    double.write()
    around = Surroundings()
    runner = await around.start()
    config = {
        "apiVersion": "v1",
        "clusters": [{"name": "c", "cluster": {"server": around.url}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    (folder / "kubeconfig").write_text(json.dumps(config))
    agent = AgentProcess(
        folder / "agent.log",
        {
            **double.environment(),
            "KUBECONFIG": str(folder / "kubeconfig"),
            "LLMOS_NODE": NODE,
            "LLMOS_HOST": "127.0.0.1",
            "LLMOS_HEALTH_PORT": "0",
            "LLMOS_OPERATOR_URL": around.url,
        },
    ).start()
    try:
        await asyncio.sleep(5)
        cpu, _ = agent.usage()
        batches, writes, sent = around.batches, around.writes, around.bytes
        started = time.monotonic()
        await asyncio.sleep(seconds)
        later, resident = agent.usage()
        elapsed = time.monotonic() - started
        scraped = time.perf_counter()
        _, text = await asyncio.to_thread(agent.get, "/metrics")
        scraped = time.perf_counter() - scraped
        after_scrape, resident_after = agent.usage()
        lists = await asyncio.to_thread(agent.metric, "llmos_agent_process_lists_total")
        round_seconds = await asyncio.to_thread(agent.metric, "llmos_agent_round_seconds")
    finally:
        agent.kill()
        await runner.cleanup()
    share = (later - cpu) / elapsed
    total_seconds = elapsed + 5
    return [
        ("import", f"{import_seconds():.2f} s", f"{BUDGETS['import']} s", ""),
        (
            "CPU share of a core",
            f"{share:.2%}",
            f"{BUDGETS['cpu']:.2%}",
            f"{(later - cpu) / elapsed * 1000:.1f} ms/s",
        ),
        ("resident memory", f"{resident / 2**20:.1f} MiB", f"{BUDGETS['rss']} MiB", "after start and rounds"),
        (
            "resident after a scrape",
            f"{resident_after / 2**20:.1f} MiB",
            f"{BUDGETS['rss']} MiB",
            f"{len(text)} bytes",
        ),
        ("a scrape", f"{scraped * 1000:.0f} ms", "", f"{(after_scrape - later) * 1000:.0f} ms CPU"),
        ("a round of measuring", f"{(round_seconds or 0) * 1000:.2f} ms", "", f"{gpus} GPUs, wall time"),
        (
            "process lists",
            f"{(lists or 0) / total_seconds / gpus:.3f} /s/GPU",
            f"{BUDGETS['lists']} /s/GPU",
            "",
        ),
        (
            "batches",
            f"{(around.batches - batches) / elapsed:.2f} /s",
            "1 in 3 s",
            f"{(around.bytes - sent) // max(1, around.batches - batches)} bytes each",
        ),
        ("API writes", f"{around.writes - writes} in {elapsed:.0f} s", "1 in 60 s", ""),
    ]


def run() -> list[Table]:
    """Measure an agent over 8 GPUs."""
    rows = asyncio.run(measure(SECONDS, GPUS))
    note = f"{GPUS} GPUs of the test double at 1 Hz over {SECONDS} s. No real driver: its own time per call is not in here."
    return [Table("Agent", ["what", "measured", "budget", ""], rows, note)]
