"""`POST /v1/score` and `/v1/rerank`: how well texts belong together, in vLLM's, Jina's and Cohere's shapes.

A classifier with one label reads two texts as one and answers itself; of an embedding model it is the cosine of their vectors.
"""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass
from operator import mul
from typing import TYPE_CHECKING, Any

from llmos_operator.api.runtime.abilities import SCORE
from llmos_operator.runtime import spans
from llmos_operator.runtime.answers import bad_request
from llmos_operator.runtime.embeddings import ask, numbers, rows
from llmos_operator.runtime.ipc import Embed
from llmos_operator.runtime.planning import refuse_too_long
from llmos_operator.runtime.protocol import TextDocument

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmos_operator.runtime.answering import Kitchen
    from llmos_operator.runtime.ipc import EmbedResult
    from llmos_operator.runtime.protocol import RerankRequest, ScoreRequest
    from llmos_operator.runtime.served import ServedModel


@dataclass(frozen=True, slots=True)
class Cut:
    """What is cut off texts that are too long. In tokens; None: nothing, they are refused."""

    whole: int | None = None
    second: int | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """Pairs of texts, each with the fields it came from."""

    id: str
    pairs: tuple[tuple[str, str], ...]
    params: tuple[tuple[str, str], ...]
    cut: Cut


async def score(body: ScoreRequest, model: ServedModel, kitchen: Kitchen, created: int) -> dict[str, Any]:
    """Return a number for each pair, as vLLM does. Raises ApiError."""
    least = _require(model)
    pairs, params = _paired(body)
    cut = Cut(_limit(body.truncate_prompt_tokens, least, model))
    question = Question(f"score-{uuid.uuid4().hex}", pairs, params, cut)
    scores, tokens = await _answer(question, model, kitchen)
    return {
        "id": question.id,
        "object": "list",
        "created": created,
        "model": model.name,
        "data": [{"index": index, "object": "score", "score": one} for index, one in enumerate(scores)],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


async def rerank(body: RerankRequest, model: ServedModel, kitchen: Kitchen) -> dict[str, Any]:
    """Return the documents that answer a query best, best first. Raises ApiError."""
    least = _require(model)
    texts = [one.text if isinstance(one, TextDocument) else one for one in body.documents]
    pairs = tuple((body.query, text) for text in texts)
    params = tuple(("query", f"documents[{index}]") for index in range(len(texts)))
    cut = Cut(_limit(body.truncate_prompt_tokens, least, model), body.max_tokens_per_doc or None)
    question = Question(f"rerank-{uuid.uuid4().hex}", pairs, params, cut)
    scores, tokens = await _answer(question, model, kitchen)
    # Equal ones stay in their order.
    best = sorted(range(len(texts)), key=lambda index: -scores[index])[: body.top_n or None]
    shown = body.return_documents is not False
    return {
        "id": question.id,
        "model": model.name,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
        "results": [
            {"index": index}
            | ({"document": {"text": texts[index]}} if shown else {})
            | {"relevance_score": scores[index]}
            for index in best
        ],
    }


def _require(model: ServedModel) -> int:
    """Return how many tokens the model's tokenizer adds to what is compared. Raises ApiError (400) for other models."""
    if SCORE in model.apis:
        return model.vocabulary.added(pair=bool(model.info.labels))
    why = f" tells {len(model.info.labels)} labels apart and" if model.info.labels else ""
    text = f"The model {model.name}{why} gives no scores: use {model.routes}."
    raise bad_request("unsupported_value", text, "model")


def _paired(body: ScoreRequest) -> tuple[tuple[tuple[str, str], ...], tuple[tuple[str, str], ...]]:
    """Return the pairs of a body, one text with each of many or as many with as many, and where they came from."""
    first, second = body.text_1, body.text_2
    one, many = isinstance(first, str), isinstance(second, str)
    firsts = [first] if isinstance(first, str) else first
    seconds = [second] if isinstance(second, str) else second
    for name, texts in (("text_1", firsts), ("text_2", seconds)):
        if not texts:
            raise bad_request("invalid_value", f"'{name}' must not be an empty list.", name)
    if len(firsts) not in (1, len(seconds)):
        raise bad_request(
            "invalid_value",
            f"'text_1' has {len(firsts)} texts and 'text_2' {len(seconds)}; give one in 'text_1', or as many as in 'text_2'.",
            "text_1",
        )
    single = len(firsts) == 1
    pairs = tuple((firsts[0 if single else at], text) for at, text in enumerate(seconds))
    params = tuple(
        (
            "text_1" if one else f"text_1[{0 if single else at}]",
            "text_2" if many else f"text_2[{at}]",
        )
        for at in range(len(seconds))
    )
    return pairs, params


def _limit(wanted: int | None, least: int, model: ServedModel) -> int | None:
    """Return how many tokens an input may have, None where nothing is cut. Raises ApiError (400)."""
    if wanted is None:
        return None
    if wanted == -1:
        return model.max_model_len
    if not least < wanted <= model.max_model_len:
        raise bad_request(
            "invalid_value",
            f"'truncate_prompt_tokens' is {wanted}; use -1 for the whole context, or {least + 1} to {model.max_model_len}.",
            "truncate_prompt_tokens",
        )
    return wanted


async def _answer(question: Question, model: ServedModel, kitchen: Kitchen) -> tuple[list[float], int]:
    """Return the score of each pair, and the tokens that were read."""
    await _refuse_too_long(question, model)
    answer = _judged if model.info.labels else _cosines
    scores, tokens = await answer(question, model, kitchen)
    spans.embedded(model.name, tokens, "score")
    return scores, tokens


async def _refuse_too_long(question: Question, model: ServedModel) -> None:
    cut = question.cut
    if cut.whole is not None:
        return
    texts: dict[str, str] = {}
    for (first, second), (of_first, of_second) in zip(question.pairs, question.params, strict=True):
        texts[of_first] = first
        if cut.second is None:
            texts[of_second] = second
    for param, text in texts.items():
        await refuse_too_long(text, model, param)


async def _judged(question: Question, model: ServedModel, kitchen: Kitchen) -> tuple[list[float], int]:
    """Let a classifier read both texts of each pair."""
    cut = question.cut
    found = await model.vocabulary.encode_pairs(question.pairs, cut.whole, cut.second)
    for pair, (_, param) in zip(found, question.params, strict=True):
        _check(pair.tokens, param, model)
    result = await ask(
        Embed(
            question.id,
            tuple(pair.tokens for pair in found),
            classify=True,
            second_from=tuple(pair.second_from for pair in found),
        ),
        kitchen,
    )
    return [numbers(row)[0] for row in rows(result)], result.prompt_tokens


async def _cosines(question: Question, model: ServedModel, kitchen: Kitchen) -> tuple[list[float], int]:
    """Compare the vectors of the texts, each of which is read once."""
    cut = question.cut
    firsts = dict(zip((one for one, _ in question.pairs), (one for one, _ in question.params), strict=True))
    seconds = dict(zip((two for _, two in question.pairs), (two for _, two in question.params), strict=True))
    inputs = []
    for texts, own in ((firsts, None), (seconds, cut.second)):
        encoded = await model.vocabulary.encode_cut(tuple(texts), cut.whole, own)
        for tokens, param in zip(encoded, texts.values(), strict=True):
            _check(tokens, param, model)
        inputs += encoded
    result = await ask(Embed(question.id, tuple(inputs)), kitchen)
    places = (
        {text: at for at, text in enumerate(firsts)},
        {text: at + len(firsts) for at, text in enumerate(seconds)},
    )
    wanted = [(places[0][first], places[1][second]) for first, second in question.pairs]
    return await asyncio.to_thread(_products, result, wanted), result.prompt_tokens


def _products(result: EmbedResult, wanted: Sequence[tuple[int, int]]) -> list[float]:
    """Return the products of rows, which are vectors of length one."""
    vectors = [numbers(row) for row in rows(result)]
    return [sum(map(mul, vectors[first], vectors[second])) for first, second in wanted]


def _check(tokens: Sequence[int], param: str, model: ServedModel) -> None:
    if not tokens:
        raise bad_request("invalid_value", f"'{param}' has no tokens: it must not be empty.", param)
    if len(tokens) > model.max_model_len:
        with_first = " with the text it is compared to" if model.info.labels else ""
        raise bad_request(
            "context_length_exceeded",
            f"This model's maximum context length is {model.max_model_len} tokens. However, '{param}'{with_first} has "
            f"{len(tokens)} tokens. Shorten it by {len(tokens) - model.max_model_len}, or set 'truncate_prompt_tokens' to -1.",
            param,
        )
