"""How much memory the runtime uses, measured, and how much of the limit is left for the KV cache."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmos_operator.api.runtime.memory import KV_BLOCK_TOKENS, estimate, kv_bytes_per_token, sequence_tokens
from llmos_operator.errors import Permanent

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from llmos_operator.api.runtime.memory import MemoryEstimate, ModelShape
    from llmos_operator.runtime.ranks.crew import Crew

LEAST_TOKENS = 256  # a KV cache for fewer is no service
_MIB = 1 << 20


def resident_bytes(pids: Iterable[int]) -> int:
    """Return the proportional set size of processes, in bytes: shared pages count once over all of them.

    A process that is gone counts nothing; one whose map is not readable counts its resident size.
    """
    return sum(_one(pid) for pid in pids)


def _one(pid: int) -> int:
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    try:
        return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * 4096
    except OSError:
        return 0


def machine_available_bytes() -> int:
    """Return MemAvailable of the machine."""
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def free_bytes(groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the host memory that nobody uses: of the machine, or of this container's control group if that is less."""
    free = machine_available_bytes()
    try:
        limit = (groups / "memory.max").read_text(encoding="ascii").strip()
        used = int((groups / "memory.current").read_text(encoding="ascii"))
        cached = _inactive_file(groups / "memory.stat")
    except OSError:
        return free  # no control group of version 2, or the machine's root
    return free if limit == "max" else min(free, max(0, int(limit) - used + cached))


def _inactive_file(stat: Path) -> int:
    """Return the pages of files that the kernel drops before it refuses memory."""
    for line in stat.read_text(encoding="ascii").splitlines():
        name, _, value = line.partition(" ")
        if name == "inactive_file":
            return int(value)
    return 0


@dataclass(slots=True)
class Meter:
    """Memory of the whole runtime: the engine and the processes beside it."""

    pids: tuple[int, ...]
    base_bytes: int = 0
    peak_bytes: int = 0
    limit_bytes: int = 0
    crew: Crew | None = None  # ranks on other devices: the fullest device counts
    load_peak_bytes: int = 0  # of the load, before the KV cache holds anything
    rest_bytes: int = 0  # most that was in use beside the KV cache since

    def measure(self) -> int:
        """Return the bytes in use now."""
        others = [one.measured_bytes for one in self.crew.measured()] if self.crew is not None else []
        now = max(resident_bytes((*self.pids, os.getpid())), *others, 0)
        self.peak_bytes = max(self.peak_bytes, now)
        return now

    def check(self, doing: str) -> None:
        """Raise Permanent(reason=OutOfMemory) if the limit is passed."""
        used = self.measure()
        if self.limit_bytes and used > self.limit_bytes:
            raise Permanent(
                f"{doing} took the runtime to {used >> 20} MiB; it may use {self.limit_bytes >> 20} MiB",
                reason="OutOfMemory",
            )


@dataclass(frozen=True, slots=True)
class KvPlan:
    """What the limit allows: context length, KV blocks, and the whole prediction behind it."""

    max_model_len: int
    blocks: int
    estimate: MemoryEstimate


def plan_kv(
    shape: ModelShape,
    fmt: str,
    *,
    base_bytes: int,
    limit_bytes: int,
    wanted_len: int,
    max_num_seqs: int,
    kv_element_bytes: int = 2,
    adapters: int = 0,
    adapter_rank: int = 0,
    shards: int = 1,
) -> KvPlan:
    """Return how long sequences may be and how many KV blocks there are on each of ``shards`` devices.

    ``wanted_len`` 0 means as long as model and memory allow; a number is a demand. Without a limit the cache gets what
    the memory model grants by default. Raises Permanent(reason=OutOfMemory) with the numbers when even one sequence
    of the demanded length (or LEAST_TOKENS) does not fit.
    """
    longest = min(wanted_len or shape.max_positions, shape.max_positions)
    sizes = {
        "base_bytes": base_bytes,
        "max_num_seqs": max_num_seqs,
        "kv_bytes_per_element": kv_element_bytes,
        "adapters": adapters,
        "adapter_rank": adapter_rank,
        "shards": shards,
    }
    default = estimate(shape, fmt, max_model_len=longest, **sizes)
    per_token = -(-kv_bytes_per_token(shape, kv_element_bytes) // shards)
    limit = limit_bytes or default.total_bytes
    fixed = default.total_bytes - default.kv_bytes
    if not per_token:
        if fixed > limit:
            raise _too_large(default, limit, 0)
        return KvPlan(longest, 0, default)
    tokens = max(0, limit - fixed) // per_token // KV_BLOCK_TOKENS * KV_BLOCK_TOKENS
    need = sequence_tokens(shape, longest if wanted_len else min(longest, LEAST_TOKENS))
    if tokens < need:
        raise _too_large(
            estimate(shape, fmt, max_model_len=need - shape.cross_tokens, kv_tokens=need, **sizes),
            limit,
            need,
        )
    # Never more than every sequence at full length: memory beyond that would only be unused.
    # A block a sequence, because a sequence's own length is rounded up to blocks.
    most = (sequence_tokens(shape, longest) + (KV_BLOCK_TOKENS if shape.cross_tokens else 0)) * max_num_seqs
    tokens = min(tokens, most + KV_BLOCK_TOKENS)
    length = min(longest, tokens - shape.cross_tokens)
    granted = estimate(shape, fmt, max_model_len=length, kv_tokens=tokens, **sizes)
    return KvPlan(length, tokens // KV_BLOCK_TOKENS, granted)


def plan_stages(shapes: Sequence[ModelShape], fmt: str, **options: Any) -> KvPlan:
    """Return the plan that every stage of a model can keep; options as of `plan_kv`. Raises Permanent as it does."""
    plans = [plan_kv(shape, fmt, **options) for shape in shapes]
    fullest = max((plan.estimate for plan in plans), key=lambda estimate: estimate.total_bytes)
    return KvPlan(min(plan.max_model_len for plan in plans), min(plan.blocks for plan in plans), fullest)


def _too_large(need: MemoryEstimate, limit: int, tokens: int) -> Permanent:
    adapters = f", adapters {need.adapter_bytes // _MIB}" if need.adapter_bytes else ""
    parts = (
        f"base {need.base_bytes // _MIB}, weights {need.weights_bytes // _MIB}, "
        f"KV cache of {tokens} tokens {need.kv_bytes // _MIB}, activations {need.activation_bytes // _MIB}, "
        f"slack {need.slack_bytes // _MIB}{adapters}"
    )
    return Permanent(
        f"needs {need.total_bytes // _MIB} MiB ({parts}) but may use {limit // _MIB} MiB: "
        f"{(need.total_bytes - limit) // _MIB + 1} MiB short",
        reason="OutOfMemory",
    )
