"""Builders of gateway tests: objects as the API serves them, scripted replicas, a running gateway.

A replica is a real HTTP server on a loopback address of its own, so that the gateway under test opens real
connections; the cluster is `cluster.fake` unless a test passes a real transport.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import aiohttp
from aiohttp import web

from llmos_operator.api import names
from llmos_operator.cluster.fake import FakeCluster
from llmos_operator.cluster.port import MODEL_WORKLOADS, PODS
from llmos_operator.gateway.app import Gateway
from llmos_operator.observability.metrics import new_registry
from llmos_operator.settings import GatewaySettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from llmos_operator.cluster.port import ClusterPort

_COUNTER = itertools.count(1)
_no_code = (lambda: None).__code__


def workload_json(
    name: str,
    *,
    namespace: str = "team",
    served: str = "",
    uid: str = "",
    spec: dict[str, Any] | None = None,
    conditions: list[dict[str, str]] | None = None,
    eta: str = "",
) -> dict[str, Any]:
    """A ModelWorkload as the API server returns it."""
    model = {"uri": "hf://org/model"} | ({"name": served} if served else {})
    status: dict[str, Any] = {"conditions": conditions or []}
    if eta:
        status["load"] = {"stage": "Loading", "eta": eta}
    return {
        "apiVersion": names.API_VERSION,
        "kind": "ModelWorkload",
        "metadata": {"name": name, "namespace": namespace} | ({"uid": uid} if uid else {}),
        "spec": {"type": "Inference", "model": model, **(spec or {})},
        "status": status,
    }


def condition(kind: str, status: str, reason: str, message: str = "") -> dict[str, str]:
    """A status condition."""
    return {"type": kind, "status": status, "reason": reason, "message": message}


def pod_json(
    name: str,
    workload_uid: str,
    host: str,
    port: int,
    *,
    namespace: str = "team",
    ready: bool = True,
    uid: str = "",
    spec_hash: str = "",
) -> dict[str, Any]:
    """A runtime pod as the API server returns it."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "labels": {names.LABEL_ROLE: "runtime", names.LABEL_WORKLOAD_UID: workload_uid},
        }
        | ({"annotations": {names.ANNOTATION_SPEC_HASH: spec_hash}} if spec_hash else {})
        | ({"uid": uid} if uid else {}),
        "spec": {"containers": [{"name": "runtime", "env": [{"name": names.ENV_PORT, "value": str(port)}]}]},
        "status": {
            "phase": "Running",
            "podIP": host,
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
        },
    }


@dataclass(eq=False)
class ScriptedReplica:
    """An HTTP server that answers as told and remembers what it was asked."""

    host: str
    port: int = 0
    name: str = ""
    handler: Callable[[ScriptedReplica, web.BaseRequest], Awaitable[web.StreamResponse]] | None = None
    requests: list[tuple[str, str, Any, Any]] = field(default_factory=list)
    running: int = 0
    peak: int = 0
    cancelled: int = 0
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    _runner: web.ServerRunner | None = None

    async def start(self) -> ScriptedReplica:
        """Listen."""
        self.gate.set()
        self._runner = web.ServerRunner(
            web.Server(self._serve, handler_cancellation=True, access_log=None), shutdown_timeout=0.1
        )
        await self._runner.setup()
        await web.TCPSite(self._runner, self.host, self.port, backlog=1024).start()
        self.port = int(self._runner.addresses[0][1])
        return self

    def runs(self, count: int) -> bool:
        """Whether so many requests are being answered."""
        return self.running == count

    async def stop(self) -> None:
        """Stop listening and cut connections."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _serve(self, request: web.BaseRequest) -> web.StreamResponse:
        request._client_max_size = 0
        self.running += 1
        self.peak = max(self.peak, self.running)
        try:
            raw = await request.read()
            document = json.loads(raw) if raw[:1] == b"{" else raw
            self.requests.append((request.method, request.raw_path, request.headers.copy(), document))
            if self.handler is not None:
                return await self.handler(self, request)
            await self.gate.wait()
            return web.json_response(
                {
                    "object": "chat.completion",
                    "model": document["model"] if isinstance(document, dict) else "",
                    "replica": self.name,
                    "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
                }
            )
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.running -= 1


async def sse(request: web.BaseRequest, events: list[str]) -> web.StreamResponse:
    """Answer with server-sent events, then end the stream."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    for event in events:
        await response.write(f"data: {event}\n\n".encode())
    await response.write_eof()
    return response


@dataclass(eq=False)
class GatewayBench:
    """A running gateway, its cluster and a client."""

    gateway: Gateway
    cluster: Any
    client: aiohttp.ClientSession
    stop: asyncio.Event
    replicas: list[ScriptedReplica] = field(default_factory=list)

    @property
    def url(self) -> str:
        """Base URL of the gateway."""
        return f"http://127.0.0.1:{self.gateway.port}"

    async def add_workload(self, name: str, **arguments: Any) -> str:
        """Create a workload and wait until the gateway knows it; returns its UID."""
        body = workload_json(name, **arguments)
        created = await self.cluster.create(MODEL_WORKLOADS, body, namespace=body["metadata"]["namespace"])
        uid = str(created["metadata"]["uid"])
        await until(lambda: any(w.uid == uid for w in self.gateway.catalog.workloads()))
        return uid

    async def add_replica(
        self,
        workload_uid: str,
        *,
        namespace: str = "team",
        start: bool = True,
        spec_hash: str = "",
        **arguments: Any,
    ) -> ScriptedReplica:
        """Start a scripted replica and a ready pod for it; wait until the gateway knows it."""
        number = next(_COUNTER)
        name = f"replica-{number}"
        replica = ScriptedReplica(
            host=f"127.{64 + number // 250 % 32}.77.{1 + number % 250}", name=name, **arguments
        )
        if start:
            await replica.start()
            self.replicas.append(replica)
        body = pod_json(
            name, workload_uid, replica.host, replica.port or 1, namespace=namespace, spec_hash=spec_hash
        )
        created = await self.cluster.create(PODS, body, namespace=namespace)
        await until(lambda: str(created["metadata"]["uid"]) in self.gateway.catalog.replica_uids())
        return replica

    async def remove_replica(self, replica: ScriptedReplica, *, namespace: str = "team") -> None:
        """Delete a replica's pod and wait until the gateway knows."""
        before = self.gateway.catalog.replica_count()
        await self.cluster.delete(PODS, replica.name, namespace=namespace, grace_seconds=0)
        await until(lambda: self.gateway.catalog.replica_count() < before)

    async def chat(
        self, model: str, *, headers: dict[str, str] | None = None, **fields: Any
    ) -> tuple[int, Any, Any]:
        """POST a chat completion; returns status, body and headers."""
        body = {"model": model, "messages": [{"role": "user", "content": "hello"}], **fields}
        async with self.client.post(f"{self.url}/v1/chat/completions", json=body, headers=headers) as answer:
            return answer.status, await answer.json(content_type=None), answer.headers

    def metric(self, name: str, **labels: str) -> float:
        """Return a sample of the gateway's registry, 0.0 if there is none."""
        value = self.registry.get_sample_value(f"llmos_gateway_{name}", labels)
        return 0.0 if value is None else value

    @property
    def registry(self) -> Any:
        """The gateway's metrics registry."""
        return self.gateway._health._registry


@asynccontextmanager
async def running_gateway(
    cluster: ClusterPort | None = None, *, token: str = "", **settings: Any
) -> AsyncIterator[GatewayBench]:
    """A gateway on a fake cluster (or the given one), stopped at the end; settings override quick defaults."""
    values = {
        "host": "127.0.0.1",
        "serving_port": 0,
        "health_port": 0,
        "identity": "gateway-test",
        "operator_url": "",
        "drain_delay": 0.05,
        "drain_timeout": 5.0,
        "hold_timeout": 5.0,
        **settings,
    }
    cluster = cluster or FakeCluster()
    gateway = Gateway(
        GatewaySettings(**values), cluster, token=lambda: token, registry=new_registry("gateway")
    )
    stop = asyncio.Event()
    running = asyncio.create_task(gateway.run(stop, asyncio.Event()))
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as client:
        bench = GatewayBench(gateway, cluster, client, stop)
        try:
            await until(lambda: running.done() or (gateway.watches.synced and gateway.port > 0))
            if running.done():
                running.result()
            yield bench
        finally:
            stop.set()
            await asyncio.wait_for(running, 60)
            for replica in bench.replicas:
                await replica.stop()
            await until(lambda: not _own_tasks())


def _own_tasks() -> list[str]:
    """Tasks of the gateway's code that still run: a stopped gateway leaves none behind."""
    return [
        task.get_name()
        for task in asyncio.all_tasks()
        if not task.done() and "llmos_operator" in getattr(task.get_coro(), "cr_code", _no_code).co_filename
    ]


async def until(holds: Callable[[], bool], seconds: float = 90.0) -> None:
    """Wait until ``holds()``; fail after ``seconds``."""
    async with asyncio.timeout(seconds):
        while not holds():
            await asyncio.sleep(0.005)
