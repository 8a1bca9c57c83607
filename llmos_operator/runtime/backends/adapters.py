"""LoRA adapters beside a loaded model: put in, taken out and mixed in one batch without touching its weights.

A hook on each linear layer that an adapter knows adds ``B(A(x))`` to that adapter's rows of the packed step, in place and
to no other row: rows of the base model and of other adapters stay bit for bit what they were. The layer itself may be
plain, quantised or several projections fused to one; of the last each part has its own columns. Without adapters there
are no hooks, and in a step without adapters they return at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn import functional

from llmos_operator.runtime.backends.fused import FusedLinear
from llmos_operator.runtime.formats.adapter import WEIGHTS
from llmos_operator.runtime.formats.mapped import RowReader

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor
    from torch.utils.hooks import RemovableHandle

    from llmos_operator.runtime.batching import Work
    from llmos_operator.runtime.formats.adapter import AdapterFiles


@dataclass(frozen=True, slots=True)
class Place:
    """Where a linear layer of the published model is computed: in which module, and from which output column on."""

    module: str
    begin: int
    inputs: int
    outputs: int


def linear_places(model: nn.Module) -> dict[str, Place]:
    """Return the place of each linear layer but the head. Call it on the fused model, before its layers are quantised."""
    places: dict[str, Place] = {}
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear) or name == "lm_head":
            continue
        if not isinstance(module, FusedLinear):
            places[name] = Place(name, 0, module.in_features, module.out_features)
            continue
        begin, parent = 0, name.rpartition(".")[0]
        for part, size in zip(module.parts, module.sizes, strict=True):
            places[f"{parent}.{part}"] = Place(name, begin, module.in_features, size)
            begin += size
    return places


@dataclass(frozen=True, slots=True)
class Part:
    """B of one layer, [size, rank] and scaled already, for the columns from ``begin`` on."""

    begin: int
    size: int
    rank: int
    b: Tensor


@dataclass(frozen=True, slots=True)
class Delta:
    """What an adapter adds to one module: ``a`` [ranks, in] is the A of all parts, one below the other."""

    a: Tensor
    parts: tuple[Part, ...]

    def add(self, x: Tensor, out: Tensor) -> None:
        """Add to ``out`` [rows, out] what the adapter makes of ``x`` [rows, in]."""
        low = functional.linear(x.to(self.a.dtype), self.a)
        at = 0
        for part in self.parts:
            out[:, part.begin : part.begin + part.size] += functional.linear(
                low[:, at : at + part.rank], part.b
            )
            at += part.rank


@dataclass(frozen=True, slots=True)
class LoraWeights:
    """One adapter in the memory of the model's device."""

    deltas: Mapping[str, Delta]  # by module
    nbytes: int


class AdapterSet:
    """The adapters of one model and the rows of the current step that are theirs."""

    def __init__(
        self, model: nn.Module, places: Mapping[str, Place], dtype: torch.dtype, device: torch.device
    ) -> None:
        """``dtype`` is that of the model's activations.

        On a CPU adapters are float32 beside any weights: products this small are ten times faster than in bf16 where
        the CPU has no instructions for that, and no slower elsewhere.
        """
        self._model = model
        self._places = places
        self._dtype = torch.float32 if device.type == "cpu" else dtype
        self._device = device
        self._weights: dict[str, LoraWeights] = {}
        self._hooks: dict[str, RemovableHandle] = {}
        self._groups: list[tuple[int, int, Mapping[str, Delta]]] = []

    @property
    def layers(self) -> dict[str, tuple[int, int]]:
        """(in, out) features of the layers an adapter may change."""
        return {name: (place.inputs, place.outputs) for name, place in self._places.items()}

    def read(self, files: AdapterFiles) -> LoraWeights:
        """Return the weights of a checked adapter. Any thread may do it; nothing is served yet.

        Read, not mapped: a file that somebody cuts short while it is mapped would end the process.
        """
        entries = {
            entry.name: (files.folder / WEIGHTS, entry) for pair in files.pairs.values() for entry in pair
        }
        by_module: dict[str, list[tuple[Place, Tensor, Tensor]]] = {}
        with RowReader(entries) as reader:
            for layer, (a, b) in files.pairs.items():
                place = self._places[layer]
                scaled = reader.whole(b.name).float() * files.scale
                by_module.setdefault(place.module, []).append((place, reader.whole(a.name), scaled))
        deltas = {
            module: self._delta(sorted(found, key=lambda one: one[0].begin))
            for module, found in by_module.items()
        }
        tensors = [
            tensor for delta in deltas.values() for tensor in (delta.a, *(part.b for part in delta.parts))
        ]
        return LoraWeights(deltas, sum(tensor.nbytes for tensor in tensors))

    def _delta(self, found: Sequence[tuple[Place, Tensor, Tensor]]) -> Delta:
        a = torch.cat([one.float() for _, one, _ in found]).to(self._device, self._dtype)
        parts = tuple(
            Part(place.begin, place.outputs, b.shape[1], b.to(self._device, self._dtype).contiguous())
            for place, _, b in found
        )
        return Delta(a, parts)

    def add(self, name: str, weights: LoraWeights) -> None:
        """Serve ``weights`` as ``name`` from the next step on."""
        self._weights[name] = weights
        for module in weights.deltas:
            if module not in self._hooks:
                self._hooks[module] = self._model.get_submodule(module).register_forward_hook(
                    self._hook(module)
                )

    def remove(self, name: str) -> None:
        """Forget an adapter."""
        self._weights.pop(name, None)
        used = {module for weights in self._weights.values() for module in weights.deltas}
        for module in self._hooks.keys() - used:
            self._hooks.pop(module).remove()

    def begin(self, works: Sequence[Work]) -> None:
        """Set whose rows are whose in the next forward pass."""
        self._groups = []
        if not self._weights:
            return
        at, last = 0, ""
        for work in works:
            name, end = work.sequence.submit.adapter, at + len(work.tokens)
            if name and name == last:
                begin, _, deltas = self._groups[-1]
                self._groups[-1] = (begin, end, deltas)
            elif name:
                self._groups.append((at, end, self._weights[name].deltas))
            at, last = end, name

    def end(self) -> None:
        """Forget the step."""
        self._groups = []

    def _hook(self, module: str) -> Any:
        def add(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            if not self._groups:
                return
            x, out = args[0].flatten(0, -2), output.view(-1, output.shape[-1])
            for begin, end, deltas in self._groups:
                if (delta := deltas.get(module)) is not None:
                    delta.add(x[begin:end], out[begin:end])

        return add
