"""Keeps the ResourceClaims of our pods right: each look compares claims with pods, so an operator that was killed between two writes goes on.

A claim without a pod that has it is released; a pod whose claim is missing, has no devices or is not reserved for it gets that;
a pod whose devices somebody else's claim has is taken away, and its replica placed anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from llmos_operator.actuators.deviceclaims import key_of
from llmos_operator.actuators.outcomes import Retire
from llmos_operator.api.conditions import Reason
from llmos_operator.state.handouts import own_claim, uses_claim
from llmos_operator.state.types import PodPhase

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

    from llmos_operator.actuators.deviceclaims import DeviceClaims
    from llmos_operator.clock import Clock
    from llmos_operator.state.store import Store
    from llmos_operator.state.types import Claim, Pod, PodKey

_REST: Final = 20.0  # times as long as a look took nobody looks again: on large clusters that is a second


class Claiming:
    """Looks at all claims of ours. Call `turn` from the loop's thread, only while this process may act."""

    def __init__(
        self,
        store: Store,
        writer: DeviceClaims,
        clock: Clock,
        retire: Callable[[Retire], bool],
        *,
        enabled: bool,
        namespaces: Collection[str] = (),
    ) -> None:
        """`retire` takes a pod away. Outside of `namespaces`, where any are given, another operator looks."""
        self._store = store
        self._writer = writer
        self._clock = clock
        self._retire = retire
        self._enabled = enabled
        self._namespaces = namespaces
        self._next = 0.0  # monotonic seconds

    def turn(self) -> None:
        """Put right what can be put right now, unless looking has taken much of the time lately."""
        now = self._clock.monotonic()
        if not self._enabled or now < self._next:
            return
        self._look_at_all()
        self._next = now + _REST * (self._clock.monotonic() - now)

    def _look_at_all(self) -> None:
        for one in self._store.own_allocations():
            if self._ours(one.pod) and not uses_claim(self._store.pod(one.pod), one):
                self._writer.release(one)
        for pod, claim in self._claimants():
            self._look(pod, claim)

    def _ours(self, pod: PodKey) -> bool:
        return not self._namespaces or pod.partition("/")[0] in self._namespaces

    def _claimants(self) -> Iterator[tuple[Pod, Claim]]:
        """Yield the pods that exist and have their devices by a claim, on nodes whose devices are published."""
        for name in self._store.published_nodes():
            state = self._store.node(name)
            for pod in list(state.pods.values()) if state is not None else ():
                claimed = pod.phase is PodPhase.BOUND and pod.claim is not None and own_claim(pod)
                if pod.claim is not None and claimed and self._ours(pod.key):
                    yield pod, pod.claim

    def _look(self, pod: Pod, claim: Claim) -> None:
        others = self._writer.others(claim)
        if others:
            self._retire(_yielding(pod, claim, others))
            return
        found = self._store.allocation(key_of(claim))
        if found is None or not found.handles or pod.uid not in found.users:
            self._writer.mend(pod, claim)


def _yielding(pod: Pod, claim: Claim, others: list[str]) -> Retire:
    text = (
        f"ResourceClaim {', '.join(others)} was given a device of {claim.node} at the same time; "
        "the replica is placed anew"
    )
    return Retire(pod.key, pod.uid, claim.workload, claim.workload_uid, str(Reason.DEVICE_CLAIMED), text)
