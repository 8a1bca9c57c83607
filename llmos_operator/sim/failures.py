"""What breaks in a fleet of GPUs, how often, and how it is mended: a published mix as random draws.

Counts are those of 54 days of training on 16,384 H100 ("The Llama 3 Herd of Models", 2024, table 5): 419 unexpected
interruptions, 0.474 for 1,000 GPU days. How a class splits into XIDs, how long repairs take, and ten application XIDs for each
fault are assumptions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from random import Random

GPU_DAYS: Final = 16_384 * 54.0
APPLICATION_XIDS: Final = (13, 31, 43, 45)
NOISE: Final = 10  # application XIDs for each fault
DAY: Final = 86_400.0
_MINUTE: Final = 60.0
_HOUR: Final = 3600.0


class Effect(StrEnum):
    """What a fault does."""

    DEVICE = "Device"  # the device reports XIDs until it is mended
    SLOW = "Slow"  # no finding: what runs there is slower for a while
    EXIT = "Exit"  # the process ends and starts again in its place
    UNREACHABLE = "Unreachable"  # the node cannot be reached for a while
    MAINTENANCE = "Maintenance"  # the node is cordoned, emptied, and comes back
    GONE = "Gone"  # the node is deleted, and comes back repaired


@dataclass(frozen=True, slots=True)
class Kind:
    """One sort of fault; `weight` in counts of the published table. `mends` in seconds from when mending begins."""

    name: str
    weight: float
    effect: Effect
    xids: tuple[int, ...] = ()
    mends: float = 0.0


_RESET, _REBOOT = 2 * _MINUTE, 10 * _MINUTE
KINDS: Final = (
    Kind("off the bus", 148 * 0.40, Effect.DEVICE, (79,), _REBOOT),
    Kind("NVLink", 148 * 0.25, Effect.DEVICE, (74,), _RESET),
    Kind("halted", 148 * 0.20, Effect.DEVICE, (62, 46), _RESET),
    Kind("silently slow", 148 * 0.15, Effect.SLOW),
    Kind("double bit", 72 * 0.40, Effect.DEVICE, (48, 63), _RESET),
    Kind("contained memory error", 72 * 0.30, Effect.EXIT, (94,)),
    Kind("uncontained memory error", 72 * 0.20, Effect.DEVICE, (95,), _RESET),
    Kind("row not remapped", 72 * 0.10, Effect.DEVICE, (64,), _RESET),
    Kind("software", 56, Effect.EXIT, (13, 31)),
    Kind("network", 35, Effect.UNREACHABLE),
    Kind("maintenance", 32, Effect.MAINTENANCE),
    Kind("SRAM", 19, Effect.DEVICE, (48,), _RESET),
    Kind("GSP", 17, Effect.DEVICE, (119,), _RESET),
    Kind("NIC, hang, heat, wrong answer", 26, Effect.SLOW),
    Kind("host", 14, Effect.GONE),
)
TOTAL: Final = sum(kind.weight for kind in KINDS)


@dataclass(frozen=True, slots=True)
class Fault:
    """One fault: when (seconds), which device (a number) or the node it is in, and how long it lasts or takes to mend."""

    at: float
    kind: Kind
    gpu: int
    seconds: float
    swap: float  # seconds until a card or host is exchanged, where mending does not help


@dataclass(frozen=True, slots=True)
class Noise:
    """One XID that is an application's own fault."""

    at: float
    xid: int
    gpu: int


def draw(rng: Random, gpus: int, days: float, rate: float) -> list[Fault | Noise]:
    """Return what happens to so many GPUs in time order; `rate` multiplies the published one."""
    per_second = TOTAL / GPU_DAYS * rate * gpus / DAY
    found: list[Fault | Noise] = []
    at = 0.0
    while (at := at + rng.expovariate(per_second * (1 + NOISE))) < days * DAY:
        gpu = rng.randrange(gpus)
        if rng.random() < NOISE / (1 + NOISE):
            found.append(Noise(at, rng.choice(APPLICATION_XIDS), gpu))
            continue
        (kind,) = rng.choices(KINDS, [one.weight for one in KINDS])
        swap = min(24 * _HOUR, max(2 * _HOUR, rng.lognormvariate(math.log(6 * _HOUR), 0.7)))
        found.append(Fault(at, kind, gpu, _lasts(rng, kind, swap), swap))
    return found


def _lasts(rng: Random, kind: Kind, swap: float) -> float:
    if kind.effect is Effect.UNREACHABLE:
        return rng.uniform(_MINUTE, 30 * _MINUTE)
    if kind.effect in {Effect.SLOW, Effect.MAINTENANCE}:
        return rng.uniform(10 * _MINUTE, 60 * _MINUTE)
    return swap if kind.effect is Effect.GONE else kind.mends
