"""What a node's annotations say of simulated devices and of faults they are to show.

`llmos.dev/simulated-gpus` is a JSON list of GPUs, each with the MIG instances it is cut into, if any;
`llmos.dev/simulated-faults` a list of what breaks.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any, Final

from llmos_operator.api.mig import MigProfile, parse_profile
from llmos_operator.telemetry.backend import BackendUnavailable
from llmos_operator.telemetry.sample import ClockReason, DeviceInfo, FaultKind

MAX_DEVICES: Final = 64
DEFAULT_POWER_MILLIWATTS: Final = 300_000
GPU_SLICES: Final = 7  # compute slices of a GPU that can be cut, as of A100 and its successors


class BadAnnouncement(BackendUnavailable):
    """An annotation that describes simulated devices or faults cannot be used; names field, value and fix."""


@dataclass(frozen=True, slots=True)
class InjectedFault:
    """A fault somebody ordered. An XID is an event and happens once; a fault lasts while it is announced."""

    uuid: str
    xid: int = 0
    fault: FaultKind | None = None
    id: str = ""
    clocks: ClockReason | None = None  # what holds its clocks down


def parse_devices(text: str) -> tuple[tuple[DeviceInfo, int], ...]:
    """Return the devices of an announcement with the power limits of their GPUs in milliwatts; none for "".

    GPUs are followed by their MIG instances.

    Raises :class:`BadAnnouncement` naming the entry, the field and what is expected.
    """
    devices: list[tuple[DeviceInfo, int]] = []
    for at, entry in enumerate(_entries(text, "llmos.dev/simulated-gpus")):
        where = f"llmos.dev/simulated-gpus[{at}]"
        gpu, limit = _device(entry, where)
        instances = _instances(gpu, entry, where)
        devices += [(replace(gpu, mig_enabled=bool(instances)), limit), *((one, limit) for one in instances)]
    if len(devices) > MAX_DEVICES:
        raise BadAnnouncement(
            f"llmos.dev/simulated-gpus names {len(devices)} devices; at most {MAX_DEVICES} are possible"
        )
    uuids = [info.uuid for info, _ in devices]
    double = next((uuid for uuid in uuids if uuids.count(uuid) > 1), None)
    if double:
        raise BadAnnouncement(
            f"llmos.dev/simulated-gpus names uuid {double!r} twice; every device needs its own"
        )
    return tuple(devices)


def _device(entry: dict[str, Any], where: str) -> tuple[DeviceInfo, int]:
    memory = entry.get("memoryBytes")
    index, watts = entry.get("index", 0), entry.get("powerLimitWatts", DEFAULT_POWER_MILLIWATTS // 1000)
    uuid = _uuid(entry, where, "GPU-sim-n1-0")
    if not isinstance(memory, int) or isinstance(memory, bool) or memory <= 0:
        raise BadAnnouncement(f"{where}.memoryBytes = {memory!r}; write a whole number of bytes above 0")
    if not isinstance(index, int) or not 0 <= index <= 255:  # noqa: PLR2004 - the wire's bound
        raise BadAnnouncement(f"{where}.index = {index!r}; write a whole number from 0 to 255")
    if not isinstance(watts, int) or watts <= 0:
        raise BadAnnouncement(f"{where}.powerLimitWatts = {watts!r}; write a whole number of watts above 0")
    info = DeviceInfo(
        uuid=uuid,
        index=index,
        product=str(entry.get("product", "SIM")),
        memory_bytes=memory,
        compute_capability=str(entry.get("computeCapability", "8.0")),
    )
    return info, watts * 1000


def _uuid(entry: dict[str, Any], where: str, example: str) -> str:
    uuid = entry.get("uuid")
    if not isinstance(uuid, str) or not uuid or "," in uuid:
        raise BadAnnouncement(
            f"{where}.uuid = {uuid!r}; write a unique text without commas, such as {example}"
        )
    return uuid


def _instances(gpu: DeviceInfo, entry: dict[str, Any], where: str) -> list[DeviceInfo]:
    """Return the MIG instances a GPU is cut into."""
    mig = entry.get("mig", [])
    if not isinstance(mig, list) or not all(isinstance(one, dict) for one in mig):
        raise BadAnnouncement(f"{where}.mig = {mig!r}; write a list of objects with uuid and profile")
    found = []
    for at, one in enumerate(mig):
        uuid, profile = (
            _uuid(one, f"{where}.mig[{at}]", "MIG-sim-n1-0-0"),
            _profile(one, f"{where}.mig[{at}]"),
        )
        found.append(
            replace(
                gpu,
                uuid=uuid,
                parent=gpu.uuid,
                product=f"{gpu.product} MIG {profile}",
                memory_bytes=profile.gigabytes << 30,
                gpu_instance=at + 1,
                compute_instance=0,
                gpu_slices=GPU_SLICES,
            )
        )
    return found


def _profile(entry: dict[str, Any], where: str) -> MigProfile:
    try:
        return parse_profile(str(entry.get("profile")))
    except ValueError as error:
        raise BadAnnouncement(f"{where}.profile: {error}") from error


def parse_faults(text: str) -> tuple[InjectedFault, ...]:
    """Return the ordered faults; none for "". Raises :class:`BadAnnouncement`."""
    return tuple(
        _fault(entry, f"llmos.dev/simulated-faults[{at}]")
        for at, entry in enumerate(_entries(text, "llmos.dev/simulated-faults"))
    )


def _fault(entry: dict[str, Any], where: str) -> InjectedFault:
    xid, word = entry.get("xid", 0), entry.get("fault", "")
    if not isinstance(xid, int) or xid < 0:
        raise BadAnnouncement(f"{where}.xid = {xid!r}; write an XID number")
    if word and word not in set(FaultKind):
        raise BadAnnouncement(f"{where}.fault = {word!r}; write one of {', '.join(FaultKind)}")
    clocks = entry.get("clocks", "")
    if clocks and clocks not in set(ClockReason):
        raise BadAnnouncement(f"{where}.clocks = {clocks!r}; write one of {', '.join(ClockReason)}")
    return InjectedFault(
        str(entry.get("uuid", "")),
        xid,
        FaultKind(word) if word else None,
        str(entry.get("id", "")),
        ClockReason(clocks) if clocks else None,
    )


def _entries(text: str, where: str) -> list[dict[str, Any]]:
    try:
        entries = json.loads(text) if text else []
    except ValueError as error:
        raise BadAnnouncement(f"annotation {where} is not JSON: {error}") from error
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise BadAnnouncement(f"annotation {where} must be a JSON list of objects")
    return entries
