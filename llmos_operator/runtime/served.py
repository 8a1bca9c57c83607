"""A loaded model as the front serves it: tokenizer, chat template and default sampling from its directory."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from llmos_operator.errors import Permanent
from llmos_operator.runtime import chat
from llmos_operator.runtime.vocabulary import Vocabulary, read_json

if TYPE_CHECKING:
    from llmos_operator.runtime.ipc import EngineInfo

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
    vocabulary = Vocabulary(info.model_dir)
    try:
        template = chat.load(info.model_dir, vocabulary.settings)
    except TemplateError as error:
        raise Permanent(f"the model's chat template is broken: {error}", reason="Unsupported") from error
    generation = read_json(Path(info.model_dir) / "generation_config.json")
    # do_sample: false beside sampling values means that they are leftovers of training code.
    wanted = generation if generation.get("do_sample") is not False else {}
    recommended = {key: wanted[key] for key in _RECOMMENDED if _is_number(wanted.get(key))}
    return ServedModel(name, info, vocabulary, template, recommended, int(created))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
