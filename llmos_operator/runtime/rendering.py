"""Answers as OpenAI's JSON: whole objects, and the events of a stream.

The part of an event that never changes is encoded once per request: an event is three byte strings joined.
"""

from __future__ import annotations

import json
from json.encoder import encode_basestring_ascii as quote
from typing import TYPE_CHECKING, Any

from llmos_operator.runtime.choices import Piece

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmos_operator.runtime.choices import Choice, Tally
    from llmos_operator.runtime.ipc import TokenLogprob
    from llmos_operator.runtime.planning import Plan
    from llmos_operator.runtime.tools.reading import CallPiece
    from llmos_operator.runtime.vocabulary import Vocabulary

DONE = b"data: [DONE]\n\n"


class Renderer:
    """Writes one request's answer."""

    def __init__(
        self,
        plan: Plan,
        vocabulary: Vocabulary,
        *,
        answer_id: str,
        model: str,
        created: int,
        fingerprint: str,
    ) -> None:
        self._plan = plan
        self._vocabulary = vocabulary
        self._head: dict[str, Any] = {
            "id": answer_id,
            "object": "chat.completion" if plan.chat else "text_completion",
            "created": created,
            "model": model,
            "system_fingerprint": fingerprint,
        }
        event = dict(self._head)
        if plan.chat:
            event["object"] = "chat.completion.chunk"
        self._event = "data: " + json.dumps(event, separators=(",", ":"))[:-1] + ',"choices":['
        self._offsets: dict[int, int] = {}

    # ------------------------------------------------------------ streams

    def opening(self, index: int) -> str:
        """Return the first event of an answer: a chat's role, a completion's echo."""
        if self._plan.chat:
            return self._wrap(
                f'{{"index":{index},"delta":{{"role":"assistant","content":""}},"logprobs":null,"finish_reason":null}}'
            )
        return ""

    def event(self, choice: Choice, piece: Piece, usage: Tally | None) -> str:
        """Return the event of one piece."""
        reason = quote(piece.finish_reason) if piece.finish_reason else "null"
        logprobs = json.dumps(self.logprobs(choice.index, piece)) if piece.logprobs else "null"
        text = quote(piece.text)
        if self._plan.chat:
            delta = _delta(piece, text)
            body = (
                f'{{"index":{choice.index},"delta":{delta},"logprobs":{logprobs},"finish_reason":{reason}}}'
            )
        else:
            body = f'{{"index":{choice.index},"text":{text},"logprobs":{logprobs},"finish_reason":{reason}}}'
        return self._wrap(body, usage)

    def usage(self, usage: Tally) -> str:
        """Return the event that tells the tokens: it has no choices."""
        return f'{self._event}],"usage":{json.dumps(usage.document())}}}\n\n'

    def _wrap(self, choice: str, usage: Tally | None = None) -> str:
        if not self._plan.include_usage:
            return f"{self._event}{choice}]}}\n\n"
        told = json.dumps(usage.document()) if usage is not None and self._plan.continuous_usage else "null"
        return f'{self._event}{choice}],"usage":{told}}}\n\n'

    # ------------------------------------------------------------ whole answers

    def whole(self, choices: Sequence[Choice], pieces: dict[int, list[Piece]], usage: Tally) -> bytes:
        """Return the JSON of the finished answer."""
        found = [self._choice(choice, pieces[choice.index]) for choice in choices]
        document = {**self._head, "choices": found, "usage": usage.document()}
        return json.dumps(document, separators=(",", ":")).encode()

    def _choice(self, choice: Choice, pieces: list[Piece]) -> dict[str, Any]:
        text = "".join(piece.text for piece in pieces)
        logprobs = None
        if self._plan.logprobs is not None:
            joined = Piece(
                text,
                tuple(one for piece in pieces for one in piece.logprobs),
                prompt_logprobs=tuple(one for piece in pieces for one in piece.prompt_logprobs),
            )
            logprobs = self.logprobs(choice.index, joined)
        if self._plan.chat:
            message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
            if calls := _calls([call for piece in pieces for call in piece.calls]):
                message |= {"content": text or None, "tool_calls": calls}
            return {
                "index": choice.index,
                "message": message,
                "logprobs": logprobs,
                "finish_reason": choice.told_reason,
            }
        return {
            "index": choice.index,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": choice.finish_reason,
        }

    # ------------------------------------------------------------ logprobs

    def logprobs(self, index: int, piece: Piece) -> dict[str, Any]:
        """Return the logprobs of a piece in the shape of the endpoint."""
        if self._plan.chat:
            return {"content": [self._chat_entry(one) for one in piece.logprobs], "refusal": None}
        return self._text_entries(index, piece)

    def _chat_entry(self, entry: TokenLogprob) -> dict[str, Any]:
        top = entry.top[: self._plan.logprobs or 0]
        return {
            **self._token(entry.token, entry.logprob),
            "top_logprobs": [self._token(t, p) for t, p in top],
        }

    def _token(self, token: int, logprob: float) -> dict[str, Any]:
        raw = self._vocabulary.token_bytes(token)
        return {"token": raw.decode("utf-8", "replace"), "logprob": _finite(logprob), "bytes": list(raw)}

    def _text_entries(self, index: int, piece: Piece) -> dict[str, Any]:
        wanted = self._plan.logprobs or 0
        show = self._vocabulary.token_text
        rows: list[tuple[str, float | None, dict[str, float] | None]] = []
        if piece.prompt_logprobs:
            # The first token of a prompt has no probability: nothing stands before it.
            rows.append((show(self._plan.prompts[index // self._plan.n][0]), None, None))
        for entry in (*piece.prompt_logprobs, *piece.logprobs):
            likely = {show(token): _finite(logprob) for token, logprob in entry.top[:wanted]}
            rows.append(
                (
                    show(entry.token),
                    _finite(entry.logprob),
                    likely | {show(entry.token): _finite(entry.logprob)},
                )
            )
        offsets = []
        for shown, _, _ in rows:
            offsets.append(self._offsets.get(index, 0))
            self._offsets[index] = offsets[-1] + len(shown)
        return {
            "tokens": [row[0] for row in rows],
            "token_logprobs": [row[1] for row in rows],
            "top_logprobs": [row[2] for row in rows] if wanted else None,
            "text_offset": offsets,
        }


def _delta(piece: Piece, text: str) -> str:
    """Return the delta of a chat's event; ``text`` is the piece's text, quoted."""
    if not piece.calls:
        return f'{{"content":{text}}}' if piece.text or not piece.finish_reason else "{}"
    calls = [
        {"index": call.index, "id": call.id, "type": "function"} | _function(call.arguments, call.name)
        if call.id
        else {"index": call.index} | _function(call.arguments)
        for call in piece.calls
    ]
    content = f'"content":{text},' if piece.text else ""
    return f'{{{content}"tool_calls":{json.dumps(calls, separators=(",", ":"))}}}'


def _calls(pieces: Sequence[CallPiece]) -> list[dict[str, Any]]:
    """Return whole calls out of their pieces."""
    found: list[dict[str, Any]] = []
    for piece in pieces:
        if piece.id:
            found.append({"id": piece.id, "type": "function"} | _function(piece.arguments, piece.name))
        else:
            found[piece.index]["function"]["arguments"] += piece.arguments
    return found


def _function(arguments: str, name: str = "") -> dict[str, Any]:
    return {"function": ({"name": name} if name else {}) | {"arguments": arguments}}


def _finite(logprob: float) -> float:
    """Return what OpenAI writes: -9999 for a token that cannot come, because JSON has no infinity."""
    return max(logprob, -9999.0)
