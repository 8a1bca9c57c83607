"""Judging a converted model: its loss against the source, measured once, and the refusal beyond the limit."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from tokenizers import Tokenizer

from llmos_operator.errors import Permanent
from llmos_operator.observability.logging import logger
from llmos_operator.runtime.backends import build
from llmos_operator.runtime.backends.kvstore import KvGeometry
from llmos_operator.runtime.backends.products import logits
from llmos_operator.runtime.backends.quality import Quality, compare_generative, compare_vectors
from llmos_operator.runtime.backends.streamed import stream
from llmos_operator.runtime.formats.sample_text import SAMPLE_TEXT, SENTENCES

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

    from llmos_operator.runtime.backends.build import Built
    from llmos_operator.runtime.backends.causal import CausalModel
    from llmos_operator.runtime.formats.checkpoint import Checkpoint
    from llmos_operator.runtime.formats.config import ModelConfig
    from llmos_operator.runtime.formats.mapped import RowReader

log = logger(__name__)

TOKENS = 512
_LARGE_PARAMETERS = 2_000_000_000  # beyond this a shorter text has to do
_TOKENS_LARGE = 256


def refuse_beyond(quality: Quality, fmt: str, limit_milli: int) -> None:
    """Raise Permanent(reason=QualityLossExceeded) with the numbers if ``quality`` is beyond the workload's limit."""
    if quality.refused(limit_milli):
        raise Permanent(
            f"format {fmt} is refused: {quality.describe()}; the workload allows {limit_milli / 1000:g} % "
            "(spec.quantization.maxQualityLoss)",
            reason="QualityLossExceeded",
        )


def judge(config: ModelConfig, source: Checkpoint, built: Built) -> Quality | None:
    """Return what the format of ``built`` costs against ``source``; None where there is no tokenizer to read a text."""
    path = source.folder / "tokenizer.json"
    if not path.is_file():
        return None
    if built.causal is None:
        return _judge_encoder(config, source, built, path)
    empty = build.prepare(config, source)
    large = empty.shape.parameters > _LARGE_PARAMETERS
    limit = min(_TOKENS_LARGE if large else TOKENS, built.causal.store.geometry.slot_tokens)
    tokens = Tokenizer.from_file(str(path)).encode(SAMPLE_TEXT, add_special_tokens=False).ids[:limit]
    with empty.reader() as reader:
        reference = _streamed(empty, reader, len(tokens))
        expected = reference.hidden(tokens)
        served = built.causal
        head = empty.names["lm_head.weight"]

        def source_logits(begin: int, end: int) -> Tensor:
            return reference.bounded(logits(expected, reader.rows(head, begin, end).to(torch.bfloat16)))

        actual = served.hidden(tokens)
        served.release([(0, 0)])
        return compare_generative(
            lambda begin, end: source_logits(begin, end)[:-1],
            lambda begin, end: served.logits_slice(actual, begin, end)[:-1],
            empty.shape.vocab,
            torch.tensor(tokens[1:]),
        )


def _streamed(empty: build.Empty, reader: RowReader, tokens: int) -> CausalModel:
    stream(empty.model, empty.names, reader)
    cpu = torch.device("cpu")
    shell = build.Built(empty.model, cpu, 0)
    shape = empty.shape
    build.attach_causal(
        shell, empty, KvGeometry(shape.layers, shape.kv_heads, shape.head_dim, 1, tokens, torch.bfloat16, cpu)
    )
    if shell.causal is None:
        raise AssertionError("attach_causal attaches a causal model")
    return shell.causal


def _judge_encoder(config: ModelConfig, source: Checkpoint, built: Built, tokenizer: Path) -> Quality:
    inputs = [encoding.ids for encoding in Tokenizer.from_file(str(tokenizer)).encode_batch(list(SENTENCES))]
    empty = build.prepare(config, source)
    with empty.reader() as reader:
        stream(empty.model, empty.names, reader)
        shell = build.Built(empty.model, torch.device("cpu"), 0)
        build.attach_encoder(shell, empty)
        if shell.encoder is None or built.encoder is None:
            raise AssertionError("attach_encoder attaches an encoder")
        expected = shell.encoder.embed(inputs, normalize=True, dimensions=0)
    return compare_vectors(expected, built.encoder.embed(inputs, normalize=True, dimensions=0))
