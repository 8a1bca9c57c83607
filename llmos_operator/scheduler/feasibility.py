"""Runs the filters: which rows can take a request, and for those that cannot, which filter turned them away first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np

from llmos_operator.scheduler.filters.device_kind import DeviceKind
from llmos_operator.scheduler.filters.device_memory import DeviceCompute, DeviceMemory
from llmos_operator.scheduler.filters.health import Health
from llmos_operator.scheduler.filters.host import HostCpu, HostMemory
from llmos_operator.scheduler.filters.node_labels import NodeLabels
from llmos_operator.scheduler.filters.node_ready import NodeReady
from llmos_operator.scheduler.filters.occupancy import Occupancy, Overuse
from llmos_operator.scheduler.filters.plugin_gpus import PluginGpus
from llmos_operator.scheduler.filters.pod_count import PodCount
from llmos_operator.scheduler.filters.taints import Taints
from llmos_operator.scheduler.filters.telemetry import TelemetryFresh
from llmos_operator.scheduler.plan import Rejection
from llmos_operator.scheduler.scene import Candidates
from llmos_operator.scheduler.table import ALL

if TYPE_CHECKING:
    from llmos_operator.scheduler.request import Constraints, Request
    from llmos_operator.scheduler.scene import Scene
    from llmos_operator.scheduler.table import Bools, Ints, Rows


class Filter(Protocol):
    """What every filter offers; see the package `filters`."""

    reason: str
    static: bool  # depends on constraints only, not on what is free
    for_devices: bool  # not asked for work without devices

    def narrow(self, scene: Scene, request: Request, candidates: Candidates) -> Bools:
        """Return which candidates stay; may narrow their devices in place."""
        ...

    def nearest(self, scene: Scene, request: Request, rows: Ints, devices: Bools) -> str:
        """Return the least change that would have kept one of `rows`; `devices` are those offered to the filter."""
        ...


FILTERS: Final[tuple[Filter, ...]] = (
    NodeReady(),
    Taints(),
    NodeLabels(),
    DeviceKind(),
    Health(),
    TelemetryFresh(),
    PodCount(),
    HostCpu(),
    HostMemory(),
    PluginGpus(),
    Occupancy(),
    Overuse(),
    DeviceCompute(),
    DeviceMemory(),
)


@dataclass(frozen=True, slots=True)
class Acceptable:
    """Nodes and devices that pass the static filters."""

    nodes: Bools
    devices: Bools


class Feasibility:
    """The filters over one scene; static results are kept as long as the table's fixed part stays the same."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._acceptable: dict[Constraints, Acceptable] = {}
        self._version = scene.table.static_version

    def acceptable(self, request: Request) -> Acceptable:
        """Return what passes the static filters."""
        if self._version != self._scene.table.static_version:
            self._acceptable.clear()
            self._version = self._scene.table.static_version
        found = self._acceptable.get(request.constraints)
        if found is None:
            candidates = Candidates(ALL, self._scene.table.exists.copy())
            kept = np.ones(len(self._scene.table), np.bool_)
            for one in _asked(request, static=True):
                kept &= one.narrow(self._scene, request, candidates)
            found = self._acceptable[request.constraints] = Acceptable(kept, candidates.devices)
        return found

    def check(self, request: Request, rows: Rows) -> tuple[Bools, Candidates]:
        """Return which of `rows` can take the request now, and on which devices."""
        base = self.acceptable(request)
        candidates = Candidates(rows, base.devices[rows].copy())
        kept = base.nodes[rows].copy()
        for one in _asked(request, static=False):
            kept &= one.narrow(self._scene, request, candidates)
        return kept, candidates

    def parts(self, request: Request) -> tuple[Bools, Bools, Bools]:
        """Return (devices of the right kind, of them those that fit now, rows whose host fits now), of all rows."""
        base = self.acceptable(request)
        candidates = Candidates(ALL, base.devices.copy())
        host = base.nodes.copy()
        for one in _asked(request, static=False):
            kept = one.narrow(self._scene, request, candidates)
            if not one.for_devices:
                host &= kept
        return base.devices, candidates.devices, host

    def rejections(self, request: Request) -> tuple[tuple[Rejection, ...], int]:
        """Return what each filter turned away, most first, and how many nodes passed. Counts add up to all nodes."""
        scene = self._scene
        candidates = Candidates(ALL, scene.table.exists.copy())
        kept = np.ones(len(scene.table), np.bool_)
        found = []
        for one in FILTERS:
            if one.for_devices and not request.devices:
                continue
            before = candidates.devices.copy()
            lost = np.flatnonzero(kept & ~one.narrow(scene, request, candidates))
            if lost.size:
                kept[lost] = False
                nearest = one.nearest(scene, request, lost, before[lost])
                found.append(Rejection(one.reason, int(lost.size), nearest))
        found.sort(key=lambda r: (-r.nodes, r.reason))
        return tuple(found), int(kept.sum())


def _asked(request: Request, *, static: bool) -> tuple[Filter, ...]:
    return tuple(f for f in FILTERS if f.static is static and (request.devices or not f.for_devices))


def matching_devices(scene: Scene, request: Request) -> Bools:
    """Return the devices of the kind asked for, whatever their node, health or occupancy."""
    candidates = Candidates(ALL, scene.table.exists.copy())
    DeviceKind().narrow(scene, request, candidates)
    return candidates.devices
