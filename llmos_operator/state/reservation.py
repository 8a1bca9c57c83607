"""What Kueue's Workload object says: what was asked for in a ModelWorkload's name, and how far that is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llmos_operator.state.types import Requirement


@dataclass(frozen=True, slots=True)
class Reservation:
    """A Workload of Kueue (kueue.x-k8s.io/v1beta2)."""

    name: str
    namespace: str
    uid: str
    version: str  # metadata.resourceVersion
    owner: str  # UID of the ModelWorkload
    queue: str  # LocalQueue
    priority: str = ""  # name of its priority class
    asked: str = ""  # hash of what one pod asks for
    pods: int = 0
    active: bool = True
    reserved: bool = False  # it holds quota
    admitted: bool = False
    evicted: str = ""  # reason, while it is to be stopped; "": it is not
    finished: bool = False
    ready: bool = False  # PodsReady, as it was last told
    message: str = ""  # why it has no quota, or was evicted
    flavors: tuple[str, ...] = ()  # ResourceFlavors it was given, each once
    updates: tuple[Requirement, ...] = ()  # node selectors of admission checks
    conditions: tuple[tuple[tuple[str, str], ...], ...] = ()  # as they stand
