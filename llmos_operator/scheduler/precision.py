"""Which formats a workload may run at, best first, and why others are out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from llmos_operator.api.conditions import Reason
from llmos_operator.api.runtime.memory import FORMAT_BITS
from llmos_operator.state.types import QuantizationMode

if TYPE_CHECKING:
    from llmos_operator.scheduler.policy import Policy
    from llmos_operator.state.types import Profile, Workload

SOURCE_FORMAT: Final = "bf16"
BUILT_IN: Final = "builtin"
# What each method of spec.fineTune trains on, the default first.
TRAINED_ON: Final = {"lora": ("bf16", "fp32"), "qlora": ("int8", "int4"), "full": ("fp32",)}

# Growth of perplexity to expect until a profile has measured it, in thousandths of a percent, for models of a few
# billion parameters and more: fp8 and int8 with row scales are near lossless (arXiv:2208.07339, 2209.05433), grouped
# 4-bit formats lose a few percent (arXiv:2210.17323, 2306.00978, 2305.14314). Smaller models lose more: measure them.
PUBLISHED_LOSS_MILLI: Final = {
    "fp32": 0,
    "bf16": 0,
    "fp8": 300,
    "int8": 500,
    "int4": 4000,
    "nf4": 3500,
    "gptq": 3000,
    "awq": 3000,
    "gguf": 3500,
}


@dataclass(frozen=True, slots=True)
class Formats:
    """Formats that may be used, best first. Without any, `reason` and `message` say why."""

    allowed: tuple[str, ...]
    reason: Reason = Reason.ACCEPTED
    message: str = ""


def formats(workload: Workload, profile: Profile | None, policy: Policy) -> Formats:
    """Return the workload's formats: most bits first, then least loss, then the order in which it lists them."""
    asked = workload.quantization
    served = policy.engine_formats.get(workload.engine)
    if workload.training is not None:
        return _trained(workload, workload.training.method, profile, served)
    if asked.mode is QuantizationMode.NONE:
        own = _stored(profile) if workload.engine == BUILT_IN else ""
        return Formats((own or SOURCE_FORMAT,))
    if asked.mode is QuantizationMode.FIXED:
        if served is not None and asked.format not in served:
            return Formats((), Reason.UNSUPPORTED, _not_served(asked.format, workload.engine, served))
        return Formats((asked.format,))
    out = []
    kept = []
    for place, name in enumerate(asked.allowed):
        why = _out(name, workload, profile, served)
        if why:
            out.append(f"{name} {why}")
        else:
            kept.append((-FORMAT_BITS[name], loss_milli(name, profile), place, name))
    if not kept:
        message = f"no allowed format is left: {', '.join(out)}; widen spec.quantization.allowed, minBits or maxQualityLoss"
        return Formats((), Reason.FORMAT_NOT_ALLOWED, message)
    return Formats(tuple(name for *_, name in sorted(kept)))


def _trained(
    workload: Workload, method: str, profile: Profile | None, served: tuple[str, ...] | None
) -> Formats:
    """Return the formats a training run may have: its method says which, spec.quantization chooses among them."""
    asked, usable = workload.quantization, TRAINED_ON[method]
    own = _stored(profile)
    if own and own not in usable:
        message = (
            f"fineTune.method {method} trains on {' or '.join(usable)}, and the model's files are {own} already; use method "
            "qlora, or name the model in its source precision"
        )
        return Formats((), Reason.FORMAT_NOT_ALLOWED, message)
    if own:
        usable = (own,)
    if asked.mode is QuantizationMode.FIXED:
        if asked.format in usable:
            return Formats((asked.format,))
        known = " or ".join(usable)
        message = (
            f"fineTune.method {method} trains on {known}, not on spec.quantization.format {asked.format}"
        )
        return Formats((), Reason.FORMAT_NOT_ALLOWED, message)
    if method != "qlora":
        return Formats(usable[:1])
    out = {name: _out(name, workload, profile, served) for name in usable}
    kept = tuple(name for name in usable if name in asked.allowed and not out[name])
    if kept:
        return Formats(kept)
    why = ", ".join(f"{name} {out[name] or 'is not in spec.quantization.allowed'}" for name in usable)
    return Formats((), Reason.FORMAT_NOT_ALLOWED, f"fineTune.method qlora has no format left: {why}")


def _stored(profile: Profile | None) -> str:
    """Return the format that a model's files already are, "" if they are plain."""
    return profile.shape.quantized if profile is not None and profile.shape is not None else ""


def loss_milli(name: str, profile: Profile | None) -> int:
    """Return the quality loss of a format: as measured, else as published; none against files that are quantised so."""
    known = profile.formats.get(name) if profile is not None else None
    if known is not None and known.quality_loss_milli is not None:
        return known.quality_loss_milli
    return 0 if name == _stored(profile) else PUBLISHED_LOSS_MILLI[name]


def _out(name: str, workload: Workload, profile: Profile | None, served: tuple[str, ...] | None) -> str:
    asked = workload.quantization
    if FORMAT_BITS[name] < asked.min_bits:
        return f"has {FORMAT_BITS[name]} bits (minBits {asked.min_bits})"
    if served is not None and name not in served:
        return f"is not served by engine {workload.engine}"
    limit, loss = asked.max_quality_loss_milli, loss_milli(name, profile)
    if limit is not None and loss > limit:
        return f"loses {loss / 1000:g} % (maxQualityLoss {limit / 1000:g} %)"
    return ""


def _not_served(name: str, engine: str, served: tuple[str, ...]) -> str:
    return f"engine {engine} does not serve format {name}; it serves {', '.join(served)}"
