"""MIG instances come and go under the agent: they are known by UUID, and nobody is told another's numbers."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

import pytest

from llmos_operator.api.telemetry import Verdict
from llmos_operator.telemetry.node_health import NodeHealth
from llmos_operator.telemetry.policy import Reason
from llmos_operator.telemetry.sample import Capability
from tests.support.nvml import EVERY_ERROR, GIB, GPU_IS_LOST, LATER, Double
from tests.support.nvml_table import USED, furnish

if TYPE_CHECKING:
    from llmos_operator.telemetry.nvml.backend import NvmlBackend
    from llmos_operator.telemetry.sample import DeviceInfo, Sample


def by_uuid(backend: NvmlBackend) -> dict[str, tuple[DeviceInfo, Sample]]:
    return {device.uuid: (device, backend.sample(device)) for device in backend.devices()}


def test_instances_follow_their_gpu_and_are_what_can_be_given_out(
    double: Double, backend: NvmlBackend
) -> None:
    double.with_gpu(0).with_instance(0, 0, "MIG-a", gib=20).with_instance(0, 2, "MIG-b", gib=10).with_gpu(
        1
    ).write()
    backend.open()
    gpu, first, second, plain = backend.devices()
    assert (gpu.mig_enabled, gpu.allocatable) == (True, False)
    assert (first.uuid, first.parent, first.gpu_instance, first.memory_bytes) == (
        "MIG-a",
        gpu.uuid,
        1,
        20 * GIB,
    )
    assert (second.uuid, second.gpu_instance, second.index) == ("MIG-b", 3, 0)
    assert first.compute_capability == "9.0"
    assert plain.allocatable


def test_a_gpu_cut_into_instances_has_no_utilisation_and_an_instance_no_heat(
    double: Double, backend: NvmlBackend
) -> None:
    double.with_gpu(0).with_instance(0, 0, "MIG-a").set(gpu__0__mig__0__memory__used=GIB).write()
    backend.open()
    found = by_uuid(backend)
    _, gpu = found[double.uuid(0)]
    _, instance = found["MIG-a"]
    assert gpu.utilization_percent is None
    assert gpu.temperature_celsius == 45
    assert Capability.UTILIZATION not in gpu.capabilities
    assert instance.memory_used_bytes == GIB
    assert instance.temperature_celsius is None
    assert instance.power_milliwatts is None
    assert instance.faults == ()


def test_processes_are_told_per_instance(double: Double, backend: NvmlBackend) -> None:
    double.with_gpu(0).with_instance(0, 0, "MIG-a").with_instance(0, 1, "MIG-b")
    double.set(gpu__0__mig__0__process__0="4000001 10", gpu__0__mig__1__process__0="4000002 20").write()
    backend.open()
    uses = {device.uuid: backend.processes(device) for device in backend.devices()}
    assert [use.pid for use in uses["MIG-a"] or ()] == [4000001]
    assert [use.pid for use in uses["MIG-b"] or ()] == [4000002]


def test_an_instance_that_took_over_a_handle_is_not_taken_for_the_old_one(
    double: Double, backend: NvmlBackend
) -> None:
    double.with_gpu(0).with_instance(0, 0, "MIG-a").set(gpu__0__mig__0__memory__used=111).write()
    backend.open()
    _, old = backend.devices()
    assert backend.sample(old).memory_used_bytes == 111
    double.with_instance(0, 0, "MIG-b").set(gpu__0__mig__0__memory__used=222).write()
    sample = backend.sample(old)
    assert sample.uuid == "MIG-a"
    assert sample.memory_used_bytes is None, "that is the new instance's memory"
    assert backend.processes(old) is None
    _, new = backend.devices()
    assert (new.uuid, backend.sample(new).memory_used_bytes) == ("MIG-b", 222)


@pytest.mark.parametrize("seed", range(20))
def test_churn_never_mixes_instances_up(double: Double, backend: NvmlBackend, seed: int) -> None:
    random_ = random.Random(seed)
    double.with_gpu(0).with_gpu(1).write()
    backend.open()
    alive: dict[tuple[int, int], str] = {}
    count = 0

    def change() -> None:
        nonlocal count
        gpu, slot = random_.randrange(2), random_.randrange(7)
        double.drop(f"gpu.{gpu}.mig.{slot}.")
        if alive.pop((gpu, slot), None) is None or random_.random() < 0.5:
            count += 1
            alive[gpu, slot] = f"MIG-{seed}-{count}"
            double.with_instance(gpu, slot, alive[gpu, slot], gib=1 + count, instance=slot + 1)
            double.set(**{f"gpu__{gpu}__mig__{slot}__memory__used": 1000 + count})
        double.write()

    for _ in range(15):
        change()
        backend._enumerate_at = 0.0
        devices = backend.devices()
        assert {device.uuid for device in devices if device.is_mig} == set(alive.values())
        if random_.random() < 0.5:
            change()
        for device in devices:
            used = backend.sample(device).memory_used_bytes
            if device.is_mig and used is not None:
                assert used == 1000 + int(device.uuid.rsplit("-", 1)[1]), "somebody else's memory"


MIG_CALLS = [used.name for used in USED if used.machine == "mig"] + [
    "nvmlDeviceGetUUID",
    "nvmlDeviceGetMemoryInfo_v2",
    "nvmlDeviceGetComputeRunningProcesses_v3",
]


@pytest.mark.parametrize("code", EVERY_ERROR)
@pytest.mark.parametrize("call", MIG_CALLS)
def test_churn_while_a_call_fails_mixes_nothing_up_and_ends_with_it(
    double: Double, backend: NvmlBackend, call: str, code: int
) -> None:
    furnish(double, "mig")
    double.write()
    backend.open()
    of = {"MIG-a": GIB, "MIG-b": 2 * GIB, "MIG-c": 3 * GIB}

    def look() -> dict[str, int | None]:
        backend._enumerate_at = 0.0
        found = {}
        for device in backend.devices():
            found[device.uuid] = backend.sample(device).memory_used_bytes
            assert all(use.memory_bytes for use in backend.processes(device) or ()), "a process that uses 0"
        return {uuid: used for uuid, used in found.items() if uuid.startswith("MIG")}

    def cut(slot: int, uuid: str) -> None:
        double.drop(f"gpu.0.mig.{slot}.").with_instance(0, slot, uuid, instance=slot + 3)
        double.set(**{f"gpu__0__mig__{slot}__memory__used": of[uuid]})

    assert look() == {"MIG-a": GIB}
    # Of the GPU itself a driver that is gone would end the session, which is right.
    double.error(call, code, "MIG-a" if call == "nvmlDeviceGetUUID" else "")
    cut(1, "MIG-b")
    for slot, uuid in ((0, "MIG-c"), (1, "MIG-a"), (0, "MIG-b")):
        double.write()
        assert all(used in {None, of[name]} for name, used in look().items()), (
            "zero, or somebody else's memory"
        )
        cut(slot, uuid)
    double.heal().write()
    look()
    backend._monotonic = lambda: time.monotonic() + LATER
    assert look() == {"MIG-b": 2 * GIB, "MIG-a": GIB}


def test_an_xid_of_one_instance_spares_its_neighbours(double: Double, backend: NvmlBackend) -> None:
    double.with_gpu(0).with_instance(0, 0, "MIG-a", instance=1).with_instance(
        0, 1, "MIG-b", instance=2
    ).write()
    backend.open()
    health = NodeHealth(1.0)
    devices = backend.devices()
    assert backend.events(0.0) == ()
    double.event(double.uuid(0), 95, instance=1).write()
    samples = {device.uuid: backend.sample(device) for device in devices}
    health.observe(devices, samples, backend.events(5.0), (), {}, 1000.0)
    assert health.of("MIG-a").reason is Reason.UNCONTAINED_ECC
    assert health.of("MIG-b").verdict is Verdict.HEALTHY
    assert health.of(double.uuid(0)).verdict is Verdict.HEALTHY


def test_an_xid_of_the_whole_gpu_takes_all_instances(double: Double, backend: NvmlBackend) -> None:
    double.with_gpu(0).with_instance(0, 0, "MIG-a").with_instance(0, 1, "MIG-b").write()
    backend.open()
    health = NodeHealth(1.0)
    devices = backend.devices()
    assert backend.events(0.0) == ()
    double.event(double.uuid(0), 79).write()
    samples = {device.uuid: backend.sample(device) for device in devices}
    health.observe(devices, samples, backend.events(5.0), (), {}, 1000.0)
    for uuid in (double.uuid(0), "MIG-a", "MIG-b"):
        assert health.of(uuid).reason is Reason.FALLEN_OFF_BUS


def test_a_sick_gpu_does_not_make_its_instances_disappear(double: Double, backend: NvmlBackend) -> None:
    double.with_gpu(0).with_instance(0, 0, "MIG-a").write()
    backend.open()
    assert len(backend.devices()) == 2
    double.error("*", GPU_IS_LOST, double.uuid(0)).error("*", GPU_IS_LOST, "MIG-a").write()
    backend._enumerate_at = 0.0
    assert [device.uuid for device in backend.devices()] == [double.uuid(0), "MIG-a"]


def test_gpm_of_an_instance_is_asked_through_its_gpu(double: Double, backend: NvmlBackend) -> None:
    double.with_gpu(0).with_instance(0, 0, "MIG-a", instance=5)
    double.set(gpu__0__mig__0__gpm__2="80", gpu__0__mig__0__gpm__10="10").write()
    backend.open()
    _, instance = backend.devices()
    backend.sample(instance)
    backend.refresh(instance.uuid)
    counters = backend.sample(instance).counters
    assert counters is not None
    assert (counters.sm_active_ratio, counters.dram_active_ratio) == (0.8, 0.1)
    assert counters.tensor_active_ratio is None
