"""Who waits, who is next and who must leave."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from llmos_operator.gateway.waiting import WaitingRoom


def _room(limit: int, *entries: tuple[str, str]) -> WaitingRoom[str]:
    room: WaitingRoom[str] = WaitingRoom(limit)
    for tenant, ticket in entries:
        assert room.enter(tenant, ticket) == (True, None)
    return room


def test_one_tenant_is_served_in_order() -> None:
    room = _room(9, ("a", "1"), ("a", "2"), ("a", "3"))
    assert room.drain() == ["1", "2", "3"]


def test_tenants_take_turns_however_many_requests_they_have() -> None:
    room = _room(9, ("a", "a1"), ("a", "a2"), ("a", "a3"), ("b", "b1"), ("c", "c1"))
    assert room.drain() == ["a1", "b1", "c1", "a2", "a3"]


def test_a_full_room_turns_away_whoever_holds_most() -> None:
    room = _room(3, ("a", "a1"), ("a", "a2"), ("a", "a3"))
    assert room.enter("a", "a4") == (False, None)
    assert room.enter("b", "b1") == (True, "a3")
    assert room.drain() == ["a1", "b1", "a2"]


def test_a_tenant_at_its_share_cannot_push_others_out() -> None:
    room = _room(4, ("a", "a1"), ("a", "a2"), ("b", "b1"), ("b", "b2"))
    assert room.enter("a", "a3") == (False, None)
    assert room.enter("c", "c1") == (True, "a2")
    assert room.enter("c", "c2") == (False, None)


def test_a_room_without_places_takes_nobody() -> None:
    assert WaitingRoom[str](0).enter("a", "1") == (False, None)


def test_who_leaves_is_not_served() -> None:
    room = _room(9, ("a", "1"), ("a", "2"))
    room.leave("a", "1")
    room.leave("a", "1")
    room.leave("b", "never came")
    assert len(room) == 1
    assert room.drain() == ["2"]


@given(
    limit=st.integers(1, 12),
    moves=st.lists(
        st.tuples(st.sampled_from(["enter", "next", "leave"]), st.sampled_from("abc")), max_size=80
    ),
)
def test_the_count_is_right_and_no_ticket_is_lost_or_served_twice(
    limit: int, moves: list[tuple[str, str]]
) -> None:
    room: WaitingRoom[int] = WaitingRoom(limit)
    inside: dict[int, str] = {}
    for number, (move, tenant) in enumerate(moves):
        if move == "enter":
            taken, displaced = room.enter(tenant, number)
            if displaced is not None:
                held = Counter(inside.values())
                assert held[inside.pop(displaced)] > held[tenant] + 1
            if taken:
                inside[number] = tenant
        elif move == "next":
            ticket = room.next()
            assert (ticket is None) == (not inside)
            inside.pop(ticket, None)  # type: ignore[arg-type]
        else:
            mine = [ticket for ticket, owner in inside.items() if owner == tenant]
            if mine:
                room.leave(tenant, mine[0])
                del inside[mine[0]]
        assert len(room) == len(inside) <= limit
    assert sorted(room.drain()) == sorted(inside)
