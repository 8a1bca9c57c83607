"""What the gateway must know of a request body: the model it asks for, and that it is sane.

Bodies are forwarded byte for byte; only a namespaced model name is rewritten to the name the replica knows.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from llmos_operator.gateway.answers import Refused, json_bytes

_CONTAINERS = (dict, list)
_MODEL_PART = re.compile(
    rb'content-disposition:[^\r\n]*;\s*name="?model"?\s*(?:;[^\r\n]*)?\r\n(?:[^\r\n]+\r\n)*\r\n([^\r\n]*)\r\n',
    re.IGNORECASE,
)
_MODEL_NAME_LIMIT = 512


@dataclass(slots=True)
class Asked:
    """A request body and what it asks for."""

    raw: bytes
    model: str
    stream: bool = False
    include_usage: bool = False
    document: dict[str, Any] | None = None  # None for multipart bodies


def read_json(raw: bytes, *, max_depth: int) -> Asked:
    """Parse a JSON request body. Raises Refused (400) naming what is wrong."""
    try:
        document = json.loads(raw)
    except RecursionError:
        raise _too_deep(max_depth) from None
    except ValueError as error:
        # The decoder's message carries position and fault, never content.
        raise Refused(
            HTTPStatus.BAD_REQUEST, "invalid_json", f"The request body is not valid JSON: {error}"
        ) from None
    if not isinstance(document, dict):
        raise Refused(
            HTTPStatus.BAD_REQUEST,
            "invalid_json",
            f"The request body must be a JSON object, not {_json_type(document)}.",
        )
    if deeper_than(document, max_depth):
        raise _too_deep(max_depth)
    options = document.get("stream_options")
    return Asked(
        raw=raw,
        model=_model_of(document),
        stream=document.get("stream") is True,
        include_usage=isinstance(options, dict) and options.get("include_usage") is True,
        document=document,
    )


def read_multipart(raw: bytes) -> Asked:
    """Find the form field `model` in a multipart body (audio and image endpoints)."""
    match = _MODEL_PART.search(raw)
    if match is None:
        raise Refused(
            HTTPStatus.BAD_REQUEST,
            "missing_required_parameter",
            "Missing required parameter: 'model' (a form field of the multipart body).",
            param="model",
        )
    return Asked(raw=raw, model=match.group(1).decode("utf-8", "replace")[:_MODEL_NAME_LIMIT])


def with_model(asked: Asked, model: str) -> bytes:
    """Return the body with ``model`` in place of the name the client used."""
    if asked.document is not None:
        return json_bytes({**asked.document, "model": model})
    match = _MODEL_PART.search(asked.raw)
    if match is None:
        return asked.raw
    return asked.raw[: match.start(1)] + model.encode() + asked.raw[match.end(1) :]


def deeper_than(document: Any, limit: int) -> bool:
    """Whether containers nest more than ``limit`` deep; level by level, without recursion."""
    level = [document] if isinstance(document, _CONTAINERS) else []
    for _ in range(limit):
        if not level:
            return False
        below: list[Any] = []
        for node in level:
            values = node.values() if isinstance(node, dict) else node
            below.extend(value for value in values if isinstance(value, _CONTAINERS))
        level = below
    return bool(level)


def _model_of(document: dict[str, Any]) -> str:
    if "model" not in document:
        raise Refused(
            HTTPStatus.BAD_REQUEST,
            "missing_required_parameter",
            "Missing required parameter: 'model'. GET /v1/models lists the names.",
            param="model",
        )
    model = document["model"]
    if not isinstance(model, str) or not model:
        raise Refused(
            HTTPStatus.BAD_REQUEST,
            "invalid_type",
            f"Invalid type for 'model': expected a non-empty string, got {_json_type(model)}.",
            param="model",
        )
    if len(model) > _MODEL_NAME_LIMIT:
        raise Refused(
            HTTPStatus.BAD_REQUEST,
            "invalid_value",
            f"Invalid 'model': {len(model)} characters, at most {_MODEL_NAME_LIMIT} are allowed.",
            param="model",
        )
    return model


def _too_deep(limit: int) -> Refused:
    return Refused(
        HTTPStatus.BAD_REQUEST,
        "invalid_json",
        f"The request body nests more than {limit} levels deep; flatten it.",
    )


def _json_type(value: Any) -> str:
    if value is None:
        return "null"
    names = {
        bool: "a boolean",
        int: "a number",
        float: "a number",
        str: "a string",
        list: "an array",
        dict: "an object",
    }
    text = names.get(type(value), "an unknown value")
    return "an empty string" if value == "" else text
