"""How many bytes a replica needs per device, for each precision and context it may run with.

    bytes = estimate(format, context, KV) + (measured - estimated of the last measured run), at least the OOM floor

The estimate is `api.runtime.memory`, the same formula the runtime predicts with (of a FineTune `api.runtime.training_memory`,
as the trainer); `resources.memory` replaces it.
Formats come best first; within a format the largest context first. KV needs at least one full context; what is beyond
is granted from what the chosen device has left.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmos_operator.api import vllm
from llmos_operator.api.conditions import Reason
from llmos_operator.api.runtime import memory, training_memory
from llmos_operator.api.runtime.abilities import cannot, formats_of, not_served_at
from llmos_operator.api.runtime.splitting import not_splittable
from llmos_operator.api.runtime.staging import not_stageable, stage_shapes
from llmos_operator.scheduler.precision import Formats, formats
from llmos_operator.state.types import AUTO, Sharing

if TYPE_CHECKING:
    from llmos_operator.scheduler.policy import Policy
    from llmos_operator.state.types import Learned, Profile, TrainingSpec, Workload

_KV_ELEMENT_BYTES = {"fp8": 1, "int8": 1}
_FLOOR_SHARE = 8  # after running out of memory ask for an eighth more
_SPLIT = 2  # devices from which a model is split
_FAR_TOO_MUCH = 2  # times what is needed: what was asked for is corrected from there on


@dataclass(frozen=True, slots=True)
class Size:
    """One way to run a replica. All bytes are per device."""

    format: str
    bytes_per_device: int  # least reservation
    max_model_len: int = 0  # tokens; 0: the runtime decides
    kv_tokens: int = 0  # within bytes_per_device; 0: the runtime decides
    wanted_kv_tokens: int = 0  # worth granting when the device has room
    kv_token_bytes: int = 0  # per token and device


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes, best first. Without any, `reason` and `message` say what is missing."""

    sizes: tuple[Size, ...]
    reason: Reason = Reason.ACCEPTED
    message: str = ""


def sizes(workload: Workload, profile: Profile | None, policy: Policy) -> Sizes:
    """Return every size the workload may run at."""
    allowed = formats(workload, profile, policy)
    if not allowed.allowed:
        return Sizes((), allowed.reason, allowed.message)
    allowed = _splittable(workload, profile, _able(workload, profile, allowed))
    if not allowed.allowed:
        return Sizes((), allowed.reason, allowed.message)
    if workload.memory_bytes is not None:
        length, first = workload.max_model_len, allowed.allowed[0]
        return Sizes((Size(first, asked(workload, profile, policy, first), max_model_len=length),))
    if profile is None or profile.shape is None:
        return Sizes(
            (),
            Reason.WAITING_FOR_PROFILE,
            f"the size of {workload.model.uri} is not known yet; it is being inspected (or set resources.memory)",
        )
    found = []
    for name in allowed.allowed:
        if workload.training is not None:
            found += _training(workload, workload.training, profile, policy, name)
            continue
        for length in _contexts(workload, profile.shape, policy):
            found += _at(workload, profile, policy, name, length)
    return Sizes(tuple(found))


def _able(workload: Workload, profile: Profile | None, allowed: Formats) -> Formats:
    """Return the formats at which the built-in engine serves the model, none if it cannot do what is asked of it."""
    if workload.engine != "builtin" or workload.training is not None:
        return allowed
    if profile is None or profile.shape is None:
        return allowed
    why = cannot(profile.shape, workload.apis)
    if why:
        return Formats((), Reason.UNSUPPORTED, why)
    kept = formats_of(profile.shape, allowed.allowed)
    return Formats(kept, Reason.UNSUPPORTED, "" if kept else not_served_at(profile.shape, allowed.allowed))


def _splittable(workload: Workload, profile: Profile | None, allowed: Formats) -> Formats:
    """Return the formats at which the built-in engine can split the model over the workload's devices."""
    ways = workload.accelerators * workload.stages
    if ways < _SPLIT or workload.engine != "builtin" or workload.training is not None:
        return allowed
    if profile is None or profile.shape is None:
        return allowed
    shape = profile.shape
    stages = workload.pipeline
    barred = {
        name: not_stageable(shape, stages, ways // stages) or not_splittable(shape, name, ways // stages)
        for name in allowed.allowed
    }
    kept = tuple(name for name in allowed.allowed if not barred[name])
    return Formats(kept, Reason.UNSUPPORTED, "" if kept else barred[allowed.allowed[0]])


def parts(
    workload: Workload, shape: memory.ModelShape, fmt: str
) -> tuple[tuple[memory.ModelShape, ...], int]:
    """Return the stages a copy is laid over, and how many devices share each; other engines cut evenly."""
    devices = max(1, workload.accelerators) * workload.stages
    if workload.engine != "builtin" or workload.pipeline == 1 or workload.pipeline > shape.layers:
        return (shape,), devices
    return stage_shapes(shape, fmt, workload.pipeline), max(1, devices // workload.pipeline)


def fullest(workload: Workload, shape: memory.ModelShape, fmt: str, **options: Any) -> memory.MemoryEstimate:
    """Return the estimate of the device that needs the most; options as of `memory.estimate`."""
    shapes, shards = parts(workload, shape, fmt)
    found = (memory.estimate(one, fmt, shards=shards, **options) for one in shapes)
    return max(found, key=lambda one: one.total_bytes)


def asked(workload: Workload, profile: Profile | None, policy: Policy, name: str) -> int:
    """Return what `resources.memory` asks for, corrected by what running it has taught.

    After it ran out of memory: the model's own size at the format, else half as much again. Where it needed less than half
    of what it asked for, as measured while it served: an eighth more than that.
    """
    wanted, learned = workload.memory_bytes or 0, workload.learned
    if learned.out_of_memory:
        known = _known(workload, profile, policy, name)
        larger = [size for size in known if size > learned.out_of_memory]
        return max(wanted, min(larger, default=learned.out_of_memory * 3 // 2))
    if learned.needed and wanted > _FAR_TOO_MUCH * learned.needed:
        return learned.needed + learned.needed // _FLOOR_SHARE
    return wanted


def _known(workload: Workload, profile: Profile | None, policy: Policy, name: str) -> list[int]:
    if profile is None or profile.shape is None or workload.training is not None:
        return []
    lengths = _contexts(workload, profile.shape, policy)
    return [
        size.bytes_per_device for length in lengths for size in _at(workload, profile, policy, name, length)
    ]


def _contexts(workload: Workload, shape: memory.ModelShape, policy: Policy) -> list[int]:
    """Return context lengths to try, longest first."""
    if workload.max_model_len != AUTO:
        return [workload.max_model_len]
    limit = shape.max_positions or policy.sizing.auto_context_tokens
    length = min(limit, policy.sizing.auto_context_tokens)
    if not shape.generative or shape.cross_tokens:
        return [length]
    lengths = [length]
    while lengths[-1] // 2 >= min(limit, policy.sizing.least_context_tokens):
        lengths.append(lengths[-1] // 2)
    return lengths


def _at(workload: Workload, profile: Profile, policy: Policy, name: str, length: int) -> list[Size]:
    shape = profile.shape
    if shape is None:
        return []
    element = kv_element_bytes(workload)
    shapes, shards = parts(workload, shape, name)
    per_token = max(-(-memory.kv_bytes_per_token(one, element) // shards) for one in shapes)
    one = memory.sequence_tokens(shape, length)
    full = one + (workload.max_num_seqs - 1) * one // 4
    budgets = [one]
    if workload.sharing is Sharing.SHARED and shape.generative:
        budgets = sorted({min(full, 2 * one), one}, reverse=True)
    found = []
    for tokens in budgets:
        estimate = fullest(
            workload,
            shape,
            name,
            max_model_len=length,
            max_num_seqs=workload.max_num_seqs,
            kv_tokens=tokens,
            base_bytes=base_bytes(workload, profile, policy),
            kv_bytes_per_element=element,
            adapters=workload.max_adapters,
            adapter_rank=workload.adapter_rank,
        ).total_bytes
        wanted = tokens if workload.sharing is Sharing.SHARED else max(tokens, full)
        found.append(
            Size(name, corrected(estimate, workload, profile, name), length, tokens, wanted, per_token)
        )
    return found


def _training(
    workload: Workload, asked: TrainingSpec, profile: Profile, policy: Policy, name: str
) -> list[Size]:
    """Return the sizes of a training run at a format, quickest first.

    Several samples at a time; one at a time; one, and layers computed again on the way back. The trainer makes the same
    choice under the limit it gets.
    """
    shape = profile.shape
    if shape is None:
        return []
    longest = min(asked.max_length, shape.max_positions or asked.max_length)
    wanted = max(longest, min(asked.batch_size * longest, training_memory.PART_TOKENS))
    found = []
    for tokens, recompute in dict.fromkeys([(wanted, False), (longest, False), (longest, True)]):
        size = training_memory.TrainingSize(name, asked.rank, asked.targets, tokens, recompute)
        base = base_bytes(workload, profile, policy)
        estimate = training_memory.estimate_training(shape, size, base_bytes=base)
        found.append(Size(name, _raised(estimate.total_bytes, workload.learned), max_model_len=longest))
    return found


def _raised(estimate: int, learned: Learned) -> int:
    """Return an estimate of a run, raised above what it ran out of memory with: a quarter, so that few tries are lost."""
    return max(estimate, learned.out_of_memory * 5 // 4)


def kv_element_bytes(workload: Workload) -> int:
    """Return the bytes of one element of a workload's KV cache."""
    return _KV_ELEMENT_BYTES.get(workload.quantization.kv_cache_dtype, 2)


def base_bytes(workload: Workload, profile: Profile, policy: Policy) -> int:
    """Return R0 on a device: as measured, where the runtime's own engine is the one that was measured."""
    if workload.engine == vllm.ENGINE:
        return policy.sizing.vllm_base_bytes
    return profile.base_bytes if profile.base_bytes is not None else policy.sizing.base_bytes


def corrected(estimate: int, workload: Workload, profile: Profile, name: str) -> int:
    """Return the estimate moved by what a measured run differed from its own, and raised above the OOM floor.

    What profiles measure are runs of the runtime's own engine; vLLM keeps what it is given.
    """
    known = profile.formats.get(name)
    if known is None:
        return estimate
    measured = known.measured_peak_bytes is not None and known.estimated_peak_bytes is not None
    if measured and workload.engine != vllm.ENGINE:
        moved = (known.measured_peak_bytes or 0) - (known.estimated_peak_bytes or 0)
        estimate = max(memory.SLACK_BYTES, estimate + moved)
    if known.oom_floor_bytes:
        estimate = max(estimate, known.oom_floor_bytes + known.oom_floor_bytes // _FLOOR_SHARE)
    return estimate


def granted(size: Size, room_bytes: int) -> tuple[int, int]:
    """Return (bytes, KV tokens) when a device has `room_bytes`: the least, and of the rest what is worth granting."""
    if size.kv_token_bytes == 0 or size.wanted_kv_tokens <= size.kv_tokens:
        return size.bytes_per_device, size.kv_tokens
    block = memory.KV_BLOCK_TOKENS
    extra = min(
        size.wanted_kv_tokens - size.kv_tokens, (room_bytes - size.bytes_per_device) // size.kv_token_bytes
    )
    extra = max(0, extra) // block * block
    return size.bytes_per_device + extra * size.kv_token_bytes, size.kv_tokens + extra
