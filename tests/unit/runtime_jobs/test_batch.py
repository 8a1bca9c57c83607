"""The parts of `llmos batch` without a model: lines, results over restarts, and the run against an application of the test."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from llmos_operator.clock import FakeClock
from llmos_operator.modelstore.bucket import Bucket
from llmos_operator.modelstore.remote import Access, Place
from llmos_operator.runtime.jobs.batch import run as running
from llmos_operator.runtime.jobs.batch.lines import BadLine, Reader, Request, scan
from llmos_operator.runtime.jobs.batch.metrics import BatchMetrics
from llmos_operator.runtime.jobs.batch.results import SEND_SECONDS, Results, run_key
from llmos_operator.runtime.jobs.batch.run import BatchRun
from tests.support.storages import ACCESS, SECRET, Storage, storage

if TYPE_CHECKING:
    from pathlib import Path

    from starlette.requests import Request as HttpRequest

KEY = run_key("digest", "hf://acme/tiny", "main")


def a_line(custom_id: str = "a", **changes: Any) -> str:
    line = {"custom_id": custom_id, "method": "POST", "url": "/v1/completions", "body": {"prompt": custom_id}}
    return json.dumps({**line, **changes})


def read(path: Path, *lines: str) -> list[Request | BadLine]:
    path.write_text("\n".join(lines))
    return list(Reader(path, "served"))


def test_a_request_that_names_no_model_is_for_the_one_that_is_served(tmp_path: Path) -> None:
    mine, other = read(tmp_path / "in", a_line("a"), a_line("b", body={"model": "x", "prompt": "p"}))
    assert isinstance(mine, Request)
    assert isinstance(other, Request)
    assert (mine.number, mine.body, other.body["model"]) == (1, {"model": "served", "prompt": "a"}, "x")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "is not JSON"),
        ("[1]", "must be an object with custom_id, method, url, body"),
        (a_line(""), 'custom_id = "" must be a text'),
        (a_line("first"), 'custom_id "first" is that of line 1'),
        (a_line("b", method="GET"), 'method = "GET" must be POST'),
        (a_line("b", url="/v1/images"), 'url = "/v1/images" is not one of /v1/chat/completions'),
        (a_line("b", body=3), "body = 3 must be an object"),
        (a_line("b", body={"stream": True}), "body.stream must be false"),
    ],
)
def test_what_is_no_request_is_told_with_its_line(tmp_path: Path, line: str, said: str) -> None:
    found = read(tmp_path / "in", a_line("first"), "", line, a_line("last"))
    assert [one.number for one in found] == [1, 3, 4]
    bad = found[1]
    assert isinstance(bad, BadLine)
    assert bad.message.startswith(f"line 3: {said}")
    assert scan(tmp_path / "in").lines == 3


def fill(results: Results, numbers: list[int], lines: int) -> None:
    results.open(lines)
    for number in numbers:
        if number not in results.answered:
            results.add(number, f"c{number}", {"status_code": 200 if number % 3 else 400, "body": {}}, None)


@given(
    st.lists(st.integers(1, 12), unique=True, max_size=12),
    st.lists(st.integers(0, 400), max_size=4),
)
def test_whatever_a_crash_leaves_is_taken_up_without_a_loss_or_a_double(
    tmp_path_factory: pytest.TempPathFactory, order: list[int], torn: list[int]
) -> None:
    output = tmp_path_factory.mktemp("out") / "out.jsonl"
    for size in torn:
        results = Results(output, KEY)
        fill(results, order, 12)
        results.close()
        (partial,) = output.parent.glob("*partial")
        with partial.open("r+b") as file:
            file.truncate(min(size, partial.stat().st_size))
    results = Results(output, KEY)
    fill(results, [*range(1, 13)], 12)
    results.finish()
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert sorted(one["custom_id"] for one in lines) == sorted(f"c{number}" for number in range(1, 13))
    assert list(output.parent.iterdir()) == [output]
    again = Results(output, KEY)
    again.open(12)
    assert (again.finished, len(again.answered), again.failed) == (True, 12, 4)


def test_answers_of_another_run_are_not_taken_for_its_own(tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    former = Results(output, KEY)
    fill(former, [1, 2], 2)
    former.finish()
    for other in (run_key("another", "hf://acme/tiny", "main"), run_key("digest", "hf://acme/tiny", "v2")):
        results = Results(output, other)
        results.open(2)
        assert (results.finished, results.answered, results.failed) == (False, set(), 0)
        results.close()
    assert len(output.read_text().splitlines()) == 2, "the former output stays until the new one is whole"


def in_a_bucket(store: Storage, folder: Path, clock: FakeClock) -> Results:
    """Return results whose pod has nothing but an empty folder."""
    folder.mkdir()
    access = Access(
        {"AWS_ACCESS_KEY_ID": ACCESS, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_ENDPOINT_URL": store.url}
    )
    bucket = Bucket(Place("s3://data/out.jsonl"), access)
    return Results(folder / "out.jsonl", KEY, bucket, clock.monotonic)


def test_answers_in_a_bucket_outlive_their_pods(tmp_path: Path) -> None:
    clock = FakeClock()
    with storage() as store:
        store.buckets["data"] = {}
        first = in_a_bucket(store, tmp_path / "a", clock)
        fill(first, [1, 2], 6)
        first.sync()
        assert (first.send(), first.synced) == (False, 0)
        assert store.buckets["data"] == {}, "it is not sent more often than is due"
        clock.advance(SEND_SECONDS)
        assert (first.send(), first.synced) == (True, 2)
        fill_on(first, [3])
        first.close()
        fragments = sorted(store.buckets["data"])
        assert [name.rpartition("/")[2] for name in fragments] == ["00000001", "00000002"]

        store.buckets["data"][fragments[1]] += (
            b'{"id": "torn'  # nobody writes so; it is lost, and no more than it
        )
        second = in_a_bucket(store, tmp_path / "b", clock)
        second.open(6)
        assert (second.answered, second.synced, second.finished) == ({1, 2, 3}, 3, False)
        fill_on(second, [4])
        second.close()
        assert [name.rpartition("/")[2] for name in sorted(store.buckets["data"])] == ["00000001", "00000002"]
        assert b"torn" not in b"".join(store.buckets["data"].values())

        third = in_a_bucket(store, tmp_path / "c", clock)
        third.open(6)
        assert third.answered == {1, 2, 3, 4}
        fill_on(third, [5, 6])
        third.finish()
        third.close()
        assert list(store.buckets["data"]) == ["out.jsonl"]
        assert len(store.buckets["data"]["out.jsonl"].splitlines()) == 6

        store.buckets["data"][fragments[0]] = b"left by a pod that ended between the two"
        fourth = in_a_bucket(store, tmp_path / "d", clock)
        fourth.open(6)
        assert (fourth.finished, len(fourth.answered), fourth.failed) == (True, 6, 2)
        assert list(store.buckets["data"]) == ["out.jsonl"]


def test_two_pods_that_wrote_at_once_leave_no_answer_twice(tmp_path: Path) -> None:
    """A node that the API has lost may still reach the bucket while its successor works."""
    clock = FakeClock()
    with storage() as store:
        store.buckets["data"] = {}
        first, second = (in_a_bucket(store, tmp_path / name, clock) for name in "ab")
        first.open(9)
        fill_on(first, [1, 2])
        first.sync()
        first.send(now=True)
        second.open(9)
        fill_on(second, [3])
        fill_on(first, [3, 4])
        first.close()
        fill_on(second, [5])
        second.sync()
        second.send(now=True)  # replaces the first one's second piece
        fill_on(first, [])
        third = in_a_bucket(store, tmp_path / "c", clock)
        third.open(9)
        assert third.answered == {1, 2, 3, 5}
        store.buckets["data"][f"{min(store.buckets['data'])[:-1]}3"] = b"".join(
            line for line in store.buckets["data"][max(store.buckets["data"])].splitlines(keepends=True)
        )
        fourth = in_a_bucket(store, tmp_path / "d", clock)
        fourth.open(9)
        assert (fourth.answered, fourth.failed) == ({1, 2, 3, 5}, 1)
        fourth.close()
        (piece,) = store.buckets["data"].values()
        assert len(piece.splitlines()) == 4


def test_a_whole_output_is_one_whether_its_pieces_go_or_not(tmp_path: Path) -> None:
    with storage() as store:
        store.buckets["data"] = {}
        results = in_a_bucket(store, tmp_path / "a", FakeClock())
        fill(results, [1], 2)
        results.sync()
        results.send(now=True)
        fill_on(results, [2])
        (piece,) = store.buckets["data"]
        store.refusals[f"/data/{piece}"] = (403, "AccessDenied")
        results.finish()
        assert results.finished
        assert len(store.buckets["data"]["out.jsonl"].splitlines()) == 2


def test_an_output_of_another_run_in_the_bucket_stays_until_this_one_has_ended(tmp_path: Path) -> None:
    with storage() as store:
        store.buckets["data"] = {"out.jsonl": b"not ours"}
        results = in_a_bucket(store, tmp_path / "a", FakeClock())
        fill(results, [1], 2)
        results.close()
        assert store.buckets["data"]["out.jsonl"] == b"not ours"
        assert store.asked("/data/out.jsonl") == [""], "it is asked what it is, and not fetched"


def fill_on(results: Results, numbers: list[int]) -> None:
    for number in numbers:
        results.add(number, f"c{number}", {"status_code": 200 if number % 3 else 400, "body": {}}, None)


class Served:
    """The serving application of a test: answers by `script`, remembers who was asked how often."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.together = self.most = 0
        self.script: dict[str, list[int]] = {}
        self.hold: asyncio.Event | None = None
        self.app = Starlette(routes=[Route("/v1/completions", self.answer, methods=["POST"])])

    async def answer(self, request: HttpRequest) -> Response:
        prompt = (await request.json())["prompt"]
        assert request.headers["authorization"] == "Bearer key"
        self.asked.append(prompt)
        number = len(self.asked)
        self.together += 1
        self.most = max(self.most, self.together)
        await asyncio.sleep(0)
        if self.hold is not None and number > 3:
            await self.hold.wait()
        self.together -= 1
        status = self.script[prompt].pop(0) if self.script.get(prompt) else 200
        if status == 200:
            return JSONResponse({"usage": {"prompt_tokens": 2, "completion_tokens": 3}})
        code = "overloaded" if status == 429 else "engine_lost"
        return JSONResponse({"error": {"code": code, "message": "no"}}, status_code=status)


class Made:
    """A run over `count` requests."""

    def __init__(self, folder: Path, count: int) -> None:
        path = folder / "in.jsonl"
        path.write_text("\n".join(a_line(f"r{number}") for number in range(count)) + "\n{bad\n")
        self.registry = CollectorRegistry()
        self.output = folder / "out.jsonl"
        self.results = Results(self.output, KEY)
        self.results.open(count + 1)
        metrics = BatchMetrics(self.registry)
        self.run = BatchRun(Reader(path, "m"), self.results, count + 1, metrics, FakeClock().monotonic)

    def metric(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, labels)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "_WAIT_SECONDS", 0.001)


@pytest.mark.anyio
async def test_every_line_gets_one_answer_with_the_engine_kept_busy(tmp_path: Path) -> None:
    served, made = Served(), Made(tmp_path, 30)
    served.script = {"r3": [503, 503, 200], "r5": [503, 503, 503], "r7": [429] * 9, "r9": [400]}
    await made.run.answer_all(served.app, "key", 4)
    made.results.finish()
    answers = {one["custom_id"]: one for one in map(json.loads, made.output.read_text().splitlines())}
    assert len(answers) == 31
    status = {name: one["response"]["status_code"] for name, one in answers.items() if one["response"]}
    assert {name for name, code in status.items() if code != 200} == {"r5", "r9"}
    assert (served.asked.count("r3"), served.asked.count("r7")) == (3, 10)
    assert "line 31" in answers[None]["error"]["message"]
    assert 4 <= served.most <= 6
    progress = made.run.progress()
    assert (progress.done, progress.total, progress.failed, progress.saved) == (31, 31, 3, 31)
    assert made.metric("llmos_batch_requests", state="answered") == 28
    assert made.metric("llmos_batch_requests", state="failed") == 3
    assert made.metric("llmos_batch_requests", state="open") == 0
    assert made.metric("llmos_batch_tokens_total", kind="completion") == 28 * 3


@pytest.mark.anyio
async def test_a_run_that_is_stopped_keeps_its_answers_and_asks_only_the_rest_again(tmp_path: Path) -> None:
    served, made = Served(), Made(tmp_path, 8)
    served.hold = asyncio.Event()
    work = asyncio.create_task(made.run.answer_all(served.app, "key", 2))
    async with asyncio.timeout(60):
        while len(made.results.answered) < 3:
            await asyncio.sleep(0.001)
    work.cancel()
    await asyncio.gather(work, return_exceptions=True)
    made.results.close()
    kept = {one["custom_id"] for one in _partial(tmp_path)}
    assert made.run.progress().saved == len(kept) >= 3
    served, again = Served(), Made(tmp_path, 8)
    await again.run.answer_all(served.app, "key", 2)
    assert not kept & set(served.asked)
    assert len(served.asked) == 8 - len(kept)


def _partial(folder: Path) -> list[dict[str, Any]]:
    (found,) = folder.glob("*partial")
    return [json.loads(line) for line in found.read_text().splitlines()]
