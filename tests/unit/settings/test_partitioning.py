"""Settings of cutting GPUs become the scheduler's policy, or are refused with the way out."""

from __future__ import annotations

import pytest

from llmos_operator.api.mig import parse_profile
from llmos_operator.control.policies import policy_of
from llmos_operator.scheduler.geometry.layouts import Layout
from llmos_operator.settings import BadSettings, OperatorSettings, PartitioningSettings


def policy(**partitioning: object) -> object:
    settings = OperatorSettings(partitioning=PartitioningSettings.model_validate(partitioning))
    return policy_of(settings).partitioning


def test_nothing_is_cut_unless_somebody_says_so() -> None:
    assert policy_of(OperatorSettings()).partitioning.enabled is False


def test_named_layouts_are_taken() -> None:
    found = policy_of(
        OperatorSettings(
            partitioning=PartitioningSettings(
                enabled=True, layouts={"two": {"3g.40gb": 1, "1g.10gb": 4}}, rest=60
            )
        )
    ).partitioning
    counts = ((parse_profile("3g.40gb"), 1), (parse_profile("1g.10gb"), 4))
    assert (found.enabled, found.layouts, found.rest) == (True, (Layout("two", counts),), 60.0)


@pytest.mark.parametrize(
    ("counts", "words"),
    [
        ({"3g": 1}, "partitioning.layouts.mine: '3g' is not a MIG profile"),
        ({"4g.40gb": 2}, "partitioning.layouts.mine = {4g.40gb: 2}: these instances do not fit"),
        ({"1g.10gb": 0}, "do not fit"),
        ({"1g.5gb": 1, "3g.40gb": 1}, "do not fit"),
        ({}, "such as {3g.40gb: 1, 1g.10gb: 4}"),
    ],
)
def test_a_layout_no_gpu_can_have_is_refused(counts: dict[str, int], words: str) -> None:
    with pytest.raises(BadSettings) as caught:
        policy(layouts={"mine": counts})
    assert words in str(caught.value)
