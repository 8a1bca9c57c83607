"""What one replica asks of a node, at one size. Two equal requests have the same candidates: they are the cache key."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llmos_operator.state.types import (
    FULL_MILLI,
    DeviceSelector,
    MountLimit,
    Placement,
    Selector,
    Sharing,
    Toleration,
)

if TYPE_CHECKING:
    from llmos_operator.api.mig import MigProfile


@dataclass(frozen=True, slots=True)
class Constraints:
    """Which nodes and devices are acceptable at all, whatever is free on them."""

    needs_devices: int = 1
    sharing: Sharing = Sharing.EXCLUSIVE
    selector: DeviceSelector = field(default_factory=DeviceSelector)
    node_selector: Selector = field(default_factory=Selector)
    node_affinity: tuple[Selector, ...] = ()
    tolerations: tuple[Toleration, ...] = ()
    mig_profile: MigProfile | None = None  # the least of an instance; None: any
    mounts: tuple[MountLimit, ...] = ()  # claims that not every node can mount
    displacing: bool = False  # looks for nodes where others could be displaced: needs fresh telemetry
    _hash: int = field(
        init=False, repr=False, compare=False, default=0
    )  # worked out once: it is a key everywhere

    def __post_init__(self) -> None:
        places = (self.selector, self.node_selector, self.node_affinity, self.tolerations, self.mounts)
        kind = (self.needs_devices, self.sharing, self.mig_profile, self.displacing)
        object.__setattr__(self, "_hash", hash((kind, places)))

    def __hash__(self) -> int:
        return self._hash


@dataclass(frozen=True, slots=True)
class Request:
    """Amounts one replica asks for, under its constraints."""

    constraints: Constraints
    bytes_per_device: int = 0
    compute_milli: int = FULL_MILLI
    domain: str = ""  # sharing domain, "" unless Shared
    cpu_milli: int = 0
    memory_bytes: int = 0  # host
    placement: Placement = Placement.BIN_PACK
    model: str = ""  # key of a model whose copies on nodes count; "": none does
    draws: tuple[tuple[str, int], ...] = ()  # milliwatts it was measured to draw on whole devices, by product
    subject: str = ""  # of work on shared devices: what it is alike with (`interference`)
    _hash: int = field(init=False, repr=False, compare=False, default=0)  # as that of its constraints

    def __post_init__(self) -> None:
        amounts = (self.bytes_per_device, self.compute_milli, self.domain, self.cpu_milli, self.memory_bytes)
        object.__setattr__(self, "_hash", hash((self.constraints, amounts, self.placement, self.model)))

    def __hash__(self) -> int:
        return self._hash

    @property
    def devices(self) -> int:
        """How many devices."""
        return self.constraints.needs_devices

    @property
    def whole(self) -> bool:
        """Whether it takes devices as a whole."""
        return self.constraints.sharing is not Sharing.SHARED

    @property
    def plugin_gpus(self) -> int:
        """How many units of nvidia.com/gpu its pod asks for."""
        return self.devices if self.constraints.sharing is Sharing.EXCLUSIVE else 0
