"""What a DRA driver publishes of a node, and what others do with it: pods that kube-scheduler gives devices by ResourceClaims."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from llmos_operator.cluster import port as ports
from llmos_operator.cluster.failures import NotFound
from tests.support.operator_process import collect

if TYPE_CHECKING:
    from tests.support.operator_process import Bench, Json

DRIVER = "gpu.nvidia.com"
DEVICE_CLASSES = ports.Kind("resource.k8s.io", "v1", "deviceclasses", "DeviceClass", namespaced=False)


async def publish(bench: Bench, node: str, count: int) -> None:
    """Publish the devices of a node as NVIDIA's driver does."""
    selector = {"cel": {"expression": f"device.driver == '{DRIVER}'"}}
    body: Json = {"metadata": {"name": DRIVER}, "spec": {"selectors": [selector]}}
    await bench.port.apply(DEVICE_CLASSES, body, manager="test")
    devices = [
        {
            "name": f"gpu-{number}",
            "attributes": {"uuid": {"string": f"GPU-sim-{node}-{number}"}, "type": {"string": "gpu"}},
            "capacity": {"memory": {"value": "1Gi"}},
        }
        for number in range(count)
    ]
    pool = {"name": node, "generation": 1, "resourceSliceCount": 1}
    spec = {"driver": DRIVER, "nodeName": node, "pool": pool, "devices": devices}
    await bench.port.create(ports.RESOURCE_SLICES, {"metadata": {"name": f"{node}-gpu"}, "spec": spec})


async def ask(bench: Bench, name: str) -> None:
    """Make a pod with a claim for one device, for kube-scheduler to place."""
    request = {"name": "gpu", "exactly": {"deviceClassName": DRIVER}}
    body: Json = {"metadata": {"name": name}, "spec": {"devices": {"requests": [request]}}}
    await bench.port.create(ports.RESOURCE_CLAIMS, body, namespace="default")
    container = {"name": "c", "image": "i", "resources": {"claims": [{"name": "gpu"}]}}
    spec = {"containers": [container], "resourceClaims": [{"name": "gpu", "resourceClaimName": name}]}
    await bench.port.create(ports.PODS, {"metadata": {"name": name}, "spec": spec}, namespace="default")


async def given(bench: Bench, name: str) -> int:
    """Wait until kube-scheduler has allocated the claim of such a pod; return the number of its device."""

    async def allocated() -> list[Json]:
        found = await bench.port.get(ports.RESOURCE_CLAIMS, name, namespace="default")
        return results(found)

    (result,) = await bench.until(allocated, f"kube-scheduler has allocated {name}")
    return int(result["device"].removeprefix("gpu-"))


def results(claim: Json) -> list[Json]:
    """Return the devices a ResourceClaim has."""
    allocation: Json = (claim.get("status") or {}).get("allocation") or {}
    return list((allocation.get("devices") or {}).get("results") or ())


async def allocate(bench: Bench, name: str, node: str, number: int) -> None:
    """Give a device to a claim of nobody, as a scheduler does that has not seen what others were given."""
    request = {"name": "gpu", "exactly": {"deviceClassName": DRIVER}}
    body: Json = {"metadata": {"name": name}, "spec": {"devices": {"requests": [request]}}}
    await bench.port.create(ports.RESOURCE_CLAIMS, body, namespace="default")
    result = {"request": "gpu", "driver": DRIVER, "pool": node, "device": f"gpu-{number}"}
    status: dict[str, Any] = {"status": {"allocation": {"devices": {"results": [result]}}}}
    await bench.port.merge_patch(
        ports.RESOURCE_CLAIMS, name, status, namespace="default", subresource="status"
    )


async def give_back(bench: Bench, name: str) -> None:
    """End a pod with a claim, and take the claim back as kube-controller-manager does."""
    (pod,) = [await bench.port.get(ports.PODS, name, namespace="default")]
    await bench.remove(pod)
    empty: dict[str, Any] = {"status": {"allocation": None, "reservedFor": None}}
    await bench.port.merge_patch(
        ports.RESOURCE_CLAIMS, name, empty, namespace="default", subresource="status"
    )


async def withdraw(bench: Bench) -> None:
    """Delete all slices and claims, in use or not."""
    for one in await collect(bench.port, ports.RESOURCE_SLICES):
        await bench.port.delete(ports.RESOURCE_SLICES, one["metadata"]["name"])
    for one in await collect(bench.port, ports.RESOURCE_CLAIMS):
        name, where = one["metadata"]["name"], one["metadata"]["namespace"]
        status = {"status": {"allocation": None, "reservedFor": None}}
        await bench.port.merge_patch(
            ports.RESOURCE_CLAIMS, name, status, namespace=where, subresource="status"
        )
        bare = {"metadata": {"finalizers": None}}
        await bench.port.merge_patch(ports.RESOURCE_CLAIMS, name, bare, namespace=where)
        with suppress(NotFound):  # it waited for that
            await bench.port.delete(ports.RESOURCE_CLAIMS, name, namespace=where)
