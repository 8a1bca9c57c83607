"""Errors as OpenAI's API words them, and the way from a pydantic error to one.

A message names the field as a client writes it (`messages[0].content`), what was expected and what came, cut short.
"""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import ValidationError

REFUSED = "X-LLMOS-Refused"  # tells the gateway that nothing was begun: another replica may take the request
_SHOWN = 60
_SHOULD = "Input should be "
_WRONG_TYPE = ("_type", "_parsing")
_TYPES = {
    HTTPStatus.BAD_REQUEST: "invalid_request_error",
    HTTPStatus.UNAUTHORIZED: "authentication_error",
    HTTPStatus.FORBIDDEN: "permission_error",
    HTTPStatus.NOT_FOUND: "invalid_request_error",
    HTTPStatus.METHOD_NOT_ALLOWED: "invalid_request_error",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "invalid_request_error",
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error",
}


class ApiError(Exception):
    """A request is answered with an error."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_after: float | None = None,
        refused: str = "",
    ) -> None:
        """``retry_after`` is in seconds; ``refused`` says that nothing was begun, and why, in one word."""
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.retry_after = retry_after
        self.refused = refused

    def headers(self) -> dict[str, str]:
        """Return the headers that belong to the answer."""
        found = {}
        if self.retry_after is not None:
            found["Retry-After"] = str(max(1, -int(-self.retry_after // 1)))
        if self.refused:
            found[REFUSED] = self.refused
        if self.status == HTTPStatus.UNAUTHORIZED:
            found["WWW-Authenticate"] = "Bearer"
        return found

    def body(self) -> bytes:
        """Return the JSON body."""
        return json.dumps(self.document()).encode()

    def document(self) -> dict[str, Any]:
        """Return the error object."""
        kind = _TYPES.get(HTTPStatus(self.status), "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def bad_request(code: str, message: str, param: str | None = None) -> ApiError:
    """Return a 400."""
    return ApiError(HTTPStatus.BAD_REQUEST, code, message, param=param)


def unavailable(code: str, message: str, *, retry_after: float, refused: str) -> ApiError:
    """Return a 503 for a request that was not begun."""
    return ApiError(HTTPStatus.SERVICE_UNAVAILABLE, code, message, retry_after=retry_after, refused=refused)


def from_validation(error: ValidationError) -> ApiError:
    """Return the 400 for the first thing that is wrong with a body."""
    first = _first(error)
    kind, message = str(first["type"]), str(first["msg"])
    if kind == "json_invalid":
        return bad_request(
            "invalid_json", f"The request body is not valid JSON: {message.partition(': ')[2] or message}."
        )
    param = param_of(first["loc"])
    if kind == "missing":
        return bad_request("missing_required_parameter", f"Missing required parameter: '{param}'.", param)
    if kind == "model_type" and not param:
        return bad_request("invalid_json", "The request body must be a JSON object.")
    if kind == "value_error":
        return bad_request(
            "invalid_value", f"Invalid '{param}': {message.removeprefix('Value error, ')}.", param
        )
    wrong_type = kind.endswith(_WRONG_TYPE)
    code, word = ("invalid_type", "type for") if wrong_type else ("invalid_value", "value for")
    wanted = (_wanted(error, param) if wrong_type else "") or message
    return bad_request(
        code, f"Invalid {word} '{param}': {_lower(wanted)}, got {shown(first['input'])}.", param
    )


def _wanted(error: ValidationError, param: str) -> str:
    """Return what all members of a union wanted at one place: `Input should be a valid string or a valid array`."""
    messages = [str(one["msg"]) for one in error.errors(include_url=False) if param_of(one["loc"]) == param]
    if not all(message.startswith(_SHOULD) for message in messages):
        return ""
    return _SHOULD + " or ".join(dict.fromkeys(message.removeprefix(_SHOULD) for message in messages))


def param_of(location: tuple[int | str, ...]) -> str:
    """Return a pydantic location as a client would write it; members of unions are left out."""
    text = ""
    for part in location:
        if isinstance(part, int):
            text += f"[{part}]"
        elif part[:1].islower() and part.isidentifier() and part not in _UNION_MEMBERS:
            text += f".{part}" if text else part
    return text


def shown(value: object) -> str:
    """Return a value for a message, cut so that an answer never repeats a whole request."""
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


_UNION_MEMBERS = frozenset({"str", "int", "float", "bool", "list", "dict", "constrained"})


def _first(error: ValidationError) -> Any:
    """Return the error to report: of a union's members, the one that got furthest into the value."""
    found = error.errors(include_url=False, include_context=False)

    def rank(one: Any) -> tuple[bool, bool, int, list[int], bool]:
        location = one["loc"]
        places = [part for part in location if isinstance(part, int)]
        right_type = not str(one["type"]).endswith(_WRONG_TYPE)
        return (
            location[:1] == found[0]["loc"][:1],
            one["type"] == "too_long",
            len(location),
            places,
            right_type,
        )

    return max(found, key=rank)


def _lower(message: str) -> str:
    return message[:1].lower() + message[1:]
