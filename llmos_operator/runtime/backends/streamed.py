"""A model that reads each layer's weights when the layer runs and drops them after: the reference for quality checks.

A format is judged against the source precision; holding both at once would need the memory that quantising saves.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from llmos_operator.runtime.backends.families import replace_module, set_tensor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from llmos_operator.runtime.formats.mapped import RowReader


class StreamedEmbedding(nn.Module):
    """Looks rows up in the file."""

    def __init__(self, reader: RowReader, source: str, multiplier: float) -> None:
        super().__init__()
        self._reader = reader
        self._source = source
        self._multiplier = multiplier

    def forward(self, ids: Tensor) -> Tensor:
        """Return bf16 rows of ``ids``."""
        unique, places = ids.reshape(-1).unique(return_inverse=True)  # type: ignore[no-untyped-call]
        rows = torch.cat([self._reader.rows(self._source, row, row + 1) for row in unique.tolist()])
        found = rows.to(torch.bfloat16)[places].view(*ids.shape, -1)
        return found * self._multiplier if self._multiplier != 1 else found


def stream(model: nn.Module, names: Mapping[str, str], reader: RowReader) -> None:
    """Make an empty, unfused ``model`` compute in bf16 with weights read through ``reader``. Its head stays empty."""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Embedding):
            scale = float(getattr(module, "scalar_embed_scale", 1.0))
            replace_module(model, name, StreamedEmbedding(reader, names[f"{name}.weight"], scale))
        elif module._parameters and name != "lm_head":  # noqa: SLF001 - own parameters, without children
            _Loader(name, module, model, names, reader)


class _Loader:
    """Gives one module its parameters for the time of its forward."""

    def __init__(
        self, name: str, module: nn.Module, model: nn.Module, names: Mapping[str, str], reader: RowReader
    ) -> None:
        own = [key for key, value in module._parameters.items() if value is not None]  # noqa: SLF001
        self._sources = {f"{name}.{key}": names[f"{name}.{key}"] for key in own}
        self._empty = {f"{name}.{key}": module.get_parameter(key).data for key in own}
        self._model = model
        self._reader = reader
        module.register_forward_pre_hook(self._fill)
        module.register_forward_hook(self._drop)

    def _fill(self, *_: Any) -> None:
        for name, source in self._sources.items():
            set_tensor(self._model, name, self._reader.whole(source).to(torch.bfloat16))

    def _drop(self, *_: Any) -> None:
        for name, empty in self._empty.items():
            set_tensor(self._model, name, empty)
