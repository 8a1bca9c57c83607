"""What was written down, in the shapes of OpenAI's API: text, JSON, segments, subtitles and events. Pure."""

from __future__ import annotations

import json
import math
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from llmos_operator.runtime.ipc import TokenLogprob
    from llmos_operator.runtime.speech.rules import SpeechRules

    Words = Callable[[Sequence[int]], str]


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of text; seconds from the start of the sound."""

    begin: float
    end: float
    tokens: tuple[int, ...]
    logprob: float  # mean of its tokens


@dataclass(slots=True)
class _Open:
    begin: float
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)

    def close(self, end: float) -> Segment:
        mean = sum(self.logprobs) / len(self.logprobs) if self.logprobs else 0.0
        return Segment(self.begin, max(self.begin, end), tuple(self.tokens), mean)


def segments(made: Sequence[TokenLogprob], rules: SpeechRules, begin: float, end: float) -> list[Segment]:
    """Return the segments of one window, which lasts from ``begin`` to ``end``, from its tokens with times."""
    found: list[Segment] = []
    current = _Open(begin)
    for one in made:
        if one.token >= rules.times_from:
            at = min(begin + rules.seconds(one.token), end)
            if current.tokens:
                found.append(current.close(at))
            current = _Open(at)
        elif one.token < rules.end:
            current.tokens.append(one.token)
            current.logprobs.append(one.logprob)
    if current.tokens:
        found.append(current.close(end))
    return found


def usage(seconds: float) -> dict[str, Any]:
    """Return OpenAI's usage of a request that is counted by its sound."""
    return {"type": "duration", "seconds": math.ceil(seconds)}


def plain(text: str, seconds: float) -> bytes:
    """Return the answer in `json`."""
    return _json({"text": text.strip(), "usage": usage(seconds)})


def verbose(
    text: str,
    found: Sequence[Segment],
    words: Words,
    *,
    task: str,
    language: str,
    seconds: float,
    temperature: float,
) -> bytes:
    """Return the answer in `verbose_json`."""
    return _json(
        {
            "task": task,
            "language": language,
            "duration": round(seconds, 3),
            "text": text.strip(),
            "segments": [_segment(index, one, words, temperature) for index, one in enumerate(found)],
            "usage": usage(seconds),
        }
    )


def srt(found: Sequence[Segment], words: Words) -> bytes:
    """Return the answer as SubRip subtitles."""
    blocks = [
        f"{index}\n{_clock(one.begin, ',')} --> {_clock(one.end, ',')}\n{words(one.tokens).strip()}\n"
        for index, one in enumerate(found, 1)
    ]
    return "\n".join(blocks).encode()


def vtt(found: Sequence[Segment], words: Words) -> bytes:
    """Return the answer as WebVTT subtitles."""
    blocks = [
        f"{_clock(one.begin, '.')} --> {_clock(one.end, '.')}\n{words(one.tokens).strip().replace('-->', '->')}\n"
        for one in found
    ]
    return "\n".join(["WEBVTT\n", *blocks]).encode()


def delta(text: str) -> bytes:
    """Return the event of new text."""
    return b"data: " + _json({"type": "transcript.text.delta", "delta": text}) + b"\n\n"


def done(text: str, seconds: float) -> bytes:
    """Return the last event."""
    event = {"type": "transcript.text.done", "text": text.strip(), "usage": usage(seconds)}
    return b"data: " + _json(event) + b"\n\n"


def _segment(index: int, one: Segment, words: Words, temperature: float) -> dict[str, Any]:
    text = words(one.tokens)
    raw = text.encode()
    return {
        "id": index,
        "seek": 0,
        "start": round(one.begin, 2),
        "end": round(one.end, 2),
        "text": text,
        "tokens": list(one.tokens),
        "temperature": temperature,
        "avg_logprob": round(one.logprob, 6),
        "compression_ratio": round(len(raw) / len(zlib.compress(raw)), 4) if raw else 0.0,
        "no_speech_prob": None,  # not measured
    }


def _clock(seconds: float, point: str) -> str:
    millis = round(seconds * 1000)
    minutes, rest = divmod(millis, 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02}{point}{rest % 1000:03}"


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()
