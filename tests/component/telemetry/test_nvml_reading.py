"""What the backend reads from devices of different kinds, through the real pynvml."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from llmos_operator.telemetry import attribution
from llmos_operator.telemetry.attribution import Owner
from llmos_operator.telemetry.backend import BackendUnavailable, DriverLost
from llmos_operator.telemetry.sample import Capability, ClockReason, EventKind, Link, RecoveryAction
from tests.support.nvml import (
    DOUBLE_BIT_EVENT,
    DRIVER_NOT_LOADED,
    FUNCTION_NOT_FOUND,
    GIB,
    GPU_IS_LOST,
    INVALID_ARGUMENT,
    NO_PERMISSION,
    NOT_READY,
    NOT_SUPPORTED,
    UNINITIALIZED,
    UNKNOWN,
    Double,
    load,
)

if TYPE_CHECKING:
    from pathlib import Path

    from llmos_operator.telemetry.nvml.backend import NvmlBackend
    from llmos_operator.telemetry.sample import DeviceInfo


def only(backend: NvmlBackend) -> DeviceInfo:
    (device,) = backend.devices()
    return device


def test_a_datacentre_card_tells_everything(double: Double, backend: NvmlBackend) -> None:
    double.with_gpu(0, "h100").write()
    driver = backend.open()
    device = only(backend)
    sample = backend.sample(device)
    assert (driver.version, driver.cuda) == ("570.86.15", "12.8")
    assert device.product == "NVIDIA H100 80GB HBM3"
    assert device.compute_capability == "9.0"
    assert device.bus_id == "00000000:10:00.0"
    assert device.memory_bytes == 80 * GIB - GIB // 2, "what workloads can have excludes the driver's reserve"
    assert sample.memory_total_bytes == device.memory_bytes
    assert sample.memory_used_bytes == 5 * GIB
    assert sample.memory_reserved_bytes == GIB // 2
    assert (sample.utilization_percent, sample.memory_utilization_percent) == (40, 20)
    assert (sample.temperature_celsius, sample.power_milliwatts) == (45, 250_000)
    assert sample.energy_millijoules == 123_456_789
    assert sample.clock_reasons == frozenset()
    counters = sample.counters
    assert counters is not None
    assert (counters.sm_clock_mhz, counters.memory_clock_mhz, counters.power_limit_milliwatts) == (
        1755,
        2619,
        700_000,
    )
    assert (counters.ecc_volatile_uncorrected, counters.ecc_aggregate_corrected) == (0, 2)
    assert (counters.remap_pending, counters.remap_failed, counters.sram_threshold_exceeded) == (
        False,
        False,
        False,
    )
    assert counters.retired_pages is None, "rows are remapped on this card, pages are not retired"
    assert (counters.nvlinks_active, counters.nvlinks_down, counters.nvlink_errors) == (4, 0, 0)
    assert (counters.nvlink_tx_bytes, counters.nvlink_rx_bytes) == (2048 * 1024, 1024 * 1024)
    assert (counters.pcie_tx_bytes, counters.pcie_rx_bytes, counters.pcie_replays) == (
        1_000_000,
        2_000_000,
        0,
    )
    assert (counters.pcie_generation, counters.pcie_width) == (5, 16)
    assert counters.memory_temperature_celsius == 52
    assert counters.recovery_action is RecoveryAction.NONE
    assert sample.faults == ()
    assert sample.answered
    missing = set(Capability) - sample.capabilities
    assert missing == {Capability.EVENTS, Capability.PROCESSES, Capability.RETIRED_PAGES}


def test_a_gaming_card_has_gaps_and_no_zeros(double: Double, backend: NvmlBackend) -> None:
    double.with_gpu(0, "geforce").write()
    backend.open()
    sample = backend.sample(only(backend))
    counters = sample.counters
    assert counters is not None
    assert sample.energy_millijoules is None
    assert counters.ecc_volatile_corrected is None
    assert counters.remap_pending is None
    assert counters.retired_pages is None
    assert counters.nvlinks_active is None
    assert counters.nvlink_errors is None
    assert counters.pcie_replays is None
    assert counters.memory_temperature_celsius is None
    assert counters.recovery_action is None
    assert sample.faults == ()
    for capability in (
        Capability.ECC,
        Capability.ENERGY,
        Capability.NVLINK,
        Capability.REMAPPED_ROWS,
        Capability.GPM,
    ):
        assert capability not in sample.capabilities
    assert {Capability.MEMORY, Capability.UTILIZATION, Capability.CLOCKS} <= sample.capabilities


def test_an_older_card_retires_pages_and_counts_errors_per_link(double: Double, backend: NvmlBackend) -> None:
    double.with_gpu(0, "v100").write()
    backend.open()
    counters = backend.sample(only(backend)).counters
    assert counters is not None
    assert (counters.retired_pages, counters.retirement_pending) == (1, False)
    assert counters.nvlink_errors == 6, "two links with three counters of one each"


def test_drivers_that_know_only_the_old_names_are_read_as_well(double: Double, backend: NvmlBackend) -> None:
    double.with_gpu(0, reasons=0x4 | 0x40)
    for call in ("MemoryInfo_v2", "TemperatureV", "CurrentClocksEventReasons"):
        double.error(f"nvmlDeviceGet{call}", FUNCTION_NOT_FOUND)
    library = load(double.write())
    backend.open()
    device = only(backend)
    first, second = backend.sample(device), backend.sample(device)
    assert first.memory_used_bytes == 5 * GIB + GIB // 2, "the old call counts the driver's reserve as used"
    assert first.memory_reserved_bytes is None
    assert Capability.MEMORY_RESERVED not in first.capabilities
    assert first.temperature_celsius == 45
    assert first.clock_reasons == {ClockReason.POWER_CAP, ClockReason.HW_THERMAL}
    before = library.nvmlDoubleCalls(b"nvmlDeviceGetTemperatureV")
    assert backend.sample(device).temperature_celsius == second.temperature_celsius == 45
    assert library.nvmlDoubleCalls(b"nvmlDeviceGetTemperatureV") == before, (
        "the new name is not tried every second"
    )


def test_what_a_device_cannot_tell_is_not_asked_again_at_once(double: Double, backend: NvmlBackend) -> None:
    library = load(double.with_gpu(0).error("nvmlDeviceGetPowerUsage", NOT_SUPPORTED).write())
    backend.open()
    device = only(backend)
    asked = library.nvmlDoubleCalls(b"nvmlDeviceGetPowerUsage")
    for _ in range(5):
        assert backend.sample(device).power_milliwatts is None
    assert library.nvmlDoubleCalls(b"nvmlDeviceGetPowerUsage") == asked + 1


def test_a_reading_that_failed_once_is_tried_again(double: Double, backend: NvmlBackend) -> None:
    double.with_gpu(0).error("nvmlDeviceGetPowerUsage", NOT_READY).write()
    backend.open()
    device = only(backend)
    assert backend.sample(device).power_milliwatts is None
    double.heal().write()
    assert backend.sample(device).power_milliwatts == 250_000


def test_gpm_ratios_come_with_the_second_reading(double: Double, backend: NvmlBackend) -> None:
    double.with_gpu(0).write()
    backend.open()
    device = only(backend)
    first = backend.sample(device).counters
    backend.refresh(device.uuid)
    second = backend.sample(device).counters
    assert first is not None
    assert second is not None
    assert first.sm_active_ratio is None
    assert (second.sm_active_ratio, second.sm_occupancy_ratio) == (0.375, 0.25)
    assert (second.tensor_active_ratio, second.dram_active_ratio) == (0.125, 0.5)


def test_a_link_that_goes_down_is_counted_and_one_that_never_was_up_is_not(
    double: Double, backend: NvmlBackend
) -> None:
    double.with_gpu(0, nvlink__3__state=0).write()
    backend.open()
    device = only(backend)
    before = backend.sample(device).counters
    double.set(gpu__0__nvlink__1__state=0).write()
    backend.refresh(device.uuid)
    after = backend.sample(device).counters
    assert before is not None
    assert after is not None
    assert (before.nvlinks_active, before.nvlinks_down) == (3, 0)
    assert (after.nvlinks_active, after.nvlinks_down) == (2, 1)


def test_neighbours_are_told_by_links_and_levels(double: Double, backend: NvmlBackend) -> None:
    double.with_gpu(
        0, ancestor__1=10, ancestor__2=50, nvlink__0__remote="0000:11:00", nvlink__1__remote="0000:11:00"
    )
    double.with_gpu(1, "geforce", ancestor__2=50).with_gpu(2, "geforce").write()
    backend.open()
    first, _, third = backend.devices()
    assert first.links == (Link(double.uuid(1), 2, "single"), Link(double.uuid(2), 0, "system"))
    assert third.links == (Link(double.uuid(0), 0, "system"), Link(double.uuid(1), 0, "system"))


def test_gpus_on_switches_are_linked_to_each_other(double: Double, backend: NvmlBackend) -> None:
    switched = {f"nvlink__{link}__type": 2 for link in range(4)}
    direct = {"nvlink__0__type": 0, "nvlink__0__remote": "0000:10:00"}
    double.with_gpu(0, ancestor__1=50, ancestor__2=50, ancestor__3=50, **switched)
    double.with_gpu(1, ancestor__2=50, ancestor__3=50, **switched, nvlink__3__state=0)
    double.with_gpu(2, ancestor__3=50, **direct).with_gpu(3, "geforce").write()
    backend.open()
    first, second, third, _ = (one.links for one in backend.devices())
    assert first == (
        Link(double.uuid(1), 3, "system"),  # as many as the one with fewer has up
        Link(double.uuid(2), 0, "system"),
        Link(double.uuid(3), 0, "system"),
    )
    assert [link.nvlinks for link in second] == [3, 0, 0]
    assert [link.nvlinks for link in third] == [1, 0, 0], "a link to a GPU leads to that one alone"


def test_a_driver_that_does_not_know_of_switches_tells_of_direct_links(
    double: Double, backend: NvmlBackend
) -> None:
    ends = {"nvlink__0__remote": "0000:c5:00", "nvlink__1__remote": "0000:11:00"}
    double.with_gpu(0, ancestor__1=50, **ends)
    double.error("nvmlDeviceGetNvLinkRemoteDeviceType", FUNCTION_NOT_FOUND)
    double.with_gpu(1, "geforce").write()
    backend.open()
    first, _ = backend.devices()
    assert first.links == (Link(double.uuid(1), 1, "system"),)


def test_processes_are_told_with_unknown_memory_as_unknown(double: Double, backend: NvmlBackend) -> None:
    double.with_gpu(0, process__0="4000000 1048576", process__1="4000001 -", mps__0="4000000 1048576").write()
    backend.open()
    uses = backend.processes(only(backend))
    assert uses is not None
    assert [(use.pid, use.memory_bytes) for use in uses] == [(4000000, 1048576), (4000001, None)]


def test_owners_of_one_devices_processes_are_known_whoever_else_is_asked_for(
    double: Double, backend: NvmlBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []

    def owner_of(pid: int, _: Path) -> Owner:
        read.append(pid)
        return Owner(f"uid-{pid}")

    monkeypatch.setattr(attribution, "owner_of", owner_of)
    ours, parents = os.getpid(), os.getppid()
    double.with_gpu(0, process__0=f"{ours} 1").with_gpu(1, process__0=f"{parents} 1").write()
    backend.open()
    first, second = backend.devices()
    for _ in range(3):
        told = [backend.processes(device) for device in (first, second)]
        assert [[use.pod_uid for use in uses or ()] for uses in told] == [[f"uid-{ours}"], [f"uid-{parents}"]]
    assert read == [ours, parents]


def test_many_processes_fit(double: Double, backend: NvmlBackend) -> None:
    double.with_gpu(0, **{f"process__{i}": f"{4000000 + i} {i}" for i in range(300)}).write()
    backend.open()
    uses = backend.processes(only(backend))
    assert uses is not None
    assert len(uses) == 300


@pytest.mark.parametrize("code", [NOT_SUPPORTED, NO_PERMISSION])
def test_a_driver_that_hides_processes_says_unknown_and_not_none(
    double: Double, backend: NvmlBackend, code: int
) -> None:
    double.with_gpu(0).error("nvmlDeviceGetComputeRunningProcesses_v3", code).write()
    backend.open()
    assert backend.processes(only(backend)) is None


def test_events_arrive_with_their_device(double: Double, backend: NvmlBackend) -> None:
    double.with_gpu(0).with_gpu(1, "geforce").write()
    backend.open()
    backend.devices()
    double.event(double.uuid(1), 79).event(double.uuid(0), kind=DOUBLE_BIT_EVENT).write()
    first, second = backend.events(5.0)
    assert (first.uuid, first.kind, first.code) == (double.uuid(1), EventKind.XID, 79)
    assert (second.uuid, second.kind) == (double.uuid(0), EventKind.DOUBLE_BIT_ECC)
    assert backend.events(0.0) == ()
    sample = backend.sample(backend.devices()[0])
    assert Capability.EVENTS in sample.capabilities


def test_events_of_kinds_a_card_does_not_know_do_not_spoil_the_registration(
    double: Double, backend: NvmlBackend
) -> None:
    double.with_gpu(0, "geforce").write()  # knows XIDs only; one unknown bit would fail the call
    backend.open()
    backend.devices()
    double.event(double.uuid(0), 13).write()
    assert [event.code for event in backend.events(5.0)] == [13]


def test_a_gpu_found_later_is_followed_too(double: Double, backend: NvmlBackend) -> None:
    double.with_gpu(0).write()
    backend.open()
    backend.devices()
    assert backend.events(0.0) == ()
    double.with_gpu(1).write()
    backend._enumerate_at = 0.0
    backend.devices()
    double.event(double.uuid(1), 31).write()
    assert [event.uuid for event in backend.events(5.0)] == [double.uuid(1)]


def test_without_a_driver_the_backend_says_what_to_look_at(double: Double, backend: NvmlBackend) -> None:
    double.set(system__loaded=0).write()
    with pytest.raises(BackendUnavailable, match=f"error {DRIVER_NOT_LOADED}.*runtime class"):
        backend.open()
    double.set(system__loaded=1).write()
    backend.open()


def test_without_the_library_the_backend_says_so() -> None:
    code = (
        "from llmos_operator.telemetry.nvml.backend import NvmlBackend\n"
        "from llmos_operator.telemetry.watchdog import InFlight\n"
        "NvmlBackend(InFlight()).open()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if "BackendUnavailable" not in done.stderr:
        pytest.skip("this machine has a real NVIDIA driver")
    assert "libnvidia-ml.so.1" in done.stderr


def test_a_lost_gpu_stays_in_the_list_and_says_that_it_is_lost(double: Double, backend: NvmlBackend) -> None:
    double.with_gpu(0).with_gpu(1).write()
    backend.open()
    backend.devices()
    double.error("*", GPU_IS_LOST, double.uuid(1)).write()
    backend._enumerate_at = 0.0
    healthy, lost = backend.devices()
    assert backend.sample(healthy).answered
    sample = backend.sample(lost)
    assert [fault.code for fault in sample.faults] == [GPU_IS_LOST]
    assert sample.memory_used_bytes is None
    assert sample.counters is None


def test_a_gpu_the_driver_no_longer_counts_is_gone(double: Double, backend: NvmlBackend) -> None:
    double.with_gpu(0).with_gpu(1).write()
    backend.open()
    assert len(backend.devices()) == 2
    double.drop("gpu.1.").write()
    backend._enumerate_at = 0.0
    assert [device.index for device in backend.devices()] == [0]


def test_a_handle_that_died_makes_the_next_round_enumerate(double: Double, backend: NvmlBackend) -> None:
    double.with_gpu(0).write()
    backend.open()
    device = only(backend)
    double.error("nvmlDeviceGetMemoryInfo_v2", INVALID_ARGUMENT).write()
    assert backend.sample(device).memory_used_bytes is None
    double.heal().write()
    assert backend.sample(only(backend)).memory_used_bytes == 5 * GIB


def test_a_driver_that_does_not_count_is_lost(double: Double, backend: NvmlBackend) -> None:
    double.with_gpu(0).error("nvmlDeviceGetCount_v2", UNINITIALIZED).write()
    backend.open()
    with pytest.raises(DriverLost):
        backend.devices()


def test_the_self_test_finds_a_session_without_devices(double: Double, backend: NvmlBackend) -> None:
    double.with_gpu(0).with_gpu(1).write()
    backend.open()
    backend.devices()
    assert backend.self_test() == ""
    double.error("*", UNKNOWN, double.uuid(0)).write()
    assert backend.self_test() == "", "one device answers, so the session lives"
    double.error("*", UNKNOWN, double.uuid(1)).write()
    assert "none of 2 GPUs answers" in backend.self_test()
