"""Speech models: a window of sound is heard once, and written down like any generated text.

A sequence's window is encoded when its first tokens are computed; the decoder's keys and values of it stay until the
sequence ends, as also the books of the KV cache say (`KvCache.beside`). Everything else is CausalModel's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers.models.whisper.feature_extraction_whisper import WhisperFeatureExtractor

from llmos_operator.errors import Permanent
from llmos_operator.runtime.backends.causal import CausalModel, StepResult
from llmos_operator.runtime.backends.hearing import Heard, HearingContext
from llmos_operator.runtime.backends.sampling import bias_of
from llmos_operator.runtime.formats.config import read_json
from llmos_operator.runtime.speech.form import Transcript

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import Tensor, nn

    from llmos_operator.runtime.backends.adapters import AdapterSet
    from llmos_operator.runtime.backends.kvstore import KvStore
    from llmos_operator.runtime.batching import StepPlan, Work
    from llmos_operator.runtime.ipc.messages import Submit

_FULL_SCALE = 32768.0
_EXTRACTOR = {"hop_length": 160, "n_fft": 400, "sampling_rate": 16_000}


def read_extractor(folder: Path, bins: int, positions: int) -> WhisperFeatureExtractor:
    """Return what makes a spectrogram of ``bins`` rows and 2 x ``positions`` columns.

    The constants are those of every Whisper model; a preprocessor_config.json that says others is refused
    (Permanent, Unsupported).
    """
    path = folder / "preprocessor_config.json"
    found = read_json(path) if path.is_file() else {}
    wanted = {**_EXTRACTOR, "feature_size": bins}
    for key, value in wanted.items():
        if found.get(key, value) != value:
            raise Permanent(
                f"preprocessor_config.json: {key} is {str(found[key])[:40]}, this model is served with {value}",
                reason="Unsupported",
            )
    made = WhisperFeatureExtractor(**wanted)
    made.n_samples = 2 * positions * made.hop_length
    return made


class SpeechModel(CausalModel):
    """A transformers Whisper model over a KvStore."""

    def __init__(
        self,
        model: nn.Module,
        backbone: str,
        head: str,
        store: KvStore,
        context: HearingContext,
        adapters: AdapterSet,
        extractor: WhisperFeatureExtractor,
    ) -> None:
        super().__init__(model, backbone, store, context, adapters, head=head)
        self._encoder: nn.Module = model.get_submodule("model.encoder")
        self._layers: Any = model.get_submodule(f"{backbone}.layers")
        self._hearing = context
        self._extractor = extractor
        self._known: dict[str, Heard] = {}  # by request
        self._dtype = next(self._encoder.parameters()).dtype
        width = int(model.config.d_model)  # type: ignore[union-attr, arg-type]
        # The decoder wants something to look at; the attention function knows better.
        nothing = torch.empty(1, 0, width, dtype=self._dtype, device=self._device)
        self._options = {"encoder_hidden_states": nothing}

    @torch.inference_mode()
    def finish(self, plan: StepPlan, eos_token_ids: tuple[int, ...]) -> StepResult:
        """Run one step, hearing first what its new sequences bring."""
        self._hearing.heard = {work.slot: self._heard_by(work.sequence.submit) for work in plan.works}
        return super().finish(plan, eos_token_ids)

    def forget(self, request_id: str) -> None:
        """Drop what a request has heard."""
        self._known.pop(request_id, None)

    def features(self, sound: bytes) -> Tensor:
        """Return the spectrogram [1, bins, columns] of 16 bit samples at 16 kHz, silence after their end."""
        samples = np.frombuffer(sound or bytes(2), np.dtype("<i2")).astype(np.float32) / _FULL_SCALE
        made = self._extractor(samples, sampling_rate=self._extractor.sampling_rate, return_tensors="pt")
        spectrogram: Tensor = made["input_features"]
        return spectrogram.to(self._device, self._dtype)

    def _heard_by(self, submit: Submit) -> Heard:
        known = self._known.get(submit.request_id)
        if known is None:
            known = self._known[submit.request_id] = self._hear(submit.audio)
        return known

    def _hear(self, sound: bytes) -> Heard:
        found = self._encoder(self.features(sound)).last_hidden_state
        keys, values = [], []
        for layer in self._layers:
            look = layer.encoder_attn
            shape = (found.shape[1], look.num_heads, look.head_dim)
            keys.append(look.k_proj(found)[0].view(shape).transpose(0, 1).contiguous())
            values.append(look.v_proj(found)[0].view(shape).transpose(0, 1).contiguous())
        return Heard(tuple(keys), tuple(values))

    def _sample(self, works: Sequence[Work], logits: Tensor, eos: tuple[int, ...]) -> StepResult:
        place = 0
        for work in works:
            form = work.sequence.form
            if work.at_end and isinstance(form, Transcript) and form.timed:
                _prefer_times(logits[place + work.logits - 1], form)
            place += work.logits
        return super()._sample(works, logits, eos)


def _prefer_times(row: Tensor, form: Transcript) -> None:
    """Leave only times in a row of logits where some time is likelier than the likeliest text.

    Judged among the tokens that the pairing of times allows, before others are suppressed: so Whisper's authors do it, and
    WhisperTimeStampLogitsProcessor of transformers.
    """
    begin = form.times_from
    judged = row.float() + torch.from_numpy(bias_of(form.judged(), row.shape[0])).to(row.device)
    scores = torch.log_softmax(judged, -1)
    if scores[begin:].logsumexp(-1) > scores[:begin].max():
        row[:begin] = -torch.inf
