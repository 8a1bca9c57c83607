"""Tokens of an answer, read while it streams past.

An answer says its usage itself: JSON bodies in `usage`, streams in their last event when the client asked for it.
Where it does not, the events of the stream are counted: engines send about one token an event.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

TAIL_BYTES = 16 << 10


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one request; `exact` is False where they were counted instead of told."""

    prompt: int = 0
    completion: int = 0
    exact: bool = False

    @property
    def total(self) -> int:
        """All tokens."""
        return self.prompt + self.completion


NOTHING = Usage()


class Meter:
    """Watches the bytes of one answer go by; keeps only the last of them."""

    __slots__ = ("_events", "_stream", "_tail")

    def __init__(self, *, stream: bool) -> None:
        self._stream = stream
        self._events = 0
        self._tail = b""

    def feed(self, chunk: bytes) -> None:
        """Note the next bytes."""
        if self._stream:
            self._events += chunk.count(b"data: {")
        self._tail = chunk[-TAIL_BYTES:] if len(chunk) >= TAIL_BYTES else (self._tail + chunk)[-TAIL_BYTES:]

    def usage(self) -> Usage:
        """Return the tokens of the answer so far."""
        told = self._from_stream() if self._stream else self._from_json()
        if told is not None:
            return told
        return Usage(completion=self._events) if self._stream else Usage()

    def _from_stream(self) -> Usage | None:
        for line in reversed(self._tail.split(b"\n")):
            if line.startswith(b"data: {") and b'"usage"' in line:
                try:
                    return _usage_of(json.loads(line[6:]))
                except ValueError:
                    return None
        return None

    def _from_json(self) -> Usage | None:
        # Embeddings run to megabytes; `usage` comes last in the answers of OpenAI-style servers.
        at = self._tail.rfind(b'"usage"')
        if at < 0:
            return None
        colon = self._tail.find(b":", at)
        try:
            value, _ = json.JSONDecoder().raw_decode(
                self._tail[colon + 1 :].decode("utf-8", "replace").lstrip()
            )
        except ValueError:
            return None
        return _usage_of({"usage": value})


def _usage_of(document: Any) -> Usage | None:
    usage = document.get("usage") if isinstance(document, dict) else None
    if not isinstance(usage, dict):
        return None
    prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
    if not isinstance(prompt, int):
        return None
    return Usage(prompt, completion if isinstance(completion, int) else 0, exact=True)
