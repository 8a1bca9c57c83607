"""What would make a workload fit that is larger than any device."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

from llmos_operator.api.quantity import human_bytes
from llmos_operator.api.runtime.memory import FORMAT_BITS
from llmos_operator.scheduler.sizing import sizes
from llmos_operator.state.types import Quantization, QuantizationMode, Sharing

if TYPE_CHECKING:
    from llmos_operator.scheduler.policy import Policy
    from llmos_operator.scheduler.sizing import Size
    from llmos_operator.state.types import Profile, Workload

_LEAST_CONTEXT: Final = 512
_SPLITS: Final = (2, 4, 8)


def would_fit(workload: Workload, profile: Profile | None, policy: Policy, room: int, most: int) -> str:
    """Return a sentence with the changes of the spec that would make a replica fit a device of `room` bytes.

    `most` is the largest number of matching devices on one node.
    """
    if workload.memory_bytes is not None:
        return f"Would fit: resources.memory up to {human_bytes(room)}"
    found = [
        *_formats(workload, profile, policy, room),
        *_splits(workload, profile, policy, room, most),
        *_context(workload, profile, policy, room),
    ]
    if not found:
        return "No precision, split or context of this model fits a device of the cluster"
    return f"Would fit: {'; '.join(found)}"


def _smallest(workload: Workload, profile: Profile | None, policy: Policy) -> Size | None:
    return min(sizes(workload, profile, policy).sizes, key=lambda s: s.bytes_per_device, default=None)


def _formats(workload: Workload, profile: Profile | None, policy: Policy, room: int) -> list[str]:
    known = policy.engine_formats.get(workload.engine, tuple(FORMAT_BITS))
    for name in sorted(known, key=lambda f: (-FORMAT_BITS[f], f)):
        fixed = Quantization(QuantizationMode.FIXED, name, (name,), FORMAT_BITS[name])
        size = _smallest(replace(workload, quantization=fixed), profile, policy)
        if size is not None and size.bytes_per_device <= room:
            return [f"format {name} ({human_bytes(size.bytes_per_device)})"]
    return []


def _splits(workload: Workload, profile: Profile | None, policy: Policy, room: int, most: int) -> list[str]:
    if workload.sharing is not Sharing.EXCLUSIVE:
        return []
    for factor in _SPLITS:
        count = workload.accelerators * factor
        size = _smallest(replace(workload, accelerators=count), profile, policy) if count <= most else None
        if size is not None and size.bytes_per_device <= room:
            return [f"accelerators: {count * workload.stages} ({human_bytes(size.bytes_per_device)} each)"]
    return []


def _context(workload: Workload, profile: Profile | None, policy: Policy, room: int) -> list[str]:
    smallest = _smallest(workload, profile, policy)
    length = smallest.max_model_len if smallest is not None else 0
    while length // 2 >= _LEAST_CONTEXT:
        length //= 2
        size = _smallest(replace(workload, max_model_len=length), profile, policy)
        if size is not None and size.bytes_per_device <= room:
            return [f"context.maxModelLen: {length} ({human_bytes(size.bytes_per_device)})"]
    return []
