"""Where unpacked weights begin to win: measured for each layer size when a model warms up.

The packed kernels do work for each row, unpacking costs the same for any number of rows. The crossing depends on the
CPU, the threads and the size of the matrix; it is searched on a doubling ladder, with the best of a few tries at each
step, which other work on the machine can lengthen but not shorten.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from llmos_operator.runtime.backends.products import bf16_is_slow, seconds
from llmos_operator.runtime.backends.quantized import QuantizedLinear

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

_LADDER = (4, 8, 12, 16, 24, 32, 48, 64, 96, 128)


def size_name(layer: QuantizedLinear) -> str:
    """Return the key under which layers of one size share a result, on CPUs that unpack them the same way."""
    unpacked = "float32" if bf16_is_slow() else "bf16"
    return f"{type(layer).__name__}-{layer.in_features}-{layer.out_features}-{unpacked}"


@torch.inference_mode()
def tune(model: nn.Module, known: Mapping[str, int]) -> dict[str, int]:
    """Set `crossover_rows` of every quantised layer, measuring sizes that are not ``known``; return all results."""
    results: dict[str, int] = {}
    for layer in model.modules():
        if not isinstance(layer, QuantizedLinear):
            continue
        name = size_name(layer)
        if name not in results:
            results[name] = known[name] if name in known else _crossover(layer)
        layer.crossover_rows = results[name]
    return results


def _crossover(layer: QuantizedLinear) -> int:
    """Return the largest row count on the ladder at which the packed kernel is the faster one."""
    best = 1
    for rows in _LADDER:
        x = torch.randn(rows, layer.in_features, dtype=torch.bfloat16)
        if seconds(lambda x=x: layer.unpacked(x)) < seconds(lambda x=x: layer.packed(x)):  # type: ignore[misc]
            break
        best = rows
    return best
