"""Who is let in, and what the others are told."""

from __future__ import annotations

import asyncio

import pytest

from llmos_operator.runtime.admission import Admission
from llmos_operator.runtime.answers import ApiError
from llmos_operator.runtime.auth import Gate
from llmos_operator.runtime.drain import Drain
from llmos_operator.runtime.ipc import Stats


def _admission(**changes: float) -> Admission:
    values = {"max_num_seqs": 4, "max_queue": 100, "max_wait_seconds": 30.0, **changes}
    return Admission(**values)  # type: ignore[arg-type]


def _fill(admission: Admission, count: int) -> int:
    """Let in up to ``count`` single requests; returns how many got in."""
    for number in range(count):
        try:
            admission.enter(1)
        except ApiError:
            return number
    return count


def test_as_many_as_run_at_once_never_wait() -> None:
    admission = _admission(max_queue=0)
    admission.finished(1000.0)
    assert _fill(admission, 10) == 4


def test_the_expected_wait_grows_with_the_queue_and_shrinks_with_the_width() -> None:
    admission = _admission()
    admission.finished(8.0)
    _fill(admission, 4)
    assert [admission.expected_wait(n) for n in (1, 2, 4)] == [2.0, 4.0, 8.0]


def test_who_would_wait_too_long_is_told_when_to_come_back() -> None:
    admission = _admission(max_wait_seconds=10.0)
    admission.finished(8.0)
    # Five may wait: the sixth would wait 12 s.
    assert _fill(admission, 100) == 4 + 5
    with pytest.raises(ApiError) as caught:
        admission.enter(1)
    assert (caught.value.status, caught.value.code, caught.value.refused) == (429, "overloaded", "overloaded")
    assert caught.value.retry_after == 2.0
    admission.leave(1)
    assert _fill(admission, 100) == 1


def test_before_anything_is_known_only_the_length_of_the_queue_counts() -> None:
    assert _fill(_admission(max_queue=7), 100) == 4 + 7


def test_an_idle_runtime_takes_a_request_of_any_size() -> None:
    admission = _admission(max_queue=0, max_wait_seconds=1.0)
    admission.finished(100.0)
    admission.enter(64)
    with pytest.raises(ApiError):
        admission.enter(1)
    admission.leave(64)
    admission.enter(1)


def test_where_memory_allows_fewer_than_configured_the_engines_own_count_holds() -> None:
    admission = _admission()
    admission.finished(8.0)
    _fill(admission, 3)
    admission.observe(Stats(running=1, waiting=2))
    assert admission.expected_wait() == 24.0
    admission.observe(Stats(running=3, waiting=0))
    assert admission.expected_wait() == 0.0


def test_service_time_follows_what_is_seen() -> None:
    admission = _admission()
    for _ in range(40):
        admission.finished(5.0)
    admission.finished(10.0)
    assert admission.service_seconds == pytest.approx(6.0)


@pytest.mark.parametrize(
    "shown", ["", "Bearer", "Bearer ", "bearer b", "Basic a", "a", "Bearer a, b", "Bearer ä"]
)
def test_a_gate_refuses_what_is_none_of_its_tokens(shown: str) -> None:
    with pytest.raises(ApiError) as caught:
        Gate(["a", "c"], open_without=True).check(shown)
    assert (caught.value.status, caught.value.headers()["WWW-Authenticate"]) == (401, "Bearer")
    assert shown == "" or shown not in caught.value.message or len(shown) <= len("Bearer ")


@pytest.mark.parametrize("shown", ["Bearer a", "bearer c", "BEARER  a"])
def test_a_gate_lets_its_tokens_in(shown: str) -> None:
    Gate(["a", "c"], open_without=True).check(shown)


def test_without_tokens_a_gate_is_open_only_where_that_is_meant() -> None:
    Gate([], open_without=True).check("")
    with pytest.raises(ApiError):
        Gate([""], open_without=False).check("Bearer ")


@pytest.mark.anyio
async def test_a_drain_is_over_when_the_last_one_leaves() -> None:
    loop = asyncio.get_running_loop()
    drain = Drain(loop.time)
    drain.enter()
    drain.enter()
    running = asyncio.create_task(drain.run(linger=0.0, deadline=loop.time() + 5))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert (drain.draining, drain.declining) == (True, True)
    with pytest.raises(ApiError) as caught:
        drain.enter()
    assert (caught.value.status, caught.value.refused) == (503, "draining")
    drain.leave()
    assert not running.done()
    drain.leave()
    assert await running is True


@pytest.mark.anyio
async def test_a_drain_gives_up_at_its_deadline() -> None:
    loop = asyncio.get_running_loop()
    drain = Drain(loop.time)
    drain.enter()
    assert await drain.run(linger=5.0, deadline=loop.time() + 0.02, abort_seconds=0.02) is False
