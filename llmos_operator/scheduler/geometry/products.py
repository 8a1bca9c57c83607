"""Which instances fit on a GPU beside each other, by product.

Source: NVIDIA MIG User Guide, "Supported MIG Profiles" (profiles, compute and memory slices of A100, H100 and H200) and the
placements that `nvidia-smi mig -lgipp` lists there: https://docs.nvidia.com/datacenter/tesla/mig-user-guide/. These products have
seven compute slices and eight slices of memory, and the same placements; only the names of their profiles differ.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Final

from llmos_operator.api.mig import parse_profile

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmos_operator.api.mig import MigProfile

COMPUTE_SLICES: Final = 7
_GIGABYTE: Final = 10**9
# An instance has somewhat less than its name says: the least are 16.0 GiB of 1g.18gb (0.954 of 18 GB).
_USABLE_PERCENT: Final = 95
_PERCENT: Final = 100


def usable_bytes(profile: MigProfile) -> int:
    """Return the memory that work can count on: never more than an instance of that profile has."""
    return profile.gigabytes * _GIGABYTE * _USABLE_PERCENT // _PERCENT


@dataclass(frozen=True, slots=True)
class Shape:
    """An instance's place on a GPU: so many memory slices in a row, from one of `starts`."""

    profile: MigProfile
    memory: int
    starts: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Product:
    """A product that can be cut. Its name contains all of `words`, in any case, and none of `without`."""

    words: tuple[str, ...]
    without: tuple[str, ...]
    shapes: tuple[Shape, ...]  # smallest first

    def shape(self, profile: MigProfile) -> Shape | None:
        """Return the place an instance of a profile takes, None if the product has no such profile."""
        return next((one for one in self.shapes if one.profile == profile), None)


def _product(words: str, without: str, profiles: str) -> Product:
    places = ((1, tuple(range(7))), (2, (0, 2, 4, 6)), (2, (0, 2, 4)), (4, (0, 4)), (4, (0,)), (8, (0,)))
    shapes = (
        Shape(parse_profile(name), memory, starts)
        for name, (memory, starts) in zip(profiles.split(), places, strict=True)
    )
    return Product(tuple(words.split()), tuple(without.split()), tuple(shapes))


PRODUCTS: Final[tuple[Product, ...]] = (
    _product("A100 40GB", "", "1g.5gb 1g.10gb 2g.10gb 3g.20gb 4g.20gb 7g.40gb"),
    _product("A100 80GB", "", "1g.10gb 1g.20gb 2g.20gb 3g.40gb 4g.40gb 7g.80gb"),
    _product("H100", "94GB 96GB NVL", "1g.10gb 1g.20gb 2g.20gb 3g.40gb 4g.40gb 7g.80gb"),
    _product("H200", "GH200", "1g.18gb 1g.35gb 2g.35gb 3g.71gb 4g.71gb 7g.141gb"),
)


def product_of(name: str) -> Product | None:
    """Return the product of a GPU, or of an instance of it, by its name; None for one that is not known here."""
    upper = name.upper()
    return next(
        (
            one
            for one in PRODUCTS
            if all(word in upper for word in one.words) and not any(word in upper for word in one.without)
        ),
        None,
    )


def fits(product: Product, counts: Mapping[MigProfile, int]) -> bool:
    """Return whether so many instances of each profile have a place on one GPU beside each other."""
    wanted = tuple(sorted((p for p, count in counts.items() for _ in range(count)), reverse=True))
    if sum(profile.slices for profile in wanted) > COMPUTE_SLICES:
        return False
    shapes = [product.shape(profile) for profile in wanted]
    return (
        _placed(tuple((one.memory, one.starts) for one in shapes if one is not None), 0)
        and None not in shapes
    )


@cache
def _placed(wanted: tuple[tuple[int, tuple[int, ...]], ...], taken: int) -> bool:
    """Return whether all find memory slices that are not `taken` (a bit each)."""
    if not wanted:
        return True
    memory, starts = wanted[0]
    masks = (((1 << memory) - 1) << start for start in starts)
    return any(not taken & mask and _placed(wanted[1:], taken | mask) for mask in masks)


def most(product: Product, profile: MigProfile) -> int:
    """Return how many instances of one profile a GPU has room for."""
    count = 0
    while fits(product, Counter({profile: count + 1})):
        count += 1
    return count
