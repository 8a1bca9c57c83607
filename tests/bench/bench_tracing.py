"""Tracing: what it costs a request at the gateway and at the runtime's front, off and on.

A gateway (and a runtime's front around a scripted engine) in this process, a replica that answers at once, a receiver in a
process of its own. Rounds of off, unsampled and on take turns; CPU time of the whole process is counted, the sending thread
included, so the difference between two columns is what tracing costs and neither column is the gateway's alone.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp

from llmos_operator.cluster.fake import FakeCluster
from llmos_operator.gateway.app import Gateway
from llmos_operator.observability.metrics import new_registry
from llmos_operator.settings import GatewaySettings, TracingSettings
from tests.bench.report import ROOT, Table
from tests.support.engine import MODEL, ScriptedEngine, running_runtime
from tests.support.gateway import GatewayBench, until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

ROUNDS, REQUESTS = 7, 100
MODES = ("off", "on, not sampled", "on, sampled")
RECEIVER = """
import sys, threading
from tests.support.otlp import receiver
with receiver() as made:
    made.take = lambda body: None
    print(made.url, flush=True)
    sys.stdin.read()
"""


@contextmanager
def _receiver() -> Iterator[str]:
    command = [sys.executable, "-c", RECEIVER]
    with subprocess.Popen(command, cwd=ROOT, stdin=-1, stdout=-1, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


async def _rounds(senders: dict[str, Callable[[], Awaitable[object]]]) -> dict[str, list[float]]:
    """Return CPU microseconds of a request by mode, one figure a round."""
    found: dict[str, list[float]] = {mode: [] for mode in senders}
    for number in range(ROUNDS + 1):
        for mode, send in senders.items():
            began = time.process_time()
            for _ in range(REQUESTS):
                await send()
            if number:  # the first warms up
                found[mode].append((time.process_time() - began) / REQUESTS * 1e6)
    return found


async def _gateway(url: str) -> dict[str, list[float]]:
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(aiohttp.ClientSession())
        senders: dict[str, Callable[[], Awaitable[object]]] = {}
        for mode in MODES:
            bench = await stack.enter_async_context(_running(mode, url, client))
            uid = await bench.add_workload("chat", served="m")
            await bench.add_replica(uid)
            senders[mode] = lambda bench=bench: bench.chat("m")  # type: ignore[misc]
        return await _rounds(senders)


@asynccontextmanager
async def _running(mode: str, url: str, client: aiohttp.ClientSession) -> AsyncIterator[GatewayBench]:
    """A gateway beside others; `running_gateway` waits until its is the only one and has left nothing behind."""
    ratio = 0.0 if mode == "on, not sampled" else 1.0
    settings = GatewaySettings(
        host="127.0.0.1",
        serving_port=0,
        health_port=0,
        operator_url="",
        drain_delay=0.05,
        access_log=False,
        tracing=TracingSettings(endpoint="" if mode == "off" else url, sample_ratio=ratio),
    )
    cluster, stop = FakeCluster(), asyncio.Event()
    gateway = Gateway(settings, cluster, token=str, registry=new_registry("gateway"))
    running = asyncio.create_task(gateway.run(stop))
    bench = GatewayBench(gateway, cluster, client, stop)
    try:
        await until(lambda: gateway.watches.synced and gateway.port > 0)
        yield bench
    finally:
        stop.set()
        await running
        for replica in bench.replicas:
            await replica.stop()


async def _front(url: str, folder: Path) -> dict[str, list[float]]:
    async with AsyncExitStack() as stack:
        senders: dict[str, Callable[[], Awaitable[object]]] = {}
        body = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}]}
        for number, mode in enumerate(MODES):
            settings = {
                "trace_endpoint": "" if mode == "off" else url,
                "trace_ratio": 0.0 if mode == "on, not sampled" else 1.0,
            }
            engine = ScriptedEngine(text="Paris")
            made = running_runtime(folder / str(number), engine=engine, **settings)
            bench = await stack.enter_async_context(made)
            senders[mode] = lambda bench=bench: bench.post("/v1/chat/completions", body)  # type: ignore[misc]
        return await _rounds(senders)


def run() -> list[Table]:
    """Measure both."""
    for name in [one for one in os.environ if one.startswith("OTEL_")]:
        del os.environ[name]
    rows = []
    with _receiver() as url, tempfile.TemporaryDirectory() as folder:
        for part, spans, measured in (
            ("gateway, client and replica", 2, asyncio.run(_gateway(url))),
            ("runtime's front, client and scripted engine", 4, asyncio.run(_front(url, Path(folder)))),
        ):
            off = statistics.median(measured["off"])
            for mode, figures in measured.items():
                middle = statistics.median(figures)
                rows.append(
                    [
                        part,
                        mode,
                        f"{middle:.0f} µs",
                        "" if mode == "off" else f"{middle - off:+.0f} µs",
                        f"{spans}" if mode == "on, sampled" else "",
                        f"{min(figures):.0f} to {max(figures):.0f} µs",
                    ]
                )
    note = f"Median of {ROUNDS} rounds of {REQUESTS} requests each, taking turns; CPU time of the process with client and replica."
    return [
        Table(
            "A request", ["process", "tracing", "CPU a request", "against off", "spans", "rounds"], rows, note
        )
    ]
