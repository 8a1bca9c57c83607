"""Whatever happens while a spec changes, and in whichever order: never too many pods, never too few that serve, and an end."""

from __future__ import annotations

from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING

from hypothesis import given, settings
from hypothesis import strategies as st

from llmos_operator.control.reconcile import Situation, rule
from llmos_operator.state.snapshot import missing, settled
from llmos_operator.state.types import PodPhase
from tests.support.replicas import NOW, a_pod_of, a_work

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmos_operator.state.types import Pod, Workload

HAPPENINGS = ("place", "start", "rule", "end", "change", "lose", "crowd")


class Update:
    """Replicas of one workload, and what happens to them."""

    def __init__(self, replicas: int, surge: int, unavailable: int, random: Random) -> None:
        rollout = {"maxSurge": surge, "maxUnavailable": unavailable}
        self._work = a_work(replicas=replicas, rollout=rollout)
        self._random = random
        self._made = 0
        self.version = 0
        self.pods = [self._pod(ordinal, ready=True) for ordinal in range(replicas)]
        self.version = 1
        self.instead = ""  # the scheduler's word, which may be an old one

    @property
    def work(self) -> Workload:
        return replace(self._work, template_hash=f"v{self.version}")

    @property
    def serving(self) -> int:
        return sum(pod.ready for pod in self.pods)

    def _pod(self, ordinal: int, *, ready: bool = False) -> Pod:
        self._made += 1
        made = a_pod_of(self.work, ordinal, ready=ready)
        return replace(made, uid=f"u{self._made}", key=f"team/p{self._made}")

    def place(self) -> None:
        free, _ = missing(self.work, tuple(self.pods))
        self.pods += [self._pod(ordinal) for ordinal in free]

    def start(self) -> None:
        self._one(lambda pod: pod.phase is PodPhase.BOUND and not pod.ready, ready=True)

    def rule(self) -> None:
        seen = Situation(self.work, NOW, pods=tuple(self.pods), instead=self.instead)
        gone = {one.pod for one in rule(seen).retire}
        for at, pod in enumerate(self.pods):
            if pod.key in gone:
                self.pods[at] = replace(pod, phase=PodPhase.TERMINATING, ready=False)

    def crowd(self) -> None:
        """There is no room beside them: one of the older spec would have to go."""
        old = [pod for pod in self.pods if pod.spec_hash != self.work.template_hash]
        fits = len({pod.claim.ordinal for pod in self.pods}) <= self._work.replicas
        self.instead = self._random.choice(old).key if old and fits else ""

    def end(self) -> None:
        leaving = [pod for pod in self.pods if pod.phase is PodPhase.TERMINATING]
        if leaving:
            self.pods.remove(self._random.choice(leaving))

    def change(self) -> None:
        self.version += 1

    def lose(self) -> None:
        self._one(lambda pod: pod.phase is PodPhase.BOUND, phase=PodPhase.TERMINATING, ready=False)

    def _one(self, which: Callable[[Pod], bool], **changes: object) -> None:
        found = [at for at, pod in enumerate(self.pods) if which(pod)]
        if found:
            at = self._random.choice(found)
            self.pods[at] = replace(self.pods[at], **changes)


@settings(max_examples=max(300, settings().max_examples), deadline=None)
@given(
    replicas=st.integers(1, 4),
    surge=st.integers(1, 3),
    unavailable=st.integers(0, 1),
    seed=st.integers(0, 2**32 - 1),
)
def test_an_update_keeps_its_limits_and_comes_to_an_end(
    replicas: int, surge: int, unavailable: int, seed: int
) -> None:
    random = Random(seed)
    happenings = random.choices(HAPPENINGS, k=random.randrange(60))
    update = Update(replicas, surge, unavailable, random)
    lost = 0
    fewest = replicas - max(unavailable, int("crowd" in happenings))  # in place, one goes first
    for one in (*happenings, *("rule", "place", "start", "end") * 40):
        before = update.serving
        getattr(update, one)()
        lost += one == "lose" and update.serving < before
        assert len(update.pods) <= replicas + surge
        assert update.serving >= fewest - lost
    assert len(update.pods) == replicas
    assert all(pod.ready and pod.spec_hash == f"v{update.version}" for pod in update.pods)
    assert settled(update.work, tuple(update.pods))
