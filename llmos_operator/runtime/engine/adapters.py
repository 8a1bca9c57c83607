"""Adapters while the engine serves: read beside the step loop, put in between two steps, taken out once unused."""

from __future__ import annotations

from concurrent import futures
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmos_operator.errors import Permanent, Retryable
from llmos_operator.observability.logging import logger
from llmos_operator.runtime.ipc.messages import AdapterInfo, AdapterResult, AdapterSource
from llmos_operator.runtime.loader.adapters import adapter_of

if TYPE_CHECKING:
    from collections.abc import Collection
    from concurrent.futures import Future

    from llmos_operator.clock import Clock
    from llmos_operator.runtime.backends.adapters import LoraWeights
    from llmos_operator.runtime.ipc.messages import LoadAdapter, UnloadAdapter
    from llmos_operator.runtime.loader.pipeline import Loaded

    Reading = Future[tuple[AdapterInfo, LoraWeights]]

log = logger(__name__)

PAUSE_SECONDS = 0.01  # an idle engine that reads an adapter looks again after so long


@dataclass(frozen=True, slots=True)
class _Leaving:
    request_id: str
    began: float


class AdapterShelf:
    """Which adapters are served, come and go."""

    def __init__(self, loaded: Loaded, clock: Clock) -> None:
        self._loaded = loaded
        self._clock = clock
        self._served: dict[str, AdapterInfo] = {info.name: info for info in loaded.adapters}
        self._coming: dict[str, tuple[LoadAdapter, float, Reading]] = {}
        self._going: dict[str, _Leaving] = {}
        self._refused: list[AdapterResult] = []
        self._reader = futures.ThreadPoolExecutor(1, thread_name_prefix="adapter")

    @property
    def infos(self) -> tuple[AdapterInfo, ...]:
        """Adapters that take requests."""
        return tuple(info for name, info in self._served.items() if name not in self._going)

    @property
    def sources(self) -> tuple[AdapterSource, ...]:
        """What to load to have the same adapters again, if they can still be had."""
        return tuple(AdapterSource(info.name, info.uri, demanded=False) for info in self.infos)

    @property
    def pending(self) -> bool:
        """Whether an order is not answered yet."""
        return bool(self._coming or self._going or self._refused)

    def salt(self, name: str, *, leaving: bool = False) -> bytes | None:
        """Return what sets an adapter's prefixes apart; None for one that takes no requests (``leaving``: is not there)."""
        if not name:
            return b""
        info = self._served.get(name)
        if info is None or (name in self._going and not leaving):
            return None
        return bytes.fromhex(info.digest.removeprefix("sha256:"))

    def load(self, order: LoadAdapter) -> None:
        """Begin to read an adapter."""
        began = self._clock.monotonic()
        problem = self._problem(order)
        if problem is not None:
            self._refused.append(self._answer(order.request_id, began, problem))
            return
        source = AdapterSource(order.name, order.uri)
        reading = self._reader.submit(adapter_of, source, self._loaded, folders=order.folders)
        self._coming[order.name] = (order, began, reading)

    def _problem(self, order: LoadAdapter) -> Permanent | None:
        most = self._loaded.load.max_adapters
        name = order.name
        if self._loaded.built.causal is None:
            return Permanent("an encoder serves no adapters", reason="Unsupported")
        if name in self._going:
            return Permanent(f"adapter {name!r} is being unloaded: its last requests run", reason="NameTaken")
        if name in self._served or name in self._coming:
            return Permanent(f"adapter {name!r} is loaded already", reason="NameTaken")
        if len(self._served) + len(self._coming) >= most:
            return Permanent(
                f"memory is reserved for {most} adapters: unload one, or raise spec.adapterLimits.maxAdapters",
                reason="OutOfMemory",
            )
        return None

    def unload(self, order: UnloadAdapter) -> None:
        """Take no more requests for an adapter; `turn` frees it when nobody uses it."""
        began = self._clock.monotonic()
        if order.name in self._served and order.name not in self._going:
            self._going[order.name] = _Leaving(order.request_id, began)
            return
        gone = Permanent(f"adapter {order.name!r} is not loaded", reason="ModelNotFound")
        self._refused.append(self._answer(order.request_id, began, gone))

    def turn(self, used: Collection[str]) -> list[AdapterResult]:
        """Between two steps: put in what has been read, take out what is in no request; return the answers."""
        results, self._refused = self._refused, []
        for name in [name for name, (_, _, reading) in self._coming.items() if reading.done()]:
            order, began, reading = self._coming.pop(name)
            results.append(self._put_in(order, began, reading))
        for name in [name for name in self._going if name not in used]:
            leaving = self._going.pop(name)
            del self._served[name]
            if (causal := self._loaded.built.causal) is not None:
                causal.adapters.remove(name)
            log.info("adapter unloaded", adapter=name)
            results.append(self._answer(leaving.request_id, leaving.began))
        return results

    def _put_in(self, order: LoadAdapter, began: float, reading: Reading) -> AdapterResult:
        causal = self._loaded.built.causal
        try:
            info, weights = reading.result()
        except (Permanent, Retryable) as error:
            log.warning("adapter refused", adapter=order.name, detail=str(error))
            return self._answer(order.request_id, began, error)
        except (OSError, MemoryError, RuntimeError) as error:
            log.warning("adapter not read", adapter=order.name, detail=repr(error))
            failed = Retryable(f"adapter {order.name!r} could not be read: {error}"[:500])
            return self._answer(order.request_id, began, failed)
        if causal is not None:
            causal.adapters.add(order.name, weights)
            self._served[order.name] = info
        log.info("adapter loaded", adapter=order.name, rank=info.rank, bytes=info.weights_bytes)
        return self._answer(order.request_id, began)

    def _answer(
        self, request_id: str, began: float, error: Permanent | Retryable | None = None
    ) -> AdapterResult:
        seconds = self._clock.monotonic() - began
        if error is None:
            return AdapterResult(request_id, self.infos, seconds=seconds)
        reason = error.reason if isinstance(error, Permanent) else "LoadFailed"
        return AdapterResult(request_id, self.infos, str(error), reason, seconds)
