"""Prices of shapes that can be used. Apart from what makes them, so that who uses them needs no solver."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from llmos_operator.scheduler.fragmentation.shapes import Shape
    from llmos_operator.scheduler.fragmentation.worth import Worth

DeviceKind: TypeAlias = tuple[str, int]  # product, bytes of memory


@dataclass(frozen=True, slots=True)
class Prices:
    """What one more place for each shape is worth, in devices, and the tables for it."""

    of: dict[Shape, float]
    kinds: tuple[DeviceKind, ...]  # their numbers are those in `Shape.kinds` and `Stock.kind`
    worth: Worth  # knows one kind more, for devices of none of `kinds`: worth nothing
    at: float  # when, seconds
