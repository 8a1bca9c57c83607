"""Which ordinals are wanted while replicas of an older spec are there."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from llmos_operator.state.snapshot import missing, settled, wanted_ordinals
from llmos_operator.state.types import Pod, PodPhase, Workload
from tests.support.replicas import a_pod_of, a_work

if TYPE_CHECKING:
    from collections.abc import Callable


def surging(replicas: int, surge: int = 1) -> Workload:
    return a_work(replicas=replicas, rollout={"maxSurge": surge, "maxUnavailable": 0})


def old(work: Workload, ordinal: int, *, ready: bool = True) -> Pod:
    return a_pod_of(work, ordinal, ready=ready, spec_hash="older")


def test_new_replicas_are_wanted_beside_the_old_ones_up_to_the_surge() -> None:
    work = surging(3, surge=2)
    pods = tuple(old(work, i) for i in range(3))
    assert missing(work, pods) == ((3, 4), ())
    assert not settled(work, pods)


def test_no_more_new_replicas_are_wanted_than_the_spec_wants() -> None:
    work = surging(1, surge=5)
    assert list(wanted_ordinals(work, (old(work, 0),))) == [0, 1]


def test_what_an_old_replica_leaves_is_taken_once_it_is_gone() -> None:
    work = surging(2)
    leaving = replace(old(work, 0), phase=PodPhase.TERMINATING)
    pods = (leaving, old(work, 1), a_pod_of(work, 2, ready=True))
    assert missing(work, pods) == ((), (leaving,))
    assert missing(work, pods[1:]) == ((0,), ())


def test_after_the_update_replicas_stay_whatever_their_number() -> None:
    work = surging(1)
    pods = (a_pod_of(work, 1, ready=True),)
    assert settled(work, pods)
    assert settled(replace(work, max_surge=0), pods)


def test_a_second_change_keeps_the_old_replicas_that_serve() -> None:
    work = surging(2)
    pods = (old(work, 0, ready=False), old(work, 1), old(work, 2))
    assert list(wanted_ordinals(work, pods)) == [1, 2, 3]


@pytest.mark.parametrize(
    "change",
    [
        lambda work: replace(work, together=2),
        lambda work: replace(work, kueue_queue="team"),
        lambda work: replace(work, wanted=3),
        lambda work: replace(work, max_surge=0),
    ],
)
def test_no_surge_where_more_would_break_a_promise(change: Callable[[Workload], Workload]) -> None:
    work = change(surging(2))
    assert list(wanted_ordinals(work, (old(work, 0), old(work, 1)))) == [0, 1]
