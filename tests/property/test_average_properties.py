"""Decayed use: arithmetic, the restart, and what it does to the order of queues."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from llmos_operator.scheduler.cycle import plan
from llmos_operator.scheduler.policy import Policy
from llmos_operator.scheduler.quota import Amount, QuotaTree
from llmos_operator.state.averages import Averages, moved
from llmos_operator.state.types import Queue
from tests.support.builders import NOW, ClusterBuilder, a_cluster, a_node, a_workload

HOUR = 3600.0
POLICY = Policy()
USE = st.tuples(st.integers(0, 10**7), st.integers(0, 10**14))
TIME = st.floats(0.0, 1e7)
LIFE = st.floats(60.0, 1e7)


@given(USE, USE, TIME, LIFE)
def test_an_average_lies_between_what_it_was_and_what_is_used(
    average: tuple[int, int], use: tuple[int, int], seconds: float, half_life: float
) -> None:
    for was, now, got in zip(average, use, moved(average, use, seconds, half_life), strict=True):
        assert min(was, now) <= got <= max(was, now)


@given(USE, USE, TIME, TIME, LIFE)
def test_two_steps_are_one(
    average: tuple[int, int], use: tuple[int, int], first: float, second: float, half_life: float
) -> None:
    once = moved(average, use, first + second, half_life)
    twice = moved(moved(average, use, first, half_life), use, second, half_life)
    for a, b in zip(once, twice, strict=True):
        assert abs(a - b) <= 1 + 1e-9 * max(a, b)


@given(USE)
def test_a_half_life_halves_and_a_clock_that_goes_back_does_nothing(average: tuple[int, int]) -> None:
    assert moved(average, (0, 0), HOUR, HOUR) == (round(average[0] / 2), round(average[1] / 2))
    assert moved(average, (0, 0), -HOUR, HOUR) == average
    assert moved(average, (7, 7), HOUR, 0.0) == (7, 7)


def two_queues(half_life: float) -> ClusterBuilder:
    """Return a cluster in which queue a uses two devices and b one, with one more free and both waiting."""
    cluster = a_cluster(a_node("n1").with_gpus(4))
    cluster.add(Queue("a", half_life=half_life), Queue("b", half_life=half_life))
    cluster.running(a_workload("a0").in_queue("a"), "n1", [0])
    cluster.running(a_workload("b0").in_queue("b"), "n1", [1])
    cluster.running(a_workload("b1").in_queue("b"), "n1", [2])
    cluster.add(a_workload("a-new").in_queue("a"), a_workload("b-new").in_queue("b"))
    return cluster


def first(cluster: ClusterBuilder, averages: dict[str, tuple[int, int]]) -> str:
    snapshot = replace(cluster.snapshot(), averages=averages)
    return plan(snapshot, POLICY, NOW).binds[0].claim.workload


def test_past_use_counts_against_a_queue_that_has_a_half_life() -> None:
    past = {"a": (4000, 0), "b": (0, 0)}
    assert first(two_queues(HOUR), {}) == "default/a-new"
    assert first(two_queues(HOUR), past) == "default/b-new"
    assert first(two_queues(0.0), past) == "default/a-new"


@given(st.integers(0, 64), st.integers(1, 9))
def test_a_queue_that_always_used_the_same_has_the_share_it_had_without_a_past(
    gpus: int, weight: int
) -> None:
    shares = []
    for half_life in (0.0, HOUR):
        tree = QuotaTree({"q": Queue("q", weight=weight, half_life=half_life)})
        tree.remember({"q": (gpus * 1000, 0)})
        tree.add("q", Amount(gpus * 1000, 0))
        shares.append(tree.share_micro("q", Amount(64_000, 1)))
    assert shares[0] == shares[1]


def test_the_store_averages_what_is_charged_and_starts_again_from_the_claims() -> None:
    cluster = a_cluster(a_node("n1").with_gpus(4))
    cluster.add(Queue("a", half_life=HOUR), Queue("none"))
    pod = cluster.running(a_workload("w").in_queue("a"), "n1", [0])
    claim = pod.claim
    assert claim is not None
    cluster.store.advance(claim.bound_at + HOUR)
    assert cluster.snapshot().averages == {}, "moved before every list was complete"
    cluster.store.advance(claim.bound_at + HOUR)
    cluster.store.advance(claim.bound_at + 2 * HOUR)
    before = cluster.snapshot().averages
    assert before["a"][0] == 750
    assert "none" not in before
    again = Averages()
    again.advance(claim.bound_at + 2 * HOUR, {"a": Queue("a", half_life=HOUR)}, {"a": (1000, 0)}, [claim])
    assert again.all()["a"][0] == before["a"][0]
    cluster.store.delete_pod(pod.key, pod.uid)
    cluster.store.advance(claim.bound_at + 2 * HOUR)
    cluster.store.advance(claim.bound_at + 3 * HOUR)
    assert cluster.snapshot().averages["a"][0] == 375


def test_queues_that_go_are_forgotten_and_a_clock_set_back_is_no_use() -> None:
    averages = Averages()
    queues = {"a": Queue("a", half_life=HOUR)}
    averages.advance(NOW, queues, {"a": (1000, 0)}, [])
    averages.advance(NOW + HOUR, queues, {"a": (0, 0)}, [])
    averages.advance(NOW, queues, {"a": (0, 0)}, [])
    assert averages.all() == {"a": (500, 0)}
    averages.advance(NOW + HOUR, {}, {}, [])
    assert averages.all() == {}
