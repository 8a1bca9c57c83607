"""Sending to an operator that comes and goes, and to an API server that does."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import CollectorRegistry

from llmos_operator.api import names
from llmos_operator.cluster.fake import FakeCluster
from llmos_operator.cluster.port import GPU_NODES
from llmos_operator.errors import Retryable
from llmos_operator.telemetry import publish, report
from llmos_operator.telemetry.metrics import AgentMetrics
from llmos_operator.telemetry.publish import BatchSender, NodeWriter
from tests.support.ingest import IngestEndpoint

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

pytestmark = pytest.mark.anyio


def a_batch(sequence: int) -> dict[str, Any]:
    return report.batch("n1", 1000, sequence, [])


@pytest.fixture
async def endpoint() -> AsyncIterator[IngestEndpoint]:
    made = IngestEndpoint("n1")
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
def metrics() -> AgentMetrics:
    return AgentMetrics(CollectorRegistry())


async def until(condition: Callable[[], object], seconds: float = 90.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.fixture
async def start() -> AsyncIterator[Callable[[Any], None]]:
    tasks: list[asyncio.Task[None]] = []
    yield lambda work: tasks.append(asyncio.create_task(work))
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_the_newest_batch_is_sent_with_the_token(
    endpoint: IngestEndpoint, metrics: AgentMetrics, start: Callable[[Any], None]
) -> None:
    sender = BatchSender(endpoint.url, lambda **_: "word", interval=0.01, metrics=metrics)
    for sequence in (1, 2, 3):
        sender.offer(a_batch(sequence))
    start(sender.run())
    await endpoint.until(1)
    assert endpoint.ingest._last["n1"].sequence == 3, "older ones are thrown away, not queued"
    assert endpoint.tokens == ["Bearer word"]
    for sequence in (4, 5, 6):
        sender.offer(a_batch(sequence))
    await endpoint.until(2)


async def test_batches_go_at_most_once_an_interval(
    endpoint: IngestEndpoint, metrics: AgentMetrics, start: Callable[[Any], None]
) -> None:
    sender = BatchSender(endpoint.url, lambda **_: "", interval=0.2, metrics=metrics)
    start(sender.run())
    for sequence in range(1, 101):
        sender.offer(a_batch(sequence))
        await asyncio.sleep(0.005)
    gaps = [later - earlier for earlier, later in zip(endpoint.arrived, endpoint.arrived[1:], strict=False)]
    assert gaps
    assert min(gaps) > 0.1


@pytest.mark.parametrize("status", [401, 403, 413, 429, 500, 503])
async def test_an_operator_that_refuses_is_asked_less_and_less_and_again_when_it_takes(
    endpoint: IngestEndpoint,
    metrics: AgentMetrics,
    start: Callable[[Any], None],
    monkeypatch: pytest.MonkeyPatch,
    status: int,
) -> None:
    monkeypatch.setattr(publish, "OPERATOR_CURVE", publish.Curve(base=0.05, cap=0.2))
    asked: list[bool] = []

    def token(*, fresh: bool = False) -> str:
        asked.append(fresh)
        return "word"

    endpoint.status = status
    sender = BatchSender(endpoint.url, token, interval=0.01, metrics=metrics)
    start(sender.run())

    async def keep_offering() -> None:
        for sequence in range(1, 100_000):
            sender.offer(a_batch(sequence))
            await asyncio.sleep(0.005)

    start(keep_offering())
    await until(lambda: sender.failures >= 4)
    gaps = [later - earlier for earlier, later in zip(endpoint.arrived, endpoint.arrived[1:], strict=False)]
    assert gaps[-1] >= 0.05, "at least the least second pause, whatever else the machine does"
    assert asked[0] is False
    assert all(asked[1:]), "after a failure the token is read anew: it may have been rotated"
    endpoint.status = 200
    await endpoint.until(3)
    assert sender.failures == 0


async def test_an_operator_that_is_away_costs_nothing_and_is_found_again(
    endpoint: IngestEndpoint,
    metrics: AgentMetrics,
    start: Callable[[Any], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(publish, "OPERATOR_CURVE", publish.Curve(base=0.05, cap=0.1))
    port = int(endpoint.url.rsplit(":", 1)[1])
    await endpoint.stop()
    sender = BatchSender(endpoint.url, lambda **_: "", interval=0.01, metrics=metrics)
    start(sender.run())
    sender.offer(a_batch(1))
    await until(lambda: sender.failures == 1)
    sender.offer(a_batch(2))
    await until(lambda: sender.failures == 2)
    await endpoint.start(port)
    sender.offer(a_batch(3))
    await endpoint.until(1)
    assert endpoint.ingest._last["n1"].sequence == 3


async def test_without_an_address_nothing_is_sent(metrics: AgentMetrics) -> None:
    await BatchSender("", lambda **_: "", interval=0.01, metrics=metrics).run()


# -- GPUNode

STATUS: dict[str, Any] = {"mode": "nvml", "driver": "570", "devices": [], "conditions": []}


def a_writer(cluster: FakeCluster, metrics: AgentMetrics, **values: Any) -> NodeWriter:
    writer = NodeWriter(cluster, "n1", metrics=metrics, **{"interval": 60.0, **values})
    writer.bind("uid-of-n1")
    return writer


async def test_the_object_is_made_with_its_owner_and_gets_its_status(metrics: AgentMetrics) -> None:
    cluster = FakeCluster()
    writer = a_writer(cluster, metrics)
    writer.offer(STATUS, "")
    await writer.write()
    written = await cluster.get(GPU_NODES, "n1")
    owner = {"apiVersion": "v1", "kind": "Node", "name": "n1", "uid": "uid-of-n1"}
    assert written["metadata"]["ownerReferences"] == [owner]
    assert written["status"]["driver"] == "570"


async def test_what_did_not_change_is_not_written(metrics: AgentMetrics) -> None:
    cluster = FakeCluster()
    writer = a_writer(cluster, metrics)
    writer.offer(STATUS, "")
    await writer.write()
    writes = len(cluster.writes())
    writer.offer(dict(STATUS), "")
    await writer.write()
    assert len(cluster.writes()) == writes
    writer.offer({**STATUS, "driver": "580"}, "")
    await writer.write()
    assert len(cluster.writes()) == writes + 1, "a status alone needs one write"


async def test_the_health_memory_is_kept_in_the_object(metrics: AgentMetrics) -> None:
    cluster = FakeCluster()
    writer = a_writer(cluster, metrics)
    writer.offer(STATUS, '{"GPU-a":{}}')
    await writer.write()
    assert (await writer.read())["metadata"]["annotations"][names.ANNOTATION_HEALTH_MEMORY] == '{"GPU-a":{}}'
    writer.offer(STATUS, "")
    await writer.write()
    annotations = (await writer.read())["metadata"].get("annotations") or {}
    assert names.ANNOTATION_HEALTH_MEMORY not in annotations


async def test_a_deleted_object_is_made_again(metrics: AgentMetrics) -> None:
    cluster = FakeCluster()
    writer = a_writer(cluster, metrics)
    writer.offer(STATUS, "")
    await writer.write()
    await cluster.delete(GPU_NODES, "n1")
    writer.offer({**STATUS, "driver": "580"}, "")
    await writer.write()
    written = await cluster.get(GPU_NODES, "n1")
    assert written["status"]["driver"] == "580"
    assert written["metadata"]["ownerReferences"]


async def test_failures_are_waited_out_and_the_newest_is_written(
    metrics: AgentMetrics, start: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish, "STATUS_CURVE", publish.Curve(base=0.02, cap=0.05))
    monkeypatch.setattr(publish, "LEAST_STATUS_SECONDS", 0.01)
    cluster = FakeCluster()
    cluster.fail("apply", "gpunodes", Retryable("no API server", after=0.0), times=3)
    writer = a_writer(cluster, metrics)
    start(writer.run())
    writer.offer(STATUS, "")
    await asyncio.sleep(0.01)
    writer.offer({**STATUS, "driver": "newest"}, "")
    await until(lambda: writer.writes >= 1)
    assert (await cluster.get(GPU_NODES, "n1"))["status"]["driver"] == "newest"


async def test_an_unchanged_status_is_written_again_after_the_interval(
    metrics: AgentMetrics, start: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish, "LEAST_STATUS_SECONDS", 0.01)
    cluster = FakeCluster()
    writer = a_writer(cluster, metrics, interval=0.1)
    start(writer.run())
    writer.offer(STATUS, "")
    await until(lambda: writer.writes >= 1)
    await cluster.merge_patch(GPU_NODES, "n1", {"status": {"driver": "edited"}}, subresource="status")
    await until(lambda: writer.writes >= 2)
    assert (await cluster.get(GPU_NODES, "n1"))["status"]["driver"] == "570"


async def test_changes_in_a_row_are_written_at_most_once_a_second(
    metrics: AgentMetrics, start: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish, "LEAST_STATUS_SECONDS", 0.2)
    cluster = FakeCluster()
    writer = a_writer(cluster, metrics)
    start(writer.run())
    for turn in range(50):
        writer.offer({**STATUS, "driver": str(turn)}, "")
        await asyncio.sleep(0.01)
    assert writer.writes <= 4
    await until(lambda: (writer._written or [{}])[0] == {**STATUS, "driver": "49"})


async def test_capabilities_alone_are_no_reason_to_write_and_go_with_the_next_write(
    metrics: AgentMetrics, start: Callable[[Any], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish, "LEAST_STATUS_SECONDS", 0.01)
    cluster = FakeCluster()
    writer = a_writer(cluster, metrics)
    start(writer.run())

    def telling(*capabilities: str, driver: str = "570") -> dict[str, Any]:
        return {
            **STATUS,
            "driver": driver,
            "devices": [{"uuid": "GPU-a", "capabilities": list(capabilities)}],
        }

    writer.offer(telling("memory"), "")
    await until(lambda: writer.writes == 1)
    for count in range(1, 6):
        writer.offer(telling(*(f"more-{n}" for n in range(count))), "")
        await asyncio.sleep(0.03)
    assert writer.writes == 1
    writer.offer(telling("memory", "power", driver="580"), "")
    await until(lambda: writer.writes == 2)
    (device,) = (await cluster.get(GPU_NODES, "n1"))["status"]["devices"]
    assert device["capabilities"] == ["memory", "power"]


async def test_a_persons_word_is_acted_on_once_and_taken_away(metrics: AgentMetrics) -> None:
    cluster = FakeCluster()
    cleared: list[str] = []
    writer = a_writer(cluster, metrics, on_clear=cleared.append)
    writer.offer(STATUS, "")
    await writer.write()
    await cluster.merge_patch(
        GPU_NODES, "n1", {"metadata": {"annotations": {names.ANNOTATION_HEALTH_CLEAR: "GPU-a, GPU-b"}}}
    )
    writer.offer({**STATUS, "driver": "580"}, "")
    await writer.write()
    assert cleared == ["GPU-a", "GPU-b"]
    assert names.ANNOTATION_HEALTH_CLEAR not in ((await writer.read())["metadata"].get("annotations") or {})
    writer.offer({**STATUS, "driver": "590"}, "")
    await writer.write()
    assert cleared == ["GPU-a", "GPU-b"]
