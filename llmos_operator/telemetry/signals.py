"""What one observation of a device shows, as findings. Pure; the only reader of samples and events in health.

Order of the result is fixed: hang, faults, counters, heat, events.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from llmos_operator.telemetry.policy import Reason
from llmos_operator.telemetry.sample import ClockReason, EventKind, FaultKind, RecoveryAction
from llmos_operator.telemetry.xids import Effect, describe

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from llmos_operator.telemetry.sample import Counters, DeviceEvent, Hang, Sample


class Signal(NamedTuple):
    """A finding and where it came from, in words for people."""

    reason: Reason
    detail: str


_FAULTS: Final[Mapping[FaultKind, Reason]] = {
    FaultKind.LOST: Reason.DEVICE_LOST,
    FaultKind.RESET_REQUIRED: Reason.RESET_REQUIRED,
    FaultKind.UNKNOWN: Reason.DRIVER_ERROR,
    FaultKind.TIMEOUT: Reason.DRIVER_TIMEOUT,
    FaultKind.CORRUPTED: Reason.CORRUPTED_INFOROM,
    FaultKind.POWER: Reason.POWER_CONNECTOR,
    FaultKind.DRIVER: Reason.DRIVER_ERROR,
}
_RECOVERY: Final[Mapping[RecoveryAction, Reason]] = {
    RecoveryAction.RESET: Reason.RESET_REQUIRED,
    RecoveryAction.DRAIN_AND_RESET: Reason.RESET_REQUIRED,
    RecoveryAction.REBOOT: Reason.REBOOT_REQUIRED,
    RecoveryAction.DRAIN_P2P: Reason.P2P_DRAIN_REQUIRED,
    RecoveryAction.RECOVER_IMEX: Reason.P2P_DRAIN_REQUIRED,
}
# Power capping and idling are normal and not here.
_CLOCKS: Final[Mapping[ClockReason, Reason]] = {
    ClockReason.HW_THERMAL: Reason.THERMAL_SLOWDOWN,
    ClockReason.SW_THERMAL: Reason.SOFTWARE_THERMAL,
    ClockReason.POWER_BRAKE: Reason.POWER_BRAKE,
    ClockReason.HW_SLOWDOWN: Reason.HARDWARE_SLOWDOWN,
}
_EVENTS: Final[Mapping[EventKind, Reason]] = {
    EventKind.DOUBLE_BIT_ECC: Reason.DOUBLE_BIT_ECC,
    EventKind.SINGLE_BIT_ECC_STORM: Reason.CORRECTED_ECC_STORM,
    EventKind.RETIREMENT_FAILURE: Reason.REMAP_FAILED,
    EventKind.FATAL_POISON: Reason.UNCONTAINED_ECC,
    EventKind.UNAVAILABLE: Reason.DEVICE_LOST,
}


def signals_of(
    sample: Sample | None, before: Counters | None, events: Iterable[DeviceEvent], hang: Hang | None
) -> tuple[Signal, ...]:
    """Return the findings of an observation; ``before`` are the counters of the one before, for growth."""
    found: list[Signal] = []
    if hang is not None:
        found.append(Signal(Reason.DRIVER_HANG, f"{hang.call} does not return"))
    if sample is not None:
        found.extend(_of_faults(sample))
        if sample.counters is not None:
            found.extend(_of_counters(sample.counters, before))
        if sample.clock_reasons:
            found.extend(
                Signal(_CLOCKS[reason], f"clocks are held down: {reason}")
                for reason in sorted(sample.clock_reasons)
                if reason in _CLOCKS
            )
    found.extend(_of_events(events))
    return tuple(found)


def _of_faults(sample: Sample) -> Iterator[Signal]:
    for fault in sample.faults:
        yield Signal(_FAULTS[fault.kind], f"{fault.call} returned error {fault.code}")


def _of_counters(now: Counters, before: Counters | None) -> Iterator[Signal]:
    if now.remap_failed:
        yield Signal(Reason.REMAP_FAILED, "a memory row could not be remapped")
    if now.remap_pending:
        yield Signal(Reason.REMAP_PENDING, "a remapped memory row waits for a reset")
    if now.retirement_pending:
        yield Signal(Reason.RETIREMENT_PENDING, "a retired page waits for a driver reload")
    if now.sram_threshold_exceeded:
        yield Signal(Reason.SRAM_THRESHOLD, "uncorrectable SRAM errors passed the vendor's threshold")
    grown = _growth(now.ecc_volatile_uncorrected, before.ecc_volatile_uncorrected if before else None)
    if grown:
        yield Signal(Reason.UNCORRECTED_ECC, f"{grown} more uncorrected memory errors")
    if now.nvlinks_down:
        yield Signal(Reason.NVLINK_DOWN, f"{now.nvlinks_down} NVLinks went down")
    if now.recovery_action is not None and now.recovery_action in _RECOVERY:
        yield Signal(_RECOVERY[now.recovery_action], f"the driver asks for: {now.recovery_action}")


def _growth(now: int | None, before: int | None) -> int:
    """Return how much a counter grew. A smaller number than before is a reloaded driver, not a growth."""
    return now - before if now is not None and before is not None and now > before else 0


def _of_events(events: Iterable[DeviceEvent]) -> Iterator[Signal]:
    for event in events:
        if event.kind is EventKind.XID:
            xid = describe(event.code)
            if xid.effect is Effect.DEVICE and xid.reason is not None:
                yield Signal(xid.reason, f"XID {xid.code}: {xid.text}")
        elif event.kind in _EVENTS:
            yield Signal(_EVENTS[event.kind], f"driver event {event.kind}")


def is_application_fault(event: DeviceEvent) -> bool:
    """Return whether an event is a process's own fault."""
    return event.kind is EventKind.XID and describe(event.code).effect is Effect.APPLICATION
