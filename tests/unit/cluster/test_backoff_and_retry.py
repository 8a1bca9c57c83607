from __future__ import annotations

from random import Random

import pytest

from llmos_operator.cluster.backoff import Curve, KeyedBackoff
from llmos_operator.cluster.failures import Ambiguous, Invalid, from_response
from llmos_operator.cluster.fake import FakeCluster
from llmos_operator.cluster.port import SERVICES
from llmos_operator.cluster.retry import Retrier, RetryPolicy
from llmos_operator.errors import Retryable


def a_retrier(waits: list[float], policy: RetryPolicy | None = None) -> Retrier:
    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    return Retrier(Random(1), policy or RetryPolicy(), sleep=sleep, monotonic=lambda: sum(waits))


def service(name: str) -> dict[str, object]:
    return {"metadata": {"name": name}, "spec": {"x": 1}}


def test_delays_double_up_to_the_cap_and_are_jittered_downwards() -> None:
    curve = Curve(base=1.0, cap=8.0)
    delays = [curve.delay(failures, Random(1)) for failures in range(1, 9)]
    for delay, full in zip(delays, (1, 2, 4, 8, 8, 8, 8, 8), strict=True):
        assert full / 2 <= delay <= full


def test_a_key_waits_longer_after_each_failure_and_not_at_all_after_success() -> None:
    backoff: KeyedBackoff[str] = KeyedBackoff(Curve(base=1.0, cap=60.0), Random(1))
    first = backoff.fail("a", 100.0)
    second = backoff.fail("a", 100.0)
    assert second > first > 100.0
    assert not backoff.ready("a", 100.1)
    assert backoff.ready("b", 100.1)
    backoff.succeed("a")
    assert backoff.ready("a", 100.1)
    assert backoff.next_ready() is None


def test_the_server_may_ask_for_a_longer_wait() -> None:
    backoff: KeyedBackoff[str] = KeyedBackoff(Curve(base=1.0, cap=2.0), Random(1))
    assert backoff.fail("a", 0.0, after=30.0) == 30.0


@pytest.mark.anyio
async def test_reads_are_tried_again_as_the_server_asks() -> None:
    waits: list[float] = []
    port = FakeCluster()
    await port.create(SERVICES, service("a"), namespace="ns")
    port.fail("get", "services", from_response("GET", "/x", 429, b"", {"Retry-After": "3"}))
    port.fail("get", "services", from_response("GET", "/x", 503, b""))
    body = await a_retrier(waits).call(lambda: port.get(SERVICES, "a", namespace="ns"))
    assert body["spec"] == {"x": 1}
    assert waits[0] == 3.0
    assert len(waits) == 2


@pytest.mark.anyio
async def test_trying_ends_with_the_last_error() -> None:
    waits: list[float] = []
    port = FakeCluster()
    port.fail("get", "services", Retryable("down"), times=9)
    with pytest.raises(Retryable, match="down"):
        await a_retrier(waits, RetryPolicy(attempts=3)).call(lambda: port.get(SERVICES, "a"))
    assert len(waits) == 2


@pytest.mark.anyio
async def test_what_cannot_succeed_is_not_tried_again() -> None:
    port = FakeCluster()
    port.fail("create", "services", Invalid("no"))
    with pytest.raises(Invalid):
        await a_retrier([]).create(port, SERVICES, service("a"), namespace="ns")
    assert len(port.calls) == 1


@pytest.mark.anyio
async def test_a_create_that_was_done_but_not_answered_is_found_not_doubled() -> None:
    port = FakeCluster()
    port.fail("create", "services", Ambiguous("connection lost"), done=True)
    body, ours = await a_retrier([]).create(port, SERVICES, service("a"), namespace="ns")
    assert ours
    assert body["metadata"]["name"] == "a"
    assert [call[0] for call in port.calls] == ["create", "get"]


@pytest.mark.anyio
async def test_a_create_that_was_lost_is_done_again() -> None:
    port = FakeCluster()
    port.fail("create", "services", Ambiguous("connection lost"))
    await a_retrier([]).create(port, SERVICES, service("a"), namespace="ns")
    assert [call[0] for call in port.calls] == ["create", "get", "create"]


@pytest.mark.anyio
async def test_a_create_of_what_exists_returns_it_as_somebody_elses() -> None:
    port = FakeCluster()
    await port.create(SERVICES, service("a"), namespace="ns")
    _, ours = await a_retrier([]).create(port, SERVICES, service("a"), namespace="ns")
    assert not ours


@pytest.mark.anyio
async def test_deleting_what_is_gone_succeeds() -> None:
    await a_retrier([]).delete(FakeCluster(), SERVICES, "a", namespace="ns")


@pytest.mark.anyio
async def test_a_call_is_not_tried_again_once_this_process_may_not_write() -> None:
    tries: list[str] = []

    async def sleep(_: float) -> None:
        return

    async def write() -> None:
        tries.append("sent")
        raise Ambiguous("no answer")

    retrier = Retrier(Random(1), sleep=sleep, monotonic=lambda: 0.0, allowed=lambda: not tries)
    with pytest.raises(Retryable, match="may not write"):
        await retrier.call(write)
    assert tries == ["sent"]
