"""What transformers makes of a sound: its features, and a greedy loop over its model and its own rules."""

from __future__ import annotations

from array import array
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import WhisperFeatureExtractor
from transformers.generation.logits_process import (
    LogitsProcessorList,
    SuppressTokensAtBeginLogitsProcessor,
    SuppressTokensLogitsProcessor,
    WhisperTimeStampLogitsProcessor,
)

from llmos_operator.runtime.speech.rules import RATE
from tests.support.speech import CONFIG, END, GENERATION, WINDOW_SAMPLES

if TYPE_CHECKING:
    from collections.abc import Sequence


def features(sound: bytes) -> torch.Tensor:
    """Return the features of 16 bit samples."""
    extractor = WhisperFeatureExtractor(feature_size=CONFIG["num_mel_bins"])
    values = np.array(array("h", sound), np.float32) / 32768
    made = extractor(values, sampling_rate=RATE, return_tensors="pt", max_length=WINDOW_SAMPLES)
    found: torch.Tensor = made.input_features
    return found


def greedy(reference: Any, sound: bytes, prompt: Sequence[int], count: int, *, times: bool) -> list[int]:
    """Return the tokens after ``prompt``, at most ``count``, without the end token."""
    begin = len(prompt)
    rules: list[Any] = [
        SuppressTokensAtBeginLogitsProcessor(GENERATION["begin_suppress_tokens"], begin),
        SuppressTokensLogitsProcessor(GENERATION["suppress_tokens"]),
    ]
    if times:
        rules.append(WhisperTimeStampLogitsProcessor(reference.generation_config, begin_index=begin))
    processors, heard, tokens = LogitsProcessorList(rules), features(sound), list(prompt)
    while len(tokens) < begin + count:
        ids = torch.tensor([tokens])
        with torch.no_grad():
            scores = reference(input_features=heard, decoder_input_ids=ids).logits[:, -1].float()
        best = int(processors(ids, scores)[0].argmax())
        if best == END:
            break
        tokens.append(best)
    return tokens[begin:]
