"""Models that a node keeps: the agent as a process, a real API server, a bucket behind real HTTP."""

from __future__ import annotations

import base64
import itertools
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from llmos_operator.api.runtime.uris import model_key
from llmos_operator.cluster.port import MODEL_CACHES, NODES, SECRETS
from llmos_operator.modelstore.store import Store
from tests.support.agent_process import AgentBench, agent_bench, prepare
from tests.support.storages import ACCESS, SECRET, Storage, storage
from tests.support.tinymodels import safetensors

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from llmos_operator.local.controlplane import ControlPlane

pytestmark = [pytest.mark.anyio, pytest.mark.component]

WEIGHTS = safetensors({"model.embed_tokens.weight": (256, 64)})
URI = "s3://b/m"
KEY = model_key(URI, "main")
_COUNTER = itertools.count()


@pytest.fixture(scope="module")
def prepared(api_server: ControlPlane) -> ControlPlane:
    prepare(api_server)
    return api_server


@pytest.fixture
async def bench(prepared: ControlPlane, tmp_path: Path) -> AsyncIterator[AgentBench]:
    async with agent_bench(prepared, tmp_path, f"cache-node-{next(_COUNTER)}") as made:
        await made.port.merge_patch(NODES, made.node, {"metadata": {"labels": {"disk": "fast"}}})
        yield made


@pytest.fixture
def bucket() -> Iterator[Storage]:
    with storage() as made:
        made.buckets["b"] = {"m/config.json": b"{}", "m/model.safetensors": WEIGHTS}
        yield made


def start(bench: AgentBench, bucket: Storage) -> Store:
    root = bench.folder / "models"
    bench.agent(
        LLMOS_MODEL_CACHE__PATH=str(root),
        LLMOS_MODEL_CACHE__ENDPOINT=bucket.url,
        LLMOS_NAMESPACE="default",
        LLMOS_STATUS_INTERVAL="1",
    )
    return Store(root)


@asynccontextmanager
async def a_cache(bench: AgentBench, **spec: Any) -> AsyncIterator[None]:
    name = f"{bench.node}-model"
    secret = {"AWS_ACCESS_KEY_ID": ACCESS, "AWS_SECRET_ACCESS_KEY": SECRET}
    data = {key: base64.b64encode(value.encode()).decode() for key, value in secret.items()}
    meta = {"name": "bucket-keys", "namespace": "default"}
    await bench.port.apply(SECRETS, {"metadata": meta, "data": data}, manager="test", namespace="default")
    body = {"metadata": {"name": name}, "spec": {"uri": URI, "secretRef": {"name": "bucket-keys"}, **spec}}
    await bench.port.apply(MODEL_CACHES, body, manager="test")
    try:
        yield
    finally:
        await bench.port.delete(MODEL_CACHES, name)


async def copy(bench: AgentBench) -> dict[str, Any]:
    models = ((await bench.gpunode()).get("status") or {}).get("models") or []
    return next((one for one in models if one["key"] == KEY), {})


async def until_state(bench: AgentBench, state: str) -> dict[str, Any]:
    async def reached() -> bool:
        return (await copy(bench)).get("state") == state

    await bench.until(reached, f"the copy is {state}")
    return await copy(bench)


async def test_a_model_cache_brings_its_model_to_the_nodes_it_selects(
    bench: AgentBench, bucket: Storage
) -> None:
    await bench.announce("GPU-cache-a")
    store = start(bench, bucket)
    async with a_cache(bench, nodeSelector={"disk": "fast"}):
        told = await until_state(bench, "Ready")
        size = len(WEIGHTS) + 2
        assert (told["uri"], told["bytes"], told["bytesTotal"]) == (URI, size, size)
        lease = store.use(URI, "main")
        assert lease is not None
        assert (lease.folder / "model.safetensors").read_bytes() == WEIGHTS
        lease.release()
        agent = bench.agents[0]
        assert agent.metric("llmos_node_models_bytes") == size
        assert agent.metric("llmos_node_model_downloads_total", result="ok") == 1
        # A copy that somebody deletes or damages comes again.
        (lease.folder / "config.json").unlink()
        await bench.until(lambda: store.use(URI, "main") is not None, "the copy is whole again")
    assert SECRET not in agent.text()
    assert SECRET not in str(await bench.gpunode())
    assert store.use(URI, "main") is not None  # it stays until its room is needed


async def test_what_cannot_be_had_is_told_with_its_fix(bench: AgentBench, bucket: Storage) -> None:
    await bench.announce("GPU-cache-b")
    store = start(bench, bucket)
    async with a_cache(bench, secretRef={"name": "absent"}):
        told = await until_state(bench, "Failed")
        assert "there is no Secret 'absent' in the namespace default" in told["message"]
    async with a_cache(bench, sizeLimit="100"):
        await bench.until(lambda: _says(bench, "more than the limit of 100"), "the limit is told")
        assert (await copy(bench))["reason"] == "TooLarge"
    assert store.entries() == []


async def _says(bench: AgentBench, words: str) -> bool:
    return words in (await copy(bench)).get("message", "")


async def test_other_nodes_keep_nothing(bench: AgentBench, bucket: Storage) -> None:
    await bench.announce("GPU-cache-c")
    store = start(bench, bucket)
    async with a_cache(bench, nodeSelector={"disk": "slow"}):
        await bench.until(lambda: bench.endpoint.reports, "a first batch")
        # The label changes and the copy comes, so the selector was what kept it away.
        assert store.entries() == []
        await bench.port.merge_patch(NODES, bench.node, {"metadata": {"labels": {"disk": "slow"}}})
        await until_state(bench, "Ready")
