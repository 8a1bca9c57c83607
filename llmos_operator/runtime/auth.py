"""Bearer tokens of clients and of the operator, compared in constant time."""

from __future__ import annotations

import hmac
from http import HTTPStatus
from typing import TYPE_CHECKING

from llmos_operator.runtime.answers import ApiError

if TYPE_CHECKING:
    from collections.abc import Sequence


class Gate:
    """Lets in whoever shows one of the tokens."""

    def __init__(self, tokens: Sequence[str], *, open_without: bool) -> None:
        """``open_without``: whether no tokens means that everybody may enter (else nobody)."""
        self._tokens = [token.encode() for token in tokens if token]
        self._open = open_without and not self._tokens

    def check(self, authorization: str) -> None:
        """Raise ApiError (401) unless the value of an Authorization header is good."""
        if self._open:
            return
        scheme, _, given = authorization.partition(" ")
        shown = given.strip().encode("utf-8", "surrogateescape") if scheme.lower() == "bearer" else b""
        # All are compared, whichever matches: neither time nor order tells anything of them.
        matches = [hmac.compare_digest(shown, token) for token in self._tokens]
        if shown and any(matches):
            return
        text = (
            "Incorrect API key provided."
            if shown
            else "No API key was sent; use the header Authorization: Bearer KEY."
        )
        raise ApiError(HTTPStatus.UNAUTHORIZED, "invalid_api_key", text)
