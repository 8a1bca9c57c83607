"""The input: JSON lines in OpenAI's batch format, read one at a time because a file may be larger than memory.

A line is `{"custom_id", "method": "POST", "url", "body"}`: https://platform.openai.com/docs/api-reference/batch/request-input
What is wrong with one is told in its own answer, with its number; the others go on.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

URLS: Final = ("/v1/chat/completions", "/v1/completions", "/v1/embeddings")
MOST_BYTES: Final = 8 << 20  # of a line: what the server takes as the body of a request
_SHOWN: Final = 120
_FIELDS: Final = ("custom_id", "method", "url", "body")


@dataclass(frozen=True, slots=True)
class Request:
    """One line to be answered. ``number`` counts lines from 1."""

    number: int
    custom_id: str
    url: str
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class BadLine:
    """One line that is no request, and why."""

    number: int
    message: str
    custom_id: str | None = None


@dataclass(frozen=True, slots=True)
class Scan:
    """What one look over the whole file tells: its digest (hex) and how many lines are not blank."""

    digest: str
    lines: int


def scan(path: Path) -> Scan:
    """Look over the file. Raises OSError."""
    digest, lines = hashlib.sha256(), 0
    with path.open("rb") as file:
        for line in file:
            digest.update(line)
            lines += bool(line.strip())
    return Scan(digest.hexdigest(), lines)


@dataclass(slots=True)
class Reader:
    """Reads a file of requests for one model, which a body may leave unnamed."""

    path: Path
    model: str
    _seen: dict[str, int] = field(default_factory=dict)  # custom_id -> line

    def __iter__(self) -> Iterator[Request | BadLine]:
        """Yield every line that is not blank. Raises OSError."""
        with self.path.open("rb") as file:
            for number, raw in enumerate(file, 1):
                if raw.strip():
                    yield self._read(number, raw)

    def _read(self, number: int, raw: bytes) -> Request | BadLine:
        found = _object(raw)
        if isinstance(found, str):
            return BadLine(number, f"line {number}: {found}")
        custom_id = found.get("custom_id")
        if not isinstance(custom_id, str) or not custom_id:
            return BadLine(
                number, f"line {number}: custom_id = {_shown(custom_id)} must be a text that is not empty"
            )
        first = self._seen.setdefault(custom_id, number)
        if first != number:
            text = f"line {number}: custom_id {_shown(custom_id)} is that of line {first}; each must be used once"
            return BadLine(number, text, custom_id)
        problem = _problem(found)
        if problem:
            return BadLine(number, f"line {number}: {problem}", custom_id)
        body: dict[str, Any] = {"model": self.model, **found["body"]}
        return Request(number, custom_id, found["url"], body)


def _object(raw: bytes) -> dict[str, Any] | str:
    """Return a line as an object, or what is wrong with it."""
    if len(raw) > MOST_BYTES:
        return f"has {len(raw)} bytes; at most {MOST_BYTES} are read"
    try:
        found = json.loads(raw)
    except (ValueError, RecursionError) as error:
        return f"is not JSON: {error}"
    if not isinstance(found, dict):
        return f"must be an object with {', '.join(_FIELDS)}"
    return found


def _problem(found: dict[str, Any]) -> str:
    if str(found.get("method", "POST")).upper() != "POST":
        return f"method = {_shown(found['method'])} must be POST"
    if found.get("url") not in URLS:
        return f"url = {_shown(found.get('url'))} is not one of {', '.join(URLS)}"
    if not isinstance(found.get("body"), dict):
        return f"body = {_shown(found.get('body'))} must be an object: the request as it would be sent to url"
    if found["body"].get("stream"):
        return "body.stream must be false or left out: an answer of a batch is written as a whole"
    return ""


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"
