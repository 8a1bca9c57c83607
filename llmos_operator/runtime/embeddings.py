"""`POST /v1/embeddings`: vectors of texts, as numbers or as base64 of little-endian float32."""

from __future__ import annotations

import asyncio
import base64
import sys
import uuid
from array import array
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from llmos_operator.errors import Permanent
from llmos_operator.runtime import spans
from llmos_operator.runtime.answers import ApiError, bad_request, unavailable
from llmos_operator.runtime.ipc import Embed
from llmos_operator.runtime.ipc.client import EngineLost, EngineUnavailable
from llmos_operator.runtime.planning import read_input

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmos_operator.runtime.answering import Kitchen
    from llmos_operator.runtime.ipc import EmbedResult
    from llmos_operator.runtime.protocol import EmbeddingRequest
    from llmos_operator.runtime.served import ServedModel

    Given = str | Sequence[str] | Sequence[int] | Sequence[Sequence[int]]

_FLOAT_BYTES = 4


async def embed(body: EmbeddingRequest, model: ServedModel, kitchen: Kitchen) -> dict[str, Any]:
    """Return OpenAI's list of embeddings. Raises ApiError."""
    size = model.info.embedding_size
    if not size or model.info.labels:
        text = f"The model {model.name} makes no embeddings: use {model.routes}."
        raise bad_request("unsupported_value", text, "model")
    if body.dimensions is not None and body.dimensions > size:
        text = f"'dimensions' is {body.dimensions}; this model's embeddings have {size}."
        raise bad_request("invalid_value", text, "dimensions")
    inputs = await read_texts(body.input, model)
    result = await ask(
        Embed(f"embd-{uuid.uuid4().hex}", tuple(inputs), dimensions=body.dimensions or 0), kitchen
    )
    spans.embedded(model.name, result.prompt_tokens, "embeddings")
    return {
        "object": "list",
        "data": _entries(result, as_base64=body.encoding_format == "base64"),
        "model": model.name,
        "usage": {"prompt_tokens": result.prompt_tokens, "total_tokens": result.prompt_tokens},
    }


async def read_texts(given: Given, model: ServedModel) -> list[tuple[int, ...]]:
    """Return the tokens of `input`: text, tokens, or a list of either. Raises ApiError (400) for what is too long."""
    inputs = await read_input(given, model, "input")
    for place, tokens in enumerate(inputs):
        if len(tokens) > model.max_model_len:
            raise bad_request(
                "context_length_exceeded",
                f"This model's maximum context length is {model.max_model_len} tokens. However, 'input[{place}]' has "
                f"{len(tokens)} tokens. Shorten it by {len(tokens) - model.max_model_len}.",
                "input",
            )
    return inputs


async def ask(request: Embed, kitchen: Kitchen) -> EmbedResult:
    """Return what the engine's encoder makes of a request. Raises ApiError: 429, 500, 503, 504."""
    kitchen.admission.enter(1)
    began = kitchen.monotonic()
    try:
        async with asyncio.timeout(kitchen.max_wait_seconds * 10):
            result = await kitchen.engine.embed(request)
    except EngineUnavailable as error:
        raise unavailable(
            "model_not_ready", f"The model is not ready: {error}.", retry_after=5.0, refused="loading"
        ) from error
    except EngineLost as error:
        raise ApiError(
            HTTPStatus.SERVICE_UNAVAILABLE,
            "engine_lost",
            f"The model was lost: {error}.",
            retry_after=error.after,
        ) from error
    except Permanent as error:
        raise ApiError(
            HTTPStatus.INTERNAL_SERVER_ERROR, "embedding_failed", f"The model gave no answer: {error}."
        ) from error
    except TimeoutError:
        raise ApiError(HTTPStatus.GATEWAY_TIMEOUT, "request_timeout", "The answer took too long.") from None
    finally:
        kitchen.admission.leave()
    kitchen.admission.finished(kitchen.monotonic() - began)
    return result


def rows(result: EmbedResult) -> list[bytes]:
    """Return the rows of an answer, as little-endian float32."""
    width = result.dimensions * _FLOAT_BYTES
    if not width:
        return []
    return [result.vectors[start : start + width] for start in range(0, len(result.vectors), width)]


def _entries(result: EmbedResult, *, as_base64: bool) -> list[dict[str, Any]]:
    return [
        {
            "object": "embedding",
            "index": index,
            "embedding": base64.b64encode(row).decode() if as_base64 else numbers(row),
        }
        for index, row in enumerate(rows(result))
    ]


def numbers(row: bytes) -> list[float]:
    """Return the numbers of a row."""
    found = array("f")
    found.frombytes(row)
    if sys.byteorder == "big":
        found.byteswap()
    return found.tolist()
