"""Replacing layers of an empty model by quantised ones, and the list of tensors a converted file needs for that."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from llmos_operator.runtime.backends.families import replace_module
from llmos_operator.runtime.backends.quantized import Int4Linear, Int8Embedding, Int8Linear, QuantizedLinear
from llmos_operator.runtime.backends.weights import sources
from llmos_operator.runtime.formats.grids import fits_int4
from llmos_operator.runtime.formats.quantize import Unit

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping


def plan_units(
    model: nn.Module, names: Mapping[str, str], fmt: str, wide: Collection[str] = ()
) -> list[Unit]:
    """Return what a file of ``model`` at ``fmt`` holds. Call it on the fused model, before `quantize_modules`.

    Linear layers get the format; the token table, and with it a tied head, int8; an untied head int8; the rest bf16.
    ``wide`` are linear layers that have int8 whatever the format.
    """
    units: list[Unit] = []
    table = _token_table(model)
    tied = _is_tied(model)
    for name, parts in sources(model, names):
        owner_name, _, attribute = name.rpartition(".")
        owner = model.get_submodule(owner_name)
        shape = tuple(model.state_dict()[name].shape)
        if attribute != "weight" or not isinstance(owner, nn.Linear | nn.Embedding):
            units.append(Unit(name, "plain", parts, shape))
        elif owner is table or owner_name == "lm_head":
            if owner is table or not tied:
                units.append(Unit(owner_name, "int8", parts, shape))
        elif isinstance(owner, nn.Linear):
            units.append(Unit(owner_name, _kind(owner, "int8" if owner_name in wide else fmt), parts, shape))
        else:
            units.append(Unit(name, "plain", parts, shape))
    return units


def quantize_modules(model: nn.Module, fmt: str, wide: Collection[str] = ()) -> None:
    """Replace linear layers and the token table of an empty model by their quantised kind."""
    table = _token_table(model)
    tied = _is_tied(model)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Linear) and name != "lm_head":
            replace_module(model, name, _quantized(module, _kind(module, "int8" if name in wide else fmt)))
        elif module is table:
            scale = float(getattr(module, "scalar_embed_scale", 1.0))
            replace_module(model, name, Int8Embedding(module.num_embeddings, module.embedding_dim, scale))
    head = getattr(model, "lm_head", None)
    if isinstance(head, nn.Linear):
        new = Int8Linear(head.in_features, head.out_features)
        if tied:
            new.share(_token_table_after(model))
        model.lm_head = new


def _quantized(linear: nn.Linear, kind: str) -> QuantizedLinear:
    made = (Int4Linear if kind == "int4" else Int8Linear)(linear.in_features, linear.out_features)
    if linear.bias is not None:
        made.bias = linear.bias.data
    return made


def _kind(linear: nn.Linear, fmt: str) -> str:
    return "int4" if fmt == "int4" and fits_int4(linear.out_features, linear.in_features) else "int8"


def _token_table(model: nn.Module) -> nn.Embedding:
    table: nn.Embedding = model.get_input_embeddings()  # type: ignore[operator]
    return table


def _token_table_after(model: nn.Module) -> Int8Embedding:
    table: Int8Embedding = model.get_input_embeddings()  # type: ignore[operator]
    return table


def _is_tied(model: nn.Module) -> bool:
    return bool(getattr(model, "all_tied_weights_keys", None))
