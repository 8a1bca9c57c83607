"""The attained-service index against its definition, and what it learns."""

from __future__ import annotations

import numpy as np
import pytest

from llmos_operator.scheduler.service_index import (
    BINS,
    LOWER,
    UPPER,
    WIDTH,
    Service,
    ServiceIndex,
    gittins,
    size_class,
)


def by_definition(hazard: np.ndarray, start: int) -> float:
    """Least E[min(S - a, D)] / P(S - a <= D) over the bins' edges, by adding up small steps."""
    best, survive, spent, steps = np.inf, 1.0, 0.0, 2000
    for bin_ in range(start, BINS):
        step = WIDTH[bin_] / steps
        left = survive * np.exp(-hazard[bin_] * step * (np.arange(steps) + 0.5))
        spent += float(left.sum() * step)
        survive *= float(np.exp(-hazard[bin_] * WIDTH[bin_]))
        best = min(best, spent / (1.0 - survive))
    return best


@pytest.mark.parametrize("seed", range(4))
def test_the_index_is_the_least_service_per_completion(seed: int) -> None:
    hazard = np.random.default_rng(seed).uniform(0.1, 2.0, BINS) / UPPER
    table = gittins(hazard)
    for start in (0, 5, 17, BINS - 1):
        assert table[start] == pytest.approx(by_definition(hazard, start), rel=1e-3)


def test_without_memory_service_received_does_not_matter() -> None:
    assert gittins(np.full(BINS, 1 / 3600)) == pytest.approx(np.full(BINS, 3600.0))


def test_with_a_falling_hazard_the_index_grows_with_service() -> None:
    assert (np.diff(gittins(1 / (UPPER + 60.0))) > 0).all()
    assert ServiceIndex().seconds("q", 1, 60.0) < ServiceIndex().seconds("q", 1, 3600.0)


def test_a_job_about_to_reach_its_queues_usual_length_goes_before_a_new_one() -> None:
    index = ServiceIndex(Service("nightly", 1, 36_000.0 + i) for i in range(500))
    assert index.seconds("nightly", 1, 30_800.0) < index.seconds("nightly", 1, 0.0) / 2
    assert index.seconds("nightly", 1, 80_000.0) > index.seconds("nightly", 1, 0.0)


def test_queues_and_sizes_are_told_apart_and_strangers_lean_on_all() -> None:
    index = ServiceIndex(
        [Service("short", 1, 60.0) for _ in range(300)] + [Service("long", 8, 90_000.0) for _ in range(300)]
    )
    short, long = index.seconds("short", 1, 0.0), index.seconds("long", 8, 0.0)
    assert short < long / 20
    assert short < index.seconds("stranger", 2, 0.0) < long
    assert index.seconds("stranger", 8, 0.0) > index.seconds("stranger", 1, 0.0)


def test_unfinished_work_keeps_a_young_history_from_looking_short() -> None:
    finished = [Service("q", 1, 60.0) for _ in range(10)]
    running = [Service("q", 1, 50_000.0) for _ in range(100)]
    alone = ServiceIndex(finished).seconds("q", 1, 0.0)
    assert ServiceIndex(finished, running).seconds("q", 1, 0.0) > 2 * alone


def test_the_order_of_what_was_seen_does_not_matter() -> None:
    seen = [Service(f"q{i % 3}", 1 + i % 9, 17.0 * i) for i in range(200)]
    there, back = ServiceIndex(seen), ServiceIndex(reversed(seen))
    assert all(
        there.seconds(f"q{q}", g, a) == back.seconds(f"q{q}", g, a)
        for q in range(3)
        for g in (1, 2, 8)
        for a in (0.0, 500.0, 1e7)
    )


def test_bins_cover_all_service_without_gaps() -> None:
    assert LOWER[0] == 0.0
    assert (LOWER[1:] == UPPER[:-1]).all()
    assert ServiceIndex().seconds("q", 1, 1e12) > 0
    assert [size_class(g) for g in (0, 1, 2, 3, 4, 8, 9, 1000)] == [0, 0, 1, 2, 2, 3, 4, 4]
