"""What a speech model writes down in a batch is, token for token, what transformers writes down alone."""

from dataclasses import replace

import pytest

from llmos_operator.errors import Permanent
from llmos_operator.runtime.backends.listening import read_extractor
from llmos_operator.runtime.batching import Batcher, BatchLimits
from llmos_operator.runtime.ipc.messages import SamplingParams, Submit
from llmos_operator.runtime.kvcache import KvCache, blocks_of
from llmos_operator.runtime.speech.form import Transcript
from llmos_operator.runtime.speech.rules import read_rules
from tests.support import speech
from tests.support.speech import CONTEXT, END, GENERATION, START
from tests.support.speech_reference import features, greedy

COUNT = 30  # tokens of an answer
# After <|notimestamps|> a trained model makes no times; a random one would, and transformers would take them for segments.
NO_TIMES = [*GENERATION["suppress_tokens"], *range(speech.TIMES_FROM, speech.VOCABULARY)]
EN = (START, speech.FIRST_LANGUAGE, speech.TRANSCRIBE)
SOUNDS = [
    speech.samples(seconds, seed) for seconds, seed in ((0.8, 1), (0.5, 2), (0.31, 3), (0.8, 4), (0.02, 5))
]


@pytest.fixture(scope="module")
def whisper(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whisper")
    return folder, speech.write_whisper(folder)


@pytest.fixture(scope="module")
def rules(whisper):
    return read_rules(whisper[0], speech.VOCABULARY)


class Listening:
    """The model in scheduler and backend; `run` answers (sound, prompt, script, times) together."""

    def __init__(self, driver, folder, rules):
        self.driver = driver(folder, slots=8, slot_tokens=CONTEXT)
        self.rules = rules
        self.model = self.driver.built.causal

    def run(self, asked, *, blocks=400, temperature=0.0, **limits):
        cache = KvCache(
            blocks=blocks, slots=8, slot_tokens=CONTEXT, prefix_caching=False, beside=speech.POSITIONS
        )
        batcher = Batcher(BatchLimits(max_tokens=CONTEXT, new_rows=1, **limits), cache, (END,))
        outputs = {str(index): [] for index in range(len(asked))}
        for index, (sound, prompt, script, times) in enumerate(asked):
            params = SamplingParams(max_tokens=len(script) + COUNT, temperature=temperature, seed=1)
            submit = Submit(str(index), prompt, params, audio=sound, script=script, times=times)
            rules = self.rules if times else replace(self.rules, suppressed=tuple(NO_TIMES))
            assert not batcher.add(submit, 0.0, Transcript(rules, script, times=times))
        while batcher.running or batcher.waiting:
            plan = batcher.plan(0.0)
            result = self.model.execute(plan, (END,))
            for emitted in batcher.commit(plan, result.tokens, 0.0):
                outputs[emitted.sequence.submit.request_id] += emitted.tokens
                if emitted.finish_reason:
                    self.model.forget(emitted.sequence.submit.request_id)
        cache.check()
        return list(outputs.values()), batcher


def generated(reference, sound, **options):
    """Text tokens of transformers' own generate."""
    found = reference.generate(
        features(sound),
        task="transcribe",
        do_sample=False,
        max_new_tokens=COUNT,
        suppress_tokens=NO_TIMES,
        **options,
    )[0].tolist()
    start = found.index(START) if START in found else -1
    text = found[start + 1 :]
    while text and text[0] > END:
        text = text[1:]
    return text[: text.index(END)] if END in text else text


PLAIN = (*EN, speech.NO_TIMES)


def test_a_batch_of_sounds_is_written_down_as_each_alone(whisper, rules, driver):
    folder, reference = whisper
    outputs, _ = Listening(driver, folder, rules).run([(sound, PLAIN, (), False) for sound in SOUNDS])
    assert outputs == [generated(reference, sound, language="en") for sound in SOUNDS]
    assert len({tuple(output) for output in outputs}) > 2, "the answers depend on what is heard"


def test_preemption_changes_no_transcript(whisper, rules, driver):
    folder, reference = whisper
    asked = [(sound, PLAIN, (), False) for sound in SOUNDS]
    room = 2 * blocks_of(speech.POSITIONS + 20) + 1
    outputs, batcher = Listening(driver, folder, rules).run(asked, blocks=room)
    assert batcher.preemptions > 0
    assert outputs == [generated(reference, sound, language="en") for sound in SOUNDS]


def test_an_unknown_language_is_the_one_that_transformers_hears(whisper, rules, driver):
    folder, reference = whisper
    languages = tuple(rules.languages.values())
    script = (languages, (speech.TRANSCRIBE,), (speech.NO_TIMES,))
    outputs, _ = Listening(driver, folder, rules).run([(sound, (START,), script, False) for sound in SOUNDS])
    heard = [int(reference.detect_language(features(sound))[0]) for sound in SOUNDS]
    assert [output[:3] for output in outputs] == [[one, speech.TRANSCRIBE, speech.NO_TIMES] for one in heard]
    assert [output[3:] for output in outputs] == [generated(reference, sound) for sound in SOUNDS]


def test_times_follow_the_rules_of_transformers(whisper, rules, driver):
    folder, reference = whisper
    outputs, _ = Listening(driver, folder, rules).run([(sound, EN, (), True) for sound in SOUNDS])
    assert outputs == [greedy(reference, sound, EN, COUNT, times=True) for sound in SOUNDS]
    assert all(output[0] >= speech.TIMES_FROM for output in outputs)


def test_what_was_heard_is_forgotten_with_its_request(whisper, rules, driver):
    listening = Listening(driver, whisper[0], rules)
    listening.run([(sound, PLAIN, (), False) for sound in SOUNDS])
    assert listening.model._known == {}


def test_one_window_is_heard_a_step(whisper, rules, driver):
    listening = Listening(driver, whisper[0], rules)
    counts = []
    execute = listening.model.execute

    def counted(plan, eos):
        before = len(listening.model._known)
        result = execute(plan, eos)
        counts.append(len(listening.model._known) - before)
        return result

    listening.model.execute = counted
    listening.run([(sound, PLAIN, (), False) for sound in SOUNDS])
    assert max(counts) == 1


def test_constants_of_another_spectrogram_are_refused(tmp_path):
    (tmp_path / "preprocessor_config.json").write_text('{"hop_length": 320}')
    with pytest.raises(Permanent, match="hop_length is 320"):
        read_extractor(tmp_path, 80, 1500)
