"""Image classifiers: pixels in, probabilities of labels out, a few pictures a pass."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from llmos_operator.api.runtime.pictures import AT_ONCE
from llmos_operator.runtime.backends.encoder import probabilities
from llmos_operator.runtime.pictures.rules import CHANNELS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

    from llmos_operator.runtime.pictures.rules import PictureRules


class PictureModel:
    """A transformers image classifier."""

    def __init__(
        self,
        model: nn.Module,
        rules: PictureRules,
        problem_type: str,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """``problem_type`` is config.json's."""
        self.rules = rules
        self._model = model
        self._problem = problem_type
        self._dtype = dtype
        self._device = device
        shape = (1, CHANNELS, 1, 1)
        self._mean = torch.tensor(rules.mean, device=device).reshape(shape)
        self._deviation = torch.tensor(rules.deviation, device=device).reshape(shape)

    @torch.inference_mode()
    def classify(self, pictures: Sequence[bytes]) -> Tensor:
        """Return float32 probabilities [pictures, labels] on the CPU. Each has the rules' size: red, green, blue, by rows."""
        passes = [pictures[at : at + AT_ONCE] for at in range(0, len(pictures), AT_ONCE)]
        logits = torch.cat([self._logits(some) for some in passes]).float()
        return probabilities(logits, self._problem).cpu()

    def _logits(self, pictures: Sequence[bytes]) -> Tensor:
        rules = self.rules
        raw = torch.frombuffer(bytearray(b"".join(pictures)), dtype=torch.uint8).to(self._device)
        pixels = raw.reshape(-1, rules.height, rules.width, CHANNELS).permute(0, 3, 1, 2).float()
        scaled = (pixels * rules.factor - self._mean) / self._deviation
        found: Tensor = self._model(pixel_values=scaled.to(self._dtype)).logits
        return found
