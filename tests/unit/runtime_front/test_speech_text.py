"""Windows, rates, tokens with times and the shapes of answers: the pure parts of writing down sound."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np
import pytest

from llmos_operator.errors import Permanent
from llmos_operator.runtime.ipc import TokenLogprob
from llmos_operator.runtime.speech import rendering
from llmos_operator.runtime.speech.form import Transcript
from llmos_operator.runtime.speech.resampling import Resampler
from llmos_operator.runtime.speech.rules import RATE, SpeechRules, read_rules
from llmos_operator.runtime.speech.windows import windows
from tests.support import speech
from tests.support.speech import END, NO_TIMES, TIMES_FROM, write_speech_tokenizer

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> SpeechRules:
    return read_rules(write_speech_tokenizer(tmp_path_factory.mktemp("rules")), speech.VOCABULARY)


# ------------------------------------------------------------ sound


def tone(hertz: float, rate: int, seconds: float) -> np.ndarray:
    return np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate).astype(np.float32)


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000, 15_999, 96_000])
@pytest.mark.parametrize("block", [0.05, 10.0])
def test_a_tone_keeps_its_place_at_another_rate(rate: int, block: float) -> None:
    resampler, sound = Resampler(rate, RATE), tone(1000, rate, 0.5)
    step = max(1, round(rate * block))
    parts = [resampler.push(sound[at : at + step]) for at in range(0, len(sound), step)]
    found = np.concatenate([*parts, resampler.end()])
    expected = tone(1000, RATE, 0.5)
    assert abs(len(found) - len(expected)) <= 1
    inside = slice(400, len(expected) - 400)
    assert np.abs(found[inside] - expected[inside]).max() < 0.002


def test_what_a_lower_rate_cannot_carry_is_gone() -> None:
    resampler = Resampler(48_000, RATE)
    found = np.concatenate([resampler.push(tone(12_000, 48_000, 0.5)), resampler.end()])
    assert np.abs(found[400:-400]).max() < 0.001


def test_a_long_recording_is_cut_in_its_pauses() -> None:
    sound = np.full(RATE * 70, 8000, np.int16)
    sound[RATE * 27 : RATE * 27 + 4000] = 0
    cuts = list(windows(sound, RATE * 30))
    assert [begin for begin, _ in cuts] == [0, *[end for _, end in cuts[:-1]]]
    assert cuts[-1][1] == len(sound)
    assert max(end - begin for begin, end in cuts) <= RATE * 30
    assert RATE * 27 < cuts[0][1] < RATE * 27 + 4000


@pytest.mark.parametrize("count", [1, 319, 12_799, 12_800, 12_801, 40_000])
def test_windows_cover_a_recording(count: int) -> None:
    cuts = list(windows(np.ones(count, np.int16), speech.WINDOW_SAMPLES))
    assert sum(end - begin for begin, end in cuts) == count
    assert all(0 < end - begin <= speech.WINDOW_SAMPLES for begin, end in cuts)


# ------------------------------------------------------------ rules and form


def test_rules_come_from_the_models_own_file(rules: SpeechRules) -> None:
    assert rules.languages == {"en": 258, "de": 259, "fr": 260}
    assert (rules.start, rules.end, rules.no_times, rules.times_from) == (257, 256, NO_TIMES, TIMES_FROM)
    assert rules.seconds(TIMES_FROM + 5) == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"suppress_tokens": [10_000]}, "suppress_tokens has 10000"),
        ({"lang_to_id": [1]}, "lang_to_id is no table"),
        ({"decoder_start_token_id": None}, "lacks eos_token_id or decoder_start_token_id"),
        ({"eos_token_id": "x"}, "eos_token_id has x"),
    ],
)
def test_rules_that_cannot_be_are_refused(tmp_path: Path, changes: dict[str, object], told: str) -> None:
    (tmp_path / "generation_config.json").write_text(json.dumps(speech.GENERATION | changes))
    with pytest.raises(Permanent, match=told):
        read_rules(tmp_path, speech.VOCABULARY)


def allowed(form: Transcript) -> set[int]:
    (mask,) = form.masks()
    assert mask is not None
    return {token for token in range(speech.VOCABULARY) if mask[token // 8] >> token % 8 & 1}


def test_a_script_leaves_only_its_tokens(rules: SpeechRules) -> None:
    form = Transcript(rules, ((258, 259), (262,)), times=False)
    assert allowed(form) == {258, 259}
    assert not form.take(259)
    assert allowed(form) == {262}
    form.take(262)
    assert 32 not in allowed(form), "suppressed at the beginning"
    assert END not in allowed(form)
    form.take(65)
    assert {32, END} < allowed(form)
    assert 1 not in allowed(form), "suppressed everywhere"


def test_times_come_in_pairs_and_do_not_run_backwards(rules: SpeechRules) -> None:
    form = Transcript(rules, (), times=True)
    assert allowed(form) == set(range(TIMES_FROM, TIMES_FROM + 6)), "the first time is early"
    form.take(TIMES_FROM + 2)
    assert not {one for one in allowed(form) if one >= TIMES_FROM}, "text follows the opening time"
    form.take(65)
    assert min(one for one in allowed(form) if one >= TIMES_FROM) == TIMES_FROM + 3
    form.take(TIMES_FROM + 9)
    assert allowed(form) & set(range(END)) == set(), "no text between two segments"
    assert {END, TIMES_FROM + 9} < allowed(form)
    assert NO_TIMES not in allowed(form)


# ------------------------------------------------------------ answers


def made(*tokens: int) -> list[TokenLogprob]:
    return [TokenLogprob(token, -0.5) for token in tokens]


def words(tokens: tuple[int, ...]) -> str:
    return bytes(tokens).decode()


def test_segments_lie_between_times(rules: SpeechRules) -> None:
    t = TIMES_FROM
    found = rendering.segments(made(258, t, 72, 105, t + 10, t + 20, 33, t + 400), rules, 10.0, 10.8)
    assert [(one.begin, one.end, words(one.tokens)) for one in found] == [
        (10.0, pytest.approx(10.2), "Hi"),
        (pytest.approx(10.4), 10.8, "!"),
    ]
    assert found[0].logprob == -0.5


def test_text_without_times_is_one_segment(rules: SpeechRules) -> None:
    found = rendering.segments(made(72, 105), rules, 0.0, 0.8)
    assert [(one.begin, one.end, one.tokens) for one in found] == [(0.0, 0.8, (72, 105))]
    assert rendering.segments([], rules, 0.0, 0.8) == []


def test_subtitles_have_their_formats_clocks() -> None:
    found = [rendering.Segment(0.0, 3661.5, (72, 105), -0.1), rendering.Segment(3661.5, 3662.25, (33,), -0.1)]
    assert rendering.srt(found, words).decode() == (
        "1\n00:00:00,000 --> 01:01:01,500\nHi\n\n2\n01:01:01,500 --> 01:01:02,250\n!\n"
    )
    assert rendering.vtt(found, words).decode() == (
        "WEBVTT\n\n00:00:00.000 --> 01:01:01.500\nHi\n\n01:01:01.500 --> 01:01:02.250\n!\n"
    )


def test_verbose_answers_say_what_was_measured() -> None:
    found = [rendering.Segment(0.0, 1.5, (72, 105), -0.25)]
    answer = json.loads(
        rendering.verbose(
            " Hi", found, words, task="transcribe", language="en", seconds=1.52, temperature=0.0
        )
    )
    assert (answer["text"], answer["language"], answer["duration"]) == ("Hi", "en", 1.52)
    assert answer["usage"] == {"type": "duration", "seconds": 2}
    (segment,) = answer["segments"]
    assert (segment["start"], segment["end"], segment["avg_logprob"], segment["tokens"]) == (
        0.0,
        1.5,
        -0.25,
        [72, 105],
    )
