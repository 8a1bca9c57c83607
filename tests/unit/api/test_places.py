from __future__ import annotations

from itertools import pairwise

from llmos_operator.api import places

LINE = range(1, 5001)


def test_who_is_next_is_told_exactly() -> None:
    assert [places.told(place) for place in range(1, 17)] == list(range(1, 17))


def test_no_place_is_told_more_than_a_sixteenth_off() -> None:
    assert all(abs(places.told(place) - place) * 16 <= place for place in LINE)


def test_nobody_is_told_a_place_before_somebody_who_is_ahead() -> None:
    assert all(one <= other for one, other in pairwise(map(places.told, LINE)))


def test_a_place_that_is_told_is_told_again_as_it_is() -> None:
    assert all(places.told(places.told(place)) == places.told(place) for place in LINE)


def test_a_start_at_the_head_changes_few_of_two_thousand_places() -> None:
    changed = [place for place in range(2, 2001) if places.told(place) != places.told(place - 1)]
    assert len(changed) == 15 + 8 * 7


def test_people_see_which_places_are_rounded() -> None:
    assert [places.text(places.told(place)) for place in (1, 16, 17, 1999)] == ["1", "16", "~18", "~2048"]
