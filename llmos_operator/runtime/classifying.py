"""`POST /classify`: the labels of texts or pictures with their probabilities, in the shape of vLLM's answer."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

from llmos_operator.runtime import spans
from llmos_operator.runtime.answers import bad_request
from llmos_operator.runtime.embeddings import ask, numbers, read_texts, rows
from llmos_operator.runtime.ipc import Embed
from llmos_operator.runtime.pictures.fields import pictures_of

if TYPE_CHECKING:
    from llmos_operator.runtime.answering import Kitchen
    from llmos_operator.runtime.pictures.decoder import PictureDecoder
    from llmos_operator.runtime.pictures.fields import Given
    from llmos_operator.runtime.protocol import ClassifyRequest
    from llmos_operator.runtime.served import ServedModel


async def classify(
    body: ClassifyRequest,
    upload: Given | None,
    model: ServedModel,
    kitchen: Kitchen,
    decoder: PictureDecoder,
    created: int,
) -> dict[str, Any]:
    """Return a label for each input, or for the file of a form. Raises ApiError."""
    labels = model.info.labels
    if not labels:
        raise bad_request(
            "unsupported_value", f"The model {model.name} classifies nothing: use {model.routes}.", "model"
        )
    name = f"classify-{uuid.uuid4().hex}"
    if model.pictures is not None:
        given = [upload] if upload is not None else pictures_of(body.input)
        seen = [await decoder.decode(one.data, model.pictures, one.param) for one in given]
        question = Embed(name, (), classify=True, pictures=tuple(seen))
    elif upload is not None:
        text = f"The model {model.name} reads texts: send JSON with 'input', not a file."
        raise bad_request("unsupported_value", text, "file")
    else:
        question = Embed(name, tuple(await read_texts(body.input, model)), classify=True)
    result = await ask(question, kitchen)
    spans.embedded(model.name, result.prompt_tokens, "classify")
    return {
        "id": name,
        "object": "list",
        "created": created,
        "model": model.name,
        "data": [_entry(index, numbers(row), labels) for index, row in enumerate(rows(result))],
        "usage": {"prompt_tokens": result.prompt_tokens, "total_tokens": result.prompt_tokens},
    }


def _entry(index: int, probabilities: list[float], labels: tuple[str, ...]) -> dict[str, Any]:
    best = max(range(len(probabilities)), key=probabilities.__getitem__)
    return {
        "index": index,
        "label": labels[best],
        "probs": probabilities,
        "num_classes": len(probabilities),
    }
