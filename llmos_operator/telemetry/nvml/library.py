"""Making calls: announces each to the watchdog, turns pynvml's errors into one type.

Thread rule: any thread may call, and each call may hang for ever in the driver. Nothing here takes a lock of ours.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import pynvml as nv

from llmos_operator.telemetry.nvml import codes
from llmos_operator.telemetry.nvml.codes import NvmlFailure

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from llmos_operator.telemetry.nvml.calls import Call
    from llmos_operator.telemetry.sample import EventKind
    from llmos_operator.telemetry.watchdog import InFlight

T = TypeVar("T")
Handle = Any  # an opaque pointer of the library; dies with its device

# Fields of nvmlDeviceGetFieldValues: (id, scope). Scope UINT_MAX of link counters means "all links together".
ALL_LINKS: Final = 0xFFFFFFFF
MEMORY_TEMPERATURE: Final = (nv.NVML_FI_DEV_MEMORY_TEMP, 0)
LINK_TX_KIB: Final = (nv.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_TX, ALL_LINKS)
LINK_RX_KIB: Final = (nv.NVML_FI_DEV_NVLINK_THROUGHPUT_DATA_RX, ALL_LINKS)
LINK_ERROR_TOTALS: Final = (
    (nv.NVML_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL, 0),
    (nv.NVML_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL, 0),
    (nv.NVML_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL, 0),
)
PCIE_TX_BYTES: Final = (nv.NVML_FI_DEV_PCIE_COUNT_TX_BYTES, 0)
PCIE_RX_BYTES: Final = (nv.NVML_FI_DEV_PCIE_COUNT_RX_BYTES, 0)
RECOVERY_ACTION: Final = (nv.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION, 0)

_VALUE_MEMBER: Final = {
    nv.NVML_VALUE_TYPE_DOUBLE: "dVal",
    nv.NVML_VALUE_TYPE_UNSIGNED_INT: "uiVal",
    nv.NVML_VALUE_TYPE_UNSIGNED_LONG: "ulVal",
    nv.NVML_VALUE_TYPE_UNSIGNED_LONG_LONG: "ullVal",
    nv.NVML_VALUE_TYPE_SIGNED_LONG_LONG: "sllVal",
    nv.NVML_VALUE_TYPE_SIGNED_INT: "siVal",
    nv.NVML_VALUE_TYPE_UNSIGNED_SHORT: "usVal",
}
_GPM_METRICS: Final = (
    nv.NVML_GPM_METRIC_SM_UTIL,
    nv.NVML_GPM_METRIC_SM_OCCUPANCY,
    nv.NVML_GPM_METRIC_ANY_TENSOR_UTIL,
    nv.NVML_GPM_METRIC_DRAM_BW_UTIL,
)


def address(handle: Handle) -> int:
    """Return the number behind a handle: two handles of one GPU are equal in nothing else."""
    return ctypes.cast(handle, ctypes.c_void_p).value or 0


class RawEvent(NamedTuple):
    """An event as the driver reports it; ``handle`` is the GPU it came from (not a MIG instance)."""

    handle: Handle
    kind: EventKind
    data: int
    gpu_instance: int | None  # None: the whole GPU


class GpmRatios(NamedTuple):
    """Ratios (0 to 1) over the time between two GPM samples."""

    sm_active: float | None
    sm_occupancy: float | None
    tensor_active: float | None
    dram_active: float | None


class Nvml:
    """The library. Methods raise :class:`NvmlFailure`. ``device`` arguments only name the device to the watchdog."""

    def __init__(self, in_flight: InFlight) -> None:
        self._in_flight = in_flight

    def get(self, call: Call[T], device: str, *args: object) -> T:
        """Make a call of the table."""
        self._in_flight.enter(call.name, device)
        try:
            raw = call.function(*args, *call.args)
        except nv.NVMLError as error:
            raise NvmlFailure(call.name, int(error.value)) from None
        finally:
            self._in_flight.leave()
        return call.convert(raw)

    def _call(self, name: str, device: str, function: Callable[[], T], allowance: float = 0.0) -> T:
        self._in_flight.enter(name, device, allowance)
        try:
            return function()
        except nv.NVMLError as error:
            raise NvmlFailure(name, int(error.value)) from None
        finally:
            self._in_flight.leave()

    def init(self) -> None:
        """Load the library and connect to the driver."""
        self._call("nvmlInitWithFlags", "", lambda: nv.nvmlInitWithFlags(0))

    def shutdown(self) -> None:
        """Disconnect. All handles die."""
        self._call("nvmlShutdown", "", nv.nvmlShutdown)

    def fields(
        self, handle: Handle, device: str, wanted: Sequence[tuple[int, int]]
    ) -> dict[tuple[int, int], int | float | NvmlFailure]:
        """Return many values in one call; a field that failed is its failure."""
        name = "nvmlDeviceGetFieldValues"
        raw = self._call(name, device, lambda: nv.nvmlDeviceGetFieldValues(handle, list(wanted)))
        values: dict[tuple[int, int], int | float | NvmlFailure] = {}
        for key, item in zip(wanted, raw, strict=True):
            member = _VALUE_MEMBER.get(item.valueType)
            if item.nvmlReturn != nv.NVML_SUCCESS or member is None:
                values[key] = NvmlFailure(name, int(item.nvmlReturn) or nv.NVML_ERROR_NOT_SUPPORTED)
            else:
                values[key] = getattr(item.value, member)
        return values

    def sram_threshold_exceeded(self, handle: Handle, device: str) -> bool:
        """Return whether uncorrectable SRAM errors passed the count at which the vendor takes a card back."""
        status = nv.c_nvmlEccSramErrorStatus_v1_t()
        status.version = nv.nvmlEccSramErrorStatus_v1
        self._call(
            "nvmlDeviceGetSramEccErrorStatus",
            device,
            # pynvml passes its argument through: by reference, or the library would read it as a pointer.
            lambda: nv.nvmlDeviceGetSramEccErrorStatus(handle, ctypes.byref(status)),
        )
        return bool(status.bThresholdExceeded)

    # -- GPU performance monitoring (Hopper and newer)

    def gpm_alloc(self, device: str) -> Handle:
        """Return an empty GPM sample."""
        return self._call("nvmlGpmSampleAlloc", device, nv.nvmlGpmSampleAlloc)

    def gpm_free(self, sample: Handle, device: str) -> None:
        """Give a GPM sample back."""
        self._call("nvmlGpmSampleFree", device, lambda: nv.nvmlGpmSampleFree(sample))

    def gpm_take(self, handle: Handle, sample: Handle, device: str, gpu_instance: int | None = None) -> None:
        """Fill ``sample`` from a GPU, or from one of its GPU instances."""
        if gpu_instance is None:
            self._call("nvmlGpmSampleGet", device, lambda: nv.nvmlGpmSampleGet(handle, sample))
        else:
            self._call(
                "nvmlGpmMigSampleGet", device, lambda: nv.nvmlGpmMigSampleGet(handle, gpu_instance, sample)
            )

    def gpm_ratios(self, first: Handle, second: Handle, device: str) -> GpmRatios:
        """Return what happened between two samples of the same device."""
        request = nv.c_nvmlGpmMetricsGet_t()
        request.version = nv.NVML_GPM_METRICS_GET_VERSION
        request.numMetrics = len(_GPM_METRICS)
        request.sample1, request.sample2 = first, second
        for slot, metric in enumerate(_GPM_METRICS):
            request.metrics[slot].metricId = metric
        self._call("nvmlGpmMetricsGet", device, lambda: nv.nvmlGpmMetricsGet(request))
        answers = (request.metrics[slot] for slot in range(len(_GPM_METRICS)))
        return GpmRatios(
            *(item.value / 100.0 if item.nvmlReturn == nv.NVML_SUCCESS else None for item in answers)
        )

    # -- events

    def event_set(self) -> Handle:
        """Return a new set of events to wait for."""
        return self._call("nvmlEventSetCreate", "", nv.nvmlEventSetCreate)

    def free_event_set(self, events: Handle) -> None:
        """Give an event set back."""
        self._call("nvmlEventSetFree", "", lambda: nv.nvmlEventSetFree(events))

    def register_events(self, handle: Handle, device: str, mask: int, events: Handle) -> None:
        """Add the events of ``mask`` on a GPU to a set. A bit the GPU does not know fails the whole call."""
        self._call(
            "nvmlDeviceRegisterEvents", device, lambda: nv.nvmlDeviceRegisterEvents(handle, mask, events)
        )

    def wait_event(self, events: Handle, seconds: float) -> RawEvent | None:
        """Return the next event, or None if none came in ``seconds`` or it is of a kind we do not follow."""
        name = "nvmlEventSetWait_v2"
        try:
            data = self._call(
                name, "", lambda: nv.nvmlEventSetWait_v2(events, int(seconds * 1000)), allowance=seconds
            )
        except NvmlFailure as failure:
            if failure.code == nv.NVML_ERROR_TIMEOUT:
                return None
            raise
        kind = next((kind for bit, kind in codes.EVENTS if data.eventType == bit), None)
        if kind is None:
            return None
        instance = int(data.gpuInstanceId)
        # The event's struct is ours, but `device` points into the library and stays valid with the GPU.
        return RawEvent(
            data.device, kind, int(data.eventData), None if instance == codes.WHOLE_GPU else instance
        )
