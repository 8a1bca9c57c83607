"""Models on claims beside a real API server: what is told while a claim cannot be mounted, and where replicas go."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from llmos_operator.cluster import port as ports
from tests.support.operator_process import delete_protected

if TYPE_CHECKING:
    from tests.support.operator_process import Bench

pytestmark = [pytest.mark.anyio, pytest.mark.component]

MODEL = "pvc://models/tiny"
SIZED = {"resources": {"accelerators": 1, "memory": "512Mi"}}


async def waits_for(bench: Bench, name: str, reason: str) -> str:
    """Wait until a workload is not placed for a reason; return the message."""

    async def told() -> str:
        conditions = ((await bench.workload(name)).get("status") or {}).get("conditions") or ()
        found = [one for one in conditions if one["type"] == "Scheduled"]
        return str(found[0]["message"]) if found and found[0]["reason"] == reason else ""

    return str(await bench.until(told, f"{name} waits for {reason}"))


async def test_a_model_is_placed_once_its_claim_is_there_and_bound_and_where_its_volume_is(
    bench: Bench,
) -> None:
    for name in ("n1", "n2", "n3"):
        await bench.node(name, devices=1)
    bench.operator()
    await bench.apply("w", MODEL, **SIZED)
    message = await waits_for(bench, "w", "ClaimNotFound")
    assert "spec.model.uri: there is no PersistentVolumeClaim models in namespace team" in message
    await bench.claim("models", bound=False)
    assert "is not bound to a volume" in await waits_for(bench, "w", "ClaimPending")
    assert not await bench.pods("w")
    await delete_protected(bench.port, ports.VOLUME_CLAIMS, "models", bench.namespace)
    await bench.claim("models", on="n2")
    await bench.until_phase("w", "Running")
    (pod,) = await bench.pods("w")
    assert pod["spec"]["nodeName"] == "n2"
    await bench.apply("w", MODEL, replicas=2, **SIZED)
    waiting = await bench.until_condition("w", "Scheduled", "False")
    assert waiting["reason"]

    async def rejected() -> dict[str, str]:
        decision = ((await bench.workload("w")).get("status") or {}).get("decision") or {}
        return {one["reason"]: one.get("message", "") for one in decision.get("rejected") or ()}

    async def elsewhere() -> str:
        return (await rejected()).get("VolumeElsewhere", "")

    assert "claim models: its volume pv-models is elsewhere" in await bench.until(
        elsewhere, "the claim is named"
    )


async def test_a_claim_of_one_node_is_used_where_another_pod_has_it(bench: Bench) -> None:
    for name in ("n1", "n2", "n3"):
        await bench.node(name, devices=1)
    await bench.claim("models", mode="ReadWriteOnce")
    volume = {"name": "v", "persistentVolumeClaim": {"claimName": "models"}}
    spec = {"nodeName": "n3", "containers": [{"name": "c", "image": "i"}], "volumes": [volume]}
    await bench.port.create(
        ports.PODS, {"metadata": {"name": "filler"}, "spec": spec}, namespace=bench.namespace
    )
    bench.operator()
    await bench.apply("w", MODEL, **SIZED)
    await bench.until_phase("w", "Running")
    (pod,) = await bench.pods("w")
    assert pod["spec"]["nodeName"] == "n3"
