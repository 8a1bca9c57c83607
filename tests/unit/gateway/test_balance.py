"""Which replica gets the next request."""

from __future__ import annotations

from collections import Counter

from llmos_operator.gateway.affinity import Holders
from llmos_operator.gateway.balance import Balancer
from llmos_operator.gateway.catalog import Replica

A = Holders(("a",), long=True)


def _replicas(*uids: str) -> list[Replica]:
    return [Replica(uid, "w", uid, "10.0.0.1", 8000) for uid in uids]


def _pick(balancer: Balancer, replicas: list[Replica], now: float = 0.0, **arguments: object) -> str:
    chosen = balancer.pick(replicas, now, **arguments)  # type: ignore[arg-type]
    return "" if chosen is None else chosen.uid


def test_equal_replicas_take_turns() -> None:
    balancer, replicas = Balancer(), _replicas("a", "b", "c")
    picked = [_pick(balancer, replicas) for _ in range(9)]
    assert Counter(picked) == {"a": 3, "b": 3, "c": 3}


def test_requests_one_after_the_other_take_turns_as_well() -> None:
    balancer, replicas = Balancer(), _replicas("a", "b")
    picked = []
    for _ in range(6):
        picked.append(_pick(balancer, replicas))
        balancer.release(picked[-1])
    assert Counter(picked) == {"a": 3, "b": 3}


def test_the_replica_with_fewer_requests_in_flight_is_picked() -> None:
    balancer, replicas = Balancer(), _replicas("a", "b")
    first = [_pick(balancer, replicas) for _ in range(4)]
    for uid in first:
        if uid == "b":
            balancer.release(uid)
    assert [_pick(balancer, replicas) for _ in range(2)] == ["b", "b"]


def test_a_slow_replica_gets_less_but_is_not_starved() -> None:
    balancer, replicas = Balancer(), _replicas("fast", "slow")
    for uid, seconds in (("fast", 0.1), ("slow", 10.0)):
        balancer.answered(uid, seconds, 0.0)
    picked = Counter(_pick(balancer, replicas) for _ in range(40))
    # Its pace counts at most double and the other's at least half: a quarter of the work, not nothing.
    assert 5 <= picked["slow"] <= 14


def test_old_slowness_is_forgotten() -> None:
    balancer, replicas = Balancer(), _replicas("a", "b")
    balancer.answered("a", 10.0, 0.0)
    balancer.answered("b", 0.1, 0.0)
    balancer.answered("a", 0.1, 200.0)
    picked = Counter(_pick(balancer, replicas, 200.0) for _ in range(20))
    assert abs(picked["a"] - picked["b"]) <= 2


def test_a_replica_that_refused_rests_longer_each_time() -> None:
    balancer, replicas = Balancer(), _replicas("a")
    rests = []
    now = 0.0
    for _ in range(7):
        balancer.refused("a", now)
        rests.append(balancer.rests_for(replicas, now))
        now += rests[-1]
    assert rests == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]


def test_requests_that_fail_together_are_one_failure() -> None:
    balancer, replicas = Balancer(), _replicas("a")
    for _ in range(75):
        balancer.refused("a", 0.0)
    assert balancer.rests_for(replicas, 0.0) == 1.0
    balancer.refused("a", 1.0)
    assert balancer.rests_for(replicas, 1.0) == 2.0


def test_an_answer_ends_the_rest() -> None:
    balancer, replicas = Balancer(), _replicas("a")
    balancer.refused("a", 0.0)
    balancer.answered("a", 0.1, 0.1)
    assert balancer.rests_for(replicas, 0.1) == 0.0
    balancer.refused("a", 1.0)
    assert balancer.rests_for(replicas, 1.0) == 1.0


def test_a_resting_replica_is_used_only_when_all_rest_and_never_if_asked_so() -> None:
    balancer, replicas = Balancer(), _replicas("a", "b")
    balancer.refused("a", 0.0)
    assert [_pick(balancer, replicas) for _ in range(3)] == ["b", "b", "b"]
    balancer.refused("b", 0.5)
    assert _pick(balancer, replicas, 0.6) == "a"  # it wakes up first
    assert _pick(balancer, replicas, 0.6, awake_only=True) == ""
    assert _pick(balancer, replicas, 1.1, awake_only=True) == "a"


def test_replicas_already_tried_and_full_ones_are_left_out() -> None:
    balancer, replicas = Balancer(), _replicas("a", "b")
    assert _pick(balancer, replicas, exclude={"a"}) == "b"
    assert _pick(balancer, replicas, below=1) == "a"
    assert _pick(balancer, replicas, below=1) == ""
    assert balancer.in_flight(replicas) == 2


def test_a_replica_that_is_gone_is_forgotten_once_its_requests_are_over() -> None:
    balancer, replicas = Balancer(), _replicas("a")
    _pick(balancer, replicas)
    balancer.forget(known=())
    assert balancer.in_flight(replicas) == 1
    balancer.release("a")
    balancer.forget(known=())
    assert balancer._loads == {}


def test_a_preferred_replica_is_picked_until_it_is_much_busier() -> None:
    balancer, replicas = Balancer(), _replicas("a", "b")
    picked = [_pick(balancer, replicas, prefer=[A]) for _ in range(20)]
    assert picked[:2] == ["a", "a"]
    loads = Counter(picked)
    assert loads["b"] < loads["a"] <= 1 + 1.25 * (loads["b"] + 1)


def test_the_best_group_with_a_replica_that_is_not_too_busy_is_preferred() -> None:
    balancer, replicas = Balancer(), _replicas("a", "b", "c")
    for _ in range(5):
        _pick(balancer, replicas, exclude={"b", "c"})
    assert _pick(balancer, replicas, prefer=[A, Holders(("a", "c"), long=True)]) == "c"
    assert (
        _pick(balancer, replicas, prefer=[Holders(("c", "b"), long=True), Holders(("c",), long=True)]) == "b"
    )  # the least loaded of the group


def test_a_preferred_replica_that_rests_was_tried_or_is_gone_is_not_picked() -> None:
    balancer, replicas = Balancer(), _replicas("a", "b")
    balancer.refused("a", 0.0)
    assert _pick(balancer, replicas, prefer=[A]) == "b"
    assert _pick(balancer, replicas, 5.0, prefer=[A], exclude={"a"}) == "b"
    assert _pick(balancer, replicas, 5.0, prefer=[Holders(("gone",), long=True)]) == "a"
