"""From a form and its sound to what the engine is asked: one prompt for each window."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmos_operator.runtime.answers import bad_request
from llmos_operator.runtime.ipc import SamplingParams
from llmos_operator.runtime.planning import Plan
from llmos_operator.runtime.speech.rules import TRANSCRIBE, TRANSLATE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmos_operator.runtime.served import ServedModel
    from llmos_operator.runtime.speech.decoder import Sound
    from llmos_operator.runtime.speech.fields import SpeechRequest
    from llmos_operator.runtime.speech.rules import SpeechRules

_SHOWN = 12


def check(body: SpeechRequest, rules: SpeechRules, task: str, name: str) -> None:
    """Raise ApiError (400) for what this model cannot do, before its sound is decoded."""
    if task == TRANSLATE and TRANSLATE not in rules.tasks:
        raise bad_request("unsupported_value", f"The model {name} does not translate.", "model")
    if body.times and rules.no_times is None:
        text = f"The model {name} makes no times: ask for 'json' or 'text'."
        raise bad_request("unsupported_value", text, "response_format")
    if body.prompt and rules.before is None:
        raise bad_request("unsupported_value", f"The model {name} takes no text before the sound.", "prompt")
    if body.language and rules.languages and body.language not in rules.languages:
        known = ", ".join(sorted(rules.languages)[:_SHOWN])
        text = f"Invalid 'language': {body.language} is not known to {name}; known are {known} and so on."
        raise bad_request("invalid_value", text, "language")
    if body.language and not rules.languages and body.language != "en":
        raise bad_request("unsupported_value", f"The model {name} knows English alone.", "language")


async def plan_speech(
    body: SpeechRequest, model: ServedModel, rules: SpeechRules, sound: Sound, task: str, language: str
) -> Plan:
    """Return the plan that writes down all windows of ``sound``; ``language`` "" is heard first, in each window."""
    prompt, script = _opening(rules, task, language, times=body.times)
    before = await _before(body, model, rules)
    tokens = (*before, *prompt)
    count = len(sound.windows)
    sampling = SamplingParams(
        max_tokens=model.max_model_len - len(tokens),
        temperature=body.temperature,
        logprobs=0 if body.times else None,
    )
    return Plan(
        prompts=(tokens,) * count,
        samplings=(sampling,) * count,
        stream=body.stream,
        logprobs=sampling.logprobs,
        tenant=body.user or "",
        sounds=tuple(sound.window(index) for index in range(count)),
        script=script,
        times=body.times,
    )


def plan_language(body: SpeechRequest, rules: SpeechRules, sound: Sound) -> Plan:
    """Return the plan that tells the language of the first window."""
    return Plan(
        prompts=((rules.start,),),
        samplings=(SamplingParams(max_tokens=1, temperature=0.0, logprobs=0),),
        logprobs=0,
        tenant=body.user or "",
        sounds=(sound.window(0),),
        script=(tuple(rules.languages.values()),),
    )


def _opening(
    rules: SpeechRules, task: str, language: str, *, times: bool
) -> tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]:
    """Return the prompt after the text before the sound, and the places that only the model can fill."""
    plain = () if times or rules.no_times is None else (rules.no_times,)
    if not rules.languages:
        return (rules.start, *plain), ()
    asked = rules.tasks.get(task, rules.tasks.get(TRANSCRIBE))
    todo = () if asked is None else (asked,)
    if language:
        return (rules.start, rules.languages[language], *todo, *plain), ()
    return (rules.start,), (tuple(rules.languages.values()), *((token,) for token in (*todo, *plain)))


async def _before(body: SpeechRequest, model: ServedModel, rules: SpeechRules) -> Sequence[int]:
    """Return the tokens of the text before the sound: its end, in at most half of the context, as OpenAI's API does it."""
    text = (body.prompt or "").strip()
    if not text or rules.before is None:
        return ()
    tokens = await model.vocabulary.encode(" " + text, special=False)
    return (rules.before, *tokens[-(model.max_model_len // 2 - 1) :])
