"""Who is whose neighbour on a node: NVLink counts and the PCIe level between each pair of GPUs.

GPUs whose links lead to switches reach each other through those, each at the full speed of its links: they count as
linked with as many links as the one with fewer has, as `nvidia-smi topo -m` counts them.

Read once and again only when the set of GPUs changes: it costs a call per pair and three per link.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from llmos_operator.telemetry.nvml import calls, codes
from llmos_operator.telemetry.nvml.codes import Meaning, NvmlFailure
from llmos_operator.telemetry.sample import Link

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmos_operator.telemetry.nvml.library import Handle, Nvml

_SWITCH: Final = "switch"  # beside UUIDs of GPUs, which begin with "GPU-"


def find_links(
    nvml: Nvml, handles: Mapping[str, Handle], bus_ids: Mapping[str, str]
) -> dict[str, tuple[Link, ...]]:
    """Return the neighbours of each GPU (by uuid), in the order of ``handles``. What cannot be told is left out."""
    by_bus = {bus: uuid for uuid, bus in bus_ids.items() if bus}
    levels = _levels(nvml, handles)
    counts = {uuid: _link_counts(nvml, handle, uuid, by_bus) for uuid, handle in handles.items()}
    result: dict[str, tuple[Link, ...]] = {}
    for uuid in handles:
        neighbours = (
            Link(
                other,
                counts[uuid].get(other, 0) or min(counts[one].get(_SWITCH, 0) for one in (uuid, other)),
                levels.get(frozenset((uuid, other)), ""),
            )
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
    """Return the number of active NVLinks from a GPU to each GPU, and to switches under `_SWITCH`."""
    counts: dict[str, int] = {}
    for link in range(codes.LINKS):
        try:
            if not nvml.get(calls.LINK_STATE, uuid, handle, link):
                continue
            if _leads_to_switch(nvml, handle, uuid, link):
                remote = _SWITCH
            else:
                remote = by_bus.get(nvml.get(calls.LINK_REMOTE, uuid, handle, link), "")
        except NvmlFailure as failure:
            if failure.meaning is Meaning.NOT_NOW:
                continue
            return counts
        if remote:
            counts[remote] = counts.get(remote, 0) + 1
    return counts


def _leads_to_switch(nvml: Nvml, handle: Handle, uuid: str, link: int) -> bool:
    """Return whether there is a switch at the other end. Older drivers cannot tell."""
    try:
        return bool(nvml.get(calls.LINK_REMOTE_TYPE, uuid, handle, link) == codes.LINK_TO_SWITCH)
    except NvmlFailure as failure:
        if failure.meaning is Meaning.ABSENT:
            return False
        raise
