"""What was measured of a device at one moment, as frozen values.

Absent is ``None`` and never 0: a card that cannot tell its power draw has no power, not zero watts. What a device can
tell at all is in :attr:`Sample.capabilities`; a capability that is on while its field is ``None`` means "not this
time".
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from llmos_operator.api.mig import profile_in

if TYPE_CHECKING:
    from llmos_operator.api.mig import MigProfile


class Capability(StrEnum):
    """Things a device can tell. The words appear in `GPUNode.status.devices[].capabilities`."""

    MEMORY = "memory"
    MEMORY_RESERVED = "memory-reserved"  # NVML's v2 split: memory the driver keeps
    UTILIZATION = "utilization"
    TEMPERATURE = "temperature"
    MEMORY_TEMPERATURE = "memory-temperature"
    POWER = "power"
    POWER_LIMIT = "power-limit"
    ENERGY = "energy"
    CLOCKS = "clocks"
    CLOCK_REASONS = "clock-reasons"
    ECC = "ecc"
    SRAM_ECC = "sram-ecc"
    REMAPPED_ROWS = "remapped-rows"
    RETIRED_PAGES = "retired-pages"
    NVLINK = "nvlink"
    PCIE = "pcie"
    RECOVERY_ACTION = "recovery-action"
    PROCESSES = "processes"
    EVENTS = "events"
    GPM = "gpm"


class FaultKind(StrEnum):
    """How a call failed when the failure says something about the device and not about a missing feature."""

    LOST = "Lost"  # the device no longer answers on the bus
    RESET_REQUIRED = "ResetRequired"
    UNKNOWN = "Unknown"
    TIMEOUT = "Timeout"
    CORRUPTED = "Corrupted"  # infoROM
    POWER = "Power"  # external power connectors
    DRIVER = "Driver"  # the session with the driver is broken, not one device


class EventKind(StrEnum):
    """Kinds of driver events the agent listens to."""

    XID = "Xid"
    DOUBLE_BIT_ECC = "DoubleBitEcc"
    SINGLE_BIT_ECC_STORM = "SingleBitEccStorm"
    RETIREMENT_FAILURE = "RetirementFailure"
    FATAL_POISON = "FatalPoison"
    UNAVAILABLE = "Unavailable"
    RECOVERY_ACTION = "RecoveryAction"


class ClockReason(StrEnum):
    """Why clocks are below their maximum. Power capping is normal; the ones in `FAULTS` of `health` are not."""

    IDLE = "idle"
    APPLICATION = "application"
    POWER_CAP = "power-cap"
    HW_SLOWDOWN = "hw-slowdown"
    SYNC_BOOST = "sync-boost"
    SW_THERMAL = "sw-thermal"
    HW_THERMAL = "hw-thermal"
    POWER_BRAKE = "power-brake"
    DISPLAY = "display"
    BOARD_LIMIT = "board-limit"
    RELIABILITY = "reliability"


class RecoveryAction(StrEnum):
    """What the driver itself says must be done (payload of XID 154)."""

    NONE = "None"
    RESET = "Reset"
    REBOOT = "Reboot"
    DRAIN_P2P = "DrainP2P"
    DRAIN_AND_RESET = "DrainAndReset"
    RECOVER_IMEX = "RecoverImexDomain"


@dataclass(frozen=True, slots=True)
class DriverInfo:
    """The driver behind a backend; CUDA as "12.8". Empty strings are unknown."""

    version: str = ""
    cuda: str = ""
    nvml: str = ""


@dataclass(frozen=True, slots=True)
class Link:
    """A neighbour of a device on the same node: NVLink count, and the PCIe level where their paths meet."""

    uuid: str
    nvlinks: int = 0
    level: str = ""  # internal | single | multiple | hostbridge | node | system


@dataclass(frozen=True, slots=True)
class DeviceInfo:
    """A device and what never changes about it. MIG instances are devices of their own with a `parent`."""

    uuid: str
    index: int
    product: str = ""
    memory_bytes: int | None = None  # what workloads can have
    compute_capability: str = ""  # "8.0"
    bus_id: str = ""
    parent: str = ""  # uuid of the GPU a MIG instance is cut from
    gpu_instance: int | None = None
    compute_instance: int | None = None
    gpu_slices: int | None = None  # compute slices of the GPU a MIG instance is cut from
    mig_enabled: bool = False  # a GPU cut into instances: it can be measured, not given out
    links: tuple[Link, ...] = ()

    @property
    def is_mig(self) -> bool:
        """Whether this is an instance of a GPU, not a GPU."""
        return bool(self.parent)

    @property
    def mig_profile(self) -> MigProfile | None:
        """Profile of an instance, as its name says; None for whole GPUs, and where the driver does not say."""
        return profile_in(self.product) if self.parent else None

    @property
    def allocatable(self) -> bool:
        """Whether a workload can be given this device as a whole."""
        return not self.mig_enabled


@dataclass(frozen=True, slots=True)
class Fault:
    """A call that failed in a way that speaks of the device's health."""

    kind: FaultKind
    call: str
    code: int = 0  # the driver's error code


@dataclass(frozen=True, slots=True)
class Counters:
    """What changes slowly and is read every few seconds. Counts since the driver was loaded unless said otherwise."""

    at: float  # monotonic seconds of the reading
    power_limit_milliwatts: int | None = None
    memory_temperature_celsius: int | None = None
    sm_clock_mhz: int | None = None
    memory_clock_mhz: int | None = None
    ecc_volatile_corrected: int | None = None
    ecc_volatile_uncorrected: int | None = None
    ecc_aggregate_corrected: int | None = None  # over the card's life
    ecc_aggregate_uncorrected: int | None = None
    sram_threshold_exceeded: bool | None = None
    remapped_correctable: int | None = None
    remapped_uncorrectable: int | None = None
    remap_pending: bool | None = None
    remap_failed: bool | None = None
    retired_pages: int | None = None
    retirement_pending: bool | None = None
    nvlinks_active: int | None = None
    nvlinks_down: int | None = None  # links that were up once and are not now
    nvlink_errors: int | None = None  # replay + recovery + CRC over all links
    nvlink_tx_bytes: int | None = None
    nvlink_rx_bytes: int | None = None
    pcie_replays: int | None = None
    pcie_tx_bytes: int | None = None
    pcie_rx_bytes: int | None = None
    pcie_generation: int | None = None
    pcie_width: int | None = None
    recovery_action: RecoveryAction | None = None
    sm_active_ratio: float | None = None  # GPM, 0 to 1
    sm_occupancy_ratio: float | None = None
    tensor_active_ratio: float | None = None
    dram_active_ratio: float | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """One device at one moment (`at`: monotonic seconds)."""

    uuid: str
    at: float
    memory_total_bytes: int | None = None  # what workloads can have: without the driver's reserve
    memory_used_bytes: int | None = None
    memory_reserved_bytes: int | None = None  # kept by the driver, in neither of the two above
    utilization_percent: int | None = None
    memory_utilization_percent: int | None = None
    temperature_celsius: int | None = None
    power_milliwatts: int | None = None
    energy_millijoules: int | None = None
    clock_reasons: frozenset[ClockReason] | None = None
    counters: Counters | None = None
    capabilities: frozenset[Capability] = frozenset()
    faults: tuple[Fault, ...] = ()

    @property
    def answered(self) -> bool:
        """Whether the device told something and nothing went wrong: what a probe wants to see."""
        return not self.faults and (
            self.memory_used_bytes is not None
            or self.utilization_percent is not None
            or self.temperature_celsius is not None
            or self.power_milliwatts is not None
        )


@dataclass(frozen=True, slots=True)
class ProcessUse:
    """A process with a context on a device. `memory_bytes` is absent where the driver does not tell."""

    pid: int
    memory_bytes: int | None = None
    pod_uid: str = ""
    workload: str = ""  # "namespace/pod" as far as the process tells, else ""


@dataclass(frozen=True, slots=True)
class DeviceEvent:
    """Something the driver reported about a device. `code` is the XID for XID events."""

    uuid: str  # "" when the driver does not say which device
    kind: EventKind
    code: int = 0
    gpu_instance: int | None = None  # None: the whole GPU


@dataclass(frozen=True, slots=True)
class Hang:
    """A driver call that did not come back. `device` is "" for calls about the whole node."""

    call: str
    device: str
    since: float  # monotonic seconds at which the call was entered
