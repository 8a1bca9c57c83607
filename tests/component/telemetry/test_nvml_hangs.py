"""Every driver call, hanging: it is reported within three intervals, the rest of the node is still measured, and when
the call comes back so does the device.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from llmos_operator.api.telemetry import Verdict
from llmos_operator.telemetry.collector import Collector
from llmos_operator.telemetry.node_health import NodeHealth
from llmos_operator.telemetry.nvml.backend import NvmlBackend
from llmos_operator.telemetry.policy import Reason
from llmos_operator.telemetry.watchdog import InFlight
from tests.support.nvml import GIB
from tests.support.nvml_table import USED, Used, furnish

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from llmos_operator.telemetry.collector import Round
    from tests.support.nvml import Double

INTERVAL = 0.1
WAITED = 5.0  # seconds: a round that waits for a hanging driver waits for ever
EVENT_CALLS = {used.name for used in USED if used.name.startswith("nvmlEvent")} | {
    "nvmlDeviceGetSupportedEventTypes",
    "nvmlDeviceRegisterEvents",
}
MEASURING = [used for used in USED if used.name not in EVENT_CALLS]
# Calls made only when something changes hang only if it changes.
SELDOM = {
    "nvmlDeviceGetTopologyCommonAncestor",
    "nvmlDeviceGetNvLinkRemoteDeviceType",
    "nvmlDeviceGetNvLinkRemotePciInfo_v2",
}


class Watched:
    """A running collector over the double, folded into health as the agent does."""

    def __init__(self, interval: float = INTERVAL) -> None:
        self.interval = interval
        self.in_flight = InFlight()
        self.backend = NvmlBackend(self.in_flight, trust_pids=True)
        self.backend.open()
        self.collector = Collector(
            self.backend,
            self.in_flight,
            interval=interval,
            process_interval=interval,
            monotonic=time.monotonic,
            event_wait=interval,
        )
        self.health = NodeHealth(interval)
        self.longest_take = 0.0
        self.taken_at: list[float] = []
        self.samples: dict[str, int] = {}

    def turn(self) -> Round:
        """Do once what the agent does every interval."""
        time.sleep(self.interval)
        for uuid in (device.uuid for device in self.collector._devices):
            self.backend.refresh(uuid)  # so that seldom readings hang soon as well
        self.backend._enumerate_at = 0.0
        started = time.monotonic()
        self.taken_at.append(started)
        seen = self.collector.take()
        self.longest_take = max(self.longest_take, time.monotonic() - started)
        for uuid in seen.samples:
            self.samples[uuid] = self.samples.get(uuid, 0) + 1
        self.health.observe(seen.devices, seen.samples, seen.events, seen.hangs, {}, time.monotonic())
        return seen

    def turn_until(self, condition: Callable[[Round], object], what: str, seconds: float = 90.0) -> Round:
        end = time.monotonic() + seconds
        while True:
            seen = self.turn()
            if condition(seen):
                return seen
            assert time.monotonic() < end, f"{what}: not within {seconds} s"


@pytest.fixture
def watched(double: Double) -> Iterator[Callable[[str], Watched]]:
    made: list[Watched] = []

    def make(machine: str) -> Watched:
        furnish(double, machine)
        double.write()
        made.append(Watched())
        made[0].collector.start()
        return made[0]

    yield make
    double.heal().drop("hang.").write()
    for one in made:
        one.collector.stop()
        one.backend._waiter.close()
        assert one.collector.join(10.0), "a thread is still in the driver"
        one.backend.close()


@pytest.mark.parametrize("used", MEASURING, ids=lambda used: used.name.removeprefix("nvml"))
def test_a_hanging_call_is_reported_and_passes(
    double: Double, watched: Callable[[str], Watched], used: Used
) -> None:
    node = watched(used.machine)
    other = double.uuid(1)
    node.turn_until(lambda seen: len(seen.samples) >= 2, "the first round")
    if used.name in SELDOM:
        double.with_gpu(2)
    node_wide = used.name in {"nvmlDeviceGetCount_v2", "nvmlGpmSampleAlloc"} or used.name in SELDOM
    target = "" if node_wide else double.uuid(0)
    if used.name == "nvmlDeviceGetMaxMigDeviceCount":
        double.with_gpu(2).with_instance(2, 0, "MIG-c")  # asked once a GPU
        target = double.uuid(2)
    if used.name.startswith("nvmlDeviceGet") and used.machine == "mig" and "InstanceId" in used.name:
        double.drop("gpu.0.mig.0.").with_instance(0, 1, "MIG-b")  # a new instance is asked for its ids
        target = "MIG-b"
    if used.name in {"nvmlDeviceGetName", "nvmlDeviceGetPciInfo_v3", "nvmlDeviceGetCudaComputeCapability"}:
        double.with_gpu(2)
        target = double.uuid(2)
    if used.name == "nvmlGpmSampleAlloc":
        double.with_gpu(2)
    double.hang(used.name, target).write()
    seen = node.turn_until(lambda seen: seen.hangs, "the hang is reported")
    due = min(hang.since for hang in seen.hangs) + 3 * INTERVAL
    assert all(at < due for at in node.taken_at[:-1]), "an earlier round should have reported it"
    assert seen.hangs[0].call == used.name
    before = node.samples[other]
    node.turn_until(lambda _: node.samples[other] > before + 2, "the other GPU is measured on")
    assert node.longest_take < WAITED, "asking waited for the driver"
    sick = seen.hangs[0].device or double.uuid(0)
    health = node.health.of(sick)
    if sick in {device.uuid for device in seen.devices}:
        assert (health.verdict, health.reason) == (Verdict.UNHEALTHY, Reason.DRIVER_HANG)
    double.heal()
    if used.machine == "old":
        furnish(double, "old")
    double.write()
    count = node.samples.get(double.uuid(0), 0)
    node.turn_until(
        lambda seen: not seen.hangs and node.samples[double.uuid(0)] > count + 1, "the device comes back"
    )


@pytest.mark.parametrize(
    "used",
    [used for used in MEASURING if used.machine == "mig"],
    ids=lambda used: used.name.removeprefix("nvml"),
)
def test_instances_that_change_while_a_call_hangs_are_told_right_afterwards(
    double: Double, watched: Callable[[str], Watched], used: Used
) -> None:
    node = watched("mig")
    node.turn_until(lambda seen: "MIG-a" in seen.samples, "the first round")
    double.hang(used.name).drop("gpu.0.mig.0.").with_instance(0, 1, "MIG-b", instance=4)
    double.set(gpu__0__mig__1__memory__used=2 * GIB).write()
    if used.name == "nvmlDeviceGetMaxMigDeviceCount":  # asked once a GPU
        double.with_gpu(2).with_instance(2, 0, "MIG-c").write()
    if used.name != "nvmlGpmMigSampleGet":  # made only once an instance is known
        node.turn_until(lambda seen: seen.hangs, "the hang is reported")
    double.heal().write()
    seen = node.turn_until(
        lambda seen: not seen.hangs and "MIG-b" in seen.samples, "the new instance is told"
    )
    assert seen.samples["MIG-b"].memory_used_bytes == 2 * GIB
    assert "MIG-a" not in {device.uuid for device in seen.devices}


@pytest.mark.parametrize("call", sorted(EVENT_CALLS - {"nvmlEventSetFree"}))
def test_a_hanging_wait_for_events_is_told_and_readings_go_on(
    double: Double, watched: Callable[[str], Watched], call: str
) -> None:
    double.hang(call)
    node = watched("new")
    node.turn_until(lambda _: node.collector.events_stuck(), "the wait is told to be stuck")
    assert call in node.collector.events_stuck()
    count = node.samples.get(double.uuid(0), 0)
    node.turn_until(lambda _: node.samples.get(double.uuid(0), 0) > count + 2, "readings go on")
    assert node.health.of(double.uuid(1)).verdict is not Verdict.UNHEALTHY
    double.heal().write()
    node.turn_until(lambda _: not node.collector.events_stuck(), "the wait goes on")
    double.event(double.uuid(1), 79).write()
    node.turn_until(lambda seen: seen.events, "events arrive again")
    assert node.health.of(double.uuid(1)).reason is Reason.FALLEN_OFF_BUS


def test_a_driver_that_blocks_everything_costs_one_thread_a_device(
    double: Double, watched: Callable[[str], Watched]
) -> None:
    node = watched("new")
    node.turn_until(lambda seen: len(seen.samples) == 2, "the first round")
    for device in (double.uuid(0), double.uuid(1)):
        double.hang("*", device)
    double.hang("nvmlDeviceGetCount_v2").write()
    node.turn_until(lambda seen: len(seen.hangs) >= 2, "both GPUs are reported")
    for _ in range(10):
        seen = node.turn()
    assert len(seen.hangs) <= 3, "threads pile up behind the driver"
    assert all(node.health.of(double.uuid(index)).verdict is Verdict.UNHEALTHY for index in (0, 1))
    assert node.longest_take < WAITED
    double.heal().write()
    node.turn_until(lambda seen: not seen.hangs and len(seen.samples) == 2, "everything comes back")
