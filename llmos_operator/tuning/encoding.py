"""Texts and conversations to tokens, and which of them are learned.

A conversation is written by the model's own chat template, as serving writes it. Learned is what stands between the
place where the assistant is asked to speak and the end of its turn, the end-of-turn token included, so that the model
learns to stop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError
from tokenizers import Tokenizer

from llmos_operator.api.conditions import Reason
from llmos_operator.errors import Permanent
from llmos_operator.runtime import chat
from llmos_operator.runtime.answers import ApiError
from llmos_operator.runtime.vocabulary import read_json
from llmos_operator.tuning.dataset import BadLine, Sample

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from llmos_operator.runtime.protocol import Message


class Encoder:
    """The tokenizer and chat template of one model."""

    def __init__(self, folder: Path, eos: Sequence[int]) -> None:
        """``eos`` are the model's end-of-sequence tokens. Raises Permanent(reason=Unsupported)."""
        try:
            self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # the library raises plain Exceptions
            raise Permanent(
                f"the model has no usable tokenizer.json: {error}", reason=Reason.UNSUPPORTED
            ) from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        try:
            self._template = chat.load(str(folder), read_json(folder / "tokenizer_config.json"))
        except TemplateError as error:
            raise Permanent(
                f"the model's chat template is broken: {error}", reason=Reason.UNSUPPORTED
            ) from error
        self._end = tuple(eos[:1])

    def document(self, text: str) -> Sample:
        """Return a text that is learned as a whole, with the token that ends it."""
        tokens = (*self._encode(text, special=True), *self._end)
        return Sample(tokens, (False, *(True for _ in tokens[1:])))

    def completion(self, prompt: str, completion: str) -> Sample:
        """Return a prompt and what is to follow it.

        Both are encoded for themselves, because that is how it will be: a prompt's tokens are there before its answer.
        """
        before = self._encode(prompt, special=True) if prompt else ()
        after = (*self._encode(completion, special=not prompt), *self._end)
        learned = [*(False for _ in before), *(True for _ in after)]
        learned[0] = False
        return Sample((*before, *after), tuple(learned))

    def conversation(self, messages: Sequence[Message], tools: Sequence[dict[str, Any]]) -> Sample:
        """Return a conversation; learned is what the assistant says. Raises BadLine."""
        text = self._render(messages, tools)
        spans = self._spoken(messages, tools, text)
        encoded = self._tokenizer.encode(text, add_special_tokens=False)
        learned = [False] * len(encoded.ids)
        at = 0
        for place, (begin, end) in enumerate(encoded.offsets):
            while at < len(spans) and spans[at][1] <= begin:
                at += 1
            learned[place] = place > 0 and at < len(spans) and begin >= spans[at][0] and end > begin
        return Sample(tuple(encoded.ids), tuple(learned))

    def _spoken(
        self, messages: Sequence[Message], tools: Sequence[dict[str, Any]], text: str
    ) -> list[tuple[int, int]]:
        """Return where in ``text`` the assistant speaks, in characters.

        A template may write earlier turns otherwise than the last one (some leave out what was thought): then only
        turns that stand in the whole text as they were answered are learned.
        """
        spans = []
        for place, message in enumerate(messages):
            if message.role != "assistant":
                continue
            asked = self._render(messages[:place], tools, ask=True) if place else ""
            told = self._render(messages[: place + 1], tools)
            if told.startswith(asked) and text.startswith(told.rstrip()):
                spans.append((len(asked), len(told.rstrip())))
        if not spans:
            raise BadLine(
                "the chat template writes the assistant's turns so that they cannot be told from the rest; "
                "give prompt and completion instead"
            )
        return spans

    def _render(
        self, messages: Sequence[Message], tools: Sequence[dict[str, Any]], *, ask: bool = False
    ) -> str:
        if self._template is None:
            raise BadLine("the model has no chat template; give prompt and completion, or text")
        try:
            return self._template.render(messages, tools=tools, add_generation_prompt=ask)
        except ApiError as error:
            raise BadLine(error.message) from error

    def _encode(self, text: str, *, special: bool) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(text, add_special_tokens=special).ids)
