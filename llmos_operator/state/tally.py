"""Running sums over all pods with claims, so that a plan does not add up thousands of them anew."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmos_operator.state.types import PodPhase

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from llmos_operator.state.types import Pod, PodKey


class Tally:
    """What is charged to each queue, who stands how high, who is on the way out, was asked to come down or to sleep, or was moved.

    Finished pods do not count.
    """

    def __init__(self) -> None:
        self.charged: dict[str, tuple[int, int]] = {}  # queue -> (thousandths of devices, bytes)
        self.standing: dict[tuple[str, int], int] = {}  # (queue, priority) -> claims
        self.terminating: dict[PodKey, Pod] = {}
        self.lowered: dict[PodKey, Pod] = {}
        self.sleeping: dict[PodKey, Pod] = {}
        self.moved: dict[PodKey, Pod] = {}

    def restore(
        self,
        charged: Mapping[str, tuple[int, int]],
        standing: Mapping[tuple[str, int], int],
        terminating: Iterable[Pod],
        lowered: Iterable[Pod],
        sleeping: Iterable[Pod],
        moved: Iterable[Pod],
    ) -> None:
        """Take sums as they were."""
        self.charged, self.standing = dict(charged), dict(standing)
        self.terminating = {pod.key: pod for pod in terminating}
        self.lowered = {pod.key: pod for pod in lowered}
        self.sleeping = {pod.key: pod for pod in sleeping}
        self.moved = {pod.key: pod for pod in moved}

    def add(self, pod: Pod) -> None:
        """Count a pod."""
        self._count(pod, 1)
        if pod.claim is not None and pod.phase is PodPhase.TERMINATING:
            self.terminating[pod.key] = pod
        if pod.claim is not None and pod.claim.lowered and pod.phase is PodPhase.BOUND:
            self.lowered[pod.key] = pod
        if pod.claim is not None and pod.claim.sleeping is not None and pod.phase is PodPhase.BOUND:
            self.sleeping[pod.key] = pod
        if pod.claim is not None and pod.claim.moved_at:
            self.moved[pod.key] = pod

    def remove(self, pod: Pod) -> None:
        """Stop counting a pod, given as it was added."""
        self._count(pod, -1)
        self.terminating.pop(pod.key, None)
        self.lowered.pop(pod.key, None)
        self.sleeping.pop(pod.key, None)
        self.moved.pop(pod.key, None)

    def _count(self, pod: Pod, sign: int) -> None:
        claim = pod.claim
        if claim is None or pod.phase is PodPhase.FINISHED:
            return
        milli, held = self.charged.get(claim.queue, (0, 0))
        milli, held = milli + sign * claim.gpu_milli, held + sign * claim.charged_bytes
        if milli or held:
            self.charged[claim.queue] = (milli, held)
        else:
            self.charged.pop(claim.queue, None)
        place = (claim.queue, claim.priority)
        count = self.standing.get(place, 0) + sign
        if count:
            self.standing[place] = count
        else:
            del self.standing[place]
