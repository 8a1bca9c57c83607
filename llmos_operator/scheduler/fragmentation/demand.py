"""How much of each shape is expected, and what serving it is worth.

Expected is what would come until the free devices are used up, in the proportions of the mix. The first of it is sure
to come and worth its devices, the last may not: worth falls in segments. A draw scales the demand for each kind mask
by a random factor, because a mix is an estimate and some kinds are asked for more than others in any one run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

if TYPE_CHECKING:
    from llmos_operator.scheduler.fragmentation.shapes import Mix, Shape

# (up to this part of the expectation, worth of a device in it)
SEGMENTS: Final = (
    (0.6, 1.0), (0.8, 0.85), (0.9, 0.7), (1.0, 0.55), (1.1, 0.4), (1.25, 0.3), (1.5, 0.2), (2.0, 0.1), (4.0, 0.03),
)  # fmt: skip
SPREAD: Final = 0.6  # standard deviation of the logarithm of a draw's factor

COVER: Final = 0.95  # of all requests: the rest is too rare to plan for
MOST_SHAPES: Final = 160


def frequent(mix: Mix) -> Mix:
    """Return the most frequent shapes that make up most of the requests."""
    ranked = sorted(
        ((shape, weight) for shape, weight in mix.items() if weight > 0), key=lambda i: (-i[1], i[0])
    )
    enough, taken, kept = COVER * sum(weight for _, weight in ranked), 0.0, {}
    for shape, weight in ranked[:MOST_SHAPES]:
        if taken >= enough:
            break
        kept[shape] = weight
        taken += weight
    return kept


def expected(mix: Mix, free: float, draw: np.random.Generator | None = None) -> dict[Shape, float]:
    """Return how many requests of each shape are expected while `free` devices' worth is used up."""
    shapes = sorted(shape for shape, weight in mix.items() if weight > 0)
    weights = np.array([float(mix[shape]) for shape in shapes])
    if draw is not None:
        masks = sorted({shape.kinds for shape in shapes if shape.devices})
        factor = dict(zip(masks, np.exp(draw.normal(0.0, SPREAD, len(masks))), strict=True))
        weights *= np.array([factor[shape.kinds] if shape.devices else 1.0 for shape in shapes])
    asked = float(sum(w * shape.amount for shape, w in zip(shapes, weights, strict=True)))
    if asked <= 0:
        return {}
    return {shape: float(w) * free / asked for shape, w in zip(shapes, weights, strict=True)}
