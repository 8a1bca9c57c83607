"""The routes that compare texts around a scripted engine: what is asked of it, and what clients get."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.engine import MODEL, RuntimeBench, ScriptedEngine, running_runtime
from tests.support.pairs import BEGIN, END, write_tokenizer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.anyio

CONTEXT = 10
JUDGE = {"labels": ("score",), "embedding_size": 1, "apis": ("classify", "score")}
VECTORS = {"embedding_size": 2, "apis": ("embeddings", "score")}
PARIS, IS, ROME = 5, 6, 14


@asynccontextmanager
async def _scoring(folder: Path, info: dict[str, Any], **settings: Any) -> AsyncIterator[RuntimeBench]:
    write_tokenizer(folder / "scoring", "bert")
    info = {"generative": False, "max_model_len": CONTEXT, "vocab_size": 17} | info
    engine = ScriptedEngine(model_dir=str(folder / "scoring"), info=info)
    async with running_runtime(folder, engine=engine, **settings) as bench:
        yield bench


async def test_a_judge_reads_both_texts_of_each_pair(tmp_path: Path) -> None:
    async with _scoring(tmp_path, JUDGE) as bench:
        body = {"model": MODEL, "text_1": "paris", "text_2": ["is", "is rome"]}
        status, found, _ = await bench.post("/v1/score", body)
        assert status == 200, found
        (asked,) = bench.engine.embeds
        assert asked.inputs == ((BEGIN, PARIS, END, IS, END), (BEGIN, PARIS, END, IS, ROME, END))
        assert (asked.second_from, asked.classify) == ((3, 3), True)
        assert found["object"] == "list"
        assert found["id"].startswith("score-")
        assert found["data"] == [
            {"index": 0, "object": "score", "score": 5.0},
            {"index": 1, "object": "score", "score": 6.0},
        ]
        assert found["usage"] == {"prompt_tokens": 11, "total_tokens": 11}


@pytest.mark.parametrize("names", [("queries", "documents"), ("data_1", "data_2")])
@pytest.mark.parametrize("path", ["/v1/score", "/score"])
async def test_other_names_of_vllm_for_the_same(tmp_path: Path, names: tuple[str, str], path: str) -> None:
    async with _scoring(tmp_path, JUDGE) as bench:
        body = {"model": MODEL, names[0]: ["paris", "rome"], names[1]: ["is", "is is"]}
        status, found, _ = await bench.post(path, body)
        assert (status, [one["score"] for one in found["data"]]) == (200, [5.0, 6.0])
        assert bench.engine.embeds[0].inputs[1] == (BEGIN, ROME, END, IS, IS, END)


@pytest.mark.parametrize("path", ["/v1/rerank", "/rerank", "/v2/rerank"])
async def test_documents_come_back_best_first(tmp_path: Path, path: str) -> None:
    async with _scoring(tmp_path, JUDGE) as bench:
        body = {"model": MODEL, "query": "paris", "documents": ["is", {"text": "is is is"}, "is", "is is"]}
        status, found, _ = await bench.post(path, body)
        assert status == 200, found
        assert [(one["index"], one["relevance_score"]) for one in found["results"]] == [
            (1, 7.0),
            (3, 6.0),
            (0, 5.0),
            (2, 5.0),
        ]
        assert found["results"][0]["document"] == {"text": "is is is"}
        assert found["usage"]["total_tokens"] == 23
        status, found, _ = await bench.post(path, body | {"top_n": 1, "return_documents": False})
        assert (status, found["results"]) == (200, [{"index": 1, "relevance_score": 7.0}])


async def test_of_vectors_it_is_the_product_and_each_text_is_read_once(tmp_path: Path) -> None:
    async with _scoring(tmp_path, VECTORS) as bench:
        body = {"model": MODEL, "query": "paris", "documents": ["is is", "paris", "is is"]}
        status, found, _ = await bench.post("/v1/rerank", body)
        assert status == 200, found
        (asked,) = bench.engine.embeds
        assert asked.inputs == ((BEGIN, PARIS, END), (BEGIN, IS, IS, END), (BEGIN, PARIS, END))
        assert (asked.classify, asked.normalize, asked.second_from) == (False, True, ())
        # The scripted engine's vector of n tokens is (n, n + 1/8).
        assert [(one["index"], one["relevance_score"]) for one in found["results"]] == [
            (0, 3 * 4 + 3.125 * 4.125),
            (2, 3 * 4 + 3.125 * 4.125),
            (1, 9 + 3.125**2),
        ]
        assert found["usage"]["prompt_tokens"] == 10


async def test_what_is_too_long_is_refused_or_cut(tmp_path: Path) -> None:
    long = "rome " * 12
    async with _scoring(tmp_path, JUDGE) as bench:
        body = {"model": MODEL, "query": "paris is", "documents": ["is", long]}
        status, found, _ = await bench.post("/v1/rerank", body)
        assert (status, found["error"]["code"]) == (400, "context_length_exceeded")
        assert found["error"]["param"] == "documents[1]"
        assert "truncate_prompt_tokens" in found["error"]["message"]
        assert bench.engine.embeds == []
        for cut, length in (({"truncate_prompt_tokens": -1}, 10), ({"truncate_prompt_tokens": 8}, 8)):
            status, found, _ = await bench.post("/v1/rerank", body | cut)
            assert (status, len(bench.engine.embeds[-1].inputs[1])) == (200, length)
        assert bench.engine.embeds[-1].inputs[1] == (BEGIN, PARIS, IS, END, ROME, ROME, ROME, END)
        status, found, _ = await bench.post("/v1/rerank", body | {"max_tokens_per_doc": 1})
        assert (status, len(bench.engine.embeds[-1].inputs[1])) == (200, 6)
    async with _scoring(tmp_path, VECTORS) as bench:
        status, found, _ = await bench.post("/v1/score", {"model": MODEL, "text_1": "is", "text_2": long})
        assert (status, found["error"]["param"]) == (400, "text_2")
        status, found, _ = await bench.post("/v1/rerank", body | {"truncate_prompt_tokens": 4})
        assert (status, [len(one) for one in bench.engine.embeds[-1].inputs]) == (200, [4, 3, 4])


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("/v1/score", {"text_1": ["a", "b"], "text_2": ["a"]}, "text_1"),
        ("/v1/score", {"text_1": [], "text_2": ["a"]}, "text_1"),
        ("/v1/score", {"text_1": "a", "text_2": []}, "text_2"),
        ("/v1/score", {"text_1": "a"}, "text_2"),
        ("/v1/score", {"text_1": "a", "text_2": "a", "truncate_prompt_tokens": 3}, "truncate_prompt_tokens"),
        ("/v1/score", {"text_1": "a", "text_2": "a", "truncate_prompt_tokens": 11}, "truncate_prompt_tokens"),
        ("/v1/rerank", {"query": "a", "documents": []}, "documents"),
        ("/v1/rerank", {"query": "a", "documents": ["a"] * 1001}, "documents"),
        ("/v1/rerank", {"query": "a", "documents": [7]}, "documents[0]"),
        ("/v1/rerank", {"query": "a", "documents": [{"title": "a"}]}, "documents[0].text"),
        ("/v1/rerank", {"query": "a", "documents": ["a"], "top_n": -1}, "top_n"),
    ],
)
async def test_refusals_name_the_field(tmp_path: Path, path: str, fields: dict[str, Any], param: str) -> None:
    async with _scoring(tmp_path, JUDGE) as bench:
        status, found, _ = await bench.post(path, {"model": MODEL, **fields})
        assert (status, found["error"]["param"]) == (400, param), found
        assert bench.engine.embeds == []


async def test_models_without_scores_say_what_they_do(tmp_path: Path) -> None:
    body = {"model": MODEL, "text_1": "paris", "text_2": "rome"}
    async with _scoring(tmp_path, {"labels": ("a", "b"), "apis": ("classify",)}) as bench:
        status, found, _ = await bench.post("/v1/score", body)
        assert (status, "tells 2 labels apart" in found["error"]["message"]) == (400, True)
        assert "/classify" in found["error"]["message"]
    async with running_runtime(tmp_path) as bench:
        status, found, _ = await bench.post("/v1/score", body)
        assert (status, "/v1/chat/completions" in found["error"]["message"]) == (400, True)
    async with _scoring(tmp_path, JUDGE, apis=("classify",)) as bench:
        for path in ("/v1/score", "/v1/rerank"):
            status, found, _ = await bench.post(path, body)
            assert (status, found["error"]["code"]) == (404, "unsupported_endpoint")
