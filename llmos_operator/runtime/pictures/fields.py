"""Pictures of a request: base64 or data URLs in JSON, or a file of a form."""

from __future__ import annotations

import binascii
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING

from pydantic import ValidationError

from llmos_operator.runtime.answers import ApiError, bad_request, from_validation
from llmos_operator.runtime.protocol import ClassifyRequest
from llmos_operator.runtime.speech.multipart import BadForm, read_form

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_PICTURES = 16
_FILE = "file"


@dataclass(frozen=True, slots=True)
class Given:
    """A file of a picture and the field it came from."""

    param: str
    data: bytes = field(repr=False)


def read_classify(content_type: str, body: bytes) -> tuple[ClassifyRequest, Given | None]:
    """Return the fields of `POST /classify` and the file of a form, None where the body is JSON. Raises ApiError."""
    if not content_type.lower().startswith("multipart/"):
        try:
            return ClassifyRequest.model_validate_json(body), None
        except ValidationError as error:
            raise from_validation(error) from None
    try:
        form = read_form(content_type, body)
    except BadForm as error:
        raise bad_request("invalid_form", f"Invalid form: {error}.", error.param) from None
    upload = form.files.get(_FILE)
    if upload is None:
        text = "Missing required parameter: 'file' (a file of the form)."
        raise bad_request("missing_required_parameter", text, _FILE)
    values = {name: found[0] for name, found in form.fields.items() if name in ("model", "user")}
    try:
        return ClassifyRequest.model_validate({"input": "", **values}), Given(_FILE, upload.data)
    except ValidationError as error:
        raise from_validation(error) from None


def pictures_of(given: str | Sequence[object]) -> list[Given]:
    """Return the pictures of an `input`. Raises ApiError: 400 naming the place, 413."""
    texts = [given] if isinstance(given, str) else given
    if not texts or not all(isinstance(one, str) for one in texts):
        text = "'input' must be a picture as base64 or a data URL, or a list of such, for this model."
        raise bad_request("invalid_type", text, "input")
    if len(texts) > MAX_PICTURES:
        raise ApiError(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            "request_too_large",
            f"'input' has {len(texts)} pictures; a request may have {MAX_PICTURES}.",
            param="input",
        )
    names = ["input"] if isinstance(given, str) else [f"input[{at}]" for at in range(len(texts))]
    return [Given(name, _bytes(str(one), name)) for one, name in zip(texts, names, strict=True)]


def _bytes(text: str, param: str) -> bytes:
    if text[:8].lower().startswith(("http://", "https://")):
        wrong = f"Invalid '{param}': addresses are not fetched; send the picture as base64 or a data URL."
        raise bad_request("unsupported_value", wrong, param)
    if text[:5].lower() == "data:":
        head, comma, text = text.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise bad_request("invalid_image", f"Invalid '{param}': a data URL must say ';base64,'.", param)
    try:
        return binascii.a2b_base64(text.encode("ascii"), strict_mode=True)
    except ValueError:
        raise bad_request("invalid_image", f"Invalid '{param}': it is no base64.", param) from None
