"""Answers to "why does it wait, what would make it start": `explain(snapshot, policy, now, key) -> Explanation`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmos_operator.api.conditions import Reason
    from llmos_operator.scheduler.plan import Evict, Rejection
    from llmos_operator.scheduler.policy import Policy
    from llmos_operator.state.snapshot import Snapshot
    from llmos_operator.state.types import WorkloadKey


@dataclass(frozen=True, slots=True)
class SizeOption:
    """One precision the workload may run at, and where it stands."""

    format: str
    bytes_per_device: int
    max_model_len: int
    nodes: int  # nodes that could take a replica now
    note: str  # "fits on 3 nodes", "short by 1.2 GiB on the best node"


@dataclass(frozen=True, slots=True)
class Explanation:
    """Everything `kubectl llmos explain` shows of one workload."""

    workload: WorkloadKey
    reason: Reason
    message: str
    queue: str
    queue_position: int | None  # 1 is next
    order: str  # why it stands there: priority, share, waiting time
    priority: int
    replicas_wanted: int
    replicas_placed: int
    options: tuple[SizeOption, ...] = ()  # precisions, best first
    rejected: tuple[Rejection, ...] = ()
    victims: tuple[Evict, ...] = ()  # what would have to go for it to start now
    would_help: tuple[str, ...] = ()  # changes that would make it start
    expected_start: float | None = None  # epoch seconds; None: not known


def explain(snapshot: Snapshot, policy: Policy, now: float, workload: WorkloadKey) -> Explanation:
    """Explain one workload on a snapshot, changing nothing. KeyError: there is no such workload."""
    raise NotImplementedError
