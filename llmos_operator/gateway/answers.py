"""Answers of the gateway itself, in the error shape of OpenAI's API.

`{"error": {"message", "type", "param", "code"}}`: clients of that API show `message` to people and branch on `code`,
so both are part of the interface (docs/gateway.md lists the codes).
"""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any

from aiohttp import web

_TYPES = {
    HTTPStatus.BAD_REQUEST: "invalid_request_error",
    HTTPStatus.UNAUTHORIZED: "authentication_error",
    HTTPStatus.FORBIDDEN: "permission_error",
    HTTPStatus.NOT_FOUND: "invalid_request_error",
    HTTPStatus.METHOD_NOT_ALLOWED: "invalid_request_error",
    HTTPStatus.REQUEST_TIMEOUT: "invalid_request_error",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "invalid_request_error",
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error",
}


class Refused(Exception):  # noqa: N818 - an answer, not a fault
    """The gateway answers a request itself with an error status."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        retry_after: float | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        """``retry_after`` is in seconds; it is rounded up to whole ones, as the header demands."""
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.retry_after = retry_after
        self.headers = headers or {}

    def body(self) -> bytes:
        """Return the JSON body."""
        kind = _TYPES.get(HTTPStatus(self.status), "server_error")
        return error_body(kind, self.code, self.message, self.param)

    def response(self) -> web.Response:
        """Return the HTTP response."""
        headers = dict(self.headers)
        if self.retry_after is not None:
            headers["Retry-After"] = str(max(1, -int(-self.retry_after // 1)))
        return web.Response(
            status=self.status, body=self.body(), content_type="application/json", headers=headers
        )


def error_body(kind: str, code: str, message: str, param: str | None = None) -> bytes:
    """Return the bytes of an error object."""
    return json_bytes({"error": {"message": message, "type": kind, "param": param, "code": code}})


def json_bytes(value: Any) -> bytes:
    """Return ``value`` as compact JSON, in ASCII: names from requests may hold halves of surrogate pairs."""
    return json.dumps(value, separators=(",", ":")).encode()


def json_response(value: Any) -> web.Response:
    """Return ``value`` as a 200 response."""
    return web.Response(body=json_bytes(value), content_type="application/json")
