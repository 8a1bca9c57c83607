"""Ceilings on the number of replicas, as the scheduler puts them: told where scaling is explained, forgotten when nothing is above them."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmos_operator.manifests.observed import Scaling
    from llmos_operator.state.store import Store
    from llmos_operator.state.types import Workload


def told(scaling: Scaling, workload: Workload) -> Scaling:
    """Return what decides the number of replicas, with the ceiling where one is in force."""
    if workload.wanted is None or workload.ceiling is None:
        return scaling
    by = workload.ceiling.beneficiary or "another workload"
    text = f"{workload.replicas} of {workload.wanted} run until there is room again: {by} took a place."
    return replace(scaling, message=f"{scaling.message} {text}")


def release(store: Store, key: str, now: float) -> None:
    """Forget what a workload gave up once it does not want it any more: what it will want is wanted anew."""
    workload = store.workload(key)
    if workload is None or workload.wanted is not None or workload.ceiling is None:
        return
    if workload.ceiling.replicas is not None:
        store.allow_replicas(key, workload.uid, workload.replicas, now)
