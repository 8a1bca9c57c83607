"""LoRA adapters through vLLM's own routes, https://docs.vllm.ai/en/latest/features/lora/ .

The runtime fetches and checks an adapter's files; vLLM gets a folder. A vLLM that was started again has none, so they
are loaded anew: those of the workload must come, others may stay away.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import TYPE_CHECKING

from llmos_operator.api.conditions import Reason
from llmos_operator.errors import LlmosError, Permanent, Retryable
from llmos_operator.observability.logging import logger
from llmos_operator.runtime.answers import ApiError, bad_request, unavailable
from llmos_operator.runtime.handover import fetching
from llmos_operator.runtime.handover.link import EngineLost, Refused
from llmos_operator.runtime.ipc.messages import AdapterSource
from llmos_operator.runtime.loader.progress import Stages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from llmos_operator.api.runtime.messages import AdapterReport
    from llmos_operator.clock import Clock
    from llmos_operator.runtime.handover.link import Link
    from llmos_operator.runtime.settings import RuntimeSettings

log = logger(__name__)

LOAD, UNLOAD = "/v1/load_lora_adapter", "/v1/unload_lora_adapter"
_LOAD_SECONDS = 300.0
_STATUS: dict[str, HTTPStatus] = {
    Reason.MODEL_NOT_FOUND: HTTPStatus.NOT_FOUND,
    Reason.SOURCE_NOT_ALLOWED: HTTPStatus.FORBIDDEN,
}


class Adapters:
    """The adapters of one vLLM."""

    def __init__(
        self, settings: RuntimeSettings, link: Link, clock: Clock, swaps: Callable[[str, float], None]
    ) -> None:
        self._settings = settings
        self._link = link
        self._clock = clock
        self._swaps = swaps
        self._served: dict[str, AdapterReport] = {}
        self._wanted = {one.name: one for one in settings.adapters}

    def names(self) -> list[str]:
        """Return the names of the adapters that are served."""
        return list(self._served)

    def reports(self) -> Iterable[AdapterReport]:
        """Return what is known of them."""
        return self._served.values()

    def forget(self) -> None:
        """Note that vLLM starts again, and has none."""
        self._served.clear()

    async def load_all(self, there: frozenset[str]) -> None:
        """Load what the workload has and what was loaded since, but is not there: vLLM, or this process, has just come up.

        Raises EngineLost, and Permanent or Retryable where one of the workload's cannot be had.
        """
        demanded = {one.name for one in self._settings.adapters}
        for source in [one for one in self._wanted.values() if one.name not in self._served]:
            try:
                await self._load(source, there=source.name in there)
            except (Permanent, Retryable) as error:
                if source.name in demanded:
                    raise
                del self._wanted[source.name]
                log.warning("an adapter cannot be had again", adapter=source.name, detail=str(error))

    async def load(self, name: str, uri: str, *, param: str | None) -> None:
        """Serve an adapter. Raises ApiError naming ``param``."""
        if name == self._settings.model_name:
            raise bad_request("invalid_value", f"'{name}' is the name of the base model.", "lora_name")
        if name in self._served:
            raise bad_request(
                "adapter_exists", f"An adapter '{name}' is served already; unload it first.", param
            )
        began, source = self._clock.monotonic(), AdapterSource(name, uri)
        try:
            await self._load(source)
        except LlmosError as error:
            raise _answer(error, param) from error
        self._wanted[name] = source
        self._swaps("load", self._clock.monotonic() - began)

    async def unload(self, name: str, *, param: str | None) -> None:
        """Stop serving an adapter. Raises ApiError naming ``param``."""
        if name not in self._served:
            raise ApiError(
                HTTPStatus.NOT_FOUND, "adapter_not_found", f"No adapter '{name}' is served.", param=param
            )
        began = self._clock.monotonic()
        try:
            await self._link.call("POST", UNLOAD, {"lora_name": name})
        except LlmosError as error:
            raise _answer(error, param) from error
        del self._served[name]
        self._wanted.pop(name, None)
        self._swaps("unload", self._clock.monotonic() - began)

    async def _load(self, source: AdapterSource, *, there: bool = False) -> None:
        """Fetch an adapter and hand it over, unless vLLM has it."""
        stages = Stages(self._clock, lambda _: None)
        order = self._settings.load_order()
        folder, report = await asyncio.to_thread(fetching.fetch_adapter, source, order, stages)
        body = {"lora_name": source.name, "lora_path": str(folder)}
        try:
            if not there:
                await self._link.call("POST", LOAD, body, seconds=_LOAD_SECONDS)
        except Refused as error:
            text = f"adapter {source.name!r}: vLLM refuses it: {error}"
            raise Permanent(text, reason=Reason.UNSUPPORTED) from error
        self._served[source.name] = report


def _answer(error: LlmosError, param: str | None) -> ApiError:
    if isinstance(error, Permanent):
        status = _STATUS.get(error.reason, HTTPStatus.BAD_REQUEST)
        return ApiError(status, "adapter_refused", f"{error}.", param=param)
    if isinstance(error, Refused):
        return ApiError(HTTPStatus.BAD_REQUEST, "adapter_refused", f"{error}", param=param)
    lost = isinstance(error, EngineLost)
    return unavailable("engine_unavailable", f"{error}.", retry_after=2.0, refused="" if lost else "loading")
