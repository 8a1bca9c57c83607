"""Building a served model: the empty modules, the weights at a format, the KV store, the first warm pass."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from llmos_operator.api.runtime.memory import KV_BLOCK_TOKENS
from llmos_operator.errors import Permanent
from llmos_operator.runtime.backends.attention import PackedContext
from llmos_operator.runtime.backends.causal import CausalModel
from llmos_operator.runtime.backends.encoder import Encoder, read_pooling
from llmos_operator.runtime.backends.families import FAMILIES, attach_context, build_empty, parameter_counts
from llmos_operator.runtime.backends.kvstore import KvGeometry, KvStore
from llmos_operator.runtime.backends.weights import load_plain
from llmos_operator.runtime.batching import StepPlan, Work
from llmos_operator.runtime.batching.plan import Running
from llmos_operator.runtime.formats.config import shape_of
from llmos_operator.runtime.ipc.messages import SamplingParams, Submit

if TYPE_CHECKING:
    from torch import nn

    from llmos_operator.api.runtime.memory import ModelShape
    from llmos_operator.runtime.formats.checkpoint import Checkpoint
    from llmos_operator.runtime.formats.config import ModelConfig
    from llmos_operator.runtime.ipc.messages import Load
    from llmos_operator.runtime.loader.memory import KvPlan
    from llmos_operator.runtime.loader.progress import Stages

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "int8": torch.bfloat16, "int4": torch.bfloat16}
_WARM_TOKENS = 32


@dataclass(slots=True)
class Empty:
    """A model without weights."""

    config: ModelConfig
    model: nn.Module
    shape: ModelShape


@dataclass(slots=True)
class Weights:
    """Where the weights of a format lie, and what their conversion cost in quality."""

    checkpoint: Checkpoint
    total_bytes: int
    converted: bool = False  # made by this load
    quality_loss_milli: int | None = None
    quality_kl_micro: int | None = None


@dataclass(slots=True)
class Built:
    """A model that answers: exactly one of ``causal`` and ``encoder``."""

    device: torch.device
    weights_bytes: int
    causal: CausalModel | None = None
    encoder: Encoder | None = None
    converted: bool = False
    quality_loss_milli: int | None = None
    quality_kl_micro: int | None = None

    def warm(self) -> None:
        """Run one prompt and one step, so that weights are in memory and kernels chosen before the first request."""
        if self.encoder is not None:
            self.encoder.embed([[0] * _WARM_TOKENS], normalize=True, dimensions=0)
        if self.causal is not None:
            prompt = tuple([0] * _WARM_TOKENS)
            sequence = Running(Submit("warm", prompt, SamplingParams(temperature=0)), 0.0, 0, list(prompt))
            for start, tokens in ((0, prompt), (_WARM_TOKENS, (0,))):
                sequence.tokens = [*prompt[:start], *tokens]
                self.causal.execute(StepPlan((Work(sequence, 0, start, tokens, 1),)), ())
            self.causal.store.release([(0, 0)])


def prepare(config: ModelConfig) -> Empty:
    """Return the model of ``config`` without weights."""
    model = build_empty(config)
    completed = {key: getattr(model.config, key, None) for key in ("head_dim", "num_key_value_heads")}
    values = {**config.values, **{key: value for key, value in completed.items() if value}}
    full = replace(config, values=values)
    counts = parameter_counts(model)
    return Empty(full, model, shape_of(full, counts))


def weights_for(empty: Empty, checkpoint: Checkpoint, load: Load, digest: str, stages: Stages) -> Weights:
    """Return the weights at the load's format, converting them if the cache has none."""
    del empty, digest, stages
    if load.format not in ("fp32", "bf16"):
        raise Permanent(f"format {load.format}: not here yet", reason="Unsupported")
    return Weights(checkpoint, checkpoint.total_bytes)


def choose_device(load: Load) -> torch.device:
    """Return the device to serve on. Raises Permanent(reason=Unsupported) for a GPU that is not there."""
    available = torch.cuda.is_available()
    if load.device == "cuda" and not available:
        raise Permanent("a GPU was demanded and none is visible to this process", reason="Unsupported")
    return torch.device("cuda" if available and load.device in ("auto", "cuda") else "cpu")


def load(empty: Empty, weights: Weights, load: Load, plan: KvPlan, stages: Stages) -> Built:
    """Load the weights and return the model ready to run."""
    device, dtype = choose_device(load), _DTYPES[load.format]
    load_plain(empty.model, weights.checkpoint, dtype, device, stages.advance)
    built = Built(
        device,
        weights.total_bytes,
        converted=weights.converted,
        quality_loss_milli=weights.quality_loss_milli,
        quality_kl_micro=weights.quality_kl_micro,
    )
    if empty.config.generative:
        kv_dtype = torch.float32 if "fp32" in (load.kv_dtype, load.format) else torch.bfloat16
        store = KvStore(_geometry(empty.shape, load, plan, kv_dtype, device))
        context = PackedContext(store)
        built.causal = CausalModel(empty.model, FAMILIES[empty.config.model_type].backbone, store, context)
    else:
        context = PackedContext(None)
        first = (
            0 if empty.config.model_type == "bert" else int(empty.config.values.get("pad_token_id") or 0) + 1
        )
        pooling = read_pooling(weights.checkpoint.folder)
        built.encoder = Encoder(empty.model, context, pooling, first, device)
    attach_context(empty.model, context)
    return built


def _geometry(
    shape: ModelShape, load: Load, plan: KvPlan, dtype: torch.dtype, device: torch.device
) -> KvGeometry:
    if device.type == "cpu":
        slots = max(1, min(2 * load.max_num_seqs, plan.blocks))  # running sequences and as many kept prefixes
    else:
        slots = max(1, plan.blocks * KV_BLOCK_TOKENS // plan.max_model_len)  # memory there is not lazy
    return KvGeometry(shape.layers, shape.kv_heads, shape.head_dim, slots, plan.max_model_len, dtype, device)
