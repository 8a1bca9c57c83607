"""MIG instances on a real API server: what pods ask for, and which instance the kubelet then gave them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from llmos_operator.api import names
from llmos_operator.cluster import port as ports
from tests.support.operator_process import collect
from tests.support.tinymodels import write_model

if TYPE_CHECKING:
    from tests.support.operator_process import Bench, Json

pytestmark = [pytest.mark.anyio, pytest.mark.component]

SMALL, LARGE = "nvidia.com/mig-1g.10gb", "nvidia.com/mig-3g.40gb"
PARTS = {"1g.10gb": 142, "3g.40gb": 500}


async def cut(
    bench: Bench, *profiles: str, strategy: str = "mixed", holders: dict[int, str] | None = None
) -> None:
    """Make a node that is not simulated, with one GPU cut into instances and what its device plugin advertises of them."""
    await bench.node("n1", devices=0)
    labels = {names.LABEL_MIG_STRATEGY: strategy, names.LABEL_SIMULATED: None}
    await bench.port.merge_patch(ports.NODES, "n1", {"metadata": {"labels": labels}})
    if strategy == "mixed":
        await advertise(bench, *profiles)
    await tell(bench, *profiles, holders=holders)


async def advertise(bench: Bench, *profiles: str) -> None:
    """Let the node's device plugin tell how many of each profile there are."""
    amounts = {SMALL: str(profiles.count("1g.10gb")), LARGE: str(profiles.count("3g.40gb"))}
    body = {"status": {"capacity": amounts, "allocatable": amounts}}
    await bench.port.merge_patch(ports.NODES, "n1", body, subresource="status")


async def cut_again(bench: Bench, *profiles: str) -> None:
    """Let mig-manager and all who follow it have done their work."""
    await tell(bench, *profiles)
    await advertise(bench, *profiles)


async def tell(bench: Bench, *profiles: str, holders: dict[int, str] | None = None) -> None:
    """Write the instances as an agent does, with the pods the kubelet says they were given to."""
    listed: list[Json] = []
    for number, profile in enumerate(profiles):
        held = (holders or {}).get(number)
        listed.append(
            {
                "uuid": f"MIG-{number}",
                "index": 0,
                "product": f"NVIDIA H100 80GB HBM3 MIG {profile}",
                "memory": f"{profile.partition('.')[2].removesuffix('gb')}Gi",
                "computeCapability": "9.0",
                "mig": True,
                "parent": "GPU-0",
                "migProfile": profile,
                "partMilli": PARTS[profile],
                "health": {"verdict": "Healthy", "reason": ""},
                **({"holders": [{"pod": held, "container": "runtime"}]} if held else {}),
            }
        )
    body = {"metadata": {"name": "n1"}, "status": {"mode": "nvml", "devices": listed}}
    await bench.port.patch_status(ports.GPU_NODES, body, manager="test-agent")


def mig(memory: str = "5Gi", **more: Any) -> Json:
    return {"resources": {"sharing": "MIG", "memory": memory, **more}}


def runtime(pod: Json) -> tuple[Json, str | None, Json]:
    """Return the limits of the runtime, the devices it names itself, and the claim."""
    container = pod["spec"]["containers"][0]
    named = {one["name"]: one.get("value") for one in container["env"]}.get(names.ENV_DEVICES)
    claim = json.loads(pod["metadata"]["annotations"][names.ANNOTATION_CLAIM])
    return container["resources"].get("limits", {}), named, claim


async def pod_of(bench: Bench, name: str) -> Json:
    pods = await bench.until(lambda: bench.pods(name), f"the pod of {name}")
    return dict(pods[0])


async def test_an_instance_is_asked_of_the_device_plugin_by_profile_and_the_kubelets_choice_counts(
    bench: Bench,
) -> None:
    profiles = ("3g.40gb", "1g.10gb", "1g.10gb")
    await cut(bench, *profiles)
    bench.operator()
    uri = write_model(bench.hub, "acme/tiny")
    await bench.apply("first", uri, **mig())
    pod = await pod_of(bench, "first")
    limits, named, claim = runtime(pod)
    assert (limits, named) == ({SMALL: "1"}, None), "the plugin names what it gives"
    assert (claim["devices"], claim["gpuMilli"]) == (["MIG-1"], 142)
    key = f"{bench.namespace}/{pod['metadata']['name']}"
    await tell(bench, *profiles, holders={2: key})

    async def moved() -> bool:
        return runtime(await pod_of(bench, "first"))[2]["devices"] == ["MIG-2"]

    await bench.until(moved, "the claim follows the instance the kubelet gave")
    await bench.apply("second", uri, **mig())
    assert runtime(await pod_of(bench, "second"))[2]["devices"] == ["MIG-1"], "nobody has it"
    await bench.apply("large", uri, **mig(migProfile="2g.20gb"))
    limits, _, claim = runtime(await pod_of(bench, "large"))
    assert (limits, claim["devices"]) == ({LARGE: "1"}, ["MIG-0"])
    await bench.apply("late", uri, **mig())
    await waits_for(bench, "late", "0 of 2 1g.10gb free, 0 of 1 3g.40gb free")
    await bench.delete("second")
    assert runtime(await pod_of(bench, "late"))[2]["devices"] == ["MIG-1"]


async def test_without_a_device_plugin_for_instances_the_pod_names_its_own(bench: Bench) -> None:
    await cut(bench, "1g.10gb", strategy="none")
    bench.operator()
    uri = write_model(bench.hub, "acme/tiny")
    await bench.apply("first", uri, **mig())
    limits, named, claim = runtime(await pod_of(bench, "first"))
    assert (limits, named, claim["devices"]) == ({}, "MIG-0", ["MIG-0"])


async def test_what_no_instance_holds_says_which_there_are(bench: Bench) -> None:
    await cut(bench, "1g.10gb", "1g.10gb")
    bench.operator()
    uri = write_model(bench.hub, "acme/tiny")
    await bench.apply("large", uri, **mig(migProfile="7g.80gb"))
    await waits_for(bench, "large", "migProfile 7g.80gb")
    await bench.apply("wide", uri, **mig("30Gi"))
    await waits_for(bench, "wide", "2 of 2 1g.10gb free")


async def waits_for(bench: Bench, name: str, words: str) -> None:
    """Wait until a workload says that it waits, and why."""

    async def said() -> bool:
        decision = ((await bench.workload(name)).get("status") or {}).get("decision") or {}
        return words in str(decision.get("message"))

    await bench.until(said, f"{name} says {words!r}")


CUTTING = {"LLMOS_PARTITIONING__ENABLED": "true", "LLMOS_SCHEDULING__TELEMETRY_INTERVAL": "1"}


async def labels_of(bench: Bench) -> dict[str, str]:
    node = await bench.port.get(ports.NODES, "n1")
    return dict(node["metadata"]["labels"])


async def says(bench: Bench, state: str) -> None:
    """Let mig-manager say how far it is."""
    await bench.port.merge_patch(ports.NODES, "n1", {"metadata": {"labels": {names.LABEL_MIG_STATE: state}}})


async def asked_for(bench: Bench, layout: str) -> None:
    async def done() -> bool:
        return (await labels_of(bench)).get(names.LABEL_MIG_CONFIG) == layout

    await bench.until(done, f"n1 is asked to be cut into {layout}")


async def test_gpus_that_nobody_uses_are_cut_for_who_waits_by_the_label_of_mig_manager(bench: Bench) -> None:
    await cut(bench, "1g.10gb", "1g.10gb")
    await says(bench, "success")
    told = await events(bench, "Partitioning")
    operator = bench.operator(**CUTTING)
    await bench.telemetry(operator, "n1")
    uri = write_model(bench.hub, "acme/tiny")
    await bench.apply("large", uri, **mig("30Gi"))
    await asked_for(bench, "all-3g.40gb")
    assert names.LABEL_MIG_STATE not in await labels_of(bench), (
        "an old success says nothing of what is asked for now"
    )
    await waits_for(bench, "large", "waits until the GPUs of node n1 are cut into all-3g.40gb (asked for)")
    await bench.apply("small", uri, **mig())
    await waits_for(bench, "small", "are cut into all-3g.40gb")
    assert not await bench.pods("small"), "nothing is given of GPUs that are about to be cut"
    await says(bench, "pending")
    await waits_for(bench, "large", "(pending)")
    await cut_again(bench, "3g.40gb", "3g.40gb")
    await says(bench, "success")
    assert runtime(await pod_of(bench, "large"))[2]["devices"] == ["MIG-0"]
    assert runtime(await pod_of(bench, "small"))[2]["devices"] == ["MIG-1"]
    await bench.apply("wide", uri, **mig("60Gi"))
    await waits_for(bench, "wide", "0 of 2 3g.40gb free")
    assert (await labels_of(bench))[names.LABEL_MIG_CONFIG] == "all-3g.40gb", "the node is in use"
    assert await events(bench, "Partitioning") == told + 1


async def test_a_mig_manager_that_does_not_begin_is_told_of_and_not_asked_again(bench: Bench) -> None:
    await cut(bench, "1g.10gb")
    await says(bench, "success")
    told, warned = await events(bench, "Partitioning"), await events(bench, "NotPartitioned")
    operator = bench.operator(**CUTTING, LLMOS_PARTITIONING__PATIENCE="1")
    await bench.telemetry(operator, "n1")
    uri = write_model(bench.hub, "acme/tiny")
    await bench.apply("large", uri, **mig("30Gi"))

    async def given_up() -> bool:
        return (await labels_of(bench)).get(names.LABEL_MIG_STATE) == "failed"

    await bench.until(given_up, "the operator gives up")
    await waits_for(bench, "large", "1 of 1 1g.10gb free")

    async def warned_again() -> bool:
        return await events(bench, "NotPartitioned") > warned

    await bench.until(warned_again, "an Event tells of it")
    await bench.apply("small", uri, **mig())
    assert runtime(await pod_of(bench, "small"))[2]["devices"] == ["MIG-0"], "the node is used as it is"
    assert await events(bench, "Partitioning") == told + 1, "it is not asked again"


async def events(bench: Bench, reason: str) -> int:
    """Return how many Events about the node's devices have a reason."""
    found = await collect(bench.port, ports.EVENTS, "default")
    return sum(one["reason"] == reason and one["regarding"]["name"] == "n1" for one in found)
