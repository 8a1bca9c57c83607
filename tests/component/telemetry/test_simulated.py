"""Simulated devices over real processes: what they report is what the processes really use."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from llmos_operator.telemetry.announced import BadAnnouncement
from llmos_operator.telemetry.sample import EventKind, FaultKind
from llmos_operator.telemetry.simulated import SimulatedBackend

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from llmos_operator.telemetry.sample import DeviceInfo, ProcessUse, Sample

MIB = 1 << 20
GIB = 1 << 30
# Writes its pages, then says so; a line on stdin lets it go on: "burn", "shrink", "fork", "end".
PROGRAM = """
import os, sys, time
block = bytearray(int(sys.argv[1]) * 2**20)
for at in range(0, len(block), 4096):
    block[at] = 1
print("ready", flush=True)
for line in sys.stdin:
    if line == "burn\\n":
        end = time.process_time() + 0.5
        while time.process_time() < end:
            pass
    elif line == "shrink\\n":
        del block
    elif line == "fork\\n":
        if os.fork() == 0:
            sys.stdin.read()
            os._exit(0)
    print("done", flush=True)
"""


def announcement(node: str = "n1", count: int = 2) -> str:
    return json.dumps(
        [
            {"uuid": f"GPU-sim-{node}-{index}", "index": index, "product": "SIM-A", "memoryBytes": GIB}
            for index in range(count)
        ]
    )


class Tenant:
    """A real process that looks like a runtime of a node."""

    def __init__(self, mebibytes: int, devices: str, node: str = "n1", **variables: str) -> None:
        environment = {
            "PATH": os.environ["PATH"],
            "NVIDIA_VISIBLE_DEVICES": devices,
            "NODE_NAME": node,
            **variables,
        }
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(mebibytes)],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n"

    def tell(self, word: str) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()
        assert self.process.stdout.readline() == "done\n"

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(20)


@pytest.fixture
def run() -> Iterator[Callable[..., Tenant]]:
    tenants: list[Tenant] = []

    def start(*args: object, **variables: str) -> Tenant:
        tenants.append(Tenant(*args, **variables))  # type: ignore[arg-type]
        return tenants[-1]

    yield start
    for tenant in tenants:
        tenant.end()


def look(backend: SimulatedBackend) -> dict[str, Sample]:
    return {device.uuid: backend.sample(device) for device in backend.devices()}


def uses(backend: SimulatedBackend, device: DeviceInfo) -> tuple[ProcessUse, ...]:
    return backend.processes(device) or ()


def used(backend: SimulatedBackend, index: int, node: str = "n1") -> int:
    value = look(backend)[f"GPU-sim-{node}-{index}"].memory_used_bytes
    assert value is not None
    return value


def test_an_empty_device_is_empty_cool_and_idle() -> None:
    backend = SimulatedBackend("n1", announcement())
    look(backend)
    sample = look(backend)["GPU-sim-n1-0"]
    assert (sample.memory_used_bytes, sample.memory_total_bytes, sample.utilization_percent) == (0, GIB, 0)
    assert sample.temperature_celsius is not None
    assert 28 <= sample.temperature_celsius <= 32
    assert sample.power_milliwatts is not None
    assert 30_000 < sample.power_milliwatts < 40_000
    assert sample.answered


def test_memory_is_what_the_process_really_has(run: Callable[..., Tenant]) -> None:
    backend = SimulatedBackend("n1", announcement())
    tenant = run(100, "GPU-sim-n1-0")
    before = used(backend, 0)
    assert 100 * MIB <= before <= 130 * MIB
    assert used(backend, 1) == 0
    tenant.tell("shrink")
    assert used(backend, 0) < before - 90 * MIB
    tenant.end()
    assert used(backend, 0) == 0


def test_pages_shared_by_a_models_processes_count_once(run: Callable[..., Tenant]) -> None:
    backend = SimulatedBackend("n1", announcement())
    tenant = run(200, "GPU-sim-n1-0")
    alone = used(backend, 0)
    tenant.tell("fork")
    both = used(backend, 0)
    device = backend.devices()[0]
    assert len(uses(backend, device)) == 2
    assert both < alone + 60 * MIB, "a forked engine does not have its parent's weights a second time"


def test_a_process_on_two_devices_is_split_between_them(run: Callable[..., Tenant]) -> None:
    backend = SimulatedBackend("n1", announcement())
    run(100, "GPU-sim-n1-0,GPU-sim-n1-1")
    first, second = used(backend, 0), used(backend, 1)
    assert first == second
    assert 50 * MIB <= first <= 65 * MIB


def test_only_processes_of_the_node_and_the_device_count(run: Callable[..., Tenant]) -> None:
    backend = SimulatedBackend("n1", announcement())
    run(50, "GPU-sim-n1-0", "n2")
    run(50, "GPU-sim-n1-10")
    run(50, "void")
    run(50, "all")
    assert used(backend, 0) == used(backend, 1) == 0


def test_processes_of_another_local_cluster_are_on_its_devices_not_on_ours(
    run: Callable[..., Tenant],
) -> None:
    """Clusters of one machine name nodes and devices alike."""
    backend = SimulatedBackend("n1", announcement(), cluster="/state/ours")
    run(40, "GPU-sim-n1-0", LLMOS_LOCAL_CLUSTER="/state/theirs")
    ours = run(20, "GPU-sim-n1-0", LLMOS_LOCAL_CLUSTER="/state/ours")
    by_hand = run(20, "GPU-sim-n1-0")
    first, _ = backend.devices()
    assert {use.pid for use in uses(backend, first)} == {ours.process.pid, by_hand.process.pid}


def test_an_agent_of_no_local_cluster_takes_every_process_of_its_node(run: Callable[..., Tenant]) -> None:
    backend = SimulatedBackend("n1", announcement())
    tenant = run(20, "GPU-sim-n1-0", LLMOS_LOCAL_CLUSTER="/state/theirs")
    first, _ = backend.devices()
    assert [use.pid for use in uses(backend, first)] == [tenant.process.pid]


def test_processes_are_told_with_their_pod(run: Callable[..., Tenant]) -> None:
    backend = SimulatedBackend("n1", announcement())
    tenant = run(20, "GPU-sim-n1-1", POD_UID="uid-7", POD_NAME="chat-0", POD_NAMESPACE="ml")
    first, second = backend.devices()
    assert uses(backend, first) == ()
    (use,) = uses(backend, second)
    assert (use.pid, use.pod_uid, use.workload) == (tenant.process.pid, "uid-7", "ml/chat-0")
    assert use.memory_bytes is not None
    assert use.memory_bytes >= 20 * MIB


def test_cpu_time_is_utilisation_and_warms(run: Callable[..., Tenant]) -> None:
    now = 0.0
    backend = SimulatedBackend("n1", announcement(), monotonic=lambda: now)
    tenant = run(10, "GPU-sim-n1-0")
    look(backend)
    busy: list[Sample] = []
    for _ in range(6):
        tenant.tell("burn")  # half a second of CPU
        now += 0.5
        busy.append(look(backend)["GPU-sim-n1-0"])
    last = busy[-1]
    assert last.utilization_percent is not None
    assert last.utilization_percent >= 90
    assert last.temperature_celsius is not None
    assert busy[0].temperature_celsius is not None
    assert last.temperature_celsius > busy[0].temperature_celsius
    assert last.power_milliwatts is not None
    assert last.power_milliwatts > 250_000
    assert last.energy_millijoules is not None
    assert busy[0].energy_millijoules is not None
    gained = last.energy_millijoules - busy[0].energy_millijoules
    assert gained == pytest.approx(2.5 * 290_000, rel=0.1), "energy is power over time"
    now += 10.0
    assert look(backend)["GPU-sim-n1-0"].utilization_percent == 0


def test_noise_is_seeded() -> None:
    def readings(seed: int) -> list[tuple[int | None, int | None]]:
        now = 0.0
        backend = SimulatedBackend("n9", announcement("n9"), seed=seed, monotonic=lambda: now)
        found = []
        for _ in range(20):
            now += 1.0
            sample = look(backend)["GPU-sim-n9-0"]
            found.append((sample.temperature_celsius, sample.power_milliwatts))
        return found

    assert readings(1) == readings(1)
    assert readings(1) != readings(2)


def test_a_device_that_is_no_longer_announced_is_gone_and_can_come_back(run: Callable[..., Tenant]) -> None:
    backend = SimulatedBackend("n1", announcement(count=2))
    run(50, "GPU-sim-n1-1")
    assert used(backend, 1) >= 50 * MIB
    lost = backend.devices()[1]
    backend.announce(announcement(count=1))
    assert [device.index for device in backend.devices()] == [0]
    assert backend.sample(lost).memory_used_bytes is None
    backend.announce(announcement(count=2))
    assert used(backend, 1) >= 50 * MIB


def test_ordered_faults_show_like_real_ones() -> None:
    backend = SimulatedBackend("n1", announcement())
    faults = [{"uuid": "GPU-sim-n1-0", "xid": 79}, {"uuid": "GPU-sim-n1-1", "fault": "Lost"}]
    backend.announce(announcement(), json.dumps(faults))
    (event,) = backend.events(0.0)
    assert (event.uuid, event.kind, event.code) == ("GPU-sim-n1-0", EventKind.XID, 79)
    samples = look(backend)
    assert samples["GPU-sim-n1-0"].answered
    assert [fault.kind for fault in samples["GPU-sim-n1-1"].faults] == [FaultKind.LOST]
    assert samples["GPU-sim-n1-1"].memory_used_bytes is None
    backend.announce(announcement(), json.dumps(faults))
    assert backend.events(0.0) == (), "an XID happens once"
    backend.announce(announcement(), json.dumps([{**faults[0], "id": "again"}]))
    assert len(backend.events(0.0)) == 1
    assert look(backend)["GPU-sim-n1-1"].answered, "a fault ends when it is no longer ordered"


def test_waiting_for_events_ends_when_one_comes() -> None:
    backend = SimulatedBackend("n1", announcement())
    started = time.monotonic()
    assert backend.events(0.05) == ()
    assert time.monotonic() - started >= 0.04


def cut(*profiles: str) -> str:
    instances = [{"uuid": f"MIG-{at}", "profile": profile} for at, profile in enumerate(profiles)]
    return json.dumps([{"uuid": "GPU-cut", "memoryBytes": 8 * GIB, "product": "SIM-M", "mig": instances}])


def test_an_instance_tells_its_memory_and_its_gpu_the_heat_of_all(run: Callable[..., Tenant]) -> None:
    backend = SimulatedBackend("n1", cut("3g.4gb", "1g.1gb"))
    run(30, "MIG-1")
    gpu, large, small = backend.devices()
    assert (gpu.allocatable, large.parent, small.product) == (False, "GPU-cut", "SIM-M MIG 1g.1gb")
    found = look(backend)
    assert (found["MIG-1"].memory_used_bytes or 0) > 30 * MIB
    assert found["MIG-1"].memory_total_bytes == GIB
    assert found["MIG-0"].memory_used_bytes == 0
    assert found["GPU-cut"].memory_used_bytes == found["MIG-1"].memory_used_bytes
    assert (found["MIG-1"].power_milliwatts, found["MIG-1"].utilization_percent) == (None, None)
    assert (found["GPU-cut"].utilization_percent, found["GPU-cut"].power_milliwatts is None) == (None, False)
    assert (len(uses(backend, small)), uses(backend, large)) == (1, ())


BAD = {
    "a profile that is none": (cut("1g"), r"\[0\].mig\[0\].profile: '1g' is not a MIG profile"),
    "instances that are no list": (
        '[{"uuid": "a", "memoryBytes": 1, "mig": 1}]',
        r"\[0\].mig = 1; write a list",
    ),
    "an instance without a uuid": ('[{"uuid": "a", "memoryBytes": 1, "mig": [{}]}]', r"mig\[0\].uuid = None"),
    "not JSON": ("{", "not JSON"),
    "not a list": ("{}", "JSON list"),
    "not objects": ("[1]", "list of objects"),
    "no uuid": ('[{"memoryBytes": 1}]', r"\[0\].uuid = None; write"),
    "a comma in the uuid": ('[{"uuid": "a,b", "memoryBytes": 1}]', "without commas"),
    "no memory": ('[{"uuid": "a"}]', r"memoryBytes = None; write a whole number"),
    "memory as text": ('[{"uuid": "a", "memoryBytes": "1Gi"}]', "memoryBytes = '1Gi'"),
    "no memory at all": ('[{"uuid": "a", "memoryBytes": 0}]', "above 0"),
    "an index out of range": ('[{"uuid": "a", "memoryBytes": 1, "index": 256}]', "index = 256"),
    "a power limit of nothing": (
        '[{"uuid": "a", "memoryBytes": 1, "powerLimitWatts": 0}]',
        "powerLimitWatts",
    ),
    "the same device twice": ('[{"uuid": "a", "memoryBytes": 1}, {"uuid": "a", "memoryBytes": 1}]', "twice"),
    "too many": (json.dumps([{"uuid": str(n), "memoryBytes": 1} for n in range(65)]), "at most 64"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_announcement_is_refused_with_field_value_and_fix(name: str) -> None:
    text, message = BAD[name]
    with pytest.raises(BadAnnouncement, match=message):
        SimulatedBackend("n1", text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"uuid": "a", "xid": "x"}]', "xid = 'x'"),
        ('[{"uuid": "a", "fault": "Broken"}]', "write one of Lost"),
    ],
)
def test_a_bad_fault_is_refused_too(text: str, message: str) -> None:
    backend = SimulatedBackend("n1", announcement())
    with pytest.raises(BadAnnouncement, match=message):
        backend.announce(announcement(), text)
    assert len(backend.devices()) == 2, "the devices stay as they were"


def test_an_empty_announcement_is_a_node_without_devices() -> None:
    assert SimulatedBackend("n1", "").devices() == ()
