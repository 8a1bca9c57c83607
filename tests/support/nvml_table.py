"""Every driver call the agent makes, on machines where it makes it, with the fields it feeds.

The machines have no zero anywhere, so a zero in a sample is an invented one.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from llmos_operator.telemetry.sample import Counters, Sample
from tests.support.nvml import FUNCTION_NOT_FOUND, GIB

if TYPE_CHECKING:
    from tests.support.nvml import Double

NONZERO: dict[str, object] = {
    "ecc__volatile__corrected": 11,
    "ecc__volatile__uncorrected": 12,
    "ecc__aggregate__corrected": 13,
    "ecc__aggregate__uncorrected": 14,
    "reasons": 4,
    "pcie__replays": 15,
    "field__38": "u64:16",
    "field__52": "u64:17",
    "field__59": "u64:18",
}
OLD_NAMES = (
    "nvmlDeviceGetMemoryInfo_v2",
    "nvmlDeviceGetTemperatureV",
    "nvmlDeviceGetCurrentClocksEventReasons",
)

MEMORY = frozenset({"memory_total_bytes", "memory_used_bytes", "memory_reserved_bytes"})
ECC = frozenset(field.name for field in fields(Counters) if field.name.startswith("ecc_"))
GPM = frozenset(field.name for field in fields(Counters) if field.name.endswith("_ratio"))
FIELD_VALUES = frozenset(
    {
        "memory_temperature_celsius",
        "nvlink_tx_bytes",
        "nvlink_rx_bytes",
        "pcie_tx_bytes",
        "pcie_rx_bytes",
        "recovery_action",
    }
)


@dataclass(frozen=True)
class Used:
    """A call: the machine it is made on, the fields that must be absent when it fails, and whether it is made while
    enumerating (then the device may be missing, or the driver lost).
    """

    name: str
    machine: str = "new"
    feeds: frozenset[str] = frozenset()
    enumerating: bool = False
    falls_back: bool = False  # an older call takes over when the driver does not know this one


def _counter(name: str, *fed: str, machine: str = "new") -> Used:
    return Used(f"nvmlDeviceGet{name}", machine, frozenset(fed))


USED: tuple[Used, ...] = (
    Used("nvmlDeviceGetCount_v2", enumerating=True),
    Used("nvmlDeviceGetHandleByIndex_v2", enumerating=True),
    Used("nvmlDeviceGetUUID", enumerating=True),
    Used("nvmlDeviceGetName", enumerating=True),
    Used("nvmlDeviceGetPciInfo_v3", enumerating=True),
    Used("nvmlDeviceGetCudaComputeCapability", enumerating=True),
    Used("nvmlDeviceGetTopologyCommonAncestor", enumerating=True),
    Used("nvmlDeviceGetNvLinkRemoteDeviceType", enumerating=True),
    Used("nvmlDeviceGetNvLinkRemotePciInfo_v2", enumerating=True),
    Used("nvmlDeviceGetMigMode", enumerating=True),
    Used("nvmlDeviceGetMaxMigDeviceCount", "mig", enumerating=True),
    Used("nvmlDeviceGetMigDeviceHandleByIndex", "mig", enumerating=True),
    Used("nvmlDeviceGetGpuInstanceId", "mig", enumerating=True),
    Used("nvmlDeviceGetComputeInstanceId", "mig", enumerating=True),
    Used("nvmlDeviceGetMemoryInfo_v2", "new", MEMORY, falls_back=True),
    Used("nvmlDeviceGetMemoryInfo", "old", MEMORY - {"memory_reserved_bytes"}),
    _counter("UtilizationRates", "utilization_percent", "memory_utilization_percent"),
    Used("nvmlDeviceGetTemperatureV", "new", frozenset({"temperature_celsius"}), falls_back=True),
    Used("nvmlDeviceGetTemperature", "old", frozenset({"temperature_celsius"})),
    _counter("PowerUsage", "power_milliwatts"),
    Used("nvmlDeviceGetCurrentClocksEventReasons", "new", frozenset({"clock_reasons"}), falls_back=True),
    Used("nvmlDeviceGetCurrentClocksThrottleReasons", "old", frozenset({"clock_reasons"})),
    _counter("TotalEnergyConsumption", "energy_millijoules"),
    _counter("EnforcedPowerLimit", "power_limit_milliwatts"),
    _counter("ClockInfo", "sm_clock_mhz", "memory_clock_mhz"),
    _counter("TotalEccErrors", *ECC),
    _counter("SramEccErrorStatus", "sram_threshold_exceeded"),
    _counter(
        "RemappedRows", "remapped_correctable", "remapped_uncorrectable", "remap_pending", "remap_failed"
    ),
    _counter("RetiredPages", "retired_pages", machine="old"),
    _counter("RetiredPagesPendingStatus", "retirement_pending", machine="old"),
    _counter("NvLinkState", "nvlinks_active", "nvlinks_down"),
    _counter("NvLinkErrorCounter", "nvlink_errors", machine="old"),
    _counter("PcieReplayCounter", "pcie_replays"),
    _counter("CurrPcieLinkGeneration", "pcie_generation"),
    _counter("CurrPcieLinkWidth", "pcie_width"),
    Used("nvmlDeviceGetFieldValues", "new", FIELD_VALUES),
    Used("nvmlGpmQueryDeviceSupport", "new", GPM),
    Used("nvmlGpmSampleAlloc", "new", GPM),
    Used("nvmlGpmSampleGet", "new", GPM),
    Used("nvmlGpmMigSampleGet", "mig", GPM),
    Used("nvmlGpmMetricsGet", "new", GPM),
    Used("nvmlDeviceGetComputeRunningProcesses_v3"),
    Used("nvmlDeviceGetMPSComputeRunningProcesses_v3"),
    Used("nvmlEventSetCreate"),
    Used("nvmlDeviceGetSupportedEventTypes"),
    Used("nvmlDeviceRegisterEvents"),
    Used("nvmlEventSetWait_v2"),
    Used("nvmlEventSetFree"),
)
# Made once at start or end, or for every single machine: tested by name elsewhere.
ELSEWHERE = frozenset(
    {
        "nvmlInitWithFlags",
        "nvmlShutdown",
        "nvmlSystemGetDriverVersion",
        "nvmlSystemGetNVMLVersion",
        "nvmlSystemGetCudaDriverVersion_v2",
        "nvmlGpmSampleFree",
    }
)


def furnish(double: Double, machine: str) -> None:
    """Put a machine of two GPUs under the double; the first is the one to be hurt."""
    if machine == "old":
        double.with_gpu(
            0, "v100", **{k: v for k, v in NONZERO.items() if "field" not in k}, retired__double=3
        )
        double.set(gpu__0__retired__pending=1, gpu__0__process__0="4000000 4096")
        for name in OLD_NAMES:
            double.error(name, FUNCTION_NOT_FOUND)
        double.with_gpu(1, "v100")
        return
    rows = {"rows": "21 22 1 0", "sram__exceeded": 1, "nvlink__0__remote": "0000:11:00"}
    double.with_gpu(0, **NONZERO, **rows, ancestor__1=10, process__0="4000000 4096", mps__0="4000001 4096")
    double.with_gpu(1)
    if machine == "mig":
        double.with_instance(0, 0, "MIG-a", gib=10, instance=3)
        double.set(
            gpu__0__mig__0__memory__used=GIB,
            **{f"gpu__0__mig__0__gpm__{metric}": "50" for metric in (2, 3, 5, 10)},
        )


def told(sample: Sample) -> dict[str, Any]:
    """Return all values of a sample and its counters in one dict, times left out."""
    values = {
        field.name: getattr(sample, field.name)
        for field in fields(Sample)
        if field.name not in {"uuid", "at", "counters", "capabilities", "faults"}
    }
    if sample.counters is not None:
        values |= {
            field.name: getattr(sample.counters, field.name)
            for field in fields(Counters)
            if field.name != "at"
        }
    return values
