"""What the tokens of a speech model mean, from its generation_config.json. Front and engine read the same file.

The prompt of a Whisper model is ``[prev, text before…] start [language] [task] [no times]``; times are the tokens from
`times_from` on, in steps of 20 ms. Names and defaults are those of transformers' generation for Whisper.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmos_operator.errors import Permanent

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

RATE = 16_000  # samples a second
SAMPLE_BYTES = 2
TIME_STEP = 0.02  # seconds
TRANSCRIBE, TRANSLATE = "transcribe", "translate"
_MAX_BYTES = 1 << 20
_MAX_LIST = 1 << 16


@dataclass(frozen=True, slots=True)
class SpeechRules:
    """The special tokens of one model."""

    vocabulary: int
    start: int
    end: int
    languages: Mapping[str, int]  # by code, as "en"; {}: the model knows one language alone
    tasks: Mapping[str, int]
    no_times: int | None = None  # None: it makes no times
    before: int | None = None  # token before text that precedes the sound; None: it takes none
    suppressed: tuple[int, ...] = ()
    suppressed_first: tuple[int, ...] = ()
    latest_first_time: int | None = None  # steps

    @property
    def times_from(self) -> int:
        """The token of 0.00 s; the vocabulary's end where there are no times."""
        return self.vocabulary if self.no_times is None else self.no_times + 1

    def seconds(self, token: int) -> float:
        """Return the seconds that a time token says."""
        return (token - self.times_from) * TIME_STEP


def read_rules(folder: Path, vocabulary: int) -> SpeechRules:
    """Return the rules of the model in ``folder``. Raises Permanent(reason=Corrupted) naming the field."""
    path = folder / "generation_config.json"
    try:
        raw = json.loads(path.read_bytes()) if path.stat().st_size <= _MAX_BYTES else None
    except (OSError, ValueError, RecursionError) as error:
        raise _bad(f"a speech model needs a generation_config.json: {error}") from error
    if not isinstance(raw, dict):
        raise _bad(f"generation_config.json is no JSON object of at most {_MAX_BYTES} bytes")
    fields = _Fields(raw, vocabulary)
    languages = fields.table("lang_to_id")
    end = fields.token("eos_token_id")
    start = fields.token("decoder_start_token_id")
    if end is None or start is None:
        raise _bad("generation_config.json lacks eos_token_id or decoder_start_token_id")
    latest = raw.get("max_initial_timestamp_index")
    return SpeechRules(
        vocabulary=vocabulary,
        start=start,
        end=end,
        languages={code.strip("<|>"): token for code, token in languages.items()},
        tasks=fields.table("task_to_id"),
        no_times=fields.token("no_timestamps_token_id"),
        before=fields.token("prev_sot_token_id"),
        suppressed=fields.tokens("suppress_tokens"),
        suppressed_first=fields.tokens("begin_suppress_tokens"),
        latest_first_time=latest if type(latest) is int and latest >= 0 else None,
    )


class _Fields:
    def __init__(self, raw: Mapping[str, Any], vocabulary: int) -> None:
        self._raw = raw
        self._vocabulary = vocabulary

    def token(self, name: str) -> int | None:
        value = self._raw.get(name)
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        return None if value is None else self._checked(name, value)

    def tokens(self, name: str) -> tuple[int, ...]:
        value = self._raw.get(name) or []
        if not isinstance(value, list) or len(value) > _MAX_LIST:
            raise _bad(f"generation_config.json: {name} is no list of tokens")
        return tuple(
            self._checked(name, one) for one in value if one != -1
        )  # -1 is a leftover of older configs

    def table(self, name: str) -> dict[str, int]:
        value = self._raw.get(name) or {}
        if not isinstance(value, dict) or len(value) > _MAX_LIST:
            raise _bad(f"generation_config.json: {name} is no table of tokens")
        return {str(key): self._checked(name, one) for key, one in value.items()}

    def _checked(self, name: str, value: Any) -> int:
        if not (type(value) is int and 0 <= value < self._vocabulary):
            raise _bad(
                f"generation_config.json: {name} has {str(value)[:40]}; this model's tokens are 0 to {self._vocabulary - 1}"
            )
        return value


def _bad(message: str) -> Permanent:
    return Permanent(message, reason="Corrupted")
