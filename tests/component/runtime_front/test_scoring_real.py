"""Texts compared by real models in a real runtime."""

from __future__ import annotations

import http.client
import json
from typing import TYPE_CHECKING, Any

import pytest
import requests
import torch

from tests.support.models import SENTENCES, packaged, write_classifier
from tests.support.pairs import tokenizer, write_tokenizer
from tests.support.served import runtime_process
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.model

QUERY = "What is the capital of France?"
DOCUMENTS = [
    "Rain falls mostly in autumn.",
    "Paris is the capital of France.",
    "Rome is the capital of Italy.",
]


def _post(url: str, **body: Any) -> Any:
    answer = requests.post(url, json={"model": "m", **body}, timeout=180)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_vectors_put_the_answer_first_and_scores_are_their_cosines(tmp_path: Path) -> None:
    with runtime_process(tmp_path, str(packaged(SENTENCES)), "127.99.8.15", LLMOS_FORMAT="fp32") as served:
        ranked = _post(f"{served.url}/v1/rerank", query=QUERY, documents=DOCUMENTS)
        assert [one["index"] for one in ranked["results"]] == [1, 2, 0]
        vectors = served.client.embeddings.create(model="m", input=[QUERY, *DOCUMENTS]).data
        query, *others = (torch.tensor(one.embedding) for one in vectors)
        expected = [float(query @ other) for other in others]
        found = {one["index"]: one["relevance_score"] for one in ranked["results"]}
        assert [found[index] for index in range(3)] == pytest.approx(expected, abs=1e-5)
        scored = _post(f"{served.url}/v1/score", text_1=QUERY, text_2=DOCUMENTS)
        assert [one["score"] for one in scored["data"]] == pytest.approx(expected, abs=1e-5)


def test_a_client_that_leaves_stops_what_is_computed_for_it(tmp_path: Path) -> None:
    texts = [[2000 + number, *range(3000, 3400)] for number in range(600)]
    body = json.dumps({"model": "m", "input": texts}).encode()
    with runtime_process(tmp_path, str(packaged(SENTENCES)), "127.99.8.17") as served:
        leaving = http.client.HTTPConnection("127.99.8.17", 18800)
        leaving.request("POST", "/v1/embeddings", body, {"Content-Type": "application/json"})
        eventually(lambda: served.report()["requests"]["waiting"] == 1, "the request is being computed", 60)
        leaving.close()
        eventually(lambda: served.report()["requests"]["aborted"] == 1, "the request is dropped", 60)
        _post(f"{served.url}/v1/embeddings", input="another")
        eventually(lambda: served.report()["requests"]["finished"] == 1, "the other one is counted", 60)
        after = served.report()["requests"]
        metrics = requests.get(f"{served.url}/metrics", timeout=60).text
    assert (after["waiting"], after["promptTokens"] < 10) == (0, True), "nothing of it has been finished"
    assert "llmos_runtime_client_gone_total 1.0" in metrics


def test_a_cross_encoder_scores_as_transformers_does(tmp_path: Path) -> None:
    reference = write_classifier(tmp_path / "m", "bert", ("score",))
    write_tokenizer(tmp_path / "m", "bert")
    texts = ["rain falls on rome", "paris is the capital of france", "rome is the capital"]
    with runtime_process(tmp_path, str(tmp_path / "m"), "127.99.8.16", LLMOS_FORMAT="fp32") as served:
        scored = _post(f"{served.url}/v1/score", text_1="what is the capital ?", text_2=texts)
        ranked = _post(f"{served.url}/v1/rerank", query="what is the capital ?", documents=texts)
    expected = []
    for text in texts:
        one = tokenizer("bert").encode("what is the capital ?", text)
        with torch.no_grad():
            logits = reference(torch.tensor([one.ids]), token_type_ids=torch.tensor([one.type_ids])).logits
        expected.append(float(logits.sigmoid()[0, 0]))
    assert [one["score"] for one in scored["data"]] == pytest.approx(expected, abs=1e-5)
    assert [one["index"] for one in ranked["results"]] == sorted(range(3), key=lambda at: -expected[at])
    assert len(set(expected)) == 3, "the answers depend on the texts"
