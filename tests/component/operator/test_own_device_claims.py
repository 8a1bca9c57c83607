"""ResourceClaims the operator writes for its own pods, beside the real kube-scheduler, which gives devices to others by claims."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from llmos_operator.api import names
from llmos_operator.cluster import port as ports
from llmos_operator.manifests.deviceclaim import FINALIZER
from tests.support.cluster import with_scheduler
from tests.support.dra import allocate, ask, give_back, given, publish, results, withdraw
from tests.support.operator_process import Bench, bench, collect
from tests.support.tinymodels import write_model

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from llmos_operator.local.controlplane import ControlPlane
    from tests.support.operator_process import Json, OperatorProcess

pytestmark = [pytest.mark.anyio, pytest.mark.component]

WHOLE = {"accelerators": 1}
ENABLED = {"LLMOS_RESOURCE_CLAIMS__ENABLED": "true"}


@pytest.fixture(name="plane", scope="module")
def _plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with with_scheduler(tmp_path_factory.mktemp("plane")) as plane:
        yield plane


@pytest.fixture(name="bench")
async def _bench(plane: ControlPlane, tmp_path: Path) -> AsyncIterator[Bench]:
    async with bench(plane, tmp_path) as made:
        yield made
        for operator in made.operators:
            operator.kill()
        await withdraw(made)


async def dra_node(bench: Bench, name: str, count: int) -> None:
    """Register a node whose devices a DRA driver publishes, and no device plugin."""
    await bench.node(name, devices=count, plugin=False)
    await publish(bench, name, count)


async def own_claims(bench: Bench) -> list[Json]:
    return await collect(bench.port, ports.RESOURCE_CLAIMS, bench.namespace)


async def claim_in_use(bench: Bench, workload: str) -> Json:
    """Wait until a workload has one pod and one claim, which has a device and is reserved for that pod; return the claim."""

    async def settled() -> Json | None:
        pods, claims = await bench.pods(workload), await own_claims(bench)
        if len(pods) != 1 or len(claims) != 1:
            return None
        (entry,) = pods[0]["spec"]["resourceClaims"]
        users = (claims[0].get("status") or {}).get("reservedFor") or ()
        used = [one["uid"] for one in users] == [pods[0]["metadata"]["uid"]]
        same = entry["resourceClaimName"] == claims[0]["metadata"]["name"]
        return claims[0] if used and same and results(claims[0]) else None

    return await bench.until(settled, f"the one pod of {workload} has its claim")


async def no_claims(bench: Bench) -> None:
    async def none() -> bool:
        return not await own_claims(bench)

    await bench.until(none, "all claims are gone")


async def test_our_pods_and_those_of_kube_scheduler_get_different_devices(bench: Bench) -> None:
    await dra_node(bench, "n1", 2)
    await ask(bench, "first")
    first = await given(bench, "first")
    bench.operator(**ENABLED)
    uri = write_model(bench.hub, "acme/tiny")
    await bench.apply("ours", uri, resources=WHOLE)
    await bench.until_phase("ours", "Running")
    claim = await claim_in_use(bench, "ours")
    (result,) = results(claim)
    assert result["device"] == f"gpu-{1 - first}"
    assert claim["metadata"]["finalizers"] == [FINALIZER]
    (pod,) = await bench.pods("ours")
    container = pod["spec"]["containers"][0]
    assert container["resources"]["claims"] == [{"name": names.POD_CLAIM}]
    assert "nvidia.com/gpu" not in container["resources"].get("limits", {})

    await ask(bench, "second")  # kube-scheduler has to find that nothing is left
    await bench.apply("waiting", uri, resources=WHOLE)
    await bench.until_condition("waiting", "Scheduled", "False")

    async def unschedulable() -> bool:
        found = await bench.port.get(ports.PODS, "second", namespace="default")
        conditions = found["status"].get("conditions") or ()
        return any("cannot allocate all claims" in str(one.get("message")) for one in conditions)

    await bench.until(unschedulable, "kube-scheduler finds no device for the second")
    await bench.delete("waiting")
    await bench.delete("ours")
    for one in await bench.pods("ours"):  # no garbage collector runs here
        await bench.remove(one)
    await no_claims(bench)
    assert await given(bench, "second") == 1 - first


async def test_a_device_that_a_claim_of_others_gives_back_is_ours(bench: Bench) -> None:
    await dra_node(bench, "n1", 1)
    await ask(bench, "first")
    await given(bench, "first")
    bench.operator(**ENABLED)
    await bench.apply("ours", write_model(bench.hub, "acme/tiny"), resources=WHOLE)
    await bench.until_condition("ours", "Scheduled", "False")
    await give_back(bench, "first")
    await bench.until_phase("ours", "Running")
    await claim_in_use(bench, "ours")


async def test_a_replica_yields_to_a_claim_that_got_its_device_at_the_same_time(bench: Bench) -> None:
    await dra_node(bench, "n1", 2)
    bench.operator(**ENABLED)
    await bench.apply("ours", write_model(bench.hub, "acme/tiny"), resources=WHOLE)
    await bench.until_phase("ours", "Running")
    before = await claim_in_use(bench, "ours")
    taken = int(results(before)[0]["device"].removeprefix("gpu-"))
    await allocate(bench, "rival", "n1", taken)

    async def elsewhere() -> bool:
        (result,) = results(await claim_in_use(bench, "ours"))
        return result["device"] == f"gpu-{1 - taken}"

    await bench.until(elsewhere, "the replica is on the other device")


async def test_nothing_is_shared_on_a_node_whose_devices_are_claimed(bench: Bench) -> None:
    await dra_node(bench, "n1", 1)
    operator = bench.operator(**ENABLED)
    await bench.telemetry(operator, "n1")
    shared = {"accelerators": 1, "sharing": "Shared"}
    await bench.apply("chat", write_model(bench.hub, "acme/tiny"), resources=shared)

    async def told() -> bool:
        found = await bench.workload("chat")
        return "are given by ResourceClaims" in str(found.get("status"))

    await bench.until(told, "its status says why")


def claim_status(method: str, path: str) -> bool:
    return method == "PATCH" and "/resourceclaims/" in path and path.endswith("/status")


def pod_create(method: str, path: str) -> bool:
    return method == "POST" and path.endswith("/namespaces/team/pods")


def killing(
    operator: OperatorProcess, step: Callable[[str, str], bool], number: int
) -> tuple[Callable[[str, str], int], list[str]]:
    """Return a hook that kills an operator instead of letting the request of that number through, and what it noted."""
    seen: list[str] = []

    def hook(method: str, path: str) -> int:
        if step(method, path):
            seen.append(path)
            if len(seen) == number:
                operator.kill()
                return 503
        return 0

    return hook, seen


@pytest.mark.parametrize(
    ("step", "number"),
    [(claim_status, 1), (pod_create, 1), (claim_status, 2)],
    ids=["before-the-allocation", "before-the-pod", "before-the-reservation"],
)
async def test_what_an_operator_that_was_killed_left_behind_is_finished_or_taken_back(
    bench: Bench, step: Callable[[str, str], bool], number: int
) -> None:
    await dra_node(bench, "n1", 1)
    first = bench.operator(**ENABLED)
    bench.proxy.fail, seen = killing(first, step, number)
    await bench.apply("ours", write_model(bench.hub, "acme/tiny"), resources=WHOLE)

    async def killed() -> bool:
        return len(seen) == number and first.process is not None and first.process.poll() is not None

    await bench.until(killed, "the operator was killed at that step")
    (left,) = await own_claims(bench)
    assert bool(results(left)) == (step is pod_create or number > 1)
    bench.operator("operator-b", **ENABLED)
    await bench.until_phase("ours", "Running")
    claim = await claim_in_use(bench, "ours")
    same = claim["metadata"]["uid"] == left["metadata"]["uid"]
    assert same == (number > 1), (
        "with a pod it is finished, without one it goes and the place is decided again"
    )


async def test_a_claim_goes_also_where_the_operator_was_killed_while_it_took_it_back(bench: Bench) -> None:
    await dra_node(bench, "n1", 1)
    first = bench.operator(**ENABLED)
    await bench.apply("ours", write_model(bench.hub, "acme/tiny"), resources=WHOLE)
    await bench.until_phase("ours", "Running")
    await claim_in_use(bench, "ours")

    def take_finalizer(method: str, path: str) -> bool:
        return method == "PATCH" and "/resourceclaims/" in path and not path.endswith("/status")

    bench.proxy.fail, seen = killing(first, take_finalizer, 1)
    await bench.delete("ours")
    for one in await bench.pods("ours"):
        await bench.remove(one)

    async def killed() -> bool:
        return bool(seen) and first.process is not None and first.process.poll() is not None

    await bench.until(killed, "the operator was killed before it took the finalizer off")
    bench.operator("operator-b", **ENABLED)
    await no_claims(bench)
