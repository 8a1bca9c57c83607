"""Runs the filters: which rows can take a request, and for those that cannot, which filter turned them away first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol

import numpy as np

from llmos_operator.scheduler.filters.device_kind import DeviceKind
from llmos_operator.scheduler.filters.device_memory import DeviceCompute, DeviceMemory
from llmos_operator.scheduler.filters.health import Health
from llmos_operator.scheduler.filters.holders import Holders
from llmos_operator.scheduler.filters.host import HostCpu, HostMemory
from llmos_operator.scheduler.filters.node_labels import NodeLabels
from llmos_operator.scheduler.filters.node_ready import NodeReady
from llmos_operator.scheduler.filters.occupancy import Occupancy, Overuse, Strangers
from llmos_operator.scheduler.filters.plugin_gpus import PluginGpus
from llmos_operator.scheduler.filters.pod_count import PodCount
from llmos_operator.scheduler.filters.power import NodePower, RackPower
from llmos_operator.scheduler.filters.taints import Taints
from llmos_operator.scheduler.filters.telemetry import TelemetryFresh
from llmos_operator.scheduler.filters.volumes import Volumes
from llmos_operator.scheduler.plan import Rejection
from llmos_operator.scheduler.scene import Candidates
from llmos_operator.scheduler.table import ALL, CPU, MEMORY

if TYPE_CHECKING:
    from llmos_operator.scheduler.request import Constraints, Request
    from llmos_operator.scheduler.scene import Scene
    from llmos_operator.scheduler.table import Bools, Ints, Rows


class Filter(Protocol):
    """What every filter offers; see the package `filters`."""

    reason: str
    static: bool  # depends on constraints only, not on what is free
    for_devices: bool  # not asked for work without devices

    def narrow(self, scene: Scene, request: Request, candidates: Candidates) -> Bools | None:
        """Return which candidates stay. None: their devices were narrowed in place, those that have enough left stay."""
        ...

    def nearest(self, scene: Scene, request: Request, rows: Ints, devices: Bools) -> str:
        """Return the least change that would have kept one of `rows`; `devices` are those offered to the filter."""
        ...


FILTERS: Final[tuple[Filter, ...]] = (
    NodeReady(),
    Taints(),
    NodeLabels(),
    Volumes(),
    DeviceKind(),
    Health(),
    TelemetryFresh(),
    PodCount(),
    HostCpu(),
    HostMemory(),
    PluginGpus(),
    NodePower(),
    RackPower(),
    Occupancy(),
    Holders(),
    Strangers(),
    Overuse(),
    DeviceCompute(),
    DeviceMemory(),
)


KEPT_REQUESTS: Final = 256  # whose answers are remembered


@dataclass(frozen=True, slots=True)
class Acceptable:
    """Nodes and devices that pass the static filters."""

    nodes: Bools
    devices: Bools


@dataclass(slots=True)
class _Fitting:
    """Rows that can take a request, and how much of the table's log that takes into account."""

    fits: Bools
    version: tuple[int, int]
    seen: int


class Feasibility:
    """The filters over one scene; static results are kept as long as the table's fixed part stays the same."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._acceptable: dict[Constraints, Acceptable] = {}
        self._fitting: dict[Request, _Fitting] = {}
        self._version = scene.table.static_version

    def acceptable(self, request: Request) -> Acceptable:
        """Return what passes the static filters."""
        if self._version != self._scene.table.static_version:
            self._acceptable.clear()
            self._version = self._scene.table.static_version
        found = self._acceptable.get(request.constraints)
        if found is None:
            candidates = Candidates(self._scene.table, ALL, self._scene.table.exists.copy())
            kept = self._narrow(request, candidates, np.ones(len(self._scene.table), np.bool_), static=True)
            found = self._acceptable[request.constraints] = Acceptable(kept, candidates.devices)
        return found

    def possible(self, request: Request, rows: Rows) -> Bools:
        """Return which of `rows` are worth a closer look: quick, and never false for one that can take the request."""
        node, nodes = self._scene.table.node, self.acceptable(request).nodes
        found: Bools = nodes[rows] & (node[CPU][rows] >= request.cpu_milli)
        found &= node[MEMORY][rows] >= request.memory_bytes
        return found

    def fitting(self, request: Request) -> Bools:
        """Return which rows can take the request now; kept, and asked again only for rows that have changed."""
        table = self._scene.table
        known = self._fitting.get(request)
        version = (table.generation, table.static_version)
        if known is None or known.version != version:
            if len(self._fitting) >= KEPT_REQUESTS:
                del self._fitting[next(iter(self._fitting))]
            fits, _ = self.check(request, ALL)
            self._fitting[request] = _Fitting(fits, version, len(table.log))
            return fits
        if known.seen < len(table.log):
            rows = table.changed_since(known.seen)
            known.fits[rows], _ = self.check(request, rows)
            known.seen = len(table.log)
        return known.fits

    def check(self, request: Request, rows: Rows) -> tuple[Bools, Candidates]:
        """Return which of `rows` can take the request now, and on which devices."""
        base = self.acceptable(request)
        candidates = Candidates(self._scene.table, rows, base.devices[rows].copy())
        return self._narrow(request, candidates, base.nodes[rows].copy(), static=False), candidates

    def _narrow(self, request: Request, candidates: Candidates, kept: Bools, *, static: bool) -> Bools:
        for one in _asked(request, static=static):
            stays = one.narrow(self._scene, request, candidates)
            if stays is not None:
                kept &= stays
        if request.devices:
            kept &= candidates.enough(request.devices)
        return kept

    def parts(self, request: Request) -> tuple[Bools, Bools, Bools]:
        """Return (devices of the right kind, of them those that fit now, rows whose host fits now), of all rows."""
        base = self.acceptable(request)
        candidates = Candidates(self._scene.table, ALL, base.devices.copy())
        host = base.nodes.copy()
        for one in _asked(request, static=False):
            stays = one.narrow(self._scene, request, candidates)
            if stays is not None and not one.for_devices:
                host &= stays
        return base.devices, candidates.devices, host

    def rejections(self, request: Request) -> tuple[tuple[Rejection, ...], int]:
        """Return what each filter turned away, most first, and how many nodes passed. Counts add up to all nodes."""
        scene = self._scene
        candidates = Candidates(scene.table, ALL, scene.table.exists.copy())
        kept = np.ones(len(scene.table), np.bool_)
        found = []
        for one in FILTERS:
            if one.for_devices and not request.devices:
                continue
            before = candidates.devices.copy()
            stays = one.narrow(scene, request, candidates)
            lost = np.flatnonzero(kept & ~(candidates.enough(request.devices) if stays is None else stays))
            if lost.size:
                kept[lost] = False
                nearest = one.nearest(scene, request, lost, before[lost])
                found.append(Rejection(one.reason, int(lost.size), nearest))
        found.sort(key=lambda r: (-r.nodes, r.reason))
        return tuple(found), int(kept.sum())


def _asked(request: Request, *, static: bool) -> tuple[Filter, ...]:
    return _BY_USE[static, request.devices > 0]


_BY_USE: Final = {
    (static, devices): tuple(f for f in FILTERS if f.static is static and (devices or not f.for_devices))
    for static in (False, True)
    for devices in (False, True)
}


def matching_devices(scene: Scene, request: Request) -> Bools:
    """Return the devices of the kind asked for, whatever their node, health or occupancy."""
    candidates = Candidates(scene.table, ALL, scene.table.exists.copy())
    DeviceKind().narrow(scene, request, candidates)
    return candidates.devices
