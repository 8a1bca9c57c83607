"""Messages agents and gateways send to the operator (`POST /v1/telemetry`, `POST /v1/demand` on PORT_INGEST).

Authenticated by the sender's ServiceAccount token; sizes are bounded here so that one sender cannot exhaust the operator.
Absent means unknown, never 0.
"""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from llmos_operator.api.runtime.messages import Wire

MAX_DEVICES = 64
MAX_PROCESSES = 512
MAX_HOLDERS = 16  # of one device; more than one only where a device plugin shares it in time


class Verdict(StrEnum):
    """Health of a device as the agent folded it from samples and XID events."""

    HEALTHY = "Healthy"
    DEGRADED = "Degraded"
    UNHEALTHY = "Unhealthy"
    UNKNOWN = "Unknown"


class ProcessSample(Wire):
    """Device memory of one process; `pod_uid` where the process could be attributed."""

    pid: int
    memory_bytes: int | None = None
    pod_uid: str = ""


class DeviceSample(Wire):
    """One device at one moment."""

    uuid: str = Field(max_length=128)
    index: int = Field(ge=0, le=255)
    memory_total_bytes: int | None = None
    memory_used_bytes: int | None = None
    utilization_percent: int | None = None  # mean since the batch before, as is the power
    temperature_celsius: int | None = None
    power_milliwatts: int | None = None
    energy_millijoules: int | None = None
    throttled_milli: int | None = None  # thousandths of its time in which heat or a power brake holds it down
    risk_milli: int | None = None  # thousandths of a device that the ageing of its memory counts for
    sm_active_milli: int | None = (
        None  # thousandths of the time in which multiprocessors, mean over all, were active
    )
    dram_active_milli: int | None = None  # the same of the memory
    verdict: Verdict = Verdict.UNKNOWN
    reason: str = Field(default="", max_length=64)
    # None: not told with this batch. Process lists are expensive and come with one batch in several.
    processes: list[ProcessSample] | None = Field(default=None, max_length=MAX_PROCESSES)


class TelemetryBatch(Wire):
    """All devices of a node; `sequence` grows by one per batch and restarts with the agent's `epoch`."""

    node: str = Field(max_length=253)
    epoch: int = Field(ge=0)  # start of the agent in epoch seconds
    sequence: int = Field(ge=0)
    devices: list[DeviceSample] = Field(max_length=MAX_DEVICES)


class DemandItem(Wire):
    """Demand for one workload as a gateway saw it since its last report."""

    namespace: str = Field(max_length=63)
    name: str = Field(max_length=253)
    waiting: int = Field(ge=0)  # requests held for a replica right now
    in_flight: int = Field(ge=0)
    requests: int = Field(ge=0)  # requests that arrived since the last report


class DemandBatch(Wire):
    """One gateway's demand report, sent at most once a second and only while there is traffic."""

    gateway: str = Field(max_length=253)
    items: list[DemandItem] = Field(max_length=4096)
