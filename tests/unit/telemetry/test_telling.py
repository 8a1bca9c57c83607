"""Which rounds are told: few, and whatever could change a decision at once."""

from __future__ import annotations

from typing import Any

import pytest

from llmos_operator.telemetry.telling import Telling

GIB = 1 << 30
MIB = 1 << 20
Json = dict[str, Any]


def a_device(uuid: str = "GPU-1", **values: Any) -> Json:
    told = {
        "verdict": "Healthy",
        "reason": "AsExpected",
        "memoryTotalBytes": 80 * GIB,
        "memoryUsedBytes": GIB,
    }
    return {"uuid": uuid, "index": 0, **told, **values}


def a_batch(*devices: Json) -> Json:
    return {"node": "n1", "epoch": 1, "sequence": 1, "devices": list(devices or (a_device(),))}


def rounds(telling: Telling, *batches: Json) -> list[bool]:
    """Offer batches, each taken by the operator where it is due; return which were."""
    found = []
    for one in batches:
        batch, due = telling.take(one)
        if due:
            telling.taken(batch)
        found.append(due)
    return found


def settled(*devices: Json, interval: float = 1.0) -> Telling:
    """Return a telling whose last round was told for its time."""
    telling = Telling(interval)
    assert rounds(telling, a_batch(*devices)) == [True]
    return telling


@pytest.mark.parametrize(
    ("interval", "expected"),
    [
        (0.2, [False, False, True]),
        (1.0, [False, False, True]),
        (1.5, [False, True, False]),
        (2.0, [True, True, True]),
        (10.0, [True, True, True]),
    ],
)
def test_every_third_round_is_told_where_no_node_is_silent_for_long(
    interval: float, expected: list[bool]
) -> None:
    assert rounds(settled(interval=interval), *[a_batch()] * 3) == expected


@pytest.mark.parametrize(
    "change",
    [
        {"verdict": "Unhealthy", "reason": "FallenOffBus"},
        {"reason": "ThermalSlowdown"},
        {"memoryUsedBytes": GIB + 641 * MIB},
        {"memoryUsedBytes": GIB - 641 * MIB},
        {"memoryUsedBytes": None},
        {"throttledMilli": 100},
        {"riskMilli": 100},
        {"processes": [{"pid": 1, "podUid": "stranger"}]},
    ],
)
def test_what_could_change_a_decision_is_told_at_once_and_once_more(change: Json) -> None:
    telling = settled()
    changed = a_batch(a_device(**change))
    plain = a_batch(a_device(**{key: value for key, value in change.items() if key != "processes"}))
    assert rounds(telling, changed, plain, plain, plain, plain) == [True, True, False, False, True]


@pytest.mark.parametrize(
    "change",
    [
        {"memoryUsedBytes": GIB + 639 * MIB},
        {"utilizationPercent": 100},
        {"powerMilliwatts": 700_000},
        {"throttledMilli": 99},
        {"processes": []},
    ],
)
def test_what_changes_nothing_waits_for_its_time(change: Json) -> None:
    assert rounds(settled(), a_batch(a_device(**change))) == [False]


def test_a_device_that_comes_or_goes_is_told_at_once() -> None:
    one, other = a_device("GPU-1"), a_device("GPU-2")
    assert rounds(settled(one), a_batch(one, other)) == [True]
    assert rounds(settled(one, other), a_batch(one)) == [True]
    assert rounds(settled(one), a_batch(other)) == [True]


def test_busy_time_and_power_are_means_of_the_rounds_since_the_last_that_was_told() -> None:
    telling = settled(a_device(utilizationPercent=1, powerMilliwatts=1))
    for percent in (100, 0):
        telling.take(a_batch(a_device(utilizationPercent=percent, powerMilliwatts=percent * 1000)))
    batch, due = telling.take(
        a_batch(a_device(utilizationPercent=50, powerMilliwatts=80_000, memoryUsedBytes=GIB + 5))
    )
    assert due
    (told,) = batch["devices"]
    assert (told["utilizationPercent"], told["powerMilliwatts"], told["memoryUsedBytes"]) == (
        50,
        60_000,
        GIB + 5,
    )
    telling.taken(batch)
    assert telling.take(a_batch(a_device(utilizationPercent=7)))[0]["devices"][0]["utilizationPercent"] == 7


def test_a_process_list_goes_with_the_next_batch_and_once() -> None:
    listed = [{"pid": 1, "memoryBytes": 5, "podUid": "pod-1"}]
    telling = settled(a_device(processes=listed))
    later = [{"pid": 1, "memoryBytes": 6, "podUid": "pod-1"}]
    assert rounds(telling, a_batch(a_device(processes=later)), a_batch()) == [False, False]
    batch, due = telling.take(a_batch())
    assert due
    assert batch["devices"][0]["processes"] == later
    telling.taken(batch)
    assert "processes" not in telling.take(a_batch())[0]["devices"][0]


def test_what_the_operator_did_not_take_is_told_again_with_the_next_round() -> None:
    telling = settled()
    listed = [{"pid": 1, "podUid": "pod-1"}]
    _, due = telling.take(a_batch(a_device(processes=listed, utilizationPercent=20)))
    assert due
    telling.refused()
    batch, due = telling.take(a_batch(a_device(utilizationPercent=40)))
    assert due
    assert batch["devices"][0]["processes"] == listed
    assert batch["devices"][0]["utilizationPercent"] == 30


def test_batches_stay_as_they_were_made() -> None:
    device = a_device(utilizationPercent=10)
    telling = settled(a_device(utilizationPercent=90))
    telling.take(a_batch(a_device(utilizationPercent=90)))
    telling.take(a_batch(device))
    assert device == a_device(utilizationPercent=10)
