"""The model a run learns on: weights as serving loads them, computed layer by layer as transformers wrote it.

Nothing is fused: adapters are named by the layers of the published model. Rows are padded at their right; causal
attention looks to the left alone, so padding reaches no token and no mask is needed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from llmos_operator.api.conditions import Reason
from llmos_operator.api.runtime.messages import RuntimeState
from llmos_operator.api.v1alpha1.workload_jobs import FineTuneMethod
from llmos_operator.errors import Permanent
from llmos_operator.runtime.backends import build
from llmos_operator.runtime.backends.families import FAMILIES
from llmos_operator.runtime.backends.weights import load_converted, load_plain
from llmos_operator.runtime.loader.converted import converted
from llmos_operator.runtime.loader.refusing import refuse_other_than_stored
from llmos_operator.tuning.lora import adapt, adapter_parameters
from llmos_operator.tuning.loss import summed_loss

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor

    from llmos_operator.api.runtime.memory import ModelShape
    from llmos_operator.runtime.formats.checkpoint import Checkpoint
    from llmos_operator.runtime.formats.config import ModelConfig
    from llmos_operator.runtime.ipc.messages import Load
    from llmos_operator.runtime.loader.progress import Stages
    from llmos_operator.tuning.dataset import Sample
    from llmos_operator.tuning.recipe import Recipe

# What each method trains on. The format itself comes from the scheduler, or from LLMOS_FORMAT.
FORMATS = {
    FineTuneMethod.LORA: ("bf16", "fp32"),
    FineTuneMethod.QLORA: ("int4", "int8"),
    FineTuneMethod.FULL: ("fp32",),
}
VARIANT = "-layers"  # of the cache of converted weights: served ones have their projections fused


@dataclass(slots=True)
class Learner:
    """A loaded model and its parameters that learn, by name."""

    model: nn.Module
    shape: ModelShape
    device: torch.device
    format: str
    parameters: dict[str, nn.Parameter]
    layers: tuple[str, ...]  # that have an adapter; () for method full
    weights_bytes: int
    _backbone: nn.Module
    _head: nn.Module
    _head_parameters: tuple[nn.Parameter, ...]

    def recompute(self, *, on: bool) -> None:
        """Keep only each layer's input for the way back and compute the rest again (arXiv:1604.06174), or all of it."""
        if on:
            options: dict[str, Any] = {"use_reentrant": False}
            self.model.activation_checkpointing_enable(options)  # type: ignore[operator]
        else:
            self.model.activation_checkpointing_disable()  # type: ignore[operator]

    def summed_loss(self, samples: Sequence[Sample]) -> Tensor:
        """Return the summed loss of the samples' learned tokens, in nats."""
        longest = max(len(sample.tokens) for sample in samples)
        ids = torch.zeros(len(samples), longest, dtype=torch.long)
        learned = torch.zeros(len(samples), longest, dtype=torch.bool)
        for row, sample in enumerate(samples):
            ids[row, : len(sample.tokens)] = torch.tensor(sample.tokens)
            learned[row, : len(sample.learned)] = torch.tensor(sample.learned)
        ids, learned = ids.to(self.device), learned.to(self.device)
        hidden = self._backbone(input_ids=ids, use_cache=False).last_hidden_state
        # A token is told by what stands before it.
        rows = hidden[:, :-1][learned[:, 1:]]
        return summed_loss(rows, ids[:, 1:][learned[:, 1:]], self._head, self._head_parameters)


def load(
    config: ModelConfig,
    checkpoint: Checkpoint,
    digest: str,
    order: Load,
    recipe: Recipe,
    stages: Stages,
) -> Learner:
    """Return the model of a checked folder, ready to learn. Raises Permanent (Unsupported, InvalidSpec, Corrupted)."""
    refuse(config, order.format, recipe)
    empty = build.prepare(config, checkpoint)
    device = build.choose_device(order.device)
    model = empty.model
    if order.format in build.CONVERTED:
        made = converted(empty, order, digest, stages, variant=VARIANT)
        stages.enter(RuntimeState.LOADING, made.checkpoint.total_bytes)
        empty.quantize(order.format)
        load_converted(model, made.checkpoint.tensors(), device, stages.advance)
    else:
        stages.enter(RuntimeState.LOADING, sum(entry.nbytes for _, entry in empty.entries.values()))
        dtype = torch.float32 if order.format == "fp32" else torch.bfloat16
        load_plain(model, empty.names, empty.entries, dtype, device, stages.advance)
    weights = {tensor.data_ptr(): tensor.nbytes for tensor in model.state_dict().values()}
    return learner(model, empty.config, empty.shape, recipe, device, order.format, sum(weights.values()))


def refuse(config: ModelConfig, fmt: str, recipe: Recipe) -> None:
    """Raise Permanent(reason=Unsupported) for what cannot be trained."""
    if not config.generative:
        raise Permanent(
            f"{config.architecture or config.model_type} is an encoder: only generating models are trained",
            reason=Reason.UNSUPPORTED,
        )
    if fmt not in FORMATS[recipe.method]:
        known = " or ".join(FORMATS[recipe.method])
        raise Permanent(
            f"fineTune.method {recipe.method} trains on {known} weights, not on {fmt}: "
            "set spec.quantization to mode Fixed and one of them",
            reason=Reason.UNSUPPORTED,
        )
    refuse_other_than_stored(fmt, config)


def learner(
    model: nn.Module,
    config: ModelConfig,
    shape: ModelShape,
    recipe: Recipe,
    device: torch.device,
    fmt: str,
    weights_bytes: int,
) -> Learner:
    """Return a loaded model with its adapter, or with all weights learning."""
    model.config._attn_implementation = "sdpa"  # type: ignore[union-attr] # noqa: SLF001 - as in families.build_empty
    backbone = FAMILIES[config.model_type].backbone
    layers: list[str] = []
    if recipe.adapts:
        layers = adapt(model, backbone, recipe.lora, recipe.seed, device)
        parameters = dict(adapter_parameters(model))
    else:
        _tie_again(model)
        model.requires_grad_(requires_grad=True)
        parameters = dict(model.named_parameters())  # a tied head is named once, as the embedding
    model.train()
    head = model.get_submodule("lm_head")
    own = tuple(one for one in head.parameters() if one.requires_grad)
    return Learner(
        model=model,
        shape=shape,
        device=device,
        format=fmt,
        parameters=parameters,
        layers=tuple(layers),
        weights_bytes=weights_bytes,
        _backbone=model.get_submodule(backbone),
        _head=head,
        _head_parameters=own,
    )


def _tie_again(model: nn.Module) -> None:
    """Make tied weights one parameter: loading gave each name a parameter of its own over the same memory."""
    tied: dict[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    for name, source in tied.items():
        owner, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(owner), attribute, model.get_parameter(source))


def published_files(folder: Path) -> list[Path]:
    """Return a model's files beside its weights: config, tokenizer, template."""
    kept = (".json", ".jinja", ".txt", ".model")
    return sorted(
        path
        for path in folder.iterdir()
        if path.is_file() and path.suffix in kept and not path.name.endswith(".index.json")
    )
