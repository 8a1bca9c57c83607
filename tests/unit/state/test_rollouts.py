"""Which ordinals are wanted while replicas of an older spec are there."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from llmos_operator.state.snapshot import held_back, missing, settled, wanted_ordinals
from llmos_operator.state.types import Pod, PodPhase, Workload
from tests.support.replicas import NOW, a_pod_of, a_work

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
    assert list(wanted_ordinals(work, pods)) == [1, 2]
    assert missing(work, pods[1:]) == ((0,), ()), "as soon as the one in between is gone"


def test_a_pod_on_its_way_out_has_its_place_in_the_limit_whatever_its_number() -> None:
    work = surging(2)
    leaving = replace(old(work, 2), phase=PodPhase.TERMINATING)
    pods = (leaving, old(work, 3), a_pod_of(work, 0, ready=True))
    assert missing(work, pods) == ((), (leaving,))
    fixed = replace(surging(4), max_surge=0)
    gone = tuple(replace(a_pod_of(fixed, i), phase=PodPhase.TERMINATING) for i in range(4, 8))
    assert missing(fixed, gone) == ((), gone)


def test_fewer_replicas_end_what_does_not_serve_first() -> None:
    work = replace(surging(2), replicas=1)
    assert list(wanted_ordinals(work, (a_pod_of(work, 0), a_pod_of(work, 2, ready=True)))) == [2]


@pytest.mark.parametrize("change", [{"max_surge": 1}, {"max_surge": 0}, {"wanted": 3}])
def test_a_smaller_surge_ends_new_replicas_that_do_not_serve_yet_before_old_ones_that_do(
    change: dict[str, int],
) -> None:
    work = replace(surging(2, surge=2), **change)
    pods = (old(work, 0), old(work, 1), a_pod_of(work, 2), a_pod_of(work, 3))
    assert list(wanted_ordinals(work, pods))[:2] == [0, 1]


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


def trying(replicas: int, surge: int = 0, percent: int = 10) -> Workload:
    return a_work(replicas=replicas, rollout={"maxSurge": surge, "canaryTrafficPercent": percent})


def bound(pod: Pod, seconds: float) -> Pod:
    assert pod.claim is not None
    return replace(pod, claim=replace(pod.claim, bound_at=NOW + seconds))


def test_a_canary_is_one_replica_beside_the_old_ones_or_as_many_as_may_surge() -> None:
    for surge, canaries in ((0, [3]), (1, [3]), (2, [3, 4])):
        work = trying(3, surge)
        assert list(missing(work, tuple(old(work, i) for i in range(3)))[0]) == canaries


def test_a_canary_grows_only_where_replicas_of_the_older_spec_are_lost_or_more_are_wanted() -> None:
    work = trying(3)
    pods = [*(old(work, i) for i in range(3)), a_pod_of(work, 3, ready=True)]
    assert settled(work, tuple(pods))
    assert missing(work, tuple(pods[1:])) == ((0,), ())
    assert missing(replace(work, replicas=5), tuple(pods)) == ((4, 5), ())


def test_with_fewer_replicas_the_old_ones_and_one_canary_stay() -> None:
    work = replace(trying(5), replicas=2)
    pods = [*(old(work, i) for i in range(3)), *(a_pod_of(work, i, ready=True) for i in (5, 6))]
    assert list(wanted_ordinals(work, pods)) == [0, 1, 5]


def test_a_second_change_replaces_the_canary_and_keeps_what_served_before_it() -> None:
    work = trying(1)
    pods = [bound(old(work, 0), 60), bound(old(work, 1), 0)]
    assert list(wanted_ordinals(work, pods)) == [1]
    assert missing(work, tuple(pods[1:])) == ((0,), ())
    assert [pod.uid for pod in held_back(work, pods)] == ["pod-0", "pod-1"]


def test_of_a_canary_that_was_taken_back_nothing_is_held() -> None:
    work = trying(3)
    pods = [*(a_pod_of(work, i, ready=True) for i in range(3)), bound(old(work, 3), 60)]
    assert held_back(work, pods) == []
    assert list(wanted_ordinals(work, pods)) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "rollout",
    [
        {"canaryTrafficPercent": 0},
        {"canaryTrafficPercent": 100},
        {"strategy": "Recreate", "canaryTrafficPercent": 10},
    ],
)
def test_without_a_share_between_there_is_no_canary(rollout: dict[str, Any]) -> None:
    work = a_work(replicas=1, rollout=rollout)
    assert (work.canary, work.surge) == (0, 0)
    assert held_back(work, [old(work, 0)]) == []


def test_a_ceiling_ends_the_canary_and_not_what_it_holds_back() -> None:
    work = replace(trying(2), wanted=3)
    pods = [old(work, 0), old(work, 1), a_pod_of(work, 3, ready=True)]
    assert list(wanted_ordinals(work, pods)) == [0, 1]


def test_another_share_is_no_change_of_what_pods_are_made_from() -> None:
    assert trying(1, percent=10).template_hash == trying(1, percent=50).template_hash
