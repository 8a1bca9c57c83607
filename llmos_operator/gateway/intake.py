"""Takes in request bodies: bounded each, bounded together, bounded in time."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

from llmos_operator.api import names
from llmos_operator.gateway.answers import Refused

if TYPE_CHECKING:
    from aiohttp.web import BaseRequest
    from prometheus_client import Gauge


@dataclass(slots=True)
class BodyStore:
    """Bytes of all bodies in memory. A body is kept until its replica answers, because it may be sent twice."""

    limit: int
    gauge: Gauge
    used: int = 0

    def take(self, size: int) -> None:
        """Count ``size`` more bytes. Raises Refused (503) if they do not fit."""
        if self.used + size > self.limit:
            raise Refused(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "gateway_overloaded",
                "The gateway holds too many large requests at the moment. Try again later.",
                retry_after=2.0,
            )
        self.used += size
        self.gauge.set(self.used)

    def give_back(self, size: int) -> None:
        """Count ``size`` bytes as freed."""
        self.used -= size
        self.gauge.set(self.used)


@dataclass(frozen=True, slots=True)
class Intake:
    """Reads bodies of at most `max_body` bytes, `max_audio` of those with sound, each within `seconds`."""

    store: BodyStore
    max_body: int
    max_audio: int
    seconds: float

    async def read(self, request: BaseRequest) -> bytes:
        """Return the body; its size is counted in the store until the caller gives it back. Raises Refused."""
        declared = request.content_length
        most = self.max_audio if request.path.startswith(names.AUDIO_PATHS) else self.max_body
        if declared is not None and declared > most:
            raise _too_large(most)
        if request.headers.get("Expect", "").lower() == "100-continue":
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0
        body = bytearray()
        try:
            async with asyncio.timeout(self.seconds):
                async for chunk in request.content.iter_any():
                    self._take(len(chunk), len(body), most)
                    body += chunk
        except TimeoutError:
            self.store.give_back(len(body))
            raise Refused(
                HTTPStatus.REQUEST_TIMEOUT,
                "request_timeout",
                f"The request body did not arrive within {self.seconds:.0f} s.",
            ) from None
        except BaseException:
            self.store.give_back(len(body))
            raise
        return bytes(body)

    def _take(self, size: int, before: int, most: int) -> None:
        if before + size > most:
            raise _too_large(most)
        self.store.take(size)


def _too_large(most: int) -> Refused:
    return Refused(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        "request_too_large",
        f"The request body is larger than the {most} bytes this gateway accepts.",
        headers={"Connection": "close"},
    )
