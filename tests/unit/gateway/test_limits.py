"""Requests and tokens per minute."""

from __future__ import annotations

import pytest

from llmos_operator.gateway.catalog import Rate
from llmos_operator.gateway.limits import Exceeded, Limiter


def test_a_minute_of_requests_may_come_at_once_and_then_one_at_a_time() -> None:
    limiter, rate = Limiter(), Rate(requests=6)
    assert [limiter.take("a", rate, 0.0) for _ in range(6)] == [None] * 6
    assert limiter.take("a", rate, 0.0) == Exceeded("requests", 6, 10.0)
    assert limiter.take("a", rate, 9.0) == Exceeded("requests", 6, pytest.approx(1.0))
    assert limiter.take("a", rate, 10.0) is None
    assert limiter.take("a", rate, 10.0) is not None


def test_clients_have_buckets_of_their_own() -> None:
    limiter, rate = Limiter(), Rate(requests=1)
    assert limiter.take("a", rate, 0.0) is None
    assert limiter.take("b", rate, 0.0) is None


def test_no_limit_is_no_limit() -> None:
    limiter = Limiter()
    assert all(limiter.take("a", Rate(), 0.0) is None for _ in range(1000))
    limiter.spend_tokens("a", Rate(), 10**9, 0.0)
    assert limiter._buckets == {}


def test_tokens_are_paid_afterwards_and_a_debt_must_refill_first() -> None:
    limiter, rate = Limiter(), Rate(tokens=600)
    assert limiter.take("a", rate, 0.0) is None
    limiter.spend_tokens("a", rate, 700, 0.0)
    exceeded = limiter.take("a", rate, 0.0)
    assert exceeded == Exceeded("tokens", 600, pytest.approx(10.1))
    assert limiter.take("a", rate, 10.0) is not None
    assert limiter.take("a", rate, 10.1) is None


def test_a_request_refused_for_its_tokens_does_not_cost_a_request() -> None:
    limiter, rate = Limiter(), Rate(requests=2, tokens=60)
    limiter.spend_tokens("a", rate, 61, 0.0)
    assert limiter.take("a", rate, 0.0) is not None
    assert limiter.take("a", rate, 0.0) is not None
    assert [limiter.take("a", rate, 5.0) for _ in range(2)] == [None, None]


def test_a_changed_limit_keeps_the_share_that_is_left() -> None:
    limiter = Limiter()
    for _ in range(5):
        limiter.take("a", Rate(requests=10), 0.0)
    assert [limiter.take("a", Rate(requests=100), 0.0) for _ in range(50)] == [None] * 50
    assert limiter.take("a", Rate(requests=100), 0.0) is not None


def test_full_buckets_are_forgotten_and_others_kept() -> None:
    limiter, rate = Limiter(), Rate(requests=6)
    limiter.take("a", rate, 0.0)
    limiter.take("b", rate, 0.0)
    limiter.take("b", rate, 0.0)
    limiter.forget_idle(10.0)
    assert [who for who, _ in limiter._buckets] == ["b"]
    limiter.forget_idle(60.0)
    assert limiter._buckets == {}
