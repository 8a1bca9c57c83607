"""What the operator is told of demand, and when."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiohttp import web
from prometheus_client import CollectorRegistry

from llmos_operator.api.telemetry import DemandBatch
from llmos_operator.errors import Permanent
from llmos_operator.gateway import demand as module
from llmos_operator.gateway.catalog import WorkloadKey
from llmos_operator.gateway.demand import Demand, Reporter
from llmos_operator.gateway.metrics import Metrics
from tests.support.gateway import until

pytestmark = pytest.mark.anyio

A, B = WorkloadKey("team", "a"), WorkloadKey("team", "b")


def _numbers(
    demand: Demand, waiting: dict[WorkloadKey, int] | None = None
) -> list[tuple[str, int, int, int]]:
    return [(i.name, i.waiting, i.in_flight, i.requests) for i in demand.take(waiting or {})]


def test_a_report_holds_waiting_in_flight_and_new_requests() -> None:
    demand = Demand()
    for key in (A, A, B):
        demand.arrived(key)
    demand.began(A)
    assert _numbers(demand, {B: 1}) == [("a", 0, 1, 2), ("b", 1, 0, 1)]


def test_arrivals_count_once_and_the_end_of_traffic_is_told_once() -> None:
    demand = Demand()
    demand.arrived(A)
    demand.began(A)
    assert _numbers(demand) == [("a", 0, 1, 1)]
    assert _numbers(demand) == [("a", 0, 1, 0)]
    demand.ended(A)
    assert _numbers(demand) == [("a", 0, 0, 0)]
    assert _numbers(demand) == []


def test_a_report_that_was_lost_is_counted_into_the_next() -> None:
    demand = Demand()
    demand.arrived(A)
    lost = demand.take({})
    demand.arrived(A)
    demand.put_back(lost)
    assert _numbers(demand) == [("a", 0, 0, 2)]


class _Operator:
    """Receives reports; `statuses` are its next answers, then 200."""

    def __init__(self) -> None:
        self.batches: list[DemandBatch] = []
        self.headers: list[Any] = []
        self.statuses: list[int] = []
        self.url = ""

    async def answer(self, request: web.BaseRequest) -> web.Response:
        self.headers.append(dict(request.headers))
        assert request.path == "/v1/demand"
        body = await request.read()
        status = self.statuses.pop(0) if self.statuses else 200
        if status == 200:
            self.batches.append(DemandBatch.model_validate_json(body))
        return web.Response(status=status)


@pytest.fixture
async def operator() -> Any:
    received = _Operator()
    runner = web.ServerRunner(web.Server(received.answer, access_log=None))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    received.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    yield received
    await runner.cleanup()


def _reporter(demand: Demand, url: str, **changes: Any) -> Reporter:
    values: dict[str, Any] = {"gateway": "gw-0", "token": lambda: "sa-token", **changes}
    return Reporter(demand, dict, url=url, metrics=Metrics(CollectorRegistry()), **values)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "INTERVAL_SECONDS", 0.01)
    monkeypatch.setattr(module, "LONGEST_PAUSE_SECONDS", 0.02)


@pytest.mark.usefixtures("quick")
async def test_reports_go_out_with_the_accounts_token_only_while_there_is_traffic(
    operator: _Operator,
) -> None:
    demand = Demand()
    running = asyncio.create_task(_reporter(demand, operator.url).run())
    try:
        demand.arrived(A)
        await until(lambda: len(operator.batches) == 2)
        assert [(b.gateway, b.items[0].requests) for b in operator.batches] == [("gw-0", 1), ("gw-0", 0)]
        assert operator.headers[0]["Authorization"] == "Bearer sa-token"
        demand.arrived(B)
        await until(lambda: len(operator.batches) == 4)
        assert [i.name for i in operator.batches[2].items] == ["b"]
    finally:
        running.cancel()


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("trouble", ["status", "token"])
async def test_after_a_failure_nothing_that_arrived_is_lost(operator: _Operator, trouble: str) -> None:
    tokens = iter(["fail", "good", "good", "good", "good"] if trouble == "token" else ["good"] * 9)

    def token() -> str:
        value = next(tokens)
        if value == "fail":
            raise Permanent("cannot read the token", reason="BadCredentials")
        return value

    if trouble == "status":
        operator.statuses = [503, 401]
    demand = Demand()
    demand.arrived(A)
    running = asyncio.create_task(_reporter(demand, operator.url, token=token).run())
    try:
        await until(lambda: bool(operator.batches))
        assert operator.batches[0].items[0].requests == 1
    finally:
        running.cancel()


async def test_without_an_operator_nothing_is_sent() -> None:
    await asyncio.wait_for(_reporter(Demand(), "").run(), 1)
