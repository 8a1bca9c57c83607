"""One rank's part of a model: every layer cut so that ranks compute independently between two sums a block.

    query, key, value, gate, up      rows of this rank's heads and MLP columns        no exchange
    output and down projection       the columns that belong to these rows            partial results, summed
    token table and head             a range of the vocabulary                        looked up or computed, then joined

This is Megatron-LM's scheme (arXiv:1909.08053). A rank reads its cuts alone, so it holds 1/N of the weights; norms are
whole on each. Cuts are of a fused model (backends.fused), whose blocks keep their shape with fewer heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from llmos_operator.errors import Permanent
from llmos_operator.runtime.backends.fused import FusedAttention, FusedMlp
from llmos_operator.runtime.backends.quantized import Int4Linear, QuantizedLinear
from llmos_operator.runtime.formats.grids import GROUP, interleaved_rows

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from llmos_operator.runtime.backends.collective import Group

ROWS, COLUMNS = 0, 1


@dataclass(frozen=True, slots=True)
class Cut:
    """What a rank holds of a layer: ranges of its outputs (ROWS) or inputs (COLUMNS), one after the other.

    ``first`` is set for what is added once in all, such as the bias of a layer whose results are summed.
    """

    dim: int
    ranges: tuple[tuple[int, int], ...]
    first: bool = True

    @property
    def size(self) -> int:
        """Outputs or inputs that are held."""
        return sum(end - begin for begin, end in self.ranges)


class Vocabulary:
    """This rank's range of the vocabulary, in the table and in the head. The last range may be shorter."""

    def __init__(self, group: Group, size: int) -> None:
        self.group = group
        self.size = size
        self.width = -(-size // group.count)
        self.begin = min(size, group.rank * self.width)
        self.end = min(size, self.begin + self.width)
        self._outside: Tensor | None = None

    def attach(self, table: nn.Module) -> None:
        """Make a table that holds this range alone give the rows of every token."""
        table.register_forward_pre_hook(self._narrow)
        table.register_forward_hook(self._join)

    def _narrow(self, _: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        own = args[0] - self.begin
        self._outside = (own < 0) | (own >= self.end - self.begin)
        return (own.masked_fill(self._outside, 0),)

    def _join(self, _: nn.Module, __: tuple[Tensor, ...], found: Tensor) -> Tensor:
        if self._outside is None:
            raise AssertionError("a table is asked after its tokens were narrowed to its range")
        own = found.masked_fill(self._outside[..., None], 0)
        self._outside = None
        return self.group.add(own)

    def join(self, part: Tensor) -> Tensor | None:
        """Return on rank 0 the logits [rows, vocabulary] of which every rank has the columns of its range."""
        short = self.width - part.shape[-1]
        even = nn.functional.pad(part, (0, short)) if short else part
        whole = self.group.gather(even)
        return whole[..., : self.size] if whole is not None else None

    def overlap(self, begin: int, end: int) -> tuple[int, int]:
        """Return the part of a range that is this rank's, counted from its own first token; empty: (0, 0)."""
        low, high = max(begin, self.begin), min(end, self.end)
        return (low - self.begin, high - self.begin) if low < high else (0, 0)


def shard(model: nn.Module, group: Group) -> tuple[dict[str, Cut], Vocabulary]:
    """Make a fused (and quantised) model without weights the part of this rank; return the cuts by module's name.

    Raises Permanent(reason=Unsupported) if a layer is none of the known blocks.
    """
    cuts: dict[str, Cut] = {}
    for name, module in list(model.named_modules()):
        if isinstance(module, FusedAttention):
            _attention(name, module, group, cuts)
        elif isinstance(module, FusedMlp):
            _mlp(name, module, group, cuts)
        elif type(module).__name__.endswith(("Attention", "MLP")):
            raise Permanent(
                f"{type(module).__name__} cannot be split over {group.count} devices; use one",
                reason="Unsupported",
            )
    vocabulary = _vocabulary(model, group, cuts)
    for name, cut in cuts.items():
        _narrow(model.get_submodule(name), cut)
    return cuts, vocabulary


def _attention(name: str, block: FusedAttention, group: Group, cuts: dict[str, Cut]) -> None:
    heads, keys = block.heads * block.head_dim, block.kv_heads * block.head_dim
    cuts[f"{name}.qkv_proj"] = Cut(ROWS, _parts((heads, keys, keys), group))
    cuts[f"{name}.o_proj"] = Cut(COLUMNS, _parts((heads,), group), first=group.rank == 0)
    block.heads //= group.count
    block.kv_heads //= group.count
    block.join = group.add


def _mlp(name: str, block: FusedMlp, group: Group, cuts: dict[str, Cut]) -> None:
    cuts[f"{name}.gate_up_proj"] = Cut(ROWS, _parts((block.width, block.width), group))
    cuts[f"{name}.down_proj"] = Cut(COLUMNS, _parts((block.width,), group), first=group.rank == 0)
    block.width //= group.count
    block.join = group.add


def _parts(sizes: tuple[int, ...], group: Group) -> tuple[tuple[int, int], ...]:
    """Return this rank's range of each of several projections that lie one after the other."""
    found, at = [], 0
    for size in sizes:
        own = size // group.count
        found.append((at + group.rank * own, at + (group.rank + 1) * own))
        at += size
    return tuple(found)


def _vocabulary(model: nn.Module, group: Group, cuts: dict[str, Cut]) -> Vocabulary:
    table: nn.Module = model.get_input_embeddings()  # type: ignore[operator]
    name = next(name for name, module in model.named_modules() if module is table)
    rows: Tensor = table.weight  # type: ignore[assignment]
    vocabulary = Vocabulary(group, rows.shape[0])
    vocabulary.attach(table)
    cuts[name] = cuts["lm_head"] = Cut(ROWS, ((vocabulary.begin, vocabulary.end),))
    return vocabulary


def _narrow(layer: nn.Module, cut: Cut) -> None:
    """Give a layer without weights the size of its cut."""
    for attribute, parameter in layer.named_parameters(recurse=False):
        part = _part(layer, attribute, parameter, cut)
        setattr(layer, attribute, nn.Parameter(part, requires_grad=False))
    for attribute, buffer in layer.named_buffers(recurse=False):
        setattr(layer, attribute, _part(layer, attribute, buffer, cut))
    if isinstance(layer, nn.Embedding):
        layer.num_embeddings, layer.padding_idx = cut.size, None  # the pad token may be another rank's
    elif isinstance(layer, nn.Linear | QuantizedLinear):
        if cut.dim == ROWS:
            layer.out_features = cut.size
        else:
            layer.in_features = cut.size


def part_of(model: nn.Module, cuts: Mapping[str, Cut], name: str, whole: Tensor) -> Tensor:
    """Return this rank's part of the tensor ``name`` of a model, as a copy in memory of its own."""
    owner, _, attribute = name.rpartition(".")
    cut = cuts.get(owner)
    if cut is None:
        return whole.clone()
    return _part(model.get_submodule(owner), attribute, whole, cut)


def _part(layer: nn.Module, attribute: str, whole: Tensor, cut: Cut) -> Tensor:
    """Return the cut of one of a layer's tensors, which are laid out as the layer's kind has it."""
    if not whole.ndim:  # one number for the whole layer, as Gemma's scale of embeddings
        return whole.clone()
    if attribute == "bias" and cut.dim == COLUMNS:
        return whole.clone() if cut.first else torch.zeros_like(whole)
    if attribute == "scale":  # int8: one of each row
        return _take(whole, 0, cut) if cut.dim == ROWS else whole.clone()
    if isinstance(layer, Int4Linear) and attribute == "grid":  # [in / GROUP, out, 2]
        return _take(whole, 1, cut) if cut.dim == ROWS else _take(whole, 0, cut, GROUP)
    if isinstance(layer, Int4Linear) and attribute == "weight" and cut.dim == COLUMNS:
        return _take_packed(whole, cut)
    return _take(whole, cut.dim, cut)


def _take_packed(whole: Tensor, cut: Cut) -> Tensor:
    """Return columns of packed int4 weights. Raises Permanent(reason=Unsupported) where the packing is not known."""
    (out, half), rows = whole.shape, interleaved_rows()
    if not rows or out % rows:
        raise Permanent(
            "int4 weights of this CPU's packing cannot be split; use bf16 or int8", reason="Unsupported"
        )
    blocks = whole.view(out // rows, 2 * half, rows // 2)
    return _take(blocks, 1, cut).view(out, cut.size // 2)


def _take(whole: Tensor, dim: int, cut: Cut, unit: int = 1) -> Tensor:
    return torch.cat(
        [whole.narrow(dim, begin // unit, (end - begin) // unit) for begin, end in cut.ranges], dim
    )
