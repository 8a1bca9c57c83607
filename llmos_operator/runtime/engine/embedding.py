"""Requests to an encoder: texts that wait for their vectors or for the probabilities of their labels."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from llmos_operator.runtime.ipc.messages import EmbedResult

if TYPE_CHECKING:
    from llmos_operator.runtime.backends.encoder import Encoder
    from llmos_operator.runtime.backends.seeing import PictureModel
    from llmos_operator.runtime.ipc.messages import Embed, EngineInfo


class Embeds:
    """Their queue; one request a step."""

    def __init__(
        self, encoder: Encoder | None, info: EngineInfo, pictures: PictureModel | None = None
    ) -> None:
        """Both are None where the model generates."""
        self._pictures = pictures
        self._encoder = encoder
        self._info = info
        self._waiting: deque[Embed] = deque()

    @property
    def pending(self) -> int:
        """Requests that wait."""
        return len(self._waiting)

    def add(self, embed: Embed) -> None:
        """Queue a request."""
        self._waiting.append(embed)

    def step(self) -> EmbedResult | None:
        """Answer one request, None without any."""
        if not self._waiting:
            return None
        embed = self._waiting.popleft()
        if self._pictures is not None:
            return self._look(self._pictures, embed)
        encoder, problem = self._encoder, self._problem(embed)
        if problem or encoder is None:
            return EmbedResult(embed.request_id, error=problem)
        if embed.classify:
            rows = encoder.classify(embed.inputs, embed.second_from)
        else:
            rows = encoder.embed(embed.inputs, normalize=embed.normalize, dimensions=embed.dimensions)
        tokens = sum(len(one) for one in embed.inputs)
        return EmbedResult(embed.request_id, rows.numpy().tobytes(), rows.shape[1], tokens)

    def _look(self, model: PictureModel, embed: Embed) -> EmbedResult:
        wanted = self._info.picture_bytes
        if embed.inputs or not embed.pictures or any(len(one) != wanted for one in embed.pictures):
            return EmbedResult(
                embed.request_id, error=f"there must be pictures alone, of {wanted} bytes each"
            )
        rows = model.classify(embed.pictures)
        return EmbedResult(embed.request_id, rows.numpy().tobytes(), rows.shape[1])

    def _problem(self, embed: Embed) -> str:
        info = self._info
        if self._encoder is None:
            return f"{info.architecture} generates text; embeddings need an encoder model"
        if embed.classify != bool(info.labels):
            return f"{info.architecture} {'classifies' if info.labels else 'embeds'} and does nothing else"
        if not (embed.inputs and 0 <= embed.dimensions <= info.embedding_size):
            return f"there must be inputs, and dimensions from 0 to {info.embedding_size}"
        if embed.second_from and not (embed.classify and len(embed.second_from) == len(embed.inputs)):
            return "second_from must be there for each input or for none, and only to classify"
        return next(filter(None, map(self._problem_of, range(len(embed.inputs)), embed.inputs)), "")

    def _problem_of(self, index: int, tokens: tuple[int, ...]) -> str:
        info = self._info
        if not 0 < len(tokens) <= info.max_model_len:
            return f"input {index} has {len(tokens)} tokens; 1 to {info.max_model_len} are allowed"
        if min(tokens) < 0 or max(tokens) >= info.vocab_size:
            return f"input {index} has a token outside 0..{info.vocab_size - 1}"
        return ""
