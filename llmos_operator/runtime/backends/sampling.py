"""From logits to tokens, each row by its own rules.

Randomness is a function of (seed, position): the same request gives the same answer whatever else is in the batch,
after a preemption, and with or without drafts. A draw is one uniform number against the cumulative distribution.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from llmos_operator.runtime.ipc.messages import TokenLogprob

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray
    from torch import Tensor

    from llmos_operator.runtime.ipc.messages import SamplingParams

# For each byte of a mask, lowest bit first: 0 where the bit is set, minus infinity where it is not.
_BYTE_BIAS = np.where(
    np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little"), 0.0, -np.inf
).astype(np.float32)
_LARGEST = torch.finfo(torch.float32).max
_COLDEST = 1e-6  # a lower temperature would divide by what float32 takes for zero
_TOP_CANDIDATES = (
    512  # nucleus and top-k look at so many tokens first, and at all only where those do not suffice
)


@dataclass(frozen=True, slots=True)
class Row:
    """One place to sample at: the rules, how many tokens stand before it, and where penalties count, which ones."""

    params: SamplingParams
    position: int
    seed: int
    tokens: Sequence[int] = ()
    prompt_length: int = 0
    blocked: tuple[int, ...] = ()  # tokens that may not come yet (min_tokens)
    allowed: bytes | None = None  # one bit a token, lowest bit first: those that keep to the form


def sample(logits: Tensor, rows: Sequence[Row]) -> tuple[list[int], list[TokenLogprob | None]]:
    """Return for each row of float32 ``logits`` [rows, vocabulary] the chosen token and, where asked for, logprobs."""
    raw = logits
    changed = [i for i, row in enumerate(rows) if _adjusts(row)]
    if changed:
        logits = logits.clone() if any(row.params.logprobs is not None for row in rows) else logits
        for index in changed:
            _adjust(logits[index], rows[index])
    tokens: list[int] = logits.argmax(-1).tolist()
    for index, row in enumerate(rows):
        if row.params.temperature > 0:
            tokens[index] = _draw(logits[index], row)
    logprobs = [
        None if row.params.logprobs is None else logprob_of(raw[index], tokens[index], row.params.logprobs)
        for index, row in enumerate(rows)
    ]
    return tokens, logprobs


def logprob_of(logits: Tensor, token: int, top: int) -> TokenLogprob:
    """Return the model's own logprob of ``token``, its rank, and the ``top`` most likely tokens."""
    scores = torch.log_softmax(logits.float(), -1)
    value = scores[token]
    rank = int((scores > value).sum()) + 1
    best = torch.topk(scores, top) if top else None
    pairs = tuple(zip(best.indices.tolist(), best.values.tolist(), strict=True)) if best is not None else ()
    return TokenLogprob(token, float(value), rank, pairs)


def uniform(seed: int, position: int) -> float:
    """Return a number in [0, 1) that depends on nothing but ``seed`` and ``position``."""
    digest = hashlib.blake2b(f"{seed}/{position}".encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / (1 << 53)


def penalised(params: SamplingParams) -> bool:
    """Return whether the rules look at the tokens so far."""
    return bool(params.repetition_penalty != 1 or params.presence_penalty or params.frequency_penalty)


def _adjusts(row: Row) -> bool:
    return bool(row.params.logit_bias or row.blocked or row.allowed is not None or penalised(row.params))


def _adjust(logits: Tensor, row: Row) -> None:
    """Apply logit_bias, penalties and masks to one row, in place."""
    params, device = row.params, logits.device
    for token, bias in params.logit_bias:
        if token < logits.shape[0]:
            logits[token] += bias
    if params.repetition_penalty != 1 and row.tokens:
        seen = torch.tensor(sorted(set(row.tokens)), device=device)
        values = logits[seen]
        logits[seen] = torch.where(
            values > 0, values / params.repetition_penalty, values * params.repetition_penalty
        )
    output = row.tokens[row.prompt_length :]
    if (params.presence_penalty or params.frequency_penalty) and output:
        counts = Counter(output)
        weights = [params.presence_penalty + params.frequency_penalty * count for count in counts.values()]
        logits[torch.tensor(list(counts), device=device)] -= torch.tensor(weights, device=device)
    if row.blocked:
        logits[torch.tensor(row.blocked, device=device)] = -math.inf
    if row.allowed is not None:
        logits += torch.from_numpy(bias_of(row.allowed, logits.shape[0])).to(device)


def bias_of(mask: bytes, width: int) -> NDArray[np.float32]:
    """Return 0 for each allowed token and minus infinity for the others, and for what lies beyond the mask.

    Added, because torch fills by a mask twenty times slower than it adds.
    """
    found = _BYTE_BIAS[np.frombuffer(mask, np.uint8)].reshape(-1)[:width]
    return found if len(found) == width else np.pad(found, (0, width - len(found)), constant_values=-np.inf)


def _draw(logits: Tensor, row: Row) -> int:
    """Return a token drawn by temperature, min_p, top_k and top_p, in this order."""
    params = row.params
    # From the best one down, so that no temperature and no penalty makes infinities of finite differences.
    finite = logits.float().nan_to_num(nan=-math.inf, posinf=_LARGEST, neginf=-math.inf)
    scaled = (finite - finite.max().clamp(min=-_LARGEST)) / max(params.temperature, _COLDEST)
    number = uniform(row.seed, row.position)
    if params.top_k or params.top_p < 1:
        return _draw_from_best(scaled, params, number)
    probabilities = torch.softmax(scaled, -1)
    if params.min_p:
        probabilities = probabilities * (probabilities >= params.min_p * probabilities.max())
    return _pick(probabilities, number)


def _draw_from_best(scaled: Tensor, params: SamplingParams, number: float) -> int:
    values, indices = _candidates(scaled, params)
    probabilities = torch.exp(values - torch.logsumexp(scaled, -1))
    if params.min_p:
        probabilities = probabilities * (probabilities >= params.min_p * probabilities[0])
    if params.top_k:
        probabilities = probabilities[: params.top_k]
    if params.top_p < 1:
        probabilities = probabilities / probabilities.sum()
        before = probabilities.cumsum(-1) - probabilities
        probabilities = probabilities * (before < params.top_p)
    return int(indices[_pick(probabilities, number)])


def _candidates(scaled: Tensor, params: SamplingParams) -> tuple[Tensor, Tensor]:
    """Return the most likely tokens, best first, enough of them for top_k or for the nucleus."""
    width = min(scaled.shape[-1], params.top_k or _TOP_CANDIDATES)
    values, indices = torch.topk(scaled, width)
    covered = torch.exp(torch.logsumexp(values, -1) - torch.logsumexp(scaled, -1))
    if params.top_k or float(covered) >= params.top_p:
        return values, indices
    order = torch.argsort(scaled, descending=True)  # flat: the nucleus is wider than the candidates
    return scaled[order], order


def _pick(probabilities: Tensor, number: float) -> int:
    """Return the index at which the cumulative distribution passes ``number``."""
    cumulative = probabilities.double().cumsum(-1)
    index = int(torch.searchsorted(cumulative, number * float(cumulative[-1]), right=True))
    if index < len(probabilities) and float(probabilities[index]) > 0:
        return index
    likely = probabilities.nonzero()
    return int(likely[-1]) if len(likely) else 0  # nothing is left of a row of minus infinities
