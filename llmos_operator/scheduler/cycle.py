"""One scheduling cycle: `plan(snapshot, policy, now, budget) -> Plan`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmos_operator.errors import NotSynced
from llmos_operator.scheduler.budget import UNLIMITED, Budget
from llmos_operator.scheduler.plan import Plan

if TYPE_CHECKING:
    from llmos_operator.scheduler.policy import Policy
    from llmos_operator.scheduler.table import NodeTable
    from llmos_operator.state.snapshot import Snapshot


def plan(
    snapshot: Snapshot,
    policy: Policy,
    now: float,
    budget: Budget = UNLIMITED,
    table: NodeTable | None = None,
) -> Plan:
    """Return what to do now. Pure: the same snapshot, policy and time give the same plan.

    `now` is epoch seconds. `table` is a cache the caller may keep between cycles; it changes the cost of a plan, never
    its content. Raises NotSynced before every list is complete.
    """
    if not snapshot.synced:
        raise NotSynced(f"still listing {', '.join(snapshot.missing)}; no decision may be taken yet")
    raise NotImplementedError
