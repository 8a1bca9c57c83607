"""Shared GPUs beside kube-scheduler's pods: holder pods take them from the device plugin, and give them back.

kubelet, kube-scheduler, containerd and the chart are real; the device plugin and the NVML library are doubles over one file.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from llmos_operator.api import names
from scripts.realnode import layout
from tests.node.conftest import NAMESPACE as SYSTEM
from tests.support.deviceplugin import RESOURCE
from tests.support.nodedevices import NAMESPACE
from tests.support.nodegpus import free, held_by_holders, holders, placed, serves, shared
from tests.support.standins import stand_in
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from tests.node.conftest import Installed
    from tests.support.nodedevices import Devices

pytestmark = pytest.mark.node


@pytest.fixture
def gpus(plugin: tuple[Installed, Devices]) -> tuple[Installed, Devices]:
    """Three GPUs that nobody holds."""
    plugin[0].tools.kubectl("uncordon", layout.NAME)
    return free(plugin)


def scale(installed: Installed, replicas: int) -> None:
    """Change how many operators there are, and wait until there are so many."""
    words = ("scale", "deployment", "llmos-operator", f"--namespace={SYSTEM}", f"--replicas={replicas}")
    installed.tools.kubectl(*words)
    eventually(lambda: len(installed.pods("operator")) == replicas, f"{replicas} operators")


def refused(devices: Devices, name: str) -> bool:
    conditions = devices.status(name).get("conditions", [])
    return any(f"Insufficient {RESOURCE}" in one.get("message", "") for one in conditions)


def test_shared_work_starts_on_a_device_that_a_holder_pod_has_and_gives_it_back(
    gpus: tuple[Installed, Devices],
) -> None:
    installed, devices = gpus
    installed.tools.apply(shared("left"), shared("right"))
    serves(installed, "left", "right")
    (holder,) = holders(installed).values()
    ((device, pod),) = held_by_holders(installed, devices).items()
    assert pod.endswith(holder["metadata"]["name"])
    assert set(placed(installed, "left").values()) == set(placed(installed, "right").values()) == {device}
    (owner,) = holder["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"]) == ("Deployment", "llmos-operator")
    assert holder["spec"]["containers"][0]["resources"]["limits"][RESOURCE] == "1"
    eventually(lambda: next(iter(holders(installed).values()))["status"].get("phase") == "Running", "it runs")
    installed.remove("left")
    assert held_by_holders(installed, devices) == {device: pod}
    installed.clear()
    eventually(lambda: holders(installed) == {}, "it goes after the last one")
    eventually(lambda: devices.held() == {}, "the device is the plugin's again")


def test_pods_of_kube_scheduler_get_the_other_devices_and_wait_for_the_held_one(
    gpus: tuple[Installed, Devices],
) -> None:
    installed, devices = gpus
    installed.tools.apply(shared("tenant", 2))
    for number in range(3):
        devices.run(f"other-{number}", 1)
    most = 0

    def settled() -> bool:
        nonlocal most
        held = devices.held()
        most = max(most, *(len(pods) for pods in held.values()), 0)
        tenants = set(placed(installed, "tenant").values())
        others = {uuid for uuid, pods in held.items() if pods[0].startswith(f"{NAMESPACE}/")}
        assert not tenants & others, "a device of others is shared by us"
        waiting = sum(refused(devices, f"other-{number}") for number in range(3))
        running = sum(devices.status(f"other-{number}").get("phase") == "Running" for number in range(3))
        return len(held) == 3 and running + waiting == 3 and bool(tenants) == (running == 2)

    eventually(settled, "everybody has a device or is told that there is none", 150.0)
    assert most == 1
    devices.clear()
    serves(installed, "tenant")
    assert set(placed(installed, "tenant").values()) == set(held_by_holders(installed, devices))
    for number in range(3):
        devices.run(f"again-{number}", 1)
    eventually(
        lambda: (
            sum(devices.status(f"again-{n}").get("phase") == "Running" for n in range(3)) == 2
            and sum(refused(devices, f"again-{n}") for n in range(3)) == 1
        ),
        "two get a device, one waits for that of the tenants",
    )
    waiting = next(f"again-{n}" for n in range(3) if refused(devices, f"again-{n}"))
    installed.clear()
    devices.running(waiting)


def test_whole_work_gets_the_device_back_at_once(gpus: tuple[Installed, Devices]) -> None:
    installed, devices = gpus
    devices.run("train", 2)
    devices.running("train")
    installed.tools.apply(shared("tenant"))
    serves(installed, "tenant")
    whole = stand_in("whole", accelerators=1, sharing="Exclusive", memory="8Gi")
    installed.tools.apply(whole)
    eventually(
        lambda: installed.condition("whole", "Scheduled").get("reason") == "NoCapacity", "whole work waits"
    )
    installed.tools.kubectl("delete", "mw", "tenant", "--namespace=default", "--wait=false")
    serves(installed, "whole")
    assert holders(installed) == {}
    assert sorted(map(len, devices.held().values())) == [1, 1, 1]


def test_a_lost_holder_pod_is_made_anew_and_its_tenants_go_on(gpus: tuple[Installed, Devices]) -> None:
    installed, devices = gpus
    installed.tools.apply(shared("tenant"))
    serves(installed, "tenant")
    before = installed.pods_of("tenant")[0]["metadata"]["uid"]
    ((device, pod),) = held_by_holders(installed, devices).items()
    uid = holders(installed)[pod]["metadata"]["uid"]
    installed.tools.kubectl("delete", "pod", pod.partition("/")[2], f"--namespace={SYSTEM}")

    def again() -> bool:
        found = held_by_holders(installed, devices).get(device, "")
        return found in holders(installed) and holders(installed)[found]["metadata"]["uid"] != uid

    eventually(again, "another holder pod has the device")
    (same,) = installed.pods_of("tenant")
    assert same["metadata"]["uid"] == before
    eventually(lambda: len(holders(installed)) == 1, "no more than that one stays")
    told = installed.items("events", "default", fieldSelector="reason=HolderLost")
    assert any(device in one["message"] for one in told)


def test_a_new_leader_finds_the_holder_pods_of_the_former_one(gpus: tuple[Installed, Devices]) -> None:
    installed, devices = gpus
    installed.tools.apply(shared("tenant"))
    serves(installed, "tenant")
    before = held_by_holders(installed, devices)
    leader = installed.leader()
    pod = leader.partition("_")[0]
    installed.tools.kubectl("delete", "pod", pod, f"--namespace={SYSTEM}", "--wait=false")
    eventually(lambda: installed.leader() not in {"", leader}, "another one leads")
    installed.tools.apply(shared("second"))
    serves(installed, "second")
    assert held_by_holders(installed, devices) == before
    assert set(placed(installed, "second").values()) == set(before)
    installed.clear()
    eventually(lambda: holders(installed) == {}, "the new leader gives the device back")


def test_a_drained_node_is_left_without_tenants_and_holder_pods(gpus: tuple[Installed, Devices]) -> None:
    installed, devices = gpus
    installed.tools.apply(shared("tenant"))
    serves(installed, "tenant")
    selector = f"--pod-selector={names.LABEL_ROLE} in (runtime,{names.ROLE_HOLDER})"
    installed.tools.kubectl("drain", layout.NAME, selector, "--delete-emptydir-data", "--timeout=90s")
    eventually(lambda: devices.held() == {}, "all devices are the plugin's")
    eventually(
        lambda: installed.condition("tenant", "Scheduled").get("reason") == "NoCapacity", "the workload waits"
    )
    assert holders(installed) == {}
    installed.tools.kubectl("uncordon", layout.NAME)
    serves(installed, "tenant")
    assert len(held_by_holders(installed, devices)) == 1


def test_the_cluster_shows_who_holds_what_for_whom(gpus: tuple[Installed, Devices]) -> None:
    installed, devices = gpus
    installed.tools.apply(shared("tenant"))
    serves(installed, "tenant")
    ((device, pod),) = held_by_holders(installed, devices).items()
    node = installed.api.get("gpunodes", layout.NAME)
    (shown,) = [one for one in node["status"]["devices"] if one["uuid"] == device]
    assert [one["pod"] for one in shown["holders"]] == [pod]

    def counted() -> bool:
        status = installed.api.get("gpunodes", layout.NAME)["status"]
        return {one["uuid"]: one["claims"] for one in status.get("ledger", {}).get("devices", [])}.get(
            device
        ) == 1

    eventually(counted, "the ledger counts the tenant once and the holder pod not at all")


def test_a_device_that_others_were_given_meanwhile_is_told_and_nothing_joins_its_tenants(
    gpus: tuple[Installed, Devices],
) -> None:
    installed, devices = gpus
    installed.tools.apply(shared("tenant"))
    serves(installed, "tenant")
    ((device, pod),) = held_by_holders(installed, devices).items()
    before = installed.pods_of("tenant")[0]["metadata"]["uid"]
    scale(installed, 0)  # nobody is there to take the device again
    installed.tools.kubectl("delete", "pod", pod.partition("/")[2], f"--namespace={SYSTEM}")
    for number in range(3):
        devices.run(f"other-{number}", 1)
    for number in range(3):
        devices.running(f"other-{number}")
    scale(installed, 2)
    installed.tools.apply(shared("second"))

    def told() -> bool:
        events = installed.items("events", "default", fieldSelector="reason=HolderLost")
        return any(device in one["message"] and "has given it to" in one["message"] for one in events)

    eventually(told, "who shares the device now is told")
    eventually(
        lambda: installed.condition("second", "Scheduled").get("reason") == "NoCapacity", "nobody joins"
    )
    assert holders(installed) == {}
    devices.clear()
    serves(installed, "second")
    assert set(placed(installed, "second").values()) <= set(held_by_holders(installed, devices))
    eventually(lambda: device in held_by_holders(installed, devices), "the tenants' device is held again")
    assert installed.pods_of("tenant")[0]["metadata"]["uid"] == before
