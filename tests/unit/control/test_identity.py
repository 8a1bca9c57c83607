from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from prometheus_client import CollectorRegistry

from llmos_operator.clock import FakeClock
from llmos_operator.cluster.fake import FakeCluster
from llmos_operator.cluster.port import TokenIdentity
from llmos_operator.control.identity import (
    REFUSED,
    UNKNOWN_SECONDS,
    Identities,
    ReviewLimits,
    TooManyTokens,
)
from llmos_operator.control.ingest import IngestServer
from llmos_operator.control.metrics import OperatorMetrics

if TYPE_CHECKING:
    from llmos_operator.cluster.port import ClusterPort

pytestmark = pytest.mark.anyio
LIMITS = ReviewLimits(source_rate=1.0, source_burst=3.0, rate=10.0, burst=5.0)


class Reviews:
    """Counts TokenReviews; `agent` is somebody's token."""

    def __init__(self) -> None:
        self.asked = 0

    async def token_review(self, token: str) -> TokenIdentity | None:
        self.asked += 1
        return TokenIdentity("system:serviceaccount:ns:agent") if token == "agent" else None


class Door:
    def __init__(self) -> None:
        self.clock = FakeClock()
        self.reviews = Reviews()
        self.port: Any = self.reviews
        self.identities = Identities(self.port, self.clock, LIMITS)


async def test_a_token_of_nobody_is_reviewed_once_a_while() -> None:
    door = Door()
    for _ in range(5):
        assert await door.identities.identify("stranger", "10.0.0.1") is None
    assert door.reviews.asked == 1
    door.clock.advance(UNKNOWN_SECONDS + 1)
    assert await door.identities.identify("stranger", "10.0.0.1") is None
    assert door.reviews.asked == 2


async def test_a_source_that_guesses_is_stopped_and_others_go_on() -> None:
    door = Door()
    for number in range(3):
        await door.identities.identify(f"guess-{number}", "10.0.0.1")
    for number in range(50):
        with pytest.raises(TooManyTokens) as refused:
            await door.identities.identify(f"more-{number}", "10.0.0.1")
        assert refused.value.of_source
    assert door.reviews.asked == 3
    assert await door.identities.identify("agent", "10.0.0.2") is not None
    door.clock.advance(1.0)
    assert await door.identities.identify("later", "10.0.0.1") is None


async def test_many_sources_together_are_stopped_and_known_tokens_pass() -> None:
    door = Door()
    assert await door.identities.identify("agent", "10.0.0.9") is not None
    for number in range(4):
        await door.identities.identify(f"guess-{number}", f"10.0.0.{number}")
    with pytest.raises(TooManyTokens) as refused:
        await door.identities.identify("one-more", "10.0.0.8")
    assert not refused.value.of_source
    assert await door.identities.identify("agent", "10.0.0.9") is not None
    assert door.reviews.asked == 5


async def test_a_flood_of_bad_tokens_neither_grows_nor_pushes_out_good_ones() -> None:
    door = Door()
    door.identities = Identities(door.port, door.clock)
    assert await door.identities.identify("agent", "10.0.0.9") is not None
    for number in range(REFUSED + 50):
        door.clock.advance(1 / 30)
        await door.identities.identify(f"guess-{number}", f"source-{number}")
    assert len(door.identities._nobodys) == REFUSED
    before = door.reviews.asked
    assert await door.identities.identify("agent", "10.0.0.9") is not None
    assert door.reviews.asked == before


async def test_the_server_says_when_to_come_back() -> None:
    clock = FakeClock()
    port: ClusterPort = FakeCluster(clock)
    server = IngestServer(
        Identities(port, clock, LIMITS),
        OperatorMetrics(CollectorRegistry()),
        clock,
        namespace="ns",
        agent="agent",
        gateway="gateway",
        leading=lambda: True,
        on_telemetry=lambda _: None,
        on_demand=lambda _: None,
    )
    await server.start("127.0.0.1", 0)
    try:
        async with aiohttp.ClientSession() as session:
            answers = []
            for number in range(5):
                headers = {"Authorization": f"Bearer guess-{number}"}
                url = f"http://127.0.0.1:{server.port}/v1/telemetry"
                async with session.post(url, headers=headers, data=b"{}") as answer:
                    answers.append((answer.status, answer.headers.get("Retry-After", "")))
    finally:
        await server.close()
    assert [status for status, _ in answers] == [HTTPStatus.UNAUTHORIZED] * 3 + [
        HTTPStatus.TOO_MANY_REQUESTS
    ] * 2
    assert answers[-1][1] == "2"
