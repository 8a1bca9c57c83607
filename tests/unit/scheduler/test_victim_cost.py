"""What a preemption of work that ends would lose."""

from __future__ import annotations

from typing import Any

import pytest

from llmos_operator.scheduler.victims import unsaved_seconds
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
