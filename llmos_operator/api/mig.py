"""Names of MIG profiles: what a hardware partition of a GPU has of it.

    3g.40gb       3 compute slices and 40 GB of memory
    1c.3g.40gb    one of the 3 compute slices, beside others that share the memory
    1g.10gb+me    with the media engines

Source: NVIDIA MIG User Guide, "MIG Device Names" and "Supported MIG Profiles"
(https://docs.nvidia.com/datacenter/tesla/mig-user-guide/). The driver ends the name of an instance with its profile. Names of
extended resources: https://github.com/NVIDIA/k8s-device-plugin#configuration-option-details (MIG_STRATEGY mixed).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

# Of a profile, in the syntax both Python and CEL read.
PATTERN: Final = "([1-7]c[.])?[1-7]g[.][1-9][0-9]{0,3}gb([+-][a-z]+([.][a-z]+)*)*"
RESOURCE_PREFIX: Final = "nvidia.com/mig-"

_PROFILE = re.compile(PATTERN)
_PARTS = re.compile(r"(?:([1-7])c\.)?([1-7])g\.([0-9]+)gb(.*)")
_EXTRA = re.compile(r"[+-][^+-]+")
_SHOWN: Final = 40


@dataclass(frozen=True, slots=True, order=True)
class MigProfile:
    """A profile; the order is that of size: compute slices first."""

    compute: int  # slices a program has
    slices: int  # of the instance, which others may have a part of
    gigabytes: int  # as the name says; the driver keeps a little of it
    extras: tuple[str, ...] = ()  # such as "+me"

    def __str__(self) -> str:
        part = f"{self.compute}c." if self.compute != self.slices else ""
        return f"{part}{self.slices}g.{self.gigabytes}gb{''.join(self.extras)}"

    @property
    def resource(self) -> str:
        """Extended resource under which a device plugin hands such instances out that tells profiles apart."""
        return f"{RESOURCE_PREFIX}{str(self).replace('+', '.')}"

    def holds(self, asked: MigProfile) -> bool:
        """Return whether an instance of this profile has all that is asked for."""
        return (
            self.compute >= asked.compute
            and self.gigabytes >= asked.gigabytes
            and set(self.extras) >= set(asked.extras)
        )


def parse_profile(text: str) -> MigProfile:
    """Return the profile of that name. ValueError: it is none."""
    match = _PARTS.fullmatch(text) if _PROFILE.fullmatch(text) else None
    if match is None:
        raise ValueError(
            f"{text[:_SHOWN]!r} is not a MIG profile: write one like 1g.10gb, as nvidia-smi mig -lgip does"
        )
    slices = int(match[2])
    return MigProfile(int(match[1] or slices), slices, int(match[3]), tuple(_EXTRA.findall(match[4])))


def profile_in(product: str) -> MigProfile | None:
    """Return the profile an instance's product name ends with ("NVIDIA H100 80GB HBM3 MIG 1g.10gb"), None if it has none."""
    before, found, word = product.rpartition("MIG ")
    if not found or not before:
        return None
    try:
        return parse_profile(word.strip())
    except ValueError:
        return None
