"""What rank 0 of a model that is split over several devices tells the other ranks, and what they answer.

Rank 0 has the scheduler and decides; the others compute what it orders, in its order, each with its own part of the
weights. Two sockets join each of them to it: orders and answers on one, a beat a second in both directions on the other.
Frames are those of `ipc.codec`.
"""

from __future__ import annotations

from dataclasses import dataclass

from llmos_operator.errors import Retryable
from llmos_operator.runtime.ipc.messages import Load  # noqa: TC001 - the codec reads the annotations


class RankLost(Retryable):
    """A rank ended, hangs or did not come; so does the group end."""


@dataclass(frozen=True, slots=True)
class Hello:
    """The first frame on each of a rank's two connections to rank 0, where they are of two pods."""

    rank: int
    channel: int  # 0: orders, 1: beats
    proof: bytes


@dataclass(frozen=True, slots=True)
class Fetch:
    """Have the files of a model in this pod: from the same source, with the digest of rank 0's. Answered as Build."""

    format: str
    digest: str


@dataclass(frozen=True, slots=True)
class Build:
    """Load the rank's part of a model. Answered by Built or Refused. Files have been checked by rank 0."""

    load: Load
    folder: str  # with config.json and the published weights
    converted: str  # folder of the converted weights; "" = serve the published ones
    meeting: str  # path of the file, or host:port, that the ranks meet at; "" = they have met before
    max_model_len: int
    blocks: int  # of the KV cache


@dataclass(frozen=True, slots=True)
class Tune:
    """Set what was measured of quantised layers, by their size (`backends.tuning`), and measure the rest."""

    crossovers: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Piece:
    """The part of a `batching.Work` that ranks compute: where its tokens stand and how many of them get logits."""

    slot: int
    start: int
    tokens: tuple[int, ...]
    logits: int


@dataclass(frozen=True, slots=True)
class Step:
    """One step, as `batching.StepPlan` describes it; copies are (source slot, target slot, tokens)."""

    pieces: tuple[Piece, ...]
    copies: tuple[tuple[int, int, int], ...] = ()
    released: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Look:
    """Compute the last hidden states of one text through slot 0, and keep them for Columns."""

    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Columns:
    """Compute the logits that a range of the vocabulary has after the text of Look."""

    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Release:
    """Give back the KV memory of slots beyond so many tokens."""

    released: tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Drop:
    """Let go of the model; Build may follow."""


@dataclass(frozen=True, slots=True)
class End:
    """End the process."""


# ---------------------------------------------------------------- rank to rank 0


@dataclass(frozen=True, slots=True)
class Built:
    """The part is there."""

    weights_bytes: int


@dataclass(frozen=True, slots=True)
class Refused:
    """The part cannot be had, as errors.Permanent (or Retryable) says."""

    reason: str
    message: str
    permanent: bool = True


# ---------------------------------------------------------------- both


@dataclass(frozen=True, slots=True)
class Beat:
    """The process lives; a rank adds what its memory was when it last looked."""

    measured_bytes: int = 0


Order = Fetch | Build | Tune | Step | Look | Columns | Release | Drop | End
Answer = Built | Refused
RankMessage = Order | Answer | Beat | Hello
