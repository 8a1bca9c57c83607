"""When a run last saved, as the status says it."""

from __future__ import annotations

import pytest

from llmos_operator.api.runtime.messages import WorkProgress
from llmos_operator.api.v1alpha1.workload_status import RunStatus
from llmos_operator.clock import rfc3339
from llmos_operator.manifests.running import saved_time

NOW = 1_800_000_000.0
BEFORE = RunStatus(last_saved_time=rfc3339(NOW - 100))


@pytest.mark.parametrize(
    ("age", "before", "said"),
    [
        (None, RunStatus(), None),
        (None, BEFORE, NOW - 100),
        (40, RunStatus(), NOW - 40),
        (40, BEFORE, NOW - 40),
        (99, BEFORE, NOW - 100),  # the age is whole seconds: no reason to write
    ],
)
def test_the_time_moves_when_something_was_saved_and_not_otherwise(
    age: int | None, before: RunStatus, said: float | None
) -> None:
    told = WorkProgress(unit="steps", done=5, total=9, saved=4, saved_age_seconds=age)
    assert saved_time(NOW, told, before) == (rfc3339(said) if said is not None else None)
