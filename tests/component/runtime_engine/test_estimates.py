"""What is predicted of a model's memory, and what is reserved once it has run, against what real engines take."""

import pytest

from tests.support.estimating import BESIDE_BASE, CONVERTING, STATED, outcomes, packaged_cases, random_cases
from tests.support.memoryprobe import LIMIT

pytestmark = [pytest.mark.model, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """Two runs of every packaged model at every precision and of five drawn configurations."""
    folder = tmp_path_factory.mktemp("estimates")
    return outcomes([*packaged_cases(), *random_cases(folder)], folder)


def test_the_first_run_takes_what_was_predicted(measured):
    assert len(measured) == 13
    for one in measured:
        assert abs(one.prediction_error) <= STATED, one
        assert abs(one.predicted - one.peak) <= BESIDE_BASE, one
        assert one.converting - one.predicted <= CONVERTING, one


def test_after_one_run_the_reservation_is_what_a_larger_run_takes(measured):
    for one in measured:
        assert abs(one.reservation_error) <= STATED, one


def test_a_run_stays_below_its_limit_and_says_what_a_full_cache_would_take(measured):
    for one in measured:
        assert one.last["peak_bytes"] <= LIMIT, one
        assert one.last["peak_bytes"] <= one.last["full_bytes"] <= 1.05 * one.last["peak_bytes"], one
        assert one.last["needed_bytes"] <= one.last["full_bytes"], one
