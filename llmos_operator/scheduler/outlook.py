"""What is expected to be asked for: requests and workloads as shapes."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from llmos_operator.scheduler.claims import profile_of, request_of, sharing_domain, signature
from llmos_operator.scheduler.filters.device_kind import product_matches
from llmos_operator.scheduler.fragmentation.shapes import ANY, FULL, Shape
from llmos_operator.scheduler.shares import asked_of
from llmos_operator.scheduler.sizing import sizes

if TYPE_CHECKING:
    from llmos_operator.scheduler.fragmentation.prices import DeviceKind
    from llmos_operator.scheduler.policy import Policy
    from llmos_operator.scheduler.request import Request
    from llmos_operator.state.snapshot import Snapshot


def shape_of(request: Request, kinds: tuple[DeviceKind, ...]) -> Shape | None:
    """Return the shape of a request; None if no kind will do.

    Where a share differs between kinds, the largest that fits counts: what is free is not overrated.
    """
    if not request.devices:
        return Shape(0, 0, request.cpu_milli)
    selector = request.constraints.selector
    share = asked_of(request, kinds).share
    good = [
        number
        for number, (product, memory) in enumerate(kinds)
        if (not selector.products or product_matches(product, selector.products))
        and memory >= max(selector.min_memory_bytes, request.bytes_per_device)
        and share[number] <= FULL
    ]
    if not good:
        return None
    mask = ANY if len(good) == len(kinds) else sum(1 << number for number in good)
    part = FULL if request.whole else int(share[good].max())
    return Shape(request.devices, part, request.cpu_milli, mask)


def mix_of(snapshot: Snapshot, policy: Policy, kinds: tuple[DeviceKind, ...]) -> Counter[Shape]:
    """Return how many pods of each shape the cluster's workloads have, finished ones included.

    What is there is what was asked for so far: nothing has to be remembered across restarts.
    """
    found: Counter[Shape] = Counter()
    known: dict[object, Shape | None] = {}
    for workload in snapshot.workloads.values():
        domain = sharing_domain(snapshot, policy, workload.namespace)
        key = signature(workload, domain)
        if key not in known:
            options = sizes(workload, profile_of(snapshot, workload), policy).sizes
            shape = shape_of(request_of(workload, options[0], policy, domain), kinds) if options else None
            known[key] = shape
        shape = known[key]
        if shape is not None:
            found[shape] += workload.replicas * workload.members
    return found
