"""What a preemption would lose: of work that ends, and of work that idles."""

from __future__ import annotations

from typing import Any

import pytest

from llmos_operator.scheduler.victims import AWAY_SECONDS, idle_seconds, unsaved_seconds, weighed
from llmos_operator.state.types import WorkloadKind
from tests.support.builders import a_workload


@pytest.mark.parametrize(
    ("known", "lost"),
    [
        ({}, 1000.0),  # nothing is saved: all of it
        ({"checkpoint_seconds": 300.0}, 300.0),  # at most what lies between two checkpoints
        ({"checkpoint_seconds": 300.0, "saved_at": 1960.0}, 40.0),  # what the run says of its last one
        ({"saved_at": 1960.0}, 40.0),
        (
            {"checkpoint_seconds": 300.0, "saved_at": 900.0},
            300.0,
        ),  # of an earlier pod: says nothing of this one
        ({"saved_at": 2010.0}, 0.0),  # clocks differ a little
    ],
)
def test_lost_is_the_time_since_the_last_checkpoint(known: dict[str, Any], lost: float) -> None:
    workload = a_workload("w").with_(kind=WorkloadKind.FINE_TUNE, **known).value
    assert unsaved_seconds(workload, now=2000.0, began=1000.0) == lost


@pytest.mark.parametrize(
    ("known", "idle"),
    [
        ({"idle_since": 1400.0}, 600.0),
        ({"idle_since": 2010.0}, 0.0),  # clocks differ a little
        ({}, 0.0),
        ({"idle_since": 1400.0, "kind": WorkloadKind.FINE_TUNE}, 0.0),  # what it did is lost all the same
        ({"idle_since": 1400.0, "kind": WorkloadKind.BATCH}, 0.0),
    ],
)
def test_only_what_serves_idles(known: dict[str, Any], idle: float) -> None:
    assert idle_seconds(a_workload("w").with_(**known).value, now=2000.0) == idle


def test_who_is_not_known_works() -> None:
    assert idle_seconds(None, now=2000.0) == 0.0


def test_the_longer_nobody_asks_the_less_a_displacement_loses() -> None:
    pauses = [0.0, AWAY_SECONDS, 9 * AWAY_SECONDS, 1e9]
    assert [weighed(50_000, pause) for pause in pauses] == [50_000, 25_000, 5_000, 1]
