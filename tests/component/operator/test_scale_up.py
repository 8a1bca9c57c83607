"""A cluster that is too small says so in the way cluster autoscalers understand, and work starts when it has grown.

The autoscaler here is scripted: it sees the API server's pods alone, as Cluster Autoscaler does, and adds a node on which an
unschedulable one fits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from llmos_operator.api import names
from llmos_operator.cluster import port as ports
from tests.support.operator_process import collect
from tests.support.tinymodels import write_model

if TYPE_CHECKING:
    from llmos_operator.cluster.port import Json
    from tests.support.operator_process import Bench

pytestmark = [pytest.mark.anyio, pytest.mark.component]

ENABLED = {
    "LLMOS_SCHEDULING__SCALE_UP__ENABLED": "true",
    "LLMOS_SCHEDULING__SCALE_UP__AFTER": "0",
}
RESOURCES = {"resources": {"accelerators": 2}}


async def unschedulable(bench: Bench) -> list[Json]:
    """Return what Cluster Autoscaler and Karpenter would look at, of any namespace."""
    return [
        pod
        for pod in await collect(bench.port, ports.PODS, "")
        if not pod["spec"].get("nodeName")
        and any(
            one["type"] == "PodScheduled" and one["status"] == "False" and one["reason"] == "Unschedulable"
            for one in pod["status"].get("conditions") or ()
        )
    ]


async def until_wanted(bench: Bench, count: int) -> list[Json]:
    async def there() -> list[Json] | None:
        found = await unschedulable(bench)
        return found if len(found) == count else None

    return list(await bench.until(there, f"{count} unschedulable pods"))


async def until_none(bench: Bench) -> None:
    async def gone() -> bool:
        pods = await collect(bench.port, ports.PODS, "")
        return all(pod["spec"].get("nodeName") for pod in pods)

    await bench.until(gone, "no placeholder is left")


async def test_a_node_is_added_for_what_the_cluster_is_too_small_for(bench: Bench) -> None:
    uri = write_model(bench.hub, "acme/tiny")
    await bench.node("n1")
    bench.operator(**ENABLED)
    await bench.apply("small", uri)
    await bench.until_phase("small", "Running")
    await bench.apply("large", uri, replicas=2, **RESOURCES)

    for pod in await until_wanted(bench, 2):
        requests = pod["spec"]["containers"][0]["resources"]["requests"]
        assert requests[names.RESOURCE_GPU] == "2"
        assert requests["cpu"] == "500m"
        assert pod["spec"]["schedulerName"] == "llmos.dev/placeholder"
        owner = pod["metadata"]["ownerReferences"][0]
        assert (owner["kind"], owner["name"]) == ("ModelWorkload", "large")
    told = [one for one in await bench.events("large") if one["reason"] == "NodesRequested"]
    assert len(told) == 1
    assert "2 placeholder pods" in told[0]["note"]

    await bench.node("n2", devices=4)
    running = await bench.until_phase("large", "Running")
    assert running["status"]["readyReplicas"] == 2
    await until_none(bench)


async def test_a_restarted_operator_makes_no_second_ones_and_ends_what_nobody_wants(bench: Bench) -> None:
    uri = write_model(bench.hub, "acme/tiny")
    await bench.node("n1")
    first = bench.operator(**ENABLED)
    await bench.apply("large", uri, **RESOURCES)
    (before,) = await until_wanted(bench, 1)
    first.kill()
    bench.operator("operator-b", **ENABLED)
    await bench.apply("other", uri, **RESOURCES)
    after = {pod["metadata"]["uid"] for pod in await until_wanted(bench, 2)}
    assert before["metadata"]["uid"] in after
    await bench.delete("large")
    (left,) = await until_wanted(bench, 1)
    assert left["metadata"]["ownerReferences"][0]["name"] == "other"


async def test_nobody_is_asked_for_nodes_unless_the_operator_is_told_to(bench: Bench) -> None:
    uri = write_model(bench.hub, "acme/tiny")
    await bench.node("n1")
    first = bench.operator(**ENABLED)
    await bench.apply("large", uri, **RESOURCES)
    await until_wanted(bench, 1)
    first.kill()
    bench.operator("operator-b")
    await bench.apply("small", uri)
    await bench.until_phase("small", "Running")
    await until_none(bench)
    await bench.until_condition("large", "Scheduled", "False")
