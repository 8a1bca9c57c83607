"""Which of an agent's rounds are told to the operator: every third, and at once what could change a decision. Pure.

A batch costs the operator more than what it says: 1,000 GPUs told every second took it a tenth of a core. So the rounds
in between are folded into the batch that is told: busy time and power as means, the rest as it stands, process lists carried along.
The operator believes a fall of memory when it was seen twice, so the round after one that was told at once is told, too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from llmos_operator.state.telemetry import STRAIN_BAND, memory_band

if TYPE_CHECKING:
    from collections.abc import Iterable

Json = dict[str, Any]
TELL_EVERY: Final = 3  # rounds at most
TELL_SECONDS: Final = 3.0  # a node not heard of for 8 s takes no shared work (`Policy.stale_seconds`)
_MEANS: Final = ("utilizationPercent", "powerMilliwatts")
_STRAINS: Final = ("throttledMilli", "riskMilli")


class Telling:
    """The rounds of one agent. Batches are those of `report.batch`, which stay as they are."""

    def __init__(self, interval: float) -> None:
        """``interval``: seconds between two rounds."""
        self._every = max(1, min(TELL_EVERY, int(TELL_SECONDS / interval)))
        self._told: dict[str, Json] = {}  # devices of the batch that was taken last, by UUID
        self._listed: dict[str, frozenset[str]] = {}  # pods of the process list told last, by UUID
        self._sums: dict[
            tuple[str, str], list[int]
        ] = {}  # by UUID and field: sum and count of the rounds since then
        self._lists: dict[str, list[Json]] = {}  # process lists not taken yet, by UUID
        self._rounds = self._every  # since then; the first is told
        self._urgent = False  # the batch under way is told before its time

    def take(self, batch: Json) -> tuple[Json, bool]:
        """Return the batch with the rounds since the last that was taken, and whether it is to be told now."""
        devices = [self._fold(one) for one in batch["devices"]]
        self._rounds += 1
        self._urgent = self._urgent or self._news(devices)
        return {**batch, "devices": devices}, self._urgent or self._rounds >= self._every

    def taken(self, batch: Json) -> None:
        """The operator has taken a batch that `take` returned."""
        self._rounds = self._every - 1 if self._urgent and self._told else 0
        self._urgent = False
        self._told = {one["uuid"]: one for one in batch["devices"]}
        self._sums.clear()
        for one in batch["devices"]:
            if "processes" in one:
                self._listed[one["uuid"]] = _pods(one["processes"])
                if self._lists.get(one["uuid"]) is one["processes"]:
                    del self._lists[one["uuid"]]
        for gone in self._listed.keys() - self._told.keys():
            del self._listed[gone]

    def refused(self) -> None:
        """A batch was not taken: the next is told whatever it says."""
        self._rounds = max(self._rounds, self._every)

    def _fold(self, device: Json) -> Json:
        uuid = device["uuid"]
        folded = dict(device)
        for field in _MEANS:
            if field in device:
                entry = self._sums.setdefault((uuid, field), [0, 0])
                entry[0] += device[field]
                entry[1] += 1
                folded[field] = round(entry[0] / entry[1])
        if "processes" in device:
            self._lists[uuid] = device["processes"]
        if uuid in self._lists:
            folded["processes"] = self._lists[uuid]
        return folded

    def _news(self, devices: Iterable[Json]) -> bool:
        seen = list(devices)
        return len(seen) != len(self._told) or any(self._differs(one) for one in seen)

    def _differs(self, device: Json) -> bool:
        told = self._told.get(device["uuid"])
        if told is None or any(device[key] != told[key] for key in ("verdict", "reason")):
            return True
        used, before = device.get("memoryUsedBytes"), told.get("memoryUsedBytes")
        if used is None or before is None:
            if used is not before:
                return True
        elif abs(used - before) > memory_band(device.get("memoryTotalBytes")):
            return True
        if any(abs(device.get(key, 0) - told.get(key, 0)) >= STRAIN_BAND for key in _STRAINS):
            return True
        listed = device.get("processes")
        return listed is not None and _pods(listed) != self._listed.get(device["uuid"], frozenset())


def _pods(processes: Iterable[Json]) -> frozenset[str]:
    return frozenset(one.get("podUid", "") for one in processes)
