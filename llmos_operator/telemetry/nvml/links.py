"""Who is whose neighbour on a node: NVLink counts and the PCIe level between each pair of GPUs.

Read once and again only when the set of GPUs changes: it costs a call per pair and two per link.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmos_operator.telemetry.nvml import calls, codes
from llmos_operator.telemetry.nvml.codes import Meaning, NvmlFailure
from llmos_operator.telemetry.sample import Link

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmos_operator.telemetry.nvml.library import Handle, Nvml


def find_links(
    nvml: Nvml, handles: Mapping[str, Handle], bus_ids: Mapping[str, str]
) -> dict[str, tuple[Link, ...]]:
    """Return the neighbours of each GPU (by uuid), in the order of ``handles``. What cannot be told is left out."""
    by_bus = {bus: uuid for uuid, bus in bus_ids.items() if bus}
    levels = _levels(nvml, handles)
    result: dict[str, tuple[Link, ...]] = {}
    for uuid, handle in handles.items():
        counts = _link_counts(nvml, handle, uuid, by_bus)
        neighbours = (
            Link(other, counts.get(other, 0), levels.get(frozenset((uuid, other)), ""))
            for other in handles
            if other != uuid
        )
        result[uuid] = tuple(link for link in neighbours if link.nvlinks or link.level)
    return result


def _levels(nvml: Nvml, handles: Mapping[str, Handle]) -> dict[frozenset[str], str]:
    uuids = list(handles)
    levels: dict[frozenset[str], str] = {}
    for position, uuid in enumerate(uuids):
        for other in uuids[position + 1 :]:
            try:
                level = nvml.get(calls.COMMON_ANCESTOR, uuid, handles[uuid], handles[other])
            except NvmlFailure as failure:
                if failure.meaning is Meaning.ABSENT:
                    return levels
                continue
            levels[frozenset((uuid, other))] = level
    return levels


def _link_counts(nvml: Nvml, handle: Handle, uuid: str, by_bus: Mapping[str, str]) -> dict[str, int]:
    """Return the number of active NVLinks from a GPU to each GPU. Links to switches lead to no GPU directly."""
    counts: dict[str, int] = {}
    for link in range(codes.LINKS):
        try:
            if not nvml.get(calls.LINK_STATE, uuid, handle, link):
                continue
            remote = by_bus.get(nvml.get(calls.LINK_REMOTE, uuid, handle, link), "")
        except NvmlFailure as failure:
            if failure.meaning is Meaning.NOT_NOW:
                continue
            return counts
        if remote:
            counts[remote] = counts.get(remote, 0) + 1
    return counts
