"""Training data: JSON lines, checked line by line, as tokens of which some are to be learned.

A line is an object with one of

    messages (and tools)    a conversation as /v1/chat/completions takes it; learned is what the assistant says
    prompt, completion      two texts; learned is the completion
    text                    a document; all of it is learned, and it is split where it is too long

Other keys are ignored. All lines of a file need not be of one kind.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from llmos_operator.api.conditions import Reason
from llmos_operator.errors import Permanent
from llmos_operator.runtime.protocol import Message, Tool

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from llmos_operator.tuning.encoding import Encoder

MAX_LINE_BYTES = 64 << 20
MOST_SHOWN = 5  # bad lines that a message tells
_MESSAGES = TypeAdapter(list[Message])
_TOOLS = TypeAdapter(list[Tool])
_KINDS = "give messages, or prompt and completion, or text"


@dataclass(frozen=True, slots=True)
class Sample:
    """Tokens of one sample; ``learned[i]`` says whether token i counts in the loss. The first never does."""

    tokens: tuple[int, ...]
    learned: tuple[bool, ...]

    @property
    def targets(self) -> int:
        """How many tokens are learned."""
        return sum(self.learned)


@dataclass(slots=True)
class Dataset:
    """All samples in the order of the file, and what happened to lines that were too long."""

    samples: list[Sample] = field(default_factory=list)
    lines: int = 0
    cut: int = 0  # conversations that lost their end
    dropped: int = 0  # of them nothing to learn was left

    @property
    def tokens(self) -> int:
        """All tokens."""
        return sum(len(sample.tokens) for sample in self.samples)


class BadLine(Exception):  # noqa: N818 - reads as what it is
    """A line that is no sample; the message says what is wrong with it."""


def read_dataset(lines: Iterable[bytes], encoder: Encoder, max_length: int) -> Dataset:
    """Return the samples of a file of JSON lines.

    Raises Permanent(reason=InvalidData) naming the first bad lines and what is wrong with each.
    """
    found = Dataset()
    bad: list[str] = []
    for number, raw in enumerate(lines, 1):
        if not raw.strip():
            continue
        found.lines += 1
        try:
            _take(_object(raw), encoder, max_length, found)
        except BadLine as error:
            bad.append(f"line {number}: {error}")
            if len(bad) > MOST_SHOWN:
                break
    if bad:
        more = " (there are more)" if len(bad) > MOST_SHOWN else ""
        raise _refused("; ".join(bad[:MOST_SHOWN]) + more)
    if not found.samples:
        why = f"each of its {found.dropped} samples is too long" if found.dropped else "it has no samples"
        raise _refused(f"{why}: raise training.maxLength, or give shorter samples")
    return found


def _take(value: dict[str, Any], encoder: Encoder, max_length: int, found: Dataset) -> None:
    if "messages" in value:
        sample = encoder.conversation(*_conversation(value))
    elif "prompt" in value or "completion" in value:
        sample = encoder.completion(_text(value, "prompt"), _text(value, "completion", filled=True))
    elif "text" in value:
        whole = encoder.document(_text(value, "text", filled=True))
        found.samples += _split(whole, max_length)
        return
    else:
        raise BadLine(f"it has none of the known keys; {_KINDS}")
    if len(sample.tokens) > max_length:
        found.cut += 1
        sample = Sample(sample.tokens[:max_length], sample.learned[:max_length])
    if sample.targets:
        found.samples.append(sample)
    else:
        found.dropped += 1


def _split(whole: Sample, max_length: int) -> list[Sample]:
    """Return a document in pieces; each first token is only context."""
    pieces = []
    for begin in range(0, len(whole.tokens), max_length):
        tokens = whole.tokens[begin : begin + max_length]
        if len(tokens) > 1:
            pieces.append(Sample(tokens, (False, *whole.learned[begin + 1 : begin + len(tokens)])))
    return pieces


def _object(raw: bytes) -> dict[str, Any]:
    if len(raw) > MAX_LINE_BYTES:
        raise BadLine(f"it has more than {MAX_LINE_BYTES >> 20} MiB")
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise BadLine(f"it is no JSON ({str(error)[:80]})") from error
    if not isinstance(value, dict):
        raise BadLine(f"it is no JSON object; {_KINDS}")
    return value


def _text(value: dict[str, Any], key: str, *, filled: bool = False) -> str:
    text = value.get(key)
    if not isinstance(text, str):
        raise BadLine(f"{key} is {_shown(text)}, not a text")
    if filled and not text:
        raise BadLine(f"{key} is empty: there is nothing to learn")
    return text


def _conversation(value: dict[str, Any]) -> tuple[Sequence[Message], list[dict[str, Any]]]:
    try:
        messages = _MESSAGES.validate_python(value["messages"])
        tools = _TOOLS.validate_python(value.get("tools") or [])
    except ValidationError as error:
        first = error.errors()[0]
        place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"])
        raise BadLine(f"messages{place}: {first['msg']}, not {_shown(first.get('input'))}") from error
    if not any(message.role == "assistant" for message in messages):
        raise BadLine("messages has nothing by the assistant: there is nothing to learn")
    return messages, [tool.model_dump(exclude_none=True) for tool in tools]


def _shown(value: object) -> str:
    return "missing" if value is None else repr(value)[:60]


def _refused(what: str) -> Permanent:
    return Permanent(f"fineTune.dataset cannot be used: {what}", reason=Reason.INVALID_DATA)
