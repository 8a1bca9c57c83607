"""Units of nvidia.com/mig-*: what nodes advertise and pods ask for, by resource."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Final

from llmos_operator.api.mig import RESOURCE_PREFIX
from llmos_operator.api.quantity import parse_count

if TYPE_CHECKING:
    from llmos_operator.state.convert.fields import Fields

_MOST: Final = 1 << 50  # as in `pods`: sums stay far inside an int64


def partitions(amounts: Fields) -> dict[str, int]:
    """Return the amounts of nvidia.com/mig-*, by resource; those of which there are none, too: the device plugin knows them."""
    return {
        str(name): amounts.parsed(name, parse_count, 0)
        for name in amounts.data
        if name.startswith(RESOURCE_PREFIX)
    }


def partition_requests(spec: Fields) -> dict[str, int]:
    """Return the units of nvidia.com/mig-* a pod asks of its node, by resource; the rules are those of `pods.requests`."""
    running: Counter[str] = Counter()
    starting: Counter[str] = Counter()
    for one in spec.objects("containers"):
        running.update(_partitions(one))
    sidecars: Counter[str] = Counter()
    for one in spec.objects("initContainers"):
        asked = sidecars + _partitions(one)
        if one.data.get("restartPolicy") == "Always":
            sidecars = asked
        starting |= asked
    return {name: min(count, _MOST) for name, count in ((running + sidecars) | starting).items()}


def _partitions(container: Fields) -> Counter[str]:
    resources = container.child("resources")
    return Counter(partitions(resources.child("limits"))) | Counter(partitions(resources.child("requests")))
