"""Every NVML call that returns one thing about one device or the node, as data.

A :class:`Call` names the C symbol (what the watchdog and the error tables speak of), the pynvml function behind it and
how its result becomes a plain value. Where a driver may know a call only under an older name or version, the older one
follows in :attr:`Call.older`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, TypeVar

import pynvml as nv

from llmos_operator.telemetry.nvml import codes

if TYPE_CHECKING:
    from collections.abc import Callable

T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, slots=True, eq=False)
class Call(Generic[T_co]):
    """One call of the library. ``args`` follow the caller's own arguments."""

    name: str
    function: Callable[..., Any]
    convert: Callable[[Any], T_co]
    args: tuple[Any, ...] = ()
    older: Call[T_co] | None = None


class Memory(NamedTuple):
    """Bytes. With v2 `used` excludes the driver's reserve; with v1 it contains it and `reserved` is unknown."""

    total: int
    used: int
    reserved: int | None

    @property
    def usable(self) -> int:
        """What workloads can have: `used` of it is taken."""
        return self.total - (self.reserved or 0)


class Remapped(NamedTuple):
    """Row remapping of Ampere and newer."""

    correctable: int
    uncorrectable: int
    pending: bool
    failed: bool


class Use(NamedTuple):
    """A process on a device. `memory` is None where the driver does not tell (MIG without rights, some drivers)."""

    pid: int
    memory: int | None


def _memory_v2(info: Any) -> Memory:
    return Memory(int(info.total), int(info.used), int(info.reserved))


def _memory_v1(info: Any) -> Memory:
    return Memory(int(info.total), int(info.used), None)


def _uses(processes: Any) -> tuple[Use, ...]:
    return tuple(
        Use(int(p.pid), None if p.usedGpuMemory is None else int(p.usedGpuMemory)) for p in processes
    )


def _cuda(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


# -- node
DRIVER_VERSION: Final = Call("nvmlSystemGetDriverVersion", nv.nvmlSystemGetDriverVersion, str)
NVML_VERSION: Final = Call("nvmlSystemGetNVMLVersion", nv.nvmlSystemGetNVMLVersion, str)
CUDA_VERSION: Final = Call("nvmlSystemGetCudaDriverVersion_v2", nv.nvmlSystemGetCudaDriverVersion_v2, _cuda)
COUNT: Final = Call("nvmlDeviceGetCount_v2", nv.nvmlDeviceGetCount, int)
HANDLE: Final = Call("nvmlDeviceGetHandleByIndex_v2", nv.nvmlDeviceGetHandleByIndex, lambda handle: handle)

# -- identity
UUID: Final = Call("nvmlDeviceGetUUID", nv.nvmlDeviceGetUUID, str)
NAME: Final = Call("nvmlDeviceGetName", nv.nvmlDeviceGetName, str)
BUS_ID: Final = Call(
    "nvmlDeviceGetPciInfo_v3", nv.nvmlDeviceGetPciInfo_v3, lambda info: str(info.busId).lower()
)
COMPUTE_CAPABILITY: Final = Call(
    "nvmlDeviceGetCudaComputeCapability",
    nv.nvmlDeviceGetCudaComputeCapability,
    lambda pair: f"{pair[0]}.{pair[1]}",
)
COMMON_ANCESTOR: Final = Call(
    "nvmlDeviceGetTopologyCommonAncestor",
    nv.nvmlDeviceGetTopologyCommonAncestor,
    lambda level: codes.TOPOLOGY.get(int(level), ""),
)

# -- MIG
MIG_MODE: Final = Call("nvmlDeviceGetMigMode", nv.nvmlDeviceGetMigMode, lambda modes: bool(modes[0]))
MIG_SLOTS: Final = Call("nvmlDeviceGetMaxMigDeviceCount", nv.nvmlDeviceGetMaxMigDeviceCount, int)
MIG_HANDLE: Final = Call(
    "nvmlDeviceGetMigDeviceHandleByIndex", nv.nvmlDeviceGetMigDeviceHandleByIndex, lambda handle: handle
)
GPU_INSTANCE: Final = Call("nvmlDeviceGetGpuInstanceId", nv.nvmlDeviceGetGpuInstanceId, int)
COMPUTE_INSTANCE: Final = Call("nvmlDeviceGetComputeInstanceId", nv.nvmlDeviceGetComputeInstanceId, int)

# -- every second
MEMORY_V1: Final = Call("nvmlDeviceGetMemoryInfo", nv.nvmlDeviceGetMemoryInfo, _memory_v1)
MEMORY: Final = Call(
    "nvmlDeviceGetMemoryInfo_v2", nv.nvmlDeviceGetMemoryInfo, _memory_v2, (nv.nvmlMemory_v2,), older=MEMORY_V1
)
UTILIZATION: Final = Call(
    "nvmlDeviceGetUtilizationRates",
    nv.nvmlDeviceGetUtilizationRates,
    lambda rates: (int(rates.gpu), int(rates.memory)),
)
TEMPERATURE_V1: Final = Call(
    "nvmlDeviceGetTemperature", nv.nvmlDeviceGetTemperature, int, (nv.NVML_TEMPERATURE_GPU,)
)
TEMPERATURE: Final = Call(
    "nvmlDeviceGetTemperatureV",
    nv.nvmlDeviceGetTemperatureV,
    int,
    (nv.NVML_TEMPERATURE_GPU,),
    older=TEMPERATURE_V1,
)
POWER: Final = Call("nvmlDeviceGetPowerUsage", nv.nvmlDeviceGetPowerUsage, int)
CLOCK_REASONS_OLD: Final = Call(
    "nvmlDeviceGetCurrentClocksThrottleReasons",
    nv.nvmlDeviceGetCurrentClocksThrottleReasons,
    codes.clock_reasons,
)
CLOCK_REASONS: Final = Call(
    "nvmlDeviceGetCurrentClocksEventReasons",
    nv.nvmlDeviceGetCurrentClocksEventReasons,
    codes.clock_reasons,
    older=CLOCK_REASONS_OLD,
)

# -- every few seconds
ENERGY: Final = Call("nvmlDeviceGetTotalEnergyConsumption", nv.nvmlDeviceGetTotalEnergyConsumption, int)
POWER_LIMIT: Final = Call("nvmlDeviceGetEnforcedPowerLimit", nv.nvmlDeviceGetEnforcedPowerLimit, int)
SM_CLOCK: Final = Call("nvmlDeviceGetClockInfo", nv.nvmlDeviceGetClockInfo, int, (nv.NVML_CLOCK_SM,))
MEMORY_CLOCK: Final = Call("nvmlDeviceGetClockInfo", nv.nvmlDeviceGetClockInfo, int, (nv.NVML_CLOCK_MEM,))


def _ecc(error: int, counter: int) -> Call[int]:
    return Call("nvmlDeviceGetTotalEccErrors", nv.nvmlDeviceGetTotalEccErrors, int, (error, counter))


ECC_VOLATILE_CORRECTED: Final = _ecc(nv.NVML_MEMORY_ERROR_TYPE_CORRECTED, nv.NVML_VOLATILE_ECC)
ECC_VOLATILE_UNCORRECTED: Final = _ecc(nv.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nv.NVML_VOLATILE_ECC)
ECC_AGGREGATE_CORRECTED: Final = _ecc(nv.NVML_MEMORY_ERROR_TYPE_CORRECTED, nv.NVML_AGGREGATE_ECC)
ECC_AGGREGATE_UNCORRECTED: Final = _ecc(nv.NVML_MEMORY_ERROR_TYPE_UNCORRECTED, nv.NVML_AGGREGATE_ECC)
REMAPPED_ROWS: Final = Call(
    "nvmlDeviceGetRemappedRows",
    nv.nvmlDeviceGetRemappedRows,
    lambda rows: Remapped(int(rows[0]), int(rows[1]), bool(rows[2]), bool(rows[3])),
)
RETIRED_SINGLE: Final = Call(
    "nvmlDeviceGetRetiredPages",
    nv.nvmlDeviceGetRetiredPages,
    len,
    (nv.NVML_PAGE_RETIREMENT_CAUSE_MULTIPLE_SINGLE_BIT_ECC_ERRORS,),
)
RETIRED_DOUBLE: Final = Call(
    "nvmlDeviceGetRetiredPages",
    nv.nvmlDeviceGetRetiredPages,
    len,
    (nv.NVML_PAGE_RETIREMENT_CAUSE_DOUBLE_BIT_ECC_ERROR,),
)
RETIREMENT_PENDING: Final = Call(
    "nvmlDeviceGetRetiredPagesPendingStatus", nv.nvmlDeviceGetRetiredPagesPendingStatus, bool
)
LINK_STATE: Final = Call("nvmlDeviceGetNvLinkState", nv.nvmlDeviceGetNvLinkState, bool)
LINK_ERRORS: Final = Call("nvmlDeviceGetNvLinkErrorCounter", nv.nvmlDeviceGetNvLinkErrorCounter, int)
LINK_REMOTE: Final = Call(
    "nvmlDeviceGetNvLinkRemotePciInfo_v2",
    nv.nvmlDeviceGetNvLinkRemotePciInfo,
    lambda info: str(info.busId).lower(),
)
LINK_REMOTE_TYPE: Final = Call(
    "nvmlDeviceGetNvLinkRemoteDeviceType", nv.nvmlDeviceGetNvLinkRemoteDeviceType, int
)
PCIE_REPLAYS: Final = Call("nvmlDeviceGetPcieReplayCounter", nv.nvmlDeviceGetPcieReplayCounter, int)
PCIE_GENERATION: Final = Call(
    "nvmlDeviceGetCurrPcieLinkGeneration", nv.nvmlDeviceGetCurrPcieLinkGeneration, int
)
PCIE_WIDTH: Final = Call("nvmlDeviceGetCurrPcieLinkWidth", nv.nvmlDeviceGetCurrPcieLinkWidth, int)
GPM_SUPPORT: Final = Call(
    "nvmlGpmQueryDeviceSupport", nv.nvmlGpmQueryDeviceSupport, lambda support: bool(support.isSupportedDevice)
)

# -- seldom: this is the expensive one
PROCESSES: Final = Call(
    "nvmlDeviceGetComputeRunningProcesses_v3", nv.nvmlDeviceGetComputeRunningProcesses_v3, _uses
)
MPS_PROCESSES: Final = Call(
    "nvmlDeviceGetMPSComputeRunningProcesses_v3", nv.nvmlDeviceGetMPSComputeRunningProcesses_v3, _uses
)

# -- events
SUPPORTED_EVENTS: Final = Call("nvmlDeviceGetSupportedEventTypes", nv.nvmlDeviceGetSupportedEventTypes, int)

ALL: Final[tuple[Call[Any], ...]] = tuple(
    value for value in list(globals().values()) if isinstance(value, Call)
)
