"""What the library's numbers mean: error codes, clock reasons, events, recovery actions, topology levels.

An error code says one of four things (:class:`Meaning`), and that is decided here once for all calls: a missing
feature must never look like a zero, and a sick device must never look like a missing feature.

Sources: NVML API reference, nvidia-ml-py 13.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING, Final

import pynvml as nv

from llmos_operator.errors import LlmosError
from llmos_operator.telemetry.sample import ClockReason, EventKind, FaultKind, RecoveryAction

if TYPE_CHECKING:
    from collections.abc import Mapping

WHOLE_GPU: Final = 0xFFFFFFFF  # gpuInstanceId of events and processes that concern no MIG instance
LINKS: Final = nv.NVML_NVLINK_MAX_LINKS
LINK_TO_SWITCH: Final = nv.NVML_NVLINK_DEVICE_TYPE_SWITCH
LINK_ERRORS: Final = (
    nv.NVML_NVLINK_ERROR_DL_REPLAY,
    nv.NVML_NVLINK_ERROR_DL_RECOVERY,
    nv.NVML_NVLINK_ERROR_DL_CRC_FLIT,
)


class Meaning(Enum):
    """What an error code says."""

    ABSENT = auto()  # the device cannot tell this; asking again soon is a waste
    NOT_NOW = auto()  # this reading failed, the next may not
    GONE = auto()  # the handle is of a device that no longer exists
    FAULT = auto()  # the device is sick, see KINDS


KINDS: Final[Mapping[int, FaultKind]] = {
    nv.NVML_ERROR_GPU_IS_LOST: FaultKind.LOST,
    nv.NVML_ERROR_GPU_NOT_FOUND: FaultKind.LOST,
    nv.NVML_ERROR_RESET_REQUIRED: FaultKind.RESET_REQUIRED,
    nv.NVML_ERROR_UNKNOWN: FaultKind.UNKNOWN,
    nv.NVML_ERROR_OPERATING_SYSTEM: FaultKind.UNKNOWN,
    nv.NVML_ERROR_IRQ_ISSUE: FaultKind.UNKNOWN,
    nv.NVML_ERROR_TIMEOUT: FaultKind.TIMEOUT,
    nv.NVML_ERROR_CORRUPTED_INFOROM: FaultKind.CORRUPTED,
    nv.NVML_ERROR_INSUFFICIENT_POWER: FaultKind.POWER,
    nv.NVML_ERROR_UNINITIALIZED: FaultKind.DRIVER,
    nv.NVML_ERROR_DRIVER_NOT_LOADED: FaultKind.DRIVER,
    nv.NVML_ERROR_LIB_RM_VERSION_MISMATCH: FaultKind.DRIVER,
}

_ABSENT = (
    nv.NVML_ERROR_NOT_SUPPORTED,
    nv.NVML_ERROR_NO_PERMISSION,
    nv.NVML_ERROR_FUNCTION_NOT_FOUND,
    nv.NVML_ERROR_VGPU_ECC_NOT_SUPPORTED,
    nv.NVML_ERROR_FREQ_NOT_SUPPORTED,
    nv.NVML_ERROR_ARGUMENT_VERSION_MISMATCH,
    nv.NVML_ERROR_DEPRECATED,
    nv.NVML_ERROR_RESET_TYPE_NOT_SUPPORTED,
)
_NOT_NOW = (
    nv.NVML_ERROR_INSUFFICIENT_SIZE,
    nv.NVML_ERROR_IN_USE,
    nv.NVML_ERROR_MEMORY,
    nv.NVML_ERROR_NO_DATA,
    nv.NVML_ERROR_INSUFFICIENT_RESOURCES,
    nv.NVML_ERROR_NOT_READY,
    nv.NVML_ERROR_INVALID_STATE,
    nv.NVML_ERROR_ALREADY_INITIALIZED,
)
_GONE = (nv.NVML_ERROR_INVALID_ARGUMENT, nv.NVML_ERROR_NOT_FOUND)

MEANING: Final[Mapping[int, Meaning]] = {
    **dict.fromkeys(_ABSENT, Meaning.ABSENT),
    **dict.fromkeys(_NOT_NOW, Meaning.NOT_NOW),
    **dict.fromkeys(_GONE, Meaning.GONE),
    **dict.fromkeys(KINDS, Meaning.FAULT),
}

CLOCK_REASONS: Final[tuple[tuple[int, ClockReason], ...]] = (
    (nv.nvmlClocksEventReasonGpuIdle, ClockReason.IDLE),
    (nv.nvmlClocksEventReasonApplicationsClocksSetting, ClockReason.APPLICATION),
    (nv.nvmlClocksEventReasonSwPowerCap, ClockReason.POWER_CAP),
    (nv.nvmlClocksEventReasonHwSlowdown, ClockReason.HW_SLOWDOWN),
    (nv.nvmlClocksEventReasonSyncBoost, ClockReason.SYNC_BOOST),
    (nv.nvmlClocksEventReasonSwThermalSlowdown, ClockReason.SW_THERMAL),
    (nv.nvmlClocksEventReasonHwThermalSlowdown, ClockReason.HW_THERMAL),
    (nv.nvmlClocksEventReasonHwPowerBrakeSlowdown, ClockReason.POWER_BRAKE),
    (nv.nvmlClocksEventReasonDisplayClockSetting, ClockReason.DISPLAY),
    (nv.nvmlClocksThrottleReasonBoardLimit, ClockReason.BOARD_LIMIT),
    (nv.nvmlClocksThrottleReasonReliability, ClockReason.RELIABILITY),
)

EVENTS: Final[tuple[tuple[int, EventKind], ...]] = (
    (nv.nvmlEventTypeXidCriticalError, EventKind.XID),
    (nv.nvmlEventTypeDoubleBitEccError, EventKind.DOUBLE_BIT_ECC),
    (nv.nvmlEventTypeSingleBitEccErrorStorm, EventKind.SINGLE_BIT_ECC_STORM),
    (nv.nvmlEventTypeDramRetirementFailure, EventKind.RETIREMENT_FAILURE),
    (nv.nvmlEventTypeFatalPoisonError, EventKind.FATAL_POISON),
    (nv.nvmlEventTypeGpuUnavailableError, EventKind.UNAVAILABLE),
    (nv.nvmlEventTypeGpuRecoveryAction, EventKind.RECOVERY_ACTION),
)
EVENT_MASK: Final = sum(bit for bit, _ in EVENTS)

RECOVERY: Final[Mapping[int, RecoveryAction]] = {
    nv.NVML_GPU_RECOVERY_ACTION_NONE: RecoveryAction.NONE,
    nv.NVML_GPU_RECOVERY_ACTION_GPU_RESET: RecoveryAction.RESET,
    nv.NVML_GPU_RECOVERY_ACTION_NODE_REBOOT: RecoveryAction.REBOOT,
    nv.NVML_GPU_RECOVERY_ACTION_DRAIN_P2P: RecoveryAction.DRAIN_P2P,
    nv.NVML_GPU_RECOVERY_ACTION_DRAIN_AND_RESET: RecoveryAction.DRAIN_AND_RESET,
    nv.NVML_GPU_RECOVERY_ACTION_RECOVER_IMEX_DOMAIN: RecoveryAction.RECOVER_IMEX,
    nv.NVML_GPU_RECOVERY_ACTION_BUS_RESET: RecoveryAction.RESET,
    nv.NVML_GPU_RECOVERY_ACTION_SYSTEM_REBOOT: RecoveryAction.REBOOT,
}

TOPOLOGY: Final[Mapping[int, str]] = {
    nv.NVML_TOPOLOGY_INTERNAL: "internal",
    nv.NVML_TOPOLOGY_SINGLE: "single",
    nv.NVML_TOPOLOGY_MULTIPLE: "multiple",
    nv.NVML_TOPOLOGY_HOSTBRIDGE: "hostbridge",
    nv.NVML_TOPOLOGY_NODE: "node",
    nv.NVML_TOPOLOGY_SYSTEM: "system",
}


class NvmlFailure(LlmosError):  # noqa: N818 - an outcome of a call, often expected
    """A call returned an error code."""

    def __init__(self, call: str, code: int) -> None:
        super().__init__(f"{call}: NVML error {code}")
        self.call = call
        self.code = code

    @property
    def meaning(self) -> Meaning:
        """What the code says; a code this table does not know is a fault."""
        return MEANING.get(self.code, Meaning.FAULT)

    @property
    def kind(self) -> FaultKind:
        """Which fault it is, if it is one."""
        return KINDS.get(self.code, FaultKind.UNKNOWN)


def clock_reasons(mask: int) -> frozenset[ClockReason]:
    """Return the reasons in a bit mask; bits this table does not know are dropped."""
    return frozenset(reason for bit, reason in CLOCK_REASONS if mask & bit)
