"""Where the weights lie already: between placements that waste equally much, a node with a copy of the model is taken.

Only between equals, because room that is broken up is missed for as long as the replica runs, and a download for
minutes. It goes below everything else a score counts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from llmos_operator.scheduler.request import Request
    from llmos_operator.scheduler.table import Ints, NodeTable, Rows
    from llmos_operator.state.ledger import NodeState


def lacks_copy(state: NodeState, request: Request) -> int:
    """Return 1 if the request's model would have to come to that node from elsewhere."""
    return int(bool(request.model) and (state.gpu is None or request.model not in state.gpu.models))


def lacking(table: NodeTable, rows: Rows, request: Request) -> Ints:
    """Return :func:`lacks_copy` of each row."""
    if not request.model:
        return np.zeros_like(table.device_count[rows])
    found: Ints = table.without_copy(request.model)[rows]
    return found
