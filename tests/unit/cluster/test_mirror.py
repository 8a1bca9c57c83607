from __future__ import annotations

from typing import Any

from llmos_operator.clock import FakeClock
from llmos_operator.cluster.mirror import Change, Mirror, identify
from llmos_operator.cluster.port import PODS


def pod(name: str, version: int, uid: str = "u1") -> dict[str, Any]:
    return {"metadata": {"namespace": "ns", "name": name, "uid": uid, "resourceVersion": str(version)}}


def a_mirror() -> tuple[Mirror, list[tuple[str, str, str]]]:
    told: list[tuple[str, str, str]] = []

    def sink(change: Change, body: dict[str, Any]) -> None:
        told.append((change.value, body["metadata"]["name"], body["metadata"]["uid"]))

    return Mirror(PODS, sink), told


def listed(mirror: Mirror, bodies: list[dict[str, Any]], version: int) -> None:
    """Let a mirror take a complete list made at ``version``."""
    for body in bodies:
        mirror.observe("ADDED", body)
    mirror.settle({identify(body)[0] for body in bodies}, version)


def test_each_change_is_told_once_whatever_the_number_of_sources() -> None:
    mirror, told = a_mirror()
    mirror.observe("ADDED", pod("a", 5))
    mirror.observe("MODIFIED", pod("a", 5))
    listed(mirror, [pod("a", 5)], 9)
    assert told == [("Applied", "a", "u1")]


def test_an_older_version_is_not_told() -> None:
    mirror, told = a_mirror()
    mirror.observe("MODIFIED", pod("a", 8))
    assert not mirror.observe("MODIFIED", pod("a", 7))
    assert len(told) == 1


def test_a_list_deletes_what_it_lacks() -> None:
    mirror, told = a_mirror()
    listed(mirror, [pod("a", 5), pod("b", 6)], 6)
    listed(mirror, [pod("b", 6)], 10)
    assert told[-1] == ("Deleted", "a", "u1")
    assert len(mirror) == 1


def test_a_list_does_not_delete_what_a_watch_reported_after_it() -> None:
    mirror, told = a_mirror()
    mirror.observe("ADDED", pod("new", 12))
    listed(mirror, [], 10)
    assert told == [("Applied", "new", "u1")]


def test_a_list_begun_before_a_deletion_does_not_bring_the_object_back() -> None:
    mirror, told = a_mirror()
    mirror.observe("ADDED", pod("a", 5))
    mirror.observe("DELETED", pod("a", 11))
    listed(mirror, [pod("a", 5)], 10)
    assert [change for change, _, _ in told] == ["Applied", "Deleted"]


def test_a_recreated_object_is_another_one() -> None:
    mirror, told = a_mirror()
    mirror.observe("ADDED", pod("a", 5))
    mirror.observe("ADDED", pod("a", 9, "u2"))
    assert told == [("Applied", "a", "u1"), ("Deleted", "a", "u1"), ("Applied", "a", "u2")]


def test_a_late_deletion_of_the_former_object_leaves_the_new_one() -> None:
    mirror, told = a_mirror()
    mirror.observe("ADDED", pod("a", 9, "u2"))
    mirror.observe("DELETED", pod("a", 7))
    assert told == [("Applied", "a", "u2")]


def test_a_deletion_may_carry_the_version_of_the_last_update() -> None:
    mirror, told = a_mirror()
    mirror.observe("ADDED", pod("a", 9))
    mirror.observe("DELETED", pod("a", 9))
    assert told[-1][0] == "Deleted"


def test_a_deletion_of_the_unknown_is_not_told_but_remembered() -> None:
    mirror, told = a_mirror()
    mirror.observe("DELETED", pod("a", 9))
    mirror.observe("MODIFIED", pod("a", 8))
    assert told == []


def test_after_history_was_replaced_older_versions_count_again() -> None:
    mirror, told = a_mirror()
    listed(mirror, [pod("a", 500), pod("b", 501)], 501)
    mirror.reset()
    listed(mirror, [pod("a", 20)], 30)
    assert told[2:] == [("Applied", "a", "u1"), ("Deleted", "b", "u1")]


def test_age_counts_from_the_last_sign_of_life() -> None:
    clock = FakeClock()
    mirror = Mirror(PODS, lambda *_: None, monotonic=clock.monotonic)
    assert mirror.age() == float("inf")
    mirror.touch()
    clock.advance(7)
    assert mirror.age() == 7
