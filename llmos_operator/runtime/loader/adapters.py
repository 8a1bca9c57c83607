"""An adapter from its source into the memory of a loaded model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from llmos_operator.clock import SystemClock
from llmos_operator.errors import Permanent, Retryable
from llmos_operator.observability.logging import logger
from llmos_operator.runtime.formats.adapter import FILES, read_adapter
from llmos_operator.runtime.ipc.messages import AdapterInfo
from llmos_operator.runtime.loader.progress import Stages
from llmos_operator.runtime.loader.sources import resolve

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmos_operator.runtime.backends.adapters import LoraWeights
    from llmos_operator.runtime.ipc.messages import AdapterSource
    from llmos_operator.runtime.loader.pipeline import Loaded

log = logger(__name__)


def adapter_of(
    source: AdapterSource, loaded: Loaded, *, folders: Sequence[str] = (), stages: Stages | None = None
) -> tuple[AdapterInfo, LoraWeights]:
    """Return the adapter of ``source`` for ``loaded``. Raises Permanent or Retryable, naming the adapter.

    ``folders``, if there are any, are where its files must lie. Without ``stages`` nothing is reported on the way.
    """
    causal = loaded.built.causal
    if causal is None:
        raise Permanent("an encoder serves no adapters", reason="Unsupported")
    stages = stages or Stages(SystemClock(), lambda _: None)
    try:
        if folders:
            folder = _inside(source.uri, folders)
        else:
            order = replace(loaded.load, uri=source.uri, revision="main", digest="")
            folder = resolve(order, stages, files=FILES).path
        files = read_adapter(folder, causal.adapters.layers, max_rank=loaded.load.max_adapter_rank)
        weights = causal.adapters.read(files)
    except Permanent as error:
        raise Permanent(f"adapter {source.name!r}: {error}", reason=error.reason) from error
    except Retryable as error:
        raise Retryable(f"adapter {source.name!r}: {error}", after=error.after) from error
    return AdapterInfo(source.name, source.uri, files.digest, files.rank, weights.nbytes), weights


def load_adapters(loaded: Loaded, stages: Stages) -> None:
    """Load the adapters of the order. Raises Permanent or Retryable for one that is demanded; leaves out others."""
    for source in loaded.load.adapters:
        try:
            info, weights = adapter_of(source, loaded, stages=stages)
        except (Permanent, Retryable) as error:
            if source.demanded:
                raise
            log.warning(
                "an adapter that was loaded before cannot be had again",
                adapter=source.name,
                detail=str(error),
            )
            continue
        if loaded.built.causal is not None:
            loaded.built.causal.adapters.add(source.name, weights)
        loaded.adapters = (*loaded.adapters, info)


def _inside(uri: str, folders: Sequence[str]) -> Path:
    """Return the folder a client names, if it and its files lie below one of ``folders``, links followed.

    All that lies elsewhere gets the same answer, whether it exists or not: nobody can look around with it.
    """
    refused = Permanent(
        "lora_path must be an absolute folder below one of the folders this runtime was allowed (LLMOS_ADAPTER_DIRS)",
        reason="SourceNotAllowed",
    )
    if not uri.startswith("/") or "\0" in uri:
        raise refused
    roots = [Path(folder).resolve() for folder in folders]
    try:
        path = Path(uri).resolve()
        places = [path, *((path / name).resolve() for name in FILES)]
    except (OSError, RuntimeError, ValueError):  # a name too long, a loop of links
        raise refused from None
    for root in roots:
        if all(place.is_relative_to(root) for place in places):
            return path
    raise refused
