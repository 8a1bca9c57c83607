"""Layouts by name, and which of them serves waiting work best.

The names are those of NVIDIA's mig-manager, whose default configuration has `all-<profile>` (as many of one profile as fit) and
`all-balanced` (2, 1 and 1 of the smallest, the 2g and the 3g one); an administrator names others.
https://github.com/NVIDIA/mig-parted/blob/main/deployments/gpu-operator (the ConfigMap default-mig-parted-config of the GPU operator)
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from llmos_operator.scheduler.geometry.products import COMPUTE_SLICES, fits, most, usable_bytes
from llmos_operator.state.types import FULL_MILLI

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from llmos_operator.api.mig import MigProfile
    from llmos_operator.scheduler.geometry.products import Product, Shape

BALANCED: Final = "all-balanced"
_BALANCE: Final = (2, 0, 1, 1, 0, 0)  # of each of a product's profiles
_MEMORY_SLICES: Final = 8


@dataclass(frozen=True, slots=True)
class Layout:
    """What each GPU of a node is cut into, under the name mig-manager knows."""

    name: str
    counts: tuple[tuple[MigProfile, int], ...]


@dataclass(frozen=True, slots=True)
class Need:
    """What one replica that waits asks of an instance."""

    bytes: int
    profile: MigProfile | None = None  # the least

    def held_by(self, profile: MigProfile) -> bool:
        """Return whether an instance of a profile is large enough."""
        return usable_bytes(profile) >= self.bytes and (self.profile is None or profile.holds(self.profile))


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a layout does for those who wait. Of two the one with the smaller `order` is better."""

    layout: Layout
    served: tuple[int, ...]  # places in the line of those it serves
    used: int  # thousandths of a GPU that they hold, all together
    largest: int  # of the instances that are left, thousandths of a GPU

    @property
    def order(self) -> tuple[int, int, int, str]:
        """Most served first; then the least of the GPUs spent on them, the largest instance left over, the name."""
        return (-len(self.served), self.used, -self.largest, self.layout.name)


def layouts_of(product: Product, named: Iterable[Layout] = ()) -> tuple[Layout, ...]:
    """Return the layouts a product can have: those `named` that fit, and mig-manager's own under other names."""
    found = {one.name: one for one in _defaults(product)}
    found |= {one.name: one for one in named}
    return tuple(one for _, one in sorted(found.items()) if fits(product, dict(one.counts)))


def _defaults(product: Product) -> list[Layout]:
    found = [
        Layout(f"all-{str(one.profile).replace('+', '.')}", ((one.profile, most(product, one.profile)),))
        for one in product.shapes
    ]
    balance = zip(product.shapes, _BALANCE, strict=True)
    return [*found, Layout(BALANCED, tuple((one.profile, count) for one, count in balance if count))]


def part_of(shape: Shape) -> int:
    """Return the thousandths of a GPU that an instance is: the larger part of slices and of memory."""
    return max(
        shape.profile.slices * FULL_MILLI // COMPUTE_SLICES, shape.memory * FULL_MILLI // _MEMORY_SLICES
    )


def judge(product: Product, layout: Layout, gpus: int, line: Sequence[Need]) -> Verdict:
    """Return what `gpus` GPUs cut like that do for a line: each in turn takes the smallest instance that holds it."""
    return _judge(product, layout, Counter(dict(layout.counts)), gpus, line)


def judge_present(product: Product, present: Mapping[MigProfile, int], line: Sequence[Need]) -> Verdict:
    """Return what the instances a node has now would do for a line if all of them were free."""
    return _judge(product, Layout("", ()), Counter(present), 1, line)


def _judge(
    product: Product, layout: Layout, counts: Counter[MigProfile], gpus: int, line: Sequence[Need]
) -> Verdict:
    left = [(part_of(shape), shape) for shape in product.shapes for _ in range(counts[shape.profile] * gpus)]
    left.sort(key=lambda one: (one[0], one[1].profile))
    served, used = [], 0
    for place, need in enumerate(line):
        found = next((one for one in left if need.held_by(one[1].profile)), None)
        if found is not None:
            left.remove(found)
            served.append(place)
            used += found[0]
    return Verdict(layout, tuple(served), used, max((part for part, _ in left), default=0))


def best(
    product: Product,
    layouts: Iterable[Layout],
    gpus: int,
    present: Mapping[MigProfile, int],
    line: Sequence[Need],
) -> Verdict | None:
    """Return the layout that serves a line best, None if none serves more than the instances there are now would."""
    now = judge_present(product, present, line)
    found = min((judge(product, one, gpus, line) for one in layouts), key=lambda v: v.order, default=None)
    return found if found is not None and len(found.served) > len(now.served) else None
