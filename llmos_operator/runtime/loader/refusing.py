"""What a load asks for that its model cannot be served with, told before anything is read or built."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmos_operator.api.runtime.abilities import PLAIN_FORMATS
from llmos_operator.api.runtime.splitting import not_splittable
from llmos_operator.api.runtime.staging import not_stageable
from llmos_operator.errors import Permanent

if TYPE_CHECKING:
    from llmos_operator.api.runtime.memory import ModelShape
    from llmos_operator.runtime.formats.config import ModelConfig
    from llmos_operator.runtime.ipc.messages import Load


def refuse_format(load: Load, config: ModelConfig) -> None:
    """Raise Permanent(reason=Unsupported) for a format or adapters that models of this kind are not served with."""
    refuse_other_than_stored(load.format, config)
    if config.convertible:
        return
    if load.format not in PLAIN_FORMATS:
        raise Permanent(
            f"{config.architecture} is not served at format {load.format}; use {' or '.join(PLAIN_FORMATS)}",
            reason="Unsupported",
        )
    if load.max_adapters:
        raise Permanent(f"{config.architecture} is served without adapters; name none", reason="Unsupported")


def refuse_other_than_stored(fmt: str, config: ModelConfig) -> None:
    """Raise Permanent(reason=Unsupported) if the model's files are quantised, and not as ``fmt``."""
    stored = config.stored
    if stored is not None and fmt != stored.format:
        raise Permanent(
            f"the weights are quantised already ({stored}) and are served at {stored.format} alone, not at {fmt}; ask for "
            f"{stored.format}, or name the model in its source precision",
            reason="Unsupported",
        )


def refuse_split(load: Load, shape: ModelShape) -> None:
    """Raise Permanent(reason=Unsupported) if the load's devices cannot share the model."""
    why = not_stageable(shape, load.pipeline, load.tensor) or not_splittable(shape, load.format, load.tensor)
    if not why and load.ranks > 1 and load.max_adapters:
        why = f"adapters are not served by a model that {load.ranks} devices share; use one device, or no adapters"
    if why:
        raise Permanent(why, reason="Unsupported")
