"""Strain as the store believes it: in steps, and with a way back from being held down."""

from __future__ import annotations

import pytest

from llmos_operator.state.store import Store
from llmos_operator.state.telemetry import Reading, Smoother
from tests.support.builders import NOW, a_cluster, a_node, gpu


def believed(*told: int | None) -> list[tuple[int, bool]]:
    """Return (throttled, held down) after each reading."""
    smoother, found = Smoother(), []
    seen = (0, False)
    for one in told:
        observed = smoother.fold([Reading("a", 0, throttled_milli=one)])
        if observed is not None:
            seen = (observed["a"].throttled_milli, observed["a"].held_down)
        found.append(seen)
    return found


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ((0, 40, 90), [(0, False)] * 3),  # too little to say
        ((120, 180, 230), [(100, False), (100, False), (200, False)]),  # a change is a band away
        ((230, 49), [(200, False), (0, False)]),
        ((None, 500, None), [(0, False), (500, False), (0, False)]),
        ((760, 300, 250), [(750, True), (300, True), (300, False)]),  # back only once it is rare
        ((740, 300), [(700, False), (300, False)]),
    ],
)
def test_a_device_is_held_down_in_steps(
    told: tuple[int | None, ...], expected: list[tuple[int, bool]]
) -> None:
    assert believed(*told) == expected


def test_what_changes_no_decision_asks_for_no_plan() -> None:
    store = a_cluster(a_node("n1").with_gpus(1)).store
    assert store.observe("n1", [Reading(gpu("n1", 0), 0, throttled_milli=400)], NOW)
    assert not store.observe("n1", [Reading(gpu("n1", 0), 0, throttled_milli=450)], NOW + 1)
    assert store.observe("n1", [Reading(gpu("n1", 0), 0, throttled_milli=800)], NOW + 2)


def test_a_store_made_of_a_snapshot_believes_the_same_and_goes_on_from_there() -> None:
    store = a_cluster(a_node("n1").with_gpus(1).held_down(0, 800).ageing(0, 200)).store
    store.observe("n1", [Reading(gpu("n1", 0), 0, throttled_milli=400, risk_milli=200)], NOW)
    snapshot = store.snapshot()
    copied = Store.of(snapshot)
    assert copied.snapshot() == snapshot
    assert copied.snapshot().nodes["n1"].devices[0].held_down
    assert not copied.observe("n1", [Reading(gpu("n1", 0), 0, throttled_milli=400, risk_milli=200)], NOW)
