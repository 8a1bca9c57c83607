"""NVML behind the Backend protocol: enumeration, MIG, readers, events, self-test.

Enumeration is by UUID and repeated: fully every `ENUMERATE_SECONDS`, and the MIG instances of GPUs that are cut into
some before every round, because their handles die and are reused the moment somebody destroys an instance.
A GPU that stops answering stays in the list (its samples carry the fault); it leaves when the driver no longer counts
it.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Final, TypeVar

from llmos_operator.observability.logging import logger
from llmos_operator.telemetry.attribution import NOBODY, Attribution, sees_host_processes
from llmos_operator.telemetry.backend import BackendUnavailable, DriverLost
from llmos_operator.telemetry.nvml import calls
from llmos_operator.telemetry.nvml.codes import Meaning, NvmlFailure
from llmos_operator.telemetry.nvml.events import EventWaiter
from llmos_operator.telemetry.nvml.library import Nvml
from llmos_operator.telemetry.nvml.links import find_links
from llmos_operator.telemetry.nvml.reader import COUNTER_SECONDS, DeviceReader
from llmos_operator.telemetry.sample import (
    DeviceEvent,
    DeviceInfo,
    DriverInfo,
    FaultKind,
    ProcessUse,
    Sample,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmos_operator.telemetry.attribution import Owner
    from llmos_operator.telemetry.nvml.calls import Call, Use
    from llmos_operator.telemetry.nvml.library import Handle
    from llmos_operator.telemetry.watchdog import InFlight

T = TypeVar("T")
log = logger(__name__)

ENUMERATE_SECONDS: Final = 30.0


class NvmlBackend:
    """:class:`~llmos_operator.telemetry.backend.Backend` over the NVIDIA driver."""

    mode = "nvml"

    def __init__(
        self,
        in_flight: InFlight,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        trust_pids: bool | None = None,
    ) -> None:
        """``trust_pids``: whether process ids of the driver are those of our `/proc`; None finds out."""
        self._nvml = Nvml(in_flight)
        self._monotonic = monotonic
        self._trust_pids = sees_host_processes() if trust_pids is None else trust_pids
        self._attributions: dict[str, Attribution] = {}  # by device: each forgets who is not on it
        self._gpus: dict[str, DeviceInfo] = {}  # by uuid, in index order
        self._instances: dict[str, tuple[DeviceInfo, ...]] = {}  # by the GPU's uuid
        self._handles: dict[str, Handle] = {}
        self._readers: dict[str, DeviceReader] = {}
        self._slots: dict[str, int] = {}
        self._enumerate_at = 0.0
        self._waiter = EventWaiter(self._nvml)

    def open(self) -> DriverInfo:
        """Load the library and connect. Raises :class:`BackendUnavailable` with the driver's error."""
        try:
            self._nvml.init()
        except NvmlFailure as failure:
            raise BackendUnavailable(
                f"NVML does not start (error {failure.code}): is the NVIDIA driver loaded and libnvidia-ml.so.1 in "
                "this container (runtime class nvidia, NVIDIA_DRIVER_CAPABILITIES with utility)?"
            ) from failure
        return DriverInfo(
            version=self._text(calls.DRIVER_VERSION),
            cuda=self._text(calls.CUDA_VERSION),
            nvml=self._text(calls.NVML_VERSION),
        )

    def close(self) -> None:
        """Free readers and disconnect."""
        for reader in self._readers.values():
            reader.close()
        self._waiter.close()
        try:
            self._nvml.shutdown()
        except NvmlFailure as failure:
            log.warning("NVML did not shut down", error=str(failure))

    # -- measuring

    def sample(self, device: DeviceInfo) -> Sample:
        """Measure a device; its faults are in the sample."""
        now = self._monotonic()
        reader = self._reader(device)
        if reader is None:
            return Sample(uuid=device.uuid, at=now)
        sample = reader.sample(now, events=(device.parent or device.uuid) in self._waiter.registered)
        if device.is_mig and not self._still(device, reader):
            return Sample(uuid=device.uuid, at=now)
        return sample

    def processes(self, device: DeviceInfo) -> tuple[ProcessUse, ...] | None:
        """Return who has a context on the device, with its pod where process ids can be trusted."""
        reader = self._reader(device)
        uses = reader.processes(self._monotonic()) if reader is not None else None
        if uses is None:
            return None
        if device.is_mig and reader is not None and not self._still(device, reader):
            return None
        owners = self._owners(device.uuid, uses) if self._trust_pids else {}
        return tuple(ProcessUse(use.pid, use.memory, *owners.get(use.pid, NOBODY)) for use in uses)

    def _owners(self, uuid: str, uses: tuple[Use, ...]) -> dict[int, Owner]:
        attribution = self._attributions.get(uuid)
        if attribution is None:
            attribution = self._attributions[uuid] = Attribution()
        return attribution.owners(use.pid for use in uses)

    def events(self, timeout: float) -> tuple[DeviceEvent, ...]:
        """Wait for events. Raises `Retryable` when the driver refuses; the next call starts anew."""
        return self._waiter.wait(timeout)

    def refresh(self, uuid: str) -> None:
        """Read the counters of a GPU with its next sample."""
        reader = self._readers.get(uuid)
        if reader is not None:
            reader.counters_due = 0.0

    def self_test(self) -> str:
        """Return "" if the driver answers for a GPU. A container that lost its device files fails here."""
        failures = []
        for uuid in self._gpus:
            try:
                self._nvml.get(calls.UUID, uuid, self._handles[uuid])
            except NvmlFailure as failure:
                failures.append(str(failure))
            else:
                return ""
        try:
            counted = self._nvml.get(calls.COUNT, "")
        except NvmlFailure as failure:
            return str(failure)
        return f"none of {counted} GPUs answers: {failures[0]}" if failures else ""

    def _reader(self, device: DeviceInfo) -> DeviceReader | None:
        reader = self._readers.get(device.uuid)
        if reader is None and device.uuid in self._handles:
            spread = 1.0 + len(self._readers) % int(COUNTER_SECONDS)
            reader = DeviceReader(
                self._nvml,
                self._handles[device.uuid],
                device,
                gpu=self._handles.get(device.parent),
                spread=spread,
            )
            self._readers[device.uuid] = reader
        if reader is not None:
            reader.info = device
        return reader

    def _still(self, device: DeviceInfo, reader: DeviceReader) -> bool:
        """Return whether the handle still names the instance it named before the reading."""
        try:
            return self._nvml.get(calls.UUID, device.uuid, reader.handle) == device.uuid
        except NvmlFailure:
            return False

    # -- enumeration

    def devices(self) -> tuple[DeviceInfo, ...]:
        """Return GPUs by index, each followed by its MIG instances. Raises :class:`DriverLost`."""
        now = self._monotonic()
        if now >= self._enumerate_at or any(reader.gone for reader in self._readers.values()):
            self._enumerate()
            self._enumerate_at = now + ENUMERATE_SECONDS
        devices: list[DeviceInfo] = []
        for uuid, gpu in self._gpus.items():
            devices.append(gpu)
            if gpu.mig_enabled:
                self._instances[uuid] = self._find_instances(gpu)
                devices.extend(self._instances[uuid])
        self._keep_readers({device.uuid for device in devices})
        return tuple(devices)

    def _enumerate(self) -> None:
        try:
            count = self._nvml.get(calls.COUNT, "")
        except NvmlFailure as failure:
            raise DriverLost(f"the driver does not count its GPUs: {failure}") from failure
        known = {gpu.index: gpu for gpu in self._gpus.values()}
        gpus: dict[str, DeviceInfo] = {}
        for index in range(count):
            gpu = self._identify(index, known.get(index))
            if gpu is not None:
                gpus[gpu.uuid] = gpu
        if gpus.keys() != self._gpus.keys():
            buses = {uuid: gpu.bus_id for uuid, gpu in gpus.items()}
            links = find_links(self._nvml, {uuid: self._handles[uuid] for uuid in gpus}, buses)
            gpus = {uuid: replace(gpu, links=links[uuid]) for uuid, gpu in gpus.items()}
        self._gpus = gpus
        self._waiter.follow({uuid: self._handles[uuid] for uuid in gpus})

    def _identify(self, index: int, known: DeviceInfo | None) -> DeviceInfo | None:
        """Return the GPU at an index. One that does not answer stays what it was known to be."""
        try:
            handle = self._nvml.get(calls.HANDLE, known.uuid if known else "", index)
            uuid = self._nvml.get(calls.UUID, known.uuid if known else "", handle)
        except NvmlFailure as failure:
            if failure.kind is FaultKind.DRIVER and failure.meaning is Meaning.FAULT:
                raise DriverLost(f"the driver does not hand out GPU {index}: {failure}") from failure
            log.warning("GPU does not identify itself", index=index, error=str(failure), known=bool(known))
            return known
        self._set_handle(uuid, handle)
        if known is not None and known.uuid == uuid and known.product and known.memory_bytes:
            return replace(known, mig_enabled=bool(self._ask(calls.MIG_MODE, uuid, handle)))
        memory = self._ask(calls.MEMORY, uuid, handle) or self._ask(calls.MEMORY_V1, uuid, handle)
        return DeviceInfo(
            uuid=uuid,
            index=index,
            product=self._ask(calls.NAME, uuid, handle) or "",
            memory_bytes=memory.usable if memory else None,
            compute_capability=self._ask(calls.COMPUTE_CAPABILITY, uuid, handle) or "",
            bus_id=self._ask(calls.BUS_ID, uuid, handle) or "",
            mig_enabled=bool(self._ask(calls.MIG_MODE, uuid, handle)),
        )

    def _find_instances(self, gpu: DeviceInfo) -> tuple[DeviceInfo, ...]:
        handle = self._handles[gpu.uuid]
        if gpu.uuid not in self._slots:
            slots = self._ask(calls.MIG_SLOTS, gpu.uuid, handle)
            if not slots:
                return self._instances.get(gpu.uuid, ())
            self._slots[gpu.uuid] = slots
        known = {instance.uuid: instance for instance in self._instances.get(gpu.uuid, ())}
        found: list[DeviceInfo] = []
        for slot in range(self._slots[gpu.uuid]):
            try:
                instance = self._nvml.get(calls.MIG_HANDLE, gpu.uuid, handle, slot)
                uuid = self._nvml.get(calls.UUID, gpu.uuid, instance)
            except NvmlFailure as failure:
                if failure.meaning is Meaning.FAULT:
                    return tuple(known.values())  # the GPU is sick, its instances have not gone away
                continue
            self._set_handle(uuid, instance)
            old = known.get(uuid)
            complete = old is not None and old.memory_bytes and old.gpu_instance is not None
            found.append(old if old and complete else self._describe_instance(gpu, uuid, instance))
        return tuple(found)

    def _describe_instance(self, gpu: DeviceInfo, uuid: str, handle: Handle) -> DeviceInfo:
        memory = self._ask(calls.MEMORY, uuid, handle) or self._ask(calls.MEMORY_V1, uuid, handle)
        return DeviceInfo(
            uuid=uuid,
            index=gpu.index,
            product=self._ask(calls.NAME, uuid, handle) or gpu.product,
            memory_bytes=memory.usable if memory else None,
            compute_capability=gpu.compute_capability,
            bus_id=gpu.bus_id,
            parent=gpu.uuid,
            gpu_instance=self._ask(calls.GPU_INSTANCE, uuid, handle),
            compute_instance=self._ask(calls.COMPUTE_INSTANCE, uuid, handle),
            gpu_slices=self._slots[gpu.uuid],
        )

    def _set_handle(self, uuid: str, handle: Handle) -> None:
        self._handles[uuid] = handle
        reader = self._readers.get(uuid)
        if reader is not None:
            reader.handle, reader.gone = handle, False

    def _keep_readers(self, present: set[str]) -> None:
        for uuid in [uuid for uuid in self._readers if uuid not in present]:
            self._readers.pop(uuid).close()
            self._attributions.pop(uuid, None)
        for uuid in [uuid for uuid in self._handles if uuid not in present]:
            del self._handles[uuid]

    def _ask(self, call: Call[T], device: str, handle: Handle) -> T | None:
        """Return what a call tells, or None for any failure: used for facts that a later enumeration asks again."""
        try:
            return self._nvml.get(call, device, handle)
        except NvmlFailure:
            return None

    def _text(self, call: Call[str]) -> str:
        try:
            return self._nvml.get(call, "")
        except NvmlFailure:
            return ""
