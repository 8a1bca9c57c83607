from __future__ import annotations

import asyncio
import json
import logging

import pytest
from aiohttp import ClientSession
from prometheus_client import CollectorRegistry, Counter

from llmos_operator.observability.health import HealthServer
from llmos_operator.observability.heartbeat import Heartbeat
from llmos_operator.observability.logging import JsonFormatter, TextFormatter, context, logger
from llmos_operator.observability.metrics import new_registry, render, rendered


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG)
    return caplog


def test_a_line_is_one_json_object_with_its_values(lines: pytest.LogCaptureFixture) -> None:
    logger("llmos_operator.x").info("bound pod", pod="team/chat-0", count=3)
    line = json.loads(JsonFormatter("operator").format(lines.records[0]))
    assert line["message"] == "bound pod"
    assert (line["pod"], line["count"], line["level"], line["process"]) == (
        "team/chat-0",
        3,
        "info",
        "operator",
    )


def test_context_is_added_below_and_only_there(lines: pytest.LogCaptureFixture) -> None:
    log = logger("x")
    with context(cycle=7):
        log.info("inside")
    log.info("outside")
    inside, outside = (json.loads(JsonFormatter().format(record)) for record in lines.records)
    assert inside["cycle"] == 7
    assert "cycle" not in outside


def test_values_named_like_credentials_are_masked(lines: pytest.LogCaptureFixture) -> None:
    logger("x").info("hello", token="s3cret", api_key="k3y", name="fine")
    for formatter in (JsonFormatter(), TextFormatter()):
        text = formatter.format(lines.records[0])
        assert "s3cret" not in text
        assert "k3y" not in text
        assert "fine" in text


def test_a_value_cannot_forge_a_line(lines: pytest.LogCaptureFixture) -> None:
    logger("x").info("hello", name='evil\n{"level": "error"}')
    assert "\n" not in JsonFormatter().format(lines.records[0])
    assert "\n" not in TextFormatter().format(lines.records[0])


def test_an_exception_comes_with_its_trace(lines: pytest.LogCaptureFixture) -> None:
    try:
        int("boom")
    except ValueError:
        logger("x").exception("failed")
    assert "ValueError: invalid literal" in json.loads(JsonFormatter().format(lines.records[0]))["trace"]


def test_a_heartbeat_stops_being_healthy() -> None:
    now = [0.0]
    beat = Heartbeat(10, lambda: now[0])
    now[0] = 9
    assert beat.check() == ""
    now[0] = 11
    assert "11 s" in beat.check()
    beat.beat()
    assert beat.check() == ""


def test_the_registry_tells_the_build() -> None:
    body, _ = render(new_registry("operator"))
    assert b'llmos_build_info{process="operator"' in body


@pytest.mark.anyio
async def test_probes_say_which_check_failed() -> None:
    registry, trouble = CollectorRegistry(), [""]
    Counter("llmos_test", "x", registry=registry).inc()
    server = HealthServer(
        registry, live={"loop": lambda: ""}, ready={"synced": lambda: trouble[0], "fresh": lambda: ""}
    )
    await server.start("127.0.0.1", 0)
    try:
        async with ClientSession(f"http://127.0.0.1:{server.port}") as session:
            async with session.get("/readyz") as answer:
                assert (answer.status, await answer.text()) == (200, "ok")
            trouble[0] = "not listed yet: Pod"
            async with session.get("/readyz?verbose") as answer:
                text = await answer.text()
                assert answer.status == 503
                assert "synced: not listed yet: Pod" in text
                assert "[+] fresh" in text
            async with session.get("/livez") as answer:
                assert answer.status == 200
            async with session.get("/metrics") as answer:
                assert "llmos_test_total 1.0" in await answer.text()
    finally:
        await server.close()


@pytest.mark.anyio
async def test_many_series_are_rendered_while_others_have_their_turns() -> None:
    registry, turns = CollectorRegistry(), 0
    for name in ("one", "two", "three"):
        counter = Counter(name, f"The {name}.", ["workload"], registry=registry)
        for number in range(5000):
            counter.labels(f"w-{number}").inc(number)

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    assert await rendered(registry) == render(registry)
    task.cancel()
    assert turns >= 3
