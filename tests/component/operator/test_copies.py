"""ModelCaches as the operator sees them: their status, and pods that read a node's copy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from llmos_operator.api import names
from llmos_operator.api.runtime.uris import model_key
from llmos_operator.cluster import port as ports
from tests.support.tinymodels import write_model

if TYPE_CHECKING:
    from tests.support.operator_process import Bench

pytestmark = [pytest.mark.anyio, pytest.mark.component]


async def tell(bench: Bench, node: str, key: str, **copy: Any) -> None:
    """Write what the agent of a node would."""
    body = {"metadata": {"name": node}, "status": {"models": [{"key": key, **copy}]}}
    await bench.port.patch_status(ports.GPU_NODES, body, manager="test-copies")


async def test_copies_are_added_up_and_pods_read_them(bench: Bench) -> None:
    uri = write_model(bench.hub, "acme/tiny")
    key = model_key(uri, "main")
    for node in ("n1", "n2", "n3"):
        await bench.node(node)
    await bench.port.merge_patch(ports.NODES, "n3", {"metadata": {"labels": {"disk": "slow"}}})
    for node in ("n1", "n2"):
        await bench.port.merge_patch(ports.NODES, node, {"metadata": {"labels": {"disk": "fast"}}})
    bench.operator(LLMOS_RUNTIME__MODEL_CACHE_PATH="/var/lib/llmos/models")
    spec = {"uri": uri, "nodeSelector": {"disk": "fast"}}
    await bench.port.apply(ports.MODEL_CACHES, {"metadata": {"name": "tiny"}, "spec": spec}, manager="test")
    try:
        await until(bench, "Pending", 0)
        await tell(bench, "n2", key, state="Downloading", bytes=50, bytesTotal=200, etaSeconds=3)
        found = await until(bench, "Downloading", 0)
        assert found["nodes"][1] == {
            "name": "n2",
            "state": "Downloading",
            "bytes": 50,
            "bytesTotal": 200,
            "etaSeconds": 3,
        }
        await tell(bench, "n1", key, state="Failed", reason="DiskFull", message="it needs 200 bytes")
        found = await until(bench, "DiskFull", 0)
        assert found["conditions"][0]["message"] == "n1: it needs 200 bytes"
        await tell(bench, "n2", key, state="Ready", bytes=200, bytesTotal=200)
        found = await until(bench, "DiskFull", 1)
        # Two nodes are alike; the one with the copy is taken, and its pod gets that folder alone, read-only.
        await bench.apply("chat", uri, model={"uri": uri, "cacheRef": {"name": "tiny"}})
        await bench.until_phase("chat", "Running")
        (pod,) = await bench.pods("chat")
        assert pod["spec"]["nodeName"] == "n2"
        (volume,) = [one for one in pod["spec"]["volumes"] if one["name"] == "llmos-model"]
        assert volume["hostPath"] == {"path": f"/var/lib/llmos/models/models/{key}", "type": "Directory"}
        container = pod["spec"]["containers"][0]
        (mount,) = [one for one in container["volumeMounts"] if one["name"] == "llmos-model"]
        assert mount["readOnly"] is True
        env = {one["name"]: one.get("value") for one in container["env"]}
        assert env[names.ENV_KEPT_DIR] == mount["mountPath"]
        await tell(bench, "n1", key, state="Ready", bytes=200, bytesTotal=200)
        await until(bench, "Cached", 2)
    finally:
        await bench.port.delete(ports.MODEL_CACHES, "tiny")


async def until(bench: Bench, reason: str, available: int) -> dict[str, Any]:
    seen: dict[str, Any] = {}

    async def reached() -> bool:
        seen.clear()
        seen.update((await bench.port.get(ports.MODEL_CACHES, "tiny")).get("status") or {})
        conditions = seen.get("conditions") or [{}]
        copies = seen.get("copies") or {}
        return (conditions[0].get("reason"), copies.get("available"), copies.get("total")) == (
            reason,
            available,
            2,
        )

    await bench.until(reached, f"the cache is {reason} with {available} copies")
    return seen
