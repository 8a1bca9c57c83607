"""What each finding about a device means: verdict, what should be done, and when it is over. Data, no code.

A reason is one CamelCase word; it is what `GPUNode.status.devices[].health.reason`, telemetry and metrics carry, and
from it everything else follows. Unhealthy takes a device out of placement, Degraded leaves it usable and less liked.
Clean times are seconds without the finding before a device returns; each relapse within `FLAP_SECONDS` doubles them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from llmos_operator.api.telemetry import Verdict

if TYPE_CHECKING:
    from collections.abc import Mapping

MINUTE: Final = 60.0
HOUR: Final = 3600.0
DAY: Final = 86_400.0

CLEAN_SECONDS: Final = 5 * MINUTE
CLEAN_LIMIT: Final = HOUR  # relapses do not double the clean time beyond this
FLAP_SECONDS: Final = HOUR  # a return within this time after clearing is a relapse
REPEAT_SECONDS: Final = 7 * DAY  # a second failure of a `repeats` reason within this time: replace the card
SUSPECT_WORKLOADS: Final = 3  # so many different workloads with application faults within SUSPECT_SECONDS
SUSPECT_SECONDS: Final = DAY


class Action(StrEnum):
    """What should be done about a device, mildest first. The agent only says so; the operator decides."""

    NONE = "None"
    WATCH = "Watch"
    RESET_WHEN_IDLE = "ResetWhenIdle"
    NO_MULTI_GPU = "NoMultiGPU"  # single-device work may stay, nothing may span this device
    INSPECT = "Inspect"  # a person has to look
    DRAIN_AND_RESET = "DrainAndReset"  # no new work; what runs may end in its own time
    EVICT_AND_RESET = "EvictAndReset"  # what runs computes nothing or something wrong
    REBOOT_NODE = "RebootNode"
    REPLACE = "Replace"


class Reason(StrEnum):
    """Findings about a device."""

    AS_EXPECTED = "AsExpected"
    NO_SAMPLES = "NoSamples"
    # the driver's answers
    DEVICE_LOST = "DeviceLost"
    RESET_REQUIRED = "ResetRequired"
    REBOOT_REQUIRED = "RebootRequired"
    P2P_DRAIN_REQUIRED = "P2PDrainRequired"
    DRIVER_HANG = "DriverHang"
    DRIVER_ERROR = "DriverError"
    DRIVER_TIMEOUT = "DriverTimeout"
    DRIVER_LOST = "DriverLost"  # the agent has no session with the driver any more
    CORRUPTED_INFOROM = "CorruptedInforom"
    POWER_CONNECTOR = "PowerConnector"
    # memory
    DOUBLE_BIT_ECC = "DoubleBitEcc"
    UNCORRECTED_ECC = "UncorrectedEcc"
    UNCONTAINED_ECC = "UncontainedEcc"
    SRAM_ECC = "SramEcc"
    SRAM_THRESHOLD = "SramThreshold"
    CORRECTED_ECC_STORM = "CorrectedEccStorm"
    REMAP_PENDING = "RemapPending"
    REMAP_FAILED = "RemapFailed"
    RETIREMENT_PENDING = "RetirementPending"
    RESOURCE_RETIRED = "ResourceRetired"
    RETIREMENT_FAILED = "RetirementFailed"
    REDUCED_MEMORY = "ReducedMemory"
    # engines, firmware, links
    FALLEN_OFF_BUS = "FallenOffBus"
    GPU_HALTED = "GpuHalted"
    GSP_ERROR = "GspError"
    INIT_ERROR = "InitError"
    SECURITY_FAULT = "SecurityFault"
    NVLINK_ERROR = "NvlinkError"
    NVLINK_DOWN = "NvlinkDown"
    UNCLASSIFIED_XID = "UnclassifiedXid"
    # heat and power
    THERMAL_SLOWDOWN = "ThermalSlowdown"
    SOFTWARE_THERMAL = "SoftwareThermal"
    POWER_BRAKE = "PowerBrake"
    HARDWARE_SLOWDOWN = "HardwareSlowdown"
    # applications
    SUSPECT = "RepeatedApplicationFaults"


@dataclass(frozen=True, slots=True)
class Rule:
    """Consequences of a finding.

    A finding counts once it was seen in ``needs`` of the last ``window`` observations; before that it counts as
    ``early`` (nothing if None). ``repeats``: coming back after it cleared, within `REPEAT_SECONDS`, means the card has
    to be replaced, and it no longer clears by itself. ``node``: the whole node is in danger, not only the device.
    """

    verdict: Verdict
    action: Action
    clean_seconds: float = CLEAN_SECONDS
    needs: int = 1
    window: int = 1
    early: Verdict | None = None
    repeats: bool = False
    node: bool = False


_H, _D, _U = Verdict.HEALTHY, Verdict.DEGRADED, Verdict.UNHEALTHY


def _heat(action: Action = Action.WATCH) -> Rule:
    """Five of the last ten observations: not every spike of heat is news."""
    return Rule(_D, action, MINUTE, needs=5, window=10)


RULES: Final[Mapping[Reason, Rule]] = {
    Reason.AS_EXPECTED: Rule(_H, Action.NONE, 0.0),
    Reason.NO_SAMPLES: Rule(Verdict.UNKNOWN, Action.NONE, 0.0),
    Reason.DEVICE_LOST: Rule(_U, Action.REBOOT_NODE, node=True),
    Reason.RESET_REQUIRED: Rule(_U, Action.DRAIN_AND_RESET),
    Reason.REBOOT_REQUIRED: Rule(_U, Action.REBOOT_NODE, node=True),
    Reason.P2P_DRAIN_REQUIRED: Rule(_D, Action.NO_MULTI_GPU),
    Reason.DRIVER_HANG: Rule(_U, Action.INSPECT),
    Reason.DRIVER_ERROR: Rule(_U, Action.INSPECT, needs=3, window=10, early=_D),
    Reason.DRIVER_TIMEOUT: Rule(_U, Action.INSPECT, needs=3, window=10, early=_D),
    Reason.DRIVER_LOST: Rule(_U, Action.INSPECT),
    Reason.CORRUPTED_INFOROM: Rule(_D, Action.INSPECT),
    Reason.POWER_CONNECTOR: Rule(_U, Action.INSPECT),
    Reason.DOUBLE_BIT_ECC: Rule(_U, Action.DRAIN_AND_RESET, 10 * MINUTE, repeats=True),
    Reason.UNCORRECTED_ECC: Rule(_D, Action.RESET_WHEN_IDLE, HOUR),
    Reason.UNCONTAINED_ECC: Rule(_U, Action.EVICT_AND_RESET, 10 * MINUTE, repeats=True),
    Reason.SRAM_ECC: Rule(_U, Action.DRAIN_AND_RESET, 10 * MINUTE, repeats=True),
    Reason.SRAM_THRESHOLD: Rule(_D, Action.REPLACE),
    Reason.CORRECTED_ECC_STORM: Rule(_D, Action.RESET_WHEN_IDLE, HOUR),
    Reason.REMAP_PENDING: Rule(_D, Action.RESET_WHEN_IDLE),
    Reason.REMAP_FAILED: Rule(_U, Action.EVICT_AND_RESET, 10 * MINUTE, repeats=True),
    Reason.RETIREMENT_PENDING: Rule(_D, Action.RESET_WHEN_IDLE),
    Reason.RESOURCE_RETIRED: Rule(_D, Action.RESET_WHEN_IDLE),
    Reason.RETIREMENT_FAILED: Rule(_D, Action.INSPECT, HOUR),
    Reason.REDUCED_MEMORY: Rule(_D, Action.RESET_WHEN_IDLE),
    Reason.FALLEN_OFF_BUS: Rule(_U, Action.REBOOT_NODE, 10 * MINUTE, repeats=True, node=True),
    Reason.GPU_HALTED: Rule(_U, Action.EVICT_AND_RESET, 10 * MINUTE, repeats=True),
    Reason.GSP_ERROR: Rule(_U, Action.EVICT_AND_RESET, 10 * MINUTE, repeats=True),
    Reason.INIT_ERROR: Rule(_U, Action.EVICT_AND_RESET, 10 * MINUTE, repeats=True),
    Reason.SECURITY_FAULT: Rule(_U, Action.EVICT_AND_RESET, 10 * MINUTE, repeats=True),
    Reason.NVLINK_ERROR: Rule(_D, Action.NO_MULTI_GPU, HOUR),
    Reason.NVLINK_DOWN: Rule(_D, Action.NO_MULTI_GPU),
    Reason.UNCLASSIFIED_XID: Rule(_D, Action.INSPECT, HOUR),
    Reason.THERMAL_SLOWDOWN: _heat(),
    Reason.SOFTWARE_THERMAL: _heat(),
    Reason.POWER_BRAKE: _heat(Action.INSPECT),
    Reason.HARDWARE_SLOWDOWN: _heat(Action.INSPECT),
    Reason.SUSPECT: Rule(_D, Action.INSPECT, HOUR),
}

# What runs on such a device computes nothing or something wrong: it is ended at once, not asked to leave.
LOST_REASONS: Final = tuple(
    sorted(
        reason.value
        for reason, rule in RULES.items()
        if rule.verdict is _U and rule.action in {Action.EVICT_AND_RESET, Action.REBOOT_NODE}
    )
)

SEVERITY: Final[Mapping[Verdict, int]] = {
    Verdict.HEALTHY: 0,
    Verdict.DEGRADED: 1,
    Verdict.UNKNOWN: 2,
    Verdict.UNHEALTHY: 3,
}


def rule_of(reason: str) -> Rule | None:
    """Return the rule of a reason as telemetry carries it, or None for a word of another version."""
    try:
        return RULES[Reason(reason)]
    except (ValueError, KeyError):
        return None
