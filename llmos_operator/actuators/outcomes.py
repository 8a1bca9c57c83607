"""What the executor tells about its work: feedback goes to the store and to those who listen, never back to plans."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from llmos_operator.scheduler.plan import Bind, Evict, Grow, Move, Restore, Shrink, Sleep, Wake
    from llmos_operator.state.types import Pod


@dataclass(frozen=True, slots=True)
class Retire:
    """Take away a pod of our own that is not wanted any more (scale down, new spec, failed, owner gone)."""

    pod: str  # namespace/name
    pod_uid: str
    workload: str  # namespace/name
    workload_uid: str
    reason: str
    message: str
    force: bool = False  # without grace: nothing is left that could end it
    orphan: bool = False  # the owner seems gone: ask the API server before acting on that


class Outcomes(Protocol):
    """Listener of the executor. All methods return at once."""

    def bound(self, bind: Bind) -> None:
        """Say that a replica's pod exists."""
        ...

    def bind_failed(self, bind: Bind, error: Exception) -> None:
        """Say that a replica's pod could not be created, for sure; the claim is released."""
        ...

    def bind_delayed(self, bind: Bind, error: Exception, seconds: float) -> None:
        """Say that it is not known whether a replica's pod was created; it is tried again in ``seconds``."""
        ...

    def evicted(self, evict: Evict) -> None:
        """Say that an eviction was accepted."""
        ...

    def eviction_refused(self, evict: Evict, error: Exception, retry_at: float) -> None:
        """Say that a disruption budget refused an eviction for now. `retry_at` is monotonic."""
        ...

    def moved(self, move: Move) -> None:
        """Say that the eviction of a replica that starts again elsewhere was accepted."""
        ...

    def move_refused(self, move: Move, error: Exception, retry_at: float) -> None:
        """Say that a replica that was to be moved stays for now. `retry_at` is monotonic."""
        ...

    def shrunk(self, shrink: Shrink) -> None:
        """Say that a replica is asked to come down."""
        ...

    def yielded(self, pod: Pod) -> None:
        """Say that a replica was seen to have come down."""
        ...

    def not_shrunk(self, pod: Pod, why: str) -> None:
        """Say that a replica did not come down and keeps what it has."""
        ...

    def restored(self, restore: Restore) -> None:
        """Say that a replica gets back what it gave up."""
        ...

    def grown(self, grow: Grow) -> None:
        """Say that a workload may have replicas again that it gave up."""
        ...

    def put_to_sleep(self, sleep: Sleep) -> None:
        """Say that a replica is asked to sleep."""
        ...

    def fell_asleep(self, pod: Pod) -> None:
        """Say that a replica was seen to sleep."""
        ...

    def not_slept(self, pod: Pod, why: str) -> None:
        """Say that a replica did not go to sleep and keeps its place."""
        ...

    def woken(self, wake: Wake) -> None:
        """Say that a replica that slept is to serve again."""
        ...

    def retired(self, retire: Retire) -> None:
        """Say that the deletion of a pod was accepted."""
        ...

    def settled(self, workload: str) -> None:
        """Say that nothing of the workload is in flight any more."""
        ...
