"""How a model that is split over ranks acts as one: orders go out before each computation, results come together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from llmos_operator.runtime.backends.collective import Group
    from llmos_operator.runtime.backends.sharding import Vocabulary
    from llmos_operator.runtime.ipc.orders import Order


@dataclass(slots=True)
class Split:
    """One rank's place in a split model. ``tell`` sends orders to the other ranks; on those it does nothing."""

    group: Group
    vocabulary: Vocabulary
    tell: Callable[[Order], None] = lambda _: None
    held: Tensor | None = (
        None  # what rank 0 lets the others look at: the hidden states of a text that is judged
    )

    def whole(self, part: Tensor) -> Tensor:
        """Return the logits of which every rank has computed a part; on other ranks than 0 the part itself."""
        found = self.vocabulary.join(part)
        return part if found is None else found
