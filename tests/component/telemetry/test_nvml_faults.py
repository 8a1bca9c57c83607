"""Every driver call times every kind of error: nothing crashes, nothing becomes zero, sickness is seen as sickness."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pynvml
import pytest

from llmos_operator.api.telemetry import Verdict
from llmos_operator.errors import Retryable
from llmos_operator.telemetry.backend import DriverLost
from llmos_operator.telemetry.health import DeviceHealth, Observation, fold
from llmos_operator.telemetry.nvml import calls
from llmos_operator.telemetry.nvml.backend import NvmlBackend
from llmos_operator.telemetry.watchdog import InFlight
from tests.support.nvml import EVERY_ERROR, LATER, MISSING, SICK, Double
from tests.support.nvml_table import ELSEWHERE, MEMORY, USED, Used, furnish, told

if TYPE_CHECKING:
    from llmos_operator.telemetry.sample import DeviceInfo, Sample

SAMPLED = [used for used in USED if used.feeds]
OTHERS = [used for used in USED if not used.feeds]


def name(value: object) -> str:
    return value.name.removeprefix("nvml") if isinstance(value, Used) else str(value)


def measured(backend: NvmlBackend, machine: str) -> tuple[DeviceInfo, Sample]:
    """Sample everything twice, with counters both times, and return the device the table is about."""
    for _ in range(2):
        for device in backend.devices():
            backend.refresh(device.uuid)
            sample = backend.sample(device)
            if device.is_mig == (machine == "mig") and device.index == 0:
                found = device, sample
    return found


@pytest.fixture(scope="module")
def healthy() -> dict[str, dict[str, Any]]:
    """What each machine tells when nothing is wrong, filled as tests need it."""
    return {}


def baseline(
    double: Double, backend: NvmlBackend, used: Used, healthy: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    furnish(double, used.machine)
    double.write()
    backend.open()
    if used.machine not in healthy:
        _, sample = measured(backend, used.machine)
        healthy[used.machine] = told(sample)
        backend.close()
        backend.__init__(InFlight(), trust_pids=True)
        backend.open()
    return healthy[used.machine]


def verdict_after(samples: list[Sample]) -> Verdict:
    state = DeviceHealth()
    for second, sample in enumerate(samples):
        state = fold(state, Observation(sample=sample), 1000.0 + second)
    return state.verdict


@pytest.mark.parametrize("code", EVERY_ERROR)
@pytest.mark.parametrize("used", SAMPLED, ids=name)
def test_a_failing_reading_is_absent_and_no_other_is_wrong(
    double: Double, backend: NvmlBackend, healthy: dict[str, dict[str, Any]], used: Used, code: int
) -> None:
    right = baseline(double, backend, used, healthy)
    assert all(right[field] is not None for field in used.feeds), (
        "the machine does not tell what the call feeds"
    )
    double.error(used.name, code).write()
    device, sample = measured(backend, used.machine)
    values = told(sample)
    fallen_back = used.falls_back and code in MISSING
    if fallen_back and used.feeds == MEMORY:
        # The old call cannot split the driver's reserve off: it is in both numbers instead of in neither.
        reserve = right["memory_reserved_bytes"]
        right = {**right, "memory_total_bytes": right["memory_total_bytes"] + reserve}
        right["memory_used_bytes"] += reserve
    for field, value in values.items():
        assert value is None or value == right[field], f"{field} was {right[field]} and became {value}"
    if not fallen_back:
        assert all(values.get(field) is None for field in used.feeds)
    faulty = code in SICK
    assert bool(sample.faults) == faulty
    seen = [backend.sample(device) for _ in range(4)]
    if not faulty and used.name != "nvmlDeviceGetMemoryInfo_v2":
        # RemapPending and the SRAM threshold of the machine make it Degraded, which is not this error's doing.
        assert verdict_after(seen) is not Verdict.UNHEALTHY
    double.heal()
    if used.machine == "old":
        furnish(double, "old")
    double.write()
    after = told(measured(backend, used.machine)[1])
    assert {f: v for f, v in after.items() if v not in (None, right[f])} == {}
    backend._monotonic = lambda: time.monotonic() + LATER
    assert told(measured(backend, used.machine)[1]) == healthy[used.machine], "everything is told again"


@pytest.mark.parametrize("code", EVERY_ERROR)
@pytest.mark.parametrize("used", OTHERS, ids=name)
def test_a_failing_call_around_the_readings_harms_nothing(
    double: Double, backend: NvmlBackend, healthy: dict[str, dict[str, Any]], used: Used, code: int
) -> None:
    right = baseline(double, backend, used, healthy)
    double.error(used.name, code).write()
    lost = False
    try:
        devices = backend.devices()
    except DriverLost:
        assert used.enumerating, "only the questions about the node may end the session"
        lost = True
        devices = ()
    for device in devices:
        backend.sample(device)
        uses = backend.processes(device)
        assert uses is None or all(use.memory_bytes != 0 for use in uses)
    try:
        backend.events(0.0)
    except Retryable:
        assert used.name.startswith("nvmlEventSet")
    assert isinstance(backend.self_test(), str)
    double.heal().write()
    if lost:
        return
    backend._enumerate_at = 0.0
    _, sample = measured(backend, used.machine)
    assert {f: v for f, v in told(sample).items() if v not in (None, right[f])} == {}
    assert sample.memory_used_bytes == right["memory_used_bytes"]


def test_every_code_of_the_library_is_tried() -> None:
    codes = {value for key, value in vars(pynvml).items() if key.startswith("NVML_ERROR_")}
    assert codes == set(EVERY_ERROR) - {777}


def test_the_table_names_every_call_the_agent_makes(double: Double) -> None:
    made: set[str] = set()

    class Recorder(InFlight):
        def enter(self, call: str, device: str = "", allowance: float = 0.0) -> None:
            made.add(call)
            super().enter(call, device, allowance)

    for machine in ("new", "old", "mig"):
        double.heal().drop("gpu.")
        furnish(double, machine)
        double.write()
        backend = NvmlBackend(Recorder(), trust_pids=True)
        backend.open()
        measured(backend, machine)
        for device in backend.devices():
            backend.processes(device)
        backend.events(0.0)
        backend.self_test()
        backend._waiter.close()
        backend.events(0.0)
        backend.close()
    assert made == {used.name for used in USED} | ELSEWHERE
    assert {call.name for call in calls.ALL} <= made
