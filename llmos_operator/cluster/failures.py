"""API failures as this package's errors: one class per thing a caller does differently.

::

    Retryable ── Ambiguous     a write that may or may not have happened: look before trying again
              ├─ Silent        a watch said nothing for long: it may be dead, or its kind quiet
              └─ Disrupted     an eviction a PodDisruptionBudget refuses for now (429)
    Permanent ── NotFound      404
              ├─ Forbidden     401, 403
              └─ Invalid       400, 405, 415, 422
    Conflict  ── AlreadyExists 409 on create
    Expired                    410: the watch's version is gone; list again
"""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import TYPE_CHECKING

from llmos_operator.errors import Conflict, LlmosError, Permanent, Retryable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


class Ambiguous(Retryable):
    """A write got no clear answer (connection lost, timeout, 5xx): it may have been done."""


class Silent(Retryable):
    """A watch said nothing for long. Kinds nobody ever changes get no bookmarks either, so this is no alarm."""


class Disrupted(Retryable):
    """An eviction was refused for now because of a PodDisruptionBudget."""


class NotFound(Permanent):
    """The object, or its kind, does not exist."""

    def __init__(self, message: str) -> None:
        super().__init__(message, reason="NotFound")


class Forbidden(Permanent):
    """The credentials are missing, expired or do not allow this."""

    def __init__(self, message: str) -> None:
        super().__init__(message, reason="Forbidden")


class Invalid(Permanent):
    """The API server refuses the content."""

    def __init__(self, message: str) -> None:
        super().__init__(message, reason="Invalid")


class AlreadyExists(Conflict):
    """An object of this name exists."""


class Expired(LlmosError):  # noqa: N818 - reads as what happened
    """The resource version is too old for the server; only a new list helps."""


_BY_STATUS: dict[int, Callable[[str], LlmosError]] = {
    HTTPStatus.UNAUTHORIZED: Forbidden,
    HTTPStatus.FORBIDDEN: Forbidden,
    HTTPStatus.NOT_FOUND: NotFound,
    HTTPStatus.CONFLICT: Conflict,
    HTTPStatus.GONE: Expired,
}
_TRY_LATER = frozenset({HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS})


def from_response(
    method: str, path: str, status: int, body: bytes, headers: Mapping[str, str] | None = None
) -> LlmosError:
    """Return the error a response with ``status`` >= 400 stands for. ``path`` is named in its message."""
    detail, reason = _read_status(body)
    text = f"{method} {path}: {status} {reason} {detail}".strip()
    if status in _TRY_LATER:
        if path.endswith("/eviction"):
            return Disrupted(text, after=_retry_after(headers, 5.0))
        return Retryable(text, after=_retry_after(headers, 1.0))
    if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        failure = Retryable if method == "GET" else Ambiguous
        return failure(text, after=_retry_after(headers, 1.0))
    if reason == "AlreadyExists":
        return AlreadyExists(text)
    if method == "PATCH" and "metadata.uid: Invalid value" in detail:
        return Conflict(text)  # 422, but it means: recreated under the same name
    return _BY_STATUS.get(status, Invalid)(text)


def _read_status(body: bytes) -> tuple[str, str]:
    """Return message and reason of a `Status` object; any other body is cut and returned as message."""
    try:
        status = json.loads(body)
    except ValueError:
        return body[:200].decode(errors="replace"), ""
    if not isinstance(status, dict):
        return "", ""
    return str(status.get("message") or "")[:1000], str(status.get("reason") or "")


def _retry_after(headers: Mapping[str, str] | None, default: float) -> float:
    """Return the seconds of a Retry-After header (whole seconds, as the API server writes it), at most 60."""
    value = (headers or {}).get("Retry-After", "")
    return min(float(value), 60.0) if value.isdigit() else default
