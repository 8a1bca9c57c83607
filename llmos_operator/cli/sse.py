"""Server-sent events of an OpenAI-style answer, and what a chat client reads of them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from llmos_operator.cli.failures import CommandFailed
from llmos_operator.cli.render import dig

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator

_DONE = b"[DONE]"


async def events(lines: AsyncIterable[bytes]) -> AsyncIterator[dict[str, Any]]:
    """Yield the JSON of each `data:` line until `[DONE]`. Raises `CommandFailed` for an error event or garbage.

    A stream that ends without `[DONE]` was cut off; that is raised too, so that half an answer is never taken for one.
    """
    async for line in lines:
        if not line.startswith(b"data:"):
            continue  # comments keep the connection alive
        data = line[5:].strip()
        if data == _DONE:
            return
        try:
            event = json.loads(data)
        except ValueError as error:
            raise CommandFailed(f"the server sent something that is not JSON: {data[:80]!r}") from error
        if "error" in event:
            raise CommandFailed(f"the server broke off: {message_of(event)}")
        yield event
    raise CommandFailed("the connection ended in the middle of the answer")


def message_of(body: Any) -> str:
    """Return the message of an OpenAI-style error body, or the body itself, cut."""
    found = dig(body if isinstance(body, dict) else {}, "error", "message")
    return str(found) if found else str(body)[:200]
