"""Replicas that an elastic workload gives up for others: which are left, which come back, and whose word counts."""

from __future__ import annotations

from dataclasses import replace

from llmos_operator.state.snapshot import missing, wanted_ordinals
from llmos_operator.state.store import Store
from llmos_operator.state.types import Ceiling, PodPhase, Workload
from tests.support.builders import NOW, ClusterBuilder, a_cluster, a_node, a_workload

KEY = "default/web"


def three_replicas(**changes: object) -> ClusterBuilder:
    cluster = a_cluster(a_node("n1").with_gpus(4, "A100-80G"))
    web = a_workload("web").replicas(3).with_(elastic=True, min_replicas=1, **changes)
    for ordinal in range(3):
        cluster.running(web, "n1", (ordinal,), ordinal)
    return cluster


def give_up(cluster: ClusterBuilder, ordinal: int, now: float = NOW) -> None:
    assert cluster.store.assume_evicted(pod(cluster, ordinal), now + 30, "default/urgent")
    assert cluster.store.give_up_replica(KEY, web(cluster).uid, "default/urgent", now)


def pod(cluster: ClusterBuilder, ordinal: int) -> str:
    pods = cluster.store.pods_of(web(cluster).uid)
    return next(pod.key for pod in pods if pod.claim is not None and pod.claim.ordinal == ordinal)


def web(cluster: ClusterBuilder) -> Workload:
    found = cluster.store.workload(KEY)
    assert found is not None
    return found


def test_nothing_takes_the_place_of_a_replica_that_was_given_up_and_the_others_keep_their_numbers() -> None:
    cluster = three_replicas()
    give_up(cluster, 0)
    held = web(cluster)
    assert (held.replicas, held.wanted) == (2, 3)
    assert held.ceiling == Ceiling(2, NOW, "default/urgent")
    assert list(wanted_ordinals(held, cluster.store.pods_of(held.uid))) == [1, 2]
    cluster.store.delete_pod(pod(cluster, 0))
    assert missing(held, cluster.store.pods_of(held.uid)) == ((), ())
    snapshot = cluster.snapshot()
    assert snapshot.held == (KEY,)
    assert KEY not in snapshot.unsettled


def test_of_those_left_one_that_fails_is_replaced() -> None:
    cluster = three_replicas()
    give_up(cluster, 0)
    cluster.store.delete_pod(pod(cluster, 0))
    cluster.store.delete_pod(pod(cluster, 2))
    held = web(cluster)
    assert missing(held, cluster.store.pods_of(held.uid)) == ((0,), ())
    assert KEY in cluster.snapshot().unsettled


def test_it_never_falls_below_its_minimum_or_to_nothing() -> None:
    cluster = three_replicas()
    for ordinal in range(3):
        give_up(cluster, ordinal)
    assert web(cluster).replicas == 1


def test_what_was_not_evicted_after_all_is_wanted_again() -> None:
    cluster = three_replicas()
    give_up(cluster, 1)
    cluster.store.forget_eviction(pod(cluster, 1))
    assert cluster.store.keep_replica(KEY, web(cluster).uid, NOW)
    assert (web(cluster).replicas, web(cluster).wanted) == (3, None)
    assert cluster.snapshot().held == ()


def test_scaling_down_to_what_runs_moves_nobody_and_more_is_wanted_within_the_limit() -> None:
    cluster = three_replicas()
    give_up(cluster, 0)
    cluster.store.delete_pod(pod(cluster, 0))
    cluster.store.set_replicas(KEY, 2)
    held = web(cluster)
    assert list(wanted_ordinals(held, cluster.store.pods_of(held.uid))) == [1, 2]
    cluster.store.set_replicas(KEY, 5)
    assert (web(cluster).replicas, web(cluster).wanted) == (2, 5)


def test_replicas_come_back_one_after_another() -> None:
    cluster = three_replicas()
    give_up(cluster, 0)
    give_up(cluster, 1)
    uid = web(cluster).uid
    assert cluster.store.allow_replicas(KEY, uid, 2, NOW + 60)
    assert (web(cluster).replicas, web(cluster).wanted) == (2, 3)
    assert cluster.store.allow_replicas(KEY, uid, 3, NOW + 60)
    assert (web(cluster).replicas, web(cluster).wanted) == (3, None)
    ceiling = web(cluster).ceiling
    assert ceiling is not None
    assert (ceiling.replicas, ceiling.beneficiary) == (None, "")


def test_the_newer_word_counts_whoever_said_it() -> None:
    cluster = three_replicas()
    before = web(cluster)
    give_up(cluster, 0)
    said = web(cluster).ceiling
    assert said is not None
    late = replace(before, ceiling=Ceiling(1, said.at - 1, "default/other"), generation=2)
    cluster.store.apply_workload(late)
    assert web(cluster).ceiling == said, "an older word in the status is not believed"
    newer = Ceiling(1, said.at + 1, "default/other")
    cluster.store.apply_workload(replace(before, ceiling=newer, generation=3))
    assert (web(cluster).ceiling, web(cluster).replicas) == (newer, 1)


def test_words_of_one_second_are_in_order() -> None:
    cluster = three_replicas()
    give_up(cluster, 0)
    first = web(cluster).ceiling
    give_up(cluster, 1)
    second = web(cluster).ceiling
    assert first is not None
    assert second is not None
    assert second.at > first.at


def test_a_copy_of_the_store_knows_what_is_held_and_what_would_be_wanted() -> None:
    cluster = three_replicas()
    give_up(cluster, 0)
    snapshot = cluster.snapshot()
    copy = Store.of(snapshot)
    assert copy.snapshot() == snapshot
    assert copy.allow_replicas(KEY, web(cluster).uid, 3, NOW + 60)
    again = copy.workload(KEY)
    assert again is not None
    assert again.replicas == 3


def test_a_suspended_workload_and_one_that_does_not_scale_are_under_no_limit() -> None:
    cluster = three_replicas()
    give_up(cluster, 0)
    base = replace(web(cluster), replicas=3, wanted=None)
    cluster.store.apply_workload(replace(base, suspended=True))
    assert web(cluster).wanted is None
    cluster.store.apply_workload(replace(base, elastic=False, generation=2))
    assert web(cluster).replicas == 3
    assert not cluster.store.give_up_replica(KEY, base.uid, "default/urgent", NOW)
    assert all(p.phase is not PodPhase.FINISHED for p in cluster.store.pods_of(base.uid))
