"""HTTP for models: redirects that keep secrets where they belong, patience with servers, errors in our words."""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.request
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from llmos_operator.api.conditions import Reason
from llmos_operator.errors import Permanent, Retryable

if TYPE_CHECKING:
    from collections.abc import Callable
    from http.client import HTTPMessage, HTTPResponse
    from typing import IO
    from urllib.request import Request

    from llmos_operator.modelstore.remote import Place

TIMEOUT_SECONDS = 60
TRIES = 5
_LONGEST_PAUSE = 30.0
_ERROR_BYTES = 64 << 10
_PASSING = frozenset({408, 425, 429, 500, 502, 503, 504})


class SameHost(urllib.request.HTTPRedirectHandler):
    """Follows redirects that do not leave HTTPS, without credentials when the host changes."""

    def redirect_request(
        self,
        req: Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: HTTPMessage,
        newurl: str,
    ) -> Request | None:
        """Return the follow-up request. Raises Permanent for one that leaves HTTPS."""
        there, here = urlsplit(newurl), urlsplit(req.full_url)
        if there.scheme != "https" and here.scheme == "https":
            raise Permanent(f"{here.hostname} redirects away from https", reason=Reason.SOURCE_NOT_ALLOWED)
        follow = super().redirect_request(req, fp, code, msg, headers, newurl)
        if follow is not None and there.netloc != here.netloc:
            for name in [
                one
                for one in follow.headers
                if one.lower() == "authorization" or one.lower().startswith("x-amz-")
            ]:
                del follow.headers[name]
        return follow


class Http:
    """Sends requests and tries again where that may help. ``sleep`` takes seconds."""

    def __init__(
        self, place: Place, *, sleep: Callable[[float], None] = time.sleep, timeout: float = TIMEOUT_SECONDS
    ) -> None:
        self.place = place
        self.sleep = sleep
        self._timeout = timeout
        self._opener = urllib.request.build_opener(SameHost)

    def open(
        self, make: Callable[[], Request], explain: Callable[[int, bytes, str], Permanent | Retryable | None]
    ) -> HTTPResponse:
        """Return the answer to ``make()``, which is called for each try: a signature grows old.

        Raises Permanent (what ``explain`` says, AccessDenied, ModelNotFound, DownloadFailed) or Retryable.
        """
        for number in range(1, TRIES + 1):
            request = make()
            try:
                answer: HTTPResponse = self._opener.open(request, timeout=self._timeout)
            except urllib.error.HTTPError as error:
                with error:
                    body = error.read(_ERROR_BYTES)
                told = explain(error.code, body, request.full_url) or self._told(error.code, request.full_url)
                if error.code not in _PASSING or isinstance(told, Permanent):
                    raise told from error
                pause = _retry_after(error)
            except (OSError, http.client.HTTPException) as error:
                told = Retryable(
                    f"{self.place.field} = {self.place.shown}: {shown(request.full_url)} cannot be reached: "
                    f"{reason_of(error)}",
                    after=5.0,
                )
                pause = 0.0
                if number == TRIES:
                    raise told from error
            else:
                return answer
            if number == TRIES:
                raise told
            self.sleep(min(_LONGEST_PAUSE, max(pause, 0.5 * 2 ** (number - 1))))
        raise AssertionError("unreachable")  # the last try returns or raises

    def read(
        self,
        make: Callable[[], Request],
        explain: Callable[[int, bytes, str], Permanent | Retryable | None],
        limit: int,
    ) -> tuple[bytes, HTTPMessage]:
        """Return a small answer and its headers. Raises as :meth:`open`, and for more than ``limit`` bytes."""
        with self.open(make, explain) as answer:
            try:
                data = answer.read(limit + 1)
            except (OSError, http.client.HTTPException) as error:
                raise Retryable(
                    f"{self.place.shown}: the connection ended: {reason_of(error)}", after=5.0
                ) from error
            if len(data) > limit:
                raise self.place.refuse(
                    f"{shown(answer.url)} answered more than {limit} bytes", Reason.CORRUPTED
                )
            return data, answer.headers

    def challenge(self, request: Request) -> str:
        """Return the WWW-Authenticate header of the refusal of ``request``, "" if it was not refused so."""
        try:
            with self._opener.open(request, timeout=self._timeout):
                return ""
        except urllib.error.HTTPError as error:
            with error:
                return str(error.headers.get("WWW-Authenticate") or "")
        except (OSError, http.client.HTTPException) as error:
            raise Retryable(
                f"{self.place.shown}: {shown(request.full_url)} cannot be reached: {reason_of(error)}",
                after=5.0,
            ) from error

    def _told(self, status: int, url: str) -> Permanent | Retryable:
        place = self.place
        if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
            return place.refuse(
                f"{shown(url)}: access denied ({status}); name a Secret with credentials that may read it in {place.secret}",
                Reason.ACCESS_DENIED,
            )
        if status in {HTTPStatus.NOT_FOUND, HTTPStatus.GONE}:
            return place.refuse(
                f"{shown(url)}: not found; correct the URI or the revision", Reason.MODEL_NOT_FOUND
            )
        text = f"{shown(url)} answered {status}"
        if status in _PASSING:
            return Retryable(f"{place.field} = {place.shown}: {text}", after=5.0)
        return place.refuse(text, Reason.DOWNLOAD_FAILED)


def _retry_after(error: urllib.error.HTTPError) -> float:
    text = str(error.headers.get("Retry-After") or "")
    return float(text) if text.isdecimal() else 0.0


def reason_of(error: BaseException) -> str:
    """Return what went wrong, in one line."""
    inner = getattr(error, "reason", None)
    return (str(inner or error).strip().splitlines() or [type(error).__name__])[0][:300]


def shown(url: str) -> str:
    """Return a URL without query and user, which may hold credentials."""
    parts = urlsplit(url)
    port = f":{parts.port}" if parts.port else ""
    return f"{parts.scheme}://{parts.hostname}{port}{parts.path}"
