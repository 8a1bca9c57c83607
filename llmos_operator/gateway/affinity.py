"""Which replicas hold the beginning of a prompt: those that had a prompt that begins alike.

A replica keeps the keys and values of prompts it has computed, so a prompt that begins like one of those is answered
sooner there. The gateway remembers for beginnings of growing length who had them. It keeps no text: only hashes with a
key of this process, and with the tenant, model and salt in them, so that nobody's prompts steer another's requests.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

# In characters. A shorter beginning is computed in less time than a detour may cost; a longer one tells no more.
LENGTHS = (*(length for power in range(9, 16) for length in (1 << power, 3 << (power - 1))), 1 << 16)
ENTRIES = 65_536  # beginnings remembered, at 185 bytes with one holder and 310 with all of them
HOLDERS = 8  # replicas remembered for each
LONG = (
    4096  # characters from which computing a beginning again takes about as long as to wait for one request
)
PARTS = 4096  # looked at in a prompt of messages, which bounds the time that one without text takes
TOKENS = LENGTHS[-1] // 4  # looked at in a prompt of tokens: about as much text as the longest beginning
_DIGEST_BYTES = 16
_END = "\x1f"  # between parts of a prompt


@dataclass(slots=True)
class Prompt:
    """What is known of a request's prompt."""

    beginnings: tuple[bytes, ...] = ()  # hashes, the longest first
    result: str = ""  # where it last went: kept, moved or new (`prompts_total`); "" before it went anywhere


class Holders(NamedTuple):
    """UIDs of the replicas that had a beginning, the last first, and whether it is worth a wait.

    What as many had as are remembered is shared by most requests, which would all wait for those few.
    """

    uids: tuple[str, ...]
    long: bool


@dataclass(slots=True)
class Affinity:
    """Beginnings of prompts and the replicas that had them, the least recently used forgotten first."""

    key: bytes = field(default_factory=lambda: secrets.token_bytes(32))
    entries: int = ENTRIES
    _holders: OrderedDict[bytes, tuple[str, ...]] = field(default_factory=OrderedDict)

    def beginnings(self, document: Mapping[str, Any] | None, *apart: str) -> tuple[bytes, ...]:
        """Return hashes of a request's beginnings, the longest first; none if it has no prompt of enough text.

        Requests that differ in ``apart`` have nothing in common.
        """
        if document is None:
            return ()
        text = _END.join(_bounded(_prompt(document)))[: LENGTHS[-1]]
        if len(text) < LENGTHS[0]:
            return ()
        digest = blake2b(key=self.key, digest_size=_DIGEST_BYTES)
        for part in (*apart, document.get("cache_salt")):
            digest.update(
                f"{len(part)}:{part}".encode(errors="surrogatepass") if isinstance(part, str) else b"-"
            )
        found = []
        begin = 0
        for end in LENGTHS:
            if end > len(text):
                break
            digest.update(text[begin:end].encode(errors="surrogatepass"))
            found.append(digest.digest())
            begin = end
        return tuple(reversed(found))

    def holders(self, beginnings: Sequence[bytes]) -> list[Holders]:
        """Return who had each of ``beginnings``; those that nobody had are left out."""
        lengths = reversed(LENGTHS[: len(beginnings)])
        return [
            Holders(found, long=length >= LONG and len(found) < HOLDERS)
            for one, length in zip(beginnings, lengths, strict=True)
            if (found := self._holders.get(one))
        ]

    def learn(self, beginnings: Sequence[bytes], uid: str) -> None:
        """The replica got a prompt with these beginnings."""
        for one in beginnings:
            before = self._holders.pop(one, ())
            self._holders[one] = (uid, *_without(before, uid))[:HOLDERS]
        while len(self._holders) > self.entries:
            self._holders.popitem(last=False)

    def unlearn(self, beginnings: Sequence[bytes], uid: str) -> None:
        """The replica did not take a prompt with these beginnings after all."""
        for one in beginnings:
            if uid not in (before := self._holders.get(one, ())):
                continue
            left = _without(before, uid)
            if left:
                self._holders[one] = left
            else:
                del self._holders[one]


def _without(holders: tuple[str, ...], uid: str) -> tuple[str, ...]:
    return tuple(other for other in holders if other != uid)


def _bounded(parts: Iterator[str]) -> Iterator[str]:
    """Yield ``parts`` up to the longest beginning."""
    left = LENGTHS[-1]
    for part in parts:
        yield part[:left]
        left -= len(part) + 1
        if left <= 0:
            return


def _prompt(document: Mapping[str, Any]) -> Iterator[str]:
    """Yield the parts of a prompt up to the first that is not text. What is malformed is the replica's to refuse."""
    if isinstance(document.get("messages"), list):
        return islice(_chat(document), PARTS)
    prompt = document.get("prompt")
    return iter((_batch(prompt) if isinstance(prompt, list) else _text(prompt),))


def _chat(document: Mapping[str, Any]) -> Iterator[str]:
    for tool in _objects(document.get("tools")):
        function = tool.get("function")
        if isinstance(function, dict):
            yield _text(function.get("name"))
            yield _text(function.get("description"))
    for message in _objects(document.get("messages")):
        yield _text(message.get("role"))
        content = message.get("content")
        if not isinstance(content, list):
            yield _text(content)
            continue
        for part in content:
            if not isinstance(part, dict) or not isinstance(part.get("text"), str):
                return
            yield part["text"]


def _batch(prompt: list[Any]) -> str:
    """Return the first of several prompts, or the numbers of tokens."""
    first = prompt[0] if prompt else ""
    tokens = prompt if isinstance(first, int) else first
    if isinstance(tokens, list):
        return _END.join([str(token) for token in tokens[:TOKENS] if isinstance(token, int)])
    return _text(first)


def _objects(value: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(value, list):
        yield from (one for one in islice(value, PARTS) if isinstance(one, dict))


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
