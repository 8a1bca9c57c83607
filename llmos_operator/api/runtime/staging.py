"""How the layers of a model are laid over pipeline stages, and what each stage then is to the memory model.

Scheduler and runtime ask the same functions, so that what is placed is what is loaded. The first stage has the token
table beside its layers, the last one the head (a copy of the table where they are tied).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from llmos_operator.api.runtime.memory import weights_bytes
from llmos_operator.api.runtime.splitting import SPLIT_ARCHITECTURES, known_blocks

if TYPE_CHECKING:
    from llmos_operator.api.runtime.memory import ModelShape


def stage_layers(shape: ModelShape, fmt: str, stages: int) -> tuple[int, ...]:
    """Return the number of layers of each stage, so that the largest one has the fewest bytes. At least one each."""
    layer = weights_bytes(replace(shape, embedding_parameters=0), fmt) // shape.layers
    table = weights_bytes(_table(shape), fmt)
    counts = [1] * stages
    sizes = [layer] * stages
    for end in {0, stages - 1} if stages > 1 else ():
        sizes[end] += table
    for _ in range(shape.layers - stages):
        least = min(range(stages), key=lambda stage: (sizes[stage], stage))
        counts[least] += 1
        sizes[least] += layer
    return tuple(counts)


def stage_shapes(shape: ModelShape, fmt: str, stages: int) -> tuple[ModelShape, ...]:
    """Return what each stage is to the memory model: a model of its own layers; the model itself without stages."""
    if stages == 1:
        return (shape,)
    table = _table(shape).embedding_parameters
    return tuple(
        replace(
            shape,
            layers=count,
            linear_parameters=-(-shape.linear_parameters * count // shape.layers),
            other_parameters=-(-shape.other_parameters * count // shape.layers),
            embedding_parameters=table if stage in (0, stages - 1) else 0,
        )
        for stage, count in enumerate(stage_layers(shape, fmt, stages))
    )


def _table(shape: ModelShape) -> ModelShape:
    """Return a model that is a token table alone."""
    return replace(
        shape, linear_parameters=0, other_parameters=0, embedding_parameters=shape.vocab * shape.hidden
    )


def not_stageable(shape: ModelShape, stages: int, tensor: int = 1) -> str:
    """Return why a model cannot have ``stages`` of ``tensor`` devices each, with the fix; "" if it can."""
    if stages == 1:
        return ""
    if tensor > 1:
        return (
            f"{stages} pipeline stages whose layers {tensor} devices share are not served; set "
            f"spec.parallelism.tensor or spec.parallelism.pipeline to 1"
        )
    if not known_blocks(shape):
        able = ", ".join(SPLIT_ARCHITECTURES)
        return f"{shape.architecture} has no pipeline stages ({able} can); set spec.parallelism.pipeline to 1"
    if shape.layers < stages:
        return (
            f"the model has {shape.layers} layers and each of {stages} stages needs one; set "
            f"spec.parallelism.pipeline to at most {shape.layers}"
        )
    return ""
