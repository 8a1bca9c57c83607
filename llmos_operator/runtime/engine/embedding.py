"""Requests to an encoder: texts or pictures that wait for their vectors or for the probabilities of their labels."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llmos_operator.api.runtime.pictures import AT_ONCE
from llmos_operator.runtime.backends.encoder import packs
from llmos_operator.runtime.ipc.messages import EmbedResult

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from llmos_operator.runtime.backends.encoder import Encoder
    from llmos_operator.runtime.backends.seeing import PictureModel
    from llmos_operator.runtime.ipc.messages import Embed, EngineInfo


@dataclass(slots=True, eq=False)
class _Job:
    """A request on its way: the inputs that are still to be computed, cut into steps, and the rows of the others."""

    embed: Embed
    left: deque[slice] = field(default_factory=deque)
    rows: list[npt.NDArray[np.float32]] = field(default_factory=list)


class Embeds:
    """Their queue. A step computes a part of one request; the others have their turn before the next part."""

    def __init__(
        self, encoder: Encoder | None, info: EngineInfo, pictures: PictureModel | None = None
    ) -> None:
        """Both are None where the model generates."""
        self._pictures = pictures
        self._encoder = encoder
        self._info = info
        self._waiting: deque[_Job] = deque()

    @property
    def pending(self) -> int:
        """Requests that wait, or are not complete."""
        return len(self._waiting)

    def add(self, embed: Embed) -> None:
        """Queue a request."""
        self._waiting.append(_Job(embed))

    def cancel(self, request_id: str) -> bool:
        """Forget a request, however much of it is computed; False if it is not here."""
        job = next((job for job in self._waiting if job.embed.request_id == request_id), None)
        if job is None:
            return False
        self._waiting.remove(job)
        return True

    def abort_all(self, why: str) -> list[EmbedResult]:
        """Forget all requests; return what is said to each."""
        gone = [EmbedResult(job.embed.request_id, error=why) for job in self._waiting]
        self._waiting.clear()
        return gone

    def step(self) -> EmbedResult | None:
        """Compute a part of the request whose turn it is; return its answer once it is complete."""
        if not self._waiting:
            return None
        job = self._waiting.popleft()
        if not job.rows and (problem := self._problem(job.embed)):
            return EmbedResult(job.embed.request_id, error=problem)
        if not job.rows:
            job.left.extend(self._cut(job.embed))
        job.rows.append(self._rows(job.embed, job.left.popleft()))
        if job.left:
            self._waiting.append(job)
            return None
        return _answer(job)

    def _cut(self, embed: Embed) -> list[slice]:
        if self._pictures is None:
            return packs(embed.inputs)
        return [slice(at, at + AT_ONCE) for at in range(0, len(embed.pictures), AT_ONCE)]

    def _rows(self, embed: Embed, part: slice) -> npt.NDArray[np.float32]:
        if self._pictures is not None:
            return self._pictures.classify(embed.pictures[part]).numpy()
        if self._encoder is None:
            raise AssertionError("requests to a model that generates are refused before they are computed")
        if embed.classify:
            return self._encoder.classify(embed.inputs[part], embed.second_from[part]).numpy()
        rows = self._encoder.embed(embed.inputs[part], normalize=embed.normalize, dimensions=embed.dimensions)
        return rows.numpy()

    def _problem(self, embed: Embed) -> str:
        info = self._info
        if self._pictures is not None:
            wanted = info.picture_bytes
            good = embed.pictures and not embed.inputs and all(len(one) == wanted for one in embed.pictures)
            return "" if good else f"there must be pictures alone, of {wanted} bytes each"
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


def _answer(job: _Job) -> EmbedResult:
    tokens = sum(len(one) for one in job.embed.inputs)
    data = b"".join(rows.tobytes() for rows in job.rows)
    return EmbedResult(job.embed.request_id, data, job.rows[0].shape[1], tokens)
