"""Memory of a run: how large its parts may be, and whether it keeps to its limit."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from llmos_operator.api.conditions import Reason
from llmos_operator.api.runtime.training_memory import PART_TOKENS, TrainingSize, estimate_training
from llmos_operator.errors import Permanent
from llmos_operator.runtime.loader.memory import machine_available_bytes, resident_bytes
from llmos_operator.runtime.loader.pipeline import trim_memory

if TYPE_CHECKING:
    from llmos_operator.api.runtime.memory import ModelShape
    from llmos_operator.api.runtime.training_memory import TrainingEstimate

MOST_TOKENS = {"cpu": PART_TOKENS, "cuda": 8 * PART_TOKENS}  # of a part, where the limit has room for it
_LEAST_TOKENS = (
    256  # below it parts are too small to be quick, and recomputing is the better way to save memory
)
_SHARE_WITHOUT_LIMIT = 2
_MIB = 1 << 20


class ShortOfMemory(Exception):  # noqa: N818 - as it is said
    """A part took more memory than the run may use; the update can be tried again in smaller ones."""


@dataclass(frozen=True, slots=True)
class Parts:
    """How updates are computed: at most so many tokens at a time, keeping everything for the way back or not."""

    tokens: int
    recompute: bool
    estimate: TrainingEstimate | None = None

    def smaller(self, largest: int, single: int) -> Parts | None:
        """Return what takes less: half of the ``largest`` part, down to one sample of ``single`` tokens; None: nothing."""
        if largest > single:
            return replace(self, tokens=max(single, largest // 2))
        return None if self.recompute else replace(self, recompute=True)


def plan_parts(
    shape: ModelShape, size: TrainingSize, *, base_bytes: int, limit_bytes: int, longest: int, most: int
) -> Parts:
    """Return the largest parts that fit: ``longest`` is the longest sample, ``most`` the tokens that are worth having.

    Recomputing costs a third more time, so it is chosen where without it only small parts would fit. Raises
    Permanent(reason=OutOfMemory) with the numbers if one sample does not fit.
    """
    most = max(most, longest)
    for recompute, least in ((False, max(longest, min(most, _LEAST_TOKENS))), (True, longest)):
        tokens = most
        while True:
            tried = replace(size, part_tokens=tokens, recompute=recompute)
            found = estimate_training(shape, tried, base_bytes=base_bytes)
            if found.total_bytes <= limit_bytes:
                return Parts(tokens, recompute, found)
            if tokens == least:
                break
            tokens = max(least, tokens // 2)
    raise Permanent(
        f"training needs {found.total_bytes // _MIB} MiB (base {found.base_bytes // _MIB}, weights "
        f"{found.weights_bytes // _MIB}, what learns {found.learned_bytes // _MIB}, activations of {longest} tokens "
        f"{found.activation_bytes // _MIB}, slack {found.slack_bytes // _MIB}) but may use {limit_bytes // _MIB} MiB: "
        "lower training.maxLength or lora.rank, or choose method qlora",
        reason=Reason.OUT_OF_MEMORY,
    )


class Meter:
    """Memory in use, measured: of the process, or on a GPU of torch's allocator there."""

    def __init__(self, limit_bytes: int, device: torch.device) -> None:
        """``limit_bytes`` 0 means no limit but the machine's."""
        self.limit = limit_bytes
        self._device = device
        self.used = 0
        self.peak = 0
        if device.type == "cuda" and limit_bytes:
            whole = torch.cuda.get_device_properties(device).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, limit_bytes / whole), device)

    def measure(self) -> int:
        """Return the bytes in use now."""
        if self._device.type == "cuda":
            self.used = torch.cuda.memory_reserved(self._device)
            self.peak = torch.cuda.max_memory_reserved(self._device)
        else:
            self.used = resident_bytes((os.getpid(),))
            self.peak = max(self.peak, self.used)
        return self.used

    def check(self) -> None:
        """Measure, and raise ShortOfMemory if the limit is passed."""
        if self.measure() <= self.limit or not self.limit:
            return
        self.release()  # what was freed and kept by the allocator is not in use
        if self.measure() > self.limit:
            raise ShortOfMemory(f"{self.used // _MIB} MiB in use, {self.limit // _MIB} MiB allowed")

    def release(self) -> None:
        """Give what is free back to the machine."""
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        else:
            trim_memory()

    def room(self) -> int:
        """Return the bytes a plan may count on: the limit, else what is in use and half of what the machine has free."""
        if self.limit:
            return self.limit
        if self._device.type == "cuda":
            free, _ = torch.cuda.mem_get_info(self._device)
            return self.measure() + free // _SHARE_WITHOUT_LIMIT
        return self.measure() + machine_available_bytes() // _SHARE_WITHOUT_LIMIT
