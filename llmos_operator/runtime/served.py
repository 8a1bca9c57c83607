"""A loaded model as the front serves it: tokenizer, chat template and default sampling from its directory."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from llmos_operator.api.runtime.abilities import apis_of
from llmos_operator.errors import Permanent
from llmos_operator.runtime import chat
from llmos_operator.runtime.pictures.rules import read_rules as picture_rules
from llmos_operator.runtime.speech.rules import read_rules
from llmos_operator.runtime.vocabulary import Vocabulary, read_json

if TYPE_CHECKING:
    from llmos_operator.runtime.ipc import EngineInfo
    from llmos_operator.runtime.pictures.rules import PictureRules
    from llmos_operator.runtime.speech.rules import SpeechRules

ROUTES = {
    "chat": "/v1/chat/completions",
    "completions": "/v1/completions",
    "embeddings": "/v1/embeddings",
    "transcriptions": "/v1/audio/transcriptions",
    "classify": "/classify",
    "score": "/v1/score",
}
# Of generation_config.json: what sampling a model's author recommends. A request overrides each.
_RECOMMENDED = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


@dataclass(frozen=True, slots=True)
class ServedModel:
    """Everything a request needs of the model. Lengths in tokens."""

    name: str
    info: EngineInfo
    vocabulary: Vocabulary
    template: chat.ChatTemplate | None
    recommended: dict[str, Any] = field(default_factory=dict)
    created: int = 0  # epoch seconds
    adapter: str = ""  # "": the base model
    rules: SpeechRules | None = None  # of a speech model
    pictures: PictureRules | None = None  # of an image classifier

    @property
    def apis(self) -> tuple[str, ...]:
        """Parts of the serving API it can answer."""
        return self.info.apis or apis_of(self.info.architecture, generative=self.info.generative)

    @property
    def routes(self) -> str:
        """Where to ask it, as text."""
        return " or ".join(ROUTES[api] for api in self.apis)

    @property
    def max_model_len(self) -> int:
        """Longest prompt plus answer."""
        return self.info.max_model_len


async def read(name: str, info: EngineInfo, created: float) -> ServedModel:
    """Read what the front needs of a loaded model. Raises Permanent(reason=Unsupported)."""
    return await asyncio.to_thread(_read, name, info, created)


def refreshed(model: ServedModel, info: EngineInfo) -> ServedModel:
    """Return the same model after its engine was started anew."""
    return replace(model, info=info)


def _read(name: str, info: EngineInfo, created: float) -> ServedModel:
    vocabulary = Vocabulary(info.model_dir, wordless=bool(info.picture_bytes))
    pictures = picture_rules(Path(info.model_dir)) if info.picture_bytes else None
    try:
        template = chat.load(info.model_dir, vocabulary.settings)
    except TemplateError as error:
        raise Permanent(f"the model's chat template is broken: {error}", reason="Unsupported") from error
    rules = read_rules(Path(info.model_dir), info.vocab_size) if info.window_samples else None
    if rules is not None:
        # Times are no text, though their tokens are not marked as special.
        vocabulary.special |= frozenset(range(rules.times_from, rules.vocabulary))
    generation = read_json(Path(info.model_dir) / "generation_config.json")
    # do_sample: false beside sampling values means that they are leftovers of training code.
    wanted = generation if generation.get("do_sample") is not False else {}
    recommended = {key: wanted[key] for key in _RECOMMENDED if _is_number(wanted.get(key))}
    return ServedModel(
        name, info, vocabulary, template, recommended, int(created), rules=rules, pictures=pictures
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
