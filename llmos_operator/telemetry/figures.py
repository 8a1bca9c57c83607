"""What the agent tells Prometheus about devices, as a table. The docs page and the exposition are made from it.

Names of our own follow Prometheus' rules (base units, `_total` for counters, ratios from 0 to 1). The names of
NVIDIA's dcgm-exporter are an option for dashboards that exist already; they keep its units and its gaps. A value that
is absent has no series.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from llmos_operator.telemetry.sample import Counters, Sample

    Number = int | float | None

MIB: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class Figure:
    """One metric. ``read`` returns its value, or None for no series; ``labels`` are fixed further labels."""

    name: str
    kind: str  # gauge | counter
    help: str
    read: Callable[[Sample], Number]
    labels: Mapping[str, str] = field(default_factory=dict)


def _of(name: str, scale: float = 1) -> Callable[[Sample], Number]:
    """Return a reader of a sample's field. Times 1 keeps integers integers."""

    def read(sample: Sample) -> Number:
        value: Any = getattr(sample, name)
        return None if value is None else value * scale

    return read


def _counter(name: str, scale: float = 1) -> Callable[[Sample], Number]:
    def read(sample: Sample) -> Number:
        counters: Counters | None = sample.counters
        value: Any = None if counters is None else getattr(counters, name)
        return None if value is None else value * scale

    return read


def _free(sample: Sample) -> Number:
    if sample.memory_total_bytes is None or sample.memory_used_bytes is None:
        return None
    return (sample.memory_total_bytes - sample.memory_used_bytes) / MIB


_G, _C = "gauge", "counter"

FIGURES: Final[tuple[Figure, ...]] = (
    Figure("llmos_gpu_memory_total_bytes", _G, "Memory workloads can have.", _of("memory_total_bytes")),
    Figure("llmos_gpu_memory_used_bytes", _G, "Memory in use by processes.", _of("memory_used_bytes")),
    Figure("llmos_gpu_memory_driver_bytes", _G, "Memory the driver keeps.", _of("memory_reserved_bytes")),
    Figure(
        "llmos_gpu_utilization_ratio",
        _G,
        "Share of time in which some kernel ran; says nothing about how much of the device it used.",
        _of("utilization_percent", 0.01),
    ),
    Figure(
        "llmos_gpu_memory_utilization_ratio",
        _G,
        "Share of time in which device memory was read or written.",
        _of("memory_utilization_percent", 0.01),
    ),
    Figure("llmos_gpu_temperature_celsius", _G, "Temperature of the die.", _of("temperature_celsius")),
    Figure(
        "llmos_gpu_memory_temperature_celsius",
        _G,
        "Temperature of the memory.",
        _counter("memory_temperature_celsius"),
    ),
    Figure("llmos_gpu_power_watts", _G, "Power draw.", _of("power_milliwatts", 0.001)),
    Figure(
        "llmos_gpu_power_limit_watts", _G, "Power limit in force.", _counter("power_limit_milliwatts", 0.001)
    ),
    Figure(
        "llmos_gpu_energy_joules_total",
        _C,
        "Energy since the driver was loaded.",
        _of("energy_millijoules", 0.001),
    ),
    Figure(
        "llmos_gpu_clock_hertz", _G, "Clock frequency.", _counter("sm_clock_mhz", 1_000_000), {"clock": "sm"}
    ),
    Figure(
        "llmos_gpu_clock_hertz",
        _G,
        "Clock frequency.",
        _counter("memory_clock_mhz", 1_000_000),
        {"clock": "memory"},
    ),
    Figure(
        "llmos_gpu_sm_active_ratio", _G, "Share of multiprocessors busy (GPM).", _counter("sm_active_ratio")
    ),
    Figure(
        "llmos_gpu_sm_occupancy_ratio",
        _G,
        "Share of possible warps active (GPM).",
        _counter("sm_occupancy_ratio"),
    ),
    Figure(
        "llmos_gpu_tensor_active_ratio",
        _G,
        "Share of time in tensor operations (GPM).",
        _counter("tensor_active_ratio"),
    ),
    Figure(
        "llmos_gpu_dram_active_ratio",
        _G,
        "Share of memory bandwidth used (GPM).",
        _counter("dram_active_ratio"),
    ),
    Figure(
        "llmos_gpu_ecc_errors_total",
        _C,
        "Memory errors since the driver was loaded.",
        _counter("ecc_volatile_corrected"),
        {"type": "corrected"},
    ),
    Figure(
        "llmos_gpu_ecc_errors_total",
        _C,
        "Memory errors since the driver was loaded.",
        _counter("ecc_volatile_uncorrected"),
        {"type": "uncorrected"},
    ),
    Figure(
        "llmos_gpu_ecc_lifetime_errors_total",
        _C,
        "Memory errors over the card's life.",
        _counter("ecc_aggregate_corrected"),
        {"type": "corrected"},
    ),
    Figure(
        "llmos_gpu_ecc_lifetime_errors_total",
        _C,
        "Memory errors over the card's life.",
        _counter("ecc_aggregate_uncorrected"),
        {"type": "uncorrected"},
    ),
    Figure(
        "llmos_gpu_sram_threshold_exceeded",
        _G,
        "1 if uncorrectable SRAM errors passed the vendor's threshold.",
        _counter("sram_threshold_exceeded"),
    ),
    Figure(
        "llmos_gpu_remapped_rows",
        _G,
        "Memory rows remapped to spares.",
        _counter("remapped_correctable"),
        {"type": "correctable"},
    ),
    Figure(
        "llmos_gpu_remapped_rows",
        _G,
        "Memory rows remapped to spares.",
        _counter("remapped_uncorrectable"),
        {"type": "uncorrectable"},
    ),
    Figure("llmos_gpu_remap_pending", _G, "1 if a remapping waits for a reset.", _counter("remap_pending")),
    Figure("llmos_gpu_remap_failed", _G, "1 if a row could not be remapped.", _counter("remap_failed")),
    Figure("llmos_gpu_retired_pages", _G, "Memory pages retired (before Ampere).", _counter("retired_pages")),
    Figure(
        "llmos_gpu_retirement_pending",
        _G,
        "1 if a retired page waits for a driver reload.",
        _counter("retirement_pending"),
    ),
    Figure("llmos_gpu_nvlinks", _G, "NVLinks by state.", _counter("nvlinks_active"), {"state": "active"}),
    Figure("llmos_gpu_nvlinks", _G, "NVLinks by state.", _counter("nvlinks_down"), {"state": "down"}),
    Figure(
        "llmos_gpu_nvlink_errors_total",
        _C,
        "Replays, recoveries and CRC errors over all links since the driver was loaded.",
        _counter("nvlink_errors"),
    ),
    Figure(
        "llmos_gpu_nvlink_bytes_total",
        _C,
        "Data over all NVLinks.",
        _counter("nvlink_tx_bytes"),
        {"direction": "transmit"},
    ),
    Figure(
        "llmos_gpu_nvlink_bytes_total",
        _C,
        "Data over all NVLinks.",
        _counter("nvlink_rx_bytes"),
        {"direction": "receive"},
    ),
    Figure("llmos_gpu_pcie_replays_total", _C, "PCIe packets sent again.", _counter("pcie_replays")),
    Figure(
        "llmos_gpu_pcie_bytes_total",
        _C,
        "Data over PCIe.",
        _counter("pcie_tx_bytes"),
        {"direction": "transmit"},
    ),
    Figure(
        "llmos_gpu_pcie_bytes_total",
        _C,
        "Data over PCIe.",
        _counter("pcie_rx_bytes"),
        {"direction": "receive"},
    ),
    Figure(
        "llmos_gpu_pcie_link_generation", _G, "PCIe generation of the link now.", _counter("pcie_generation")
    ),
    Figure("llmos_gpu_pcie_link_width", _G, "PCIe lanes of the link now.", _counter("pcie_width")),
)

DCGM: Final[tuple[Figure, ...]] = (
    Figure("DCGM_FI_DEV_SM_CLOCK", _G, "SM clock frequency (in MHz).", _counter("sm_clock_mhz")),
    Figure("DCGM_FI_DEV_MEM_CLOCK", _G, "Memory clock frequency (in MHz).", _counter("memory_clock_mhz")),
    Figure(
        "DCGM_FI_DEV_MEMORY_TEMP", _G, "Memory temperature (in C).", _counter("memory_temperature_celsius")
    ),
    Figure("DCGM_FI_DEV_GPU_TEMP", _G, "GPU temperature (in C).", _of("temperature_celsius")),
    Figure("DCGM_FI_DEV_POWER_USAGE", _G, "Power draw (in W).", _of("power_milliwatts", 0.001)),
    Figure(
        "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION",
        _C,
        "Energy since the driver was loaded (in mJ).",
        _of("energy_millijoules"),
    ),
    Figure("DCGM_FI_DEV_PCIE_REPLAY_COUNTER", _C, "PCIe retries.", _counter("pcie_replays")),
    Figure("DCGM_FI_DEV_GPU_UTIL", _G, "GPU utilization (in %).", _of("utilization_percent")),
    Figure("DCGM_FI_DEV_MEM_COPY_UTIL", _G, "Memory utilization (in %).", _of("memory_utilization_percent")),
    Figure("DCGM_FI_DEV_FB_FREE", _G, "Framebuffer memory free (in MiB).", _free),
    Figure("DCGM_FI_DEV_FB_USED", _G, "Framebuffer memory used (in MiB).", _of("memory_used_bytes", 1 / MIB)),
    Figure(
        "DCGM_FI_DEV_FB_RESERVED",
        _G,
        "Framebuffer memory reserved (in MiB).",
        _of("memory_reserved_bytes", 1 / MIB),
    ),
    Figure(
        "DCGM_FI_DEV_UNCORRECTABLE_REMAPPED_ROWS",
        _C,
        "Remapped rows for uncorrectable errors.",
        _counter("remapped_uncorrectable"),
    ),
    Figure(
        "DCGM_FI_DEV_CORRECTABLE_REMAPPED_ROWS",
        _C,
        "Remapped rows for correctable errors.",
        _counter("remapped_correctable"),
    ),
    Figure(
        "DCGM_FI_DEV_ROW_REMAP_FAILURE", _G, "Whether remapping of rows has failed.", _counter("remap_failed")
    ),
    Figure(
        "DCGM_FI_PROF_GR_ENGINE_ACTIVE",
        _G,
        "Ratio of time the graphics engine is active; here from the utilisation counter.",
        _of("utilization_percent", 0.01),
    ),
    Figure(
        "DCGM_FI_PROF_PIPE_TENSOR_ACTIVE",
        _G,
        "Ratio of cycles the tensor pipe is active.",
        _counter("tensor_active_ratio"),
    ),
    Figure(
        "DCGM_FI_PROF_DRAM_ACTIVE",
        _G,
        "Ratio of cycles the memory interface is active.",
        _counter("dram_active_ratio"),
    ),
    Figure("DCGM_FI_PROF_PCIE_TX_BYTES", _C, "Bytes sent over PCIe.", _counter("pcie_tx_bytes")),
    Figure("DCGM_FI_PROF_PCIE_RX_BYTES", _C, "Bytes received over PCIe.", _counter("pcie_rx_bytes")),
)
