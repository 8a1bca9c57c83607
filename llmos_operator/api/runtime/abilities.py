"""What a model can do, told from its architecture alone: parts of the serving API, and the formats it is served at.

The scheduler asks before it places a workload, the runtime before it loads a model and at each route: one answer for all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llmos_operator.api.runtime.memory import ModelShape

TRANSCRIPTIONS = "transcriptions"
CLASSIFY = "classify"
SCORE = "score"
# Their layers are not converted: what a narrower format costs is measured on text that a model writes or embeds.
PLAIN_FORMATS = ("bf16", "fp32")
_CLASSIFIER = "ForSequenceClassification"
_PICTURES = "ForImageClassification"
_SPEECH = "WhisperForConditionalGeneration"


def apis_of(architecture: str, *, generative: bool) -> tuple[str, ...]:
    """Return the parts of the serving API (`spec.serving.apis`) that models of an architecture can answer.

    Of classifiers those with a single label alone give scores, which their architecture does not tell.
    """
    if architecture == _SPEECH:
        return (TRANSCRIPTIONS,)
    if architecture.endswith(_PICTURES):
        return (CLASSIFY,)
    if generative:
        return ("chat", "completions")
    return (CLASSIFY if architecture.endswith(_CLASSIFIER) else "embeddings", SCORE)


def formats_of(shape: ModelShape, formats: Iterable[str]) -> tuple[str, ...]:
    """Return those of ``formats`` at which the built-in engine serves a model."""
    if shape.quantized:
        return tuple(name for name in formats if name == shape.quantized)
    apis = apis_of(shape.architecture, generative=shape.generative)
    plain = TRANSCRIPTIONS in apis or CLASSIFY in apis
    return tuple(name for name in formats if not plain or name in PLAIN_FORMATS)


def not_served_at(shape: ModelShape, formats: Iterable[str]) -> str:
    """Return why the built-in engine serves a model at none of ``formats``, with the fix."""
    asked = ", ".join(formats)
    if shape.quantized:
        return (
            f"the model's files are {shape.quantized} already and are served at that alone, not at {asked}; allow "
            f"{shape.quantized} in spec.quantization, or name the model in its source precision"
        )
    return (
        f"{shape.architecture} is served at {' and '.join(PLAIN_FORMATS)} alone, not at {asked}; set "
        "spec.quantization.mode to None"
    )


def cannot(shape: ModelShape, wanted: Iterable[str]) -> str:
    """Return why a model cannot answer the parts of the API that are ``wanted``, with the fix; "" if it can."""
    able = apis_of(shape.architecture, generative=shape.generative)
    missing = [name for name in wanted if name not in able]
    if not missing:
        return ""
    what = shape.architecture or "the model"
    return (
        f"spec.serving.apis asks for {', '.join(missing)}, which {what} cannot answer; it can answer {' and '.join(able)}: "
        "leave spec.serving.apis empty, or name a model that can"
    )
