"""Best fit: leave the least behind, on devices first, and keep idle devices and idle nodes together.

Whole devices: the smallest that is large enough, on the node that keeps the fewest idle ones. MIG instances: the one that is
the least part of its GPU, then the one with the least memory. Shared devices: the one with the least room left after, those
that slow it down the least first, an idle one only when no device in use will do. Strained and degraded ones come last. CPU
only: nodes without devices first.
Spread turns the preference for full nodes round. Equal waste goes to a node with a copy of the model,
and then breaks in row order, which is name order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np

from llmos_operator.scheduler.locality import lacking
from llmos_operator.scheduler.policy import ScoreKind
from llmos_operator.scheduler.table import CAPACITY, CPU, FREE_BYTES, IDLE, MEMORY, PART
from llmos_operator.state.types import FULL_MILLI, Placement, Sharing

if TYPE_CHECKING:
    from llmos_operator.scheduler.request import Request
    from llmos_operator.scheduler.scene import Candidates, Scene
    from llmos_operator.scheduler.table import Ints

DEGRADED_WASTE: Final = 1 << 30  # MiB: a degraded device is taken only when no other will do
_IDLE_WASTE: Final = 1 << 26  # MiB: breaking up an idle device wastes more than any fit
_STRAINED_WASTE: Final = (
    1 << 27
)  # MiB: a strained device is taken only when no other will do, the least strained first
_STRAIN_SHIFT: Final = 18  # of thousandths: all of them are less than what a degraded device wastes
_HARM_SHIFT: Final = (
    16  # of thousandths: more than any fit, and a whole device less than breaking up an idle one
)
_OUT: Final = 1 << 34  # MiB: a device that is not a candidate
_MOST_DEVICES: Final = 128
_HOST_LIMIT: Final = 1 << 40
_MIB_SHIFT: Final = 20
_PART_SHIFT: Final = 17  # of thousandths of a GPU above an excess of 2 MiB each: together less than what a strained device wastes


class BestFit:
    """Waste of the best placement on each candidate."""

    kind: Final = ScoreKind.BEST_FIT

    def judge(self, scene: Scene, request: Request, candidates: Candidates) -> tuple[Ints, Ints | None]:
        """Return the waste of each candidate, in units that only compare within one request, and the column of the best device.

        No device is preferred (None) but where some slow the request's like down: elsewhere `pick` comes to the same.
        """
        waste, column = self._waste(scene, request, candidates)
        return (waste << 1) + lacking(scene.table, candidates.rows, request), column

    def _waste(self, scene: Scene, request: Request, candidates: Candidates) -> tuple[Ints, Ints | None]:
        if not request.devices:
            return self._host_only(scene, request, candidates), None
        rows, table = candidates.rows, scene.table
        idle = table.device[IDLE][rows]
        if request.constraints.sharing is Sharing.MIG:
            beyond = (table.fixed[CAPACITY][rows] - request.bytes_per_device) >> (_MIB_SHIFT + 1)
            excess = (table.fixed[PART][rows] << _PART_SHIFT) + np.minimum(beyond, (1 << _PART_SHIFT) - 1)
        elif request.whole:
            excess = (table.fixed[CAPACITY][rows] - request.bytes_per_device) >> _MIB_SHIFT
        else:
            excess = (table.device[FREE_BYTES][rows] - request.bytes_per_device) >> _MIB_SHIFT
            excess += idle * _IDLE_WASTE
        excess += table.degraded[rows] * DEGRADED_WASTE
        if table.strained:
            strain = table.strain[rows]
            excess += (strain > 0) * _STRAINED_WASTE + (strain << _STRAIN_SHIFT)
        harm = scene.harm_of(request, rows)
        if harm is not None:
            excess += np.minimum(harm, FULL_MILLI) << _HARM_SHIFT
        excess = np.where(candidates.devices, excess, _OUT)
        if request.devices > excess.shape[1]:
            return np.full(len(excess), _OUT * _MOST_DEVICES, np.int64), None  # no node has so many
        if request.devices == 1:
            fit = excess.min(axis=1)
        else:
            fit = np.partition(excess, request.devices - 1, axis=1)[:, : request.devices].sum(axis=1)
        left = idle.sum(axis=1)
        if request.placement is Placement.SPREAD:
            left = _MOST_DEVICES - 1 - left
        waste: Ints = fit * _MOST_DEVICES + left
        return waste, excess.argmin(axis=1) if harm is not None else None

    def _host_only(self, scene: Scene, request: Request, candidates: Candidates) -> Ints:
        rows, table = candidates.rows, scene.table
        left = table.node[CPU][rows] - request.cpu_milli
        left = left + ((table.node[MEMORY][rows] - request.memory_bytes) >> _MIB_SHIFT)
        if request.placement is Placement.SPREAD:
            left = _HOST_LIMIT - left
        waste: Ints = left + (table.device_count[rows] > 0) * (_HOST_LIMIT << 1)
        return waste
