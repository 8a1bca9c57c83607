"""Builders for telemetry: devices, samples, events, as short as the tests that need them."""

from __future__ import annotations

from typing import Any

from llmos_operator.telemetry.sample import (
    Counters,
    DeviceEvent,
    DeviceInfo,
    EventKind,
    Fault,
    FaultKind,
    Sample,
)

GIB = 1 << 30


def a_device(uuid: str = "GPU-a", index: int = 0, **values: Any) -> DeviceInfo:
    """A GPU of 80 GiB."""
    defaults: dict[str, Any] = {
        "product": "NVIDIA H100",
        "memory_bytes": 80 * GIB,
        "compute_capability": "9.0",
    }
    return DeviceInfo(uuid=uuid, index=index, **{**defaults, **values})


def a_sample(uuid: str = "GPU-a", at: float = 0.0, **values: Any) -> Sample:
    """A clean sample; values of counters may be given too."""
    counters = {
        key: values.pop(key) for key in list(values) if key in Counters.__dataclass_fields__ and key != "at"
    }
    defaults: dict[str, Any] = {
        "memory_total_bytes": 80 * GIB,
        "memory_used_bytes": 5 * GIB,
        "utilization_percent": 50,
        "temperature_celsius": 60,
        "power_milliwatts": 300_000,
        "counters": Counters(at=at, **counters),
    }
    return Sample(uuid=uuid, at=at, **{**defaults, **values})


def a_sick_sample(kind: FaultKind, uuid: str = "GPU-a", *, answers: bool = False) -> Sample:
    """A sample whose reading failed; with ``answers`` only in part."""
    return Sample(uuid, 0.0, memory_used_bytes=1 if answers else None, faults=(Fault(kind, "nvmlCall", 999),))


def an_xid(code: int, uuid: str = "GPU-a", instance: int | None = None) -> DeviceEvent:
    """An XID event."""
    return DeviceEvent(uuid, EventKind.XID, code, instance)
