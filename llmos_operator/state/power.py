"""Power, in milliwatts: what devices are expected to draw, and what a budget leaves of it.

    draw(device)  = idle + what its claims add, or its limit where somebody else holds it
    idle          = limit / 10
    claim         = (limit - idle) x share of compute            or, of whole devices whose model was measured,
                    measured - idle, between 0 and limit - idle
    room(node)    = budget - sum of draw(device)

The limit is the one the driver enforces. A device that does not tell its limit could draw anything: where there is a
budget nothing new is placed beside it. That accelerators without work draw about a tenth of their limit is the rule of
thumb of their data sheets (A100 SXM: 50 of 400 W, H100 SXM: 70 of 700 W).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llmos_operator.state.ledger import DeviceState, NodeState
    from llmos_operator.state.types import Claim, Device

NO_BUDGET: Final = 1 << 50  # room where nobody set a limit: more than anything draws
UNKNOWN: Final = -(1 << 50)  # room where a device does not tell its limit: less than nothing
_IDLE_PART: Final = 10
_FULL_MILLI: Final = 1000
_LONGEST_WATTS: Final = 9  # digits


def idle(limit: int) -> int:
    """Return what a device with this limit is expected to draw without work."""
    return limit // _IDLE_PART


def added(limit: int, compute_milli: int, measured: int | None = None) -> int:
    """Return what a claim on so many thousandths of a device is expected to add to its idle draw.

    ``measured`` is what the model drew on such a device; it says nothing of a share of one.
    """
    most = limit - idle(limit)
    if measured is not None and compute_milli == _FULL_MILLI:
        return min(most, max(0, measured - idle(limit)))
    return -(-most * compute_milli // _FULL_MILLI)


def added_by(claim: Claim, devices: Iterable[Device]) -> int:
    """Return what a claim adds on its node; ``devices`` are those of the node. Nothing while it sleeps."""
    if claim.asleep:
        return 0
    return sum(
        added(one.limit_milliwatts, claim.compute_milli, claim.draw_milliwatts)
        for one in devices
        if one.limit_milliwatts is not None and one.uuid in claim.devices
    )


def draw(devices: Iterable[DeviceState], claimed: int) -> int | None:
    """Return what the devices of a node are expected to draw, ``claimed`` of it by our claims; None: unknown."""
    total = claimed
    for one in devices:
        limit = one.device.limit_milliwatts
        if limit is None:
            return None
        total += limit if one.foreign and not one.claims else idle(limit)
    return total


def room(budget: int | None, drawn: int | None) -> int:
    """Return what a budget leaves, negative where more is drawn; NO_BUDGET without one, UNKNOWN without a draw."""
    if budget is None:
        return NO_BUDGET
    return UNKNOWN if drawn is None else budget - drawn


def silent(state: NodeState) -> DeviceState | None:
    """Return a device of a node that does not tell its limit, None if all do."""
    return next((one for one in state.devices if one.device.limit_milliwatts is None), None)


def is_watts(text: str) -> bool:
    """Return whether a label's value can be read as a budget: whole watts, less than a gigawatt."""
    return text.isascii() and text.isdigit() and len(text) <= _LONGEST_WATTS
