"""What a speech model asks of a request before it is queued."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmos_operator.runtime.speech.rules import SAMPLE_BYTES

if TYPE_CHECKING:
    from llmos_operator.runtime.ipc.messages import EngineInfo, Submit
    from llmos_operator.runtime.speech.rules import SpeechRules


def problem_with(submit: Submit, rules: SpeechRules | None, info: EngineInfo) -> str:
    """Return what is wrong with a request's sound, "" if nothing is; ``rules`` is None where the model hears nothing."""
    if rules is None:
        return f"{info.architecture} hears nothing" if submit.audio else ""
    size, most = len(submit.audio), info.window_samples * SAMPLE_BYTES
    if not 0 < size <= most or size % SAMPLE_BYTES:
        return f"the sound has {size} bytes; an even number up to {most} is heard at once"
    if submit.grammar or submit.adapter:
        return "a speech model keeps to no grammar and has no adapters"
    if any(not 0 <= token < rules.vocabulary for place in submit.script for token in place):
        return f"the script has a token outside 0..{rules.vocabulary - 1}"
    if submit.times and rules.no_times is None:
        return "this model makes no times"
    return ""
