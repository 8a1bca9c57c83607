"""MIG instances on a real API server: what pods ask for, and which instance the kubelet then gave them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from llmos_operator.api import names
from llmos_operator.cluster import port as ports
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
    resources = {"mixed": {SMALL: profiles.count("1g.10gb"), LARGE: profiles.count("3g.40gb")}}.get(
        strategy, {}
    )
    amounts = {name: str(count) for name, count in resources.items()}
    labels = {names.LABEL_MIG_STRATEGY: strategy, names.LABEL_SIMULATED: None}
    await bench.port.merge_patch(ports.NODES, "n1", {"metadata": {"labels": labels}})
    body = {"status": {"capacity": amounts, "allocatable": amounts}}
    await bench.port.merge_patch(ports.NODES, "n1", body, subresource="status")
    await tell(bench, *profiles, holders=holders)


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
