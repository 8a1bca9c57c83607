"""The model this runtime serves, from the order to load it to its end; and the truth about it for whoever asks."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from http import HTTPStatus
from typing import TYPE_CHECKING

from llmos_operator.api.conditions import Reason
from llmos_operator.api.runtime.messages import Failure, ModelInfo, RuntimeState, RuntimeStatus
from llmos_operator.errors import LlmosError, Permanent
from llmos_operator.observability import tracing
from llmos_operator.observability.logging import logger
from llmos_operator.runtime import reporting, spans
from llmos_operator.runtime import served as reading
from llmos_operator.runtime.answers import ApiError, bad_request, unavailable
from llmos_operator.runtime.requantise import Requantising

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmos_operator.api.runtime.messages import WorkProgress
    from llmos_operator.clock import Clock
    from llmos_operator.observability.tracing import Tracer
    from llmos_operator.runtime.admission import Admission
    from llmos_operator.runtime.drain import Drain
    from llmos_operator.runtime.ipc import EngineInfo
    from llmos_operator.runtime.ipc.client import EngineStatus
    from llmos_operator.runtime.ipc.switch import EngineSwitch
    from llmos_operator.runtime.served import ServedModel
    from llmos_operator.runtime.settings import RuntimeSettings

log = logger(__name__)

STATS_SECONDS = 0.25
_SLEEP_SECONDS = 60.0  # for the engine to let go of what it holds
_NAMES_SHOWN = 20
_ADAPTER_STATUS: dict[str, HTTPStatus] = {
    Reason.MODEL_NOT_FOUND: HTTPStatus.NOT_FOUND,
    Reason.SOURCE_NOT_ALLOWED: HTTPStatus.FORBIDDEN,
    Reason.LOAD_FAILED: HTTPStatus.SERVICE_UNAVAILABLE,
}
_SETTLED = (RuntimeState.READY, RuntimeState.FAILED, RuntimeState.ASLEEP)


class ModelHost:
    """Loads the model, keeps what the front needs of it, and reports."""

    def __init__(
        self,
        settings: RuntimeSettings,
        engine: EngineSwitch,
        admission: Admission,
        drain: Drain,
        clock: Clock,
        swaps: Callable[[str, float], None] = lambda _, __: None,
        changes: Callable[[str, float], None] = lambda _, __: None,
        tracer: Tracer = tracing.OFF,
    ) -> None:
        """``swaps`` is told of each adapter that came ("load") or went ("unload"), and of the seconds it took.

        ``changes`` is told how each change of format ended, and of its seconds.
        """
        self.settings = settings
        self.engine = engine
        self.served: ServedModel | None = None
        self._admission = admission
        self._drain = drain
        self._clock = clock
        self._swaps = swaps
        self._tracer = tracer
        self.changes = Requantising(engine, clock, settings.formats, self._flipped, changes)
        self._unreadable: Failure | None = None  # the engine loaded it, the front cannot use it
        self.last_request_at: float | None = None  # monotonic seconds
        self.progress: Callable[[], WorkProgress] | None = None  # of a batch that runs through this model
        self._dozing: asyncio.Task[None] | None = (
            None  # takes nothing new, and sleeps when what runs has ended
        )

    async def run(self) -> None:
        """Load, then follow the engine until cancelled: over crashes, restarts, sleep, changes and failure."""
        try:
            await self._follow()
        finally:
            await self.changes.stop()

    async def _follow(self) -> None:
        began = self._clock.monotonic()
        await self.engine.load(self.settings.load_order())
        first = True
        while True:
            status = await self.engine.wait(*_SETTLED)
            if first and self._tracer.on:
                self._trace_load(status, began)
            first = False
            if status.state is RuntimeState.READY and status.info is not None:
                await self._take_over(status.info)
            while (now := self.engine.status()).state is status.state and now.info is status.info:
                self._admission.observe(now.stats)
                await asyncio.sleep(STATS_SECONDS)

    def _flipped(self, info: EngineInfo) -> None:
        """Another engine serves the same files from now on."""
        if self.served is not None:
            self.served = reading.refreshed(self.served, info)

    def _trace_load(self, status: EngineStatus, began: float) -> None:
        parent, now = self.settings.trace_parent, self._clock.monotonic()
        if status.info is not None:
            spans.loaded(self._tracer, parent, status.info, began, now)
        elif (failure := self.failure()) is not None:
            spans.not_loaded(self._tracer, parent, failure.reason, began, now)

    async def _take_over(self, info: EngineInfo) -> None:
        before = self.served
        if (
            before is not None
            and before.info.model_dir == info.model_dir
            and before.info.digest == info.digest
        ):
            self.served = reading.refreshed(before, info)
            return
        try:
            self.served = await reading.read(self.settings.model_name, info, self._clock.now())
        except Permanent as error:
            log.exception("the model's files cannot be used", directory=info.model_dir)
            self._unreadable = Failure(reason=error.reason, message=str(error))
            await self.engine.unload()
            return
        if before is not None:
            before.vocabulary.close()
        log.info("serving", model=self.settings.model_name, format=info.format, context=info.max_model_len)

    # ------------------------------------------------------------ for requests

    def require(self, model: str) -> ServedModel:
        """Return the model for a request. Raises ApiError: 404 for another model, 503 while it cannot serve."""
        status = self.engine.status()
        adapter = "" if model == self.settings.model_name else model
        if adapter and not self.has_adapter(adapter):
            raise ApiError(
                HTTPStatus.NOT_FOUND,
                "model_not_found",
                f"The model `{model[:200]}` does not exist. Known models: {', '.join(self.names()[:_NAMES_SHOWN])}.",
                param="model",
            )
        serves = (
            status.state is RuntimeState.READY and self.served is not None and self.served.info is status.info
        )
        if self.served is not None and self._dozing is None and (serves or self.engine.holding):
            self.last_request_at = self._clock.monotonic()
            return replace(self.served, name=adapter, adapter=adapter) if adapter else self.served
        raise self._not_ready(status)

    def has_adapter(self, name: str) -> bool:
        """Return whether ``name`` is an adapter, one that is still loading with the model included."""
        status = self.engine.status()
        served = {info.name for info in status.adapters}
        coming = set() if status.state is RuntimeState.READY else {one.name for one in self.settings.adapters}
        return name in served | coming

    def names(self) -> list[str]:
        """Return what requests may ask for: the model, then its adapters."""
        return [self.settings.model_name, *(info.name for info in self.engine.status().adapters)]

    # ------------------------------------------------------------ sleep

    def sleep(self, level: int, timeout_seconds: float) -> None:
        """Take nothing new from now on, and sleep when what is in progress has ended or the time is over.

        Raises ApiError (503) where nothing is served that could sleep; a second order changes nothing.
        """
        state = self.engine.status().state
        if self._dozing is not None or state is RuntimeState.ASLEEP:
            return
        if state is not RuntimeState.READY or self._drain.draining:
            raise unavailable(
                "engine_unavailable",
                f"The model is {self.state().value}, not Ready.",
                retry_after=2.0,
                refused="loading",
            )
        self.changes.refuse_while_running()
        log.info("going to sleep", level=level, inside=self._drain.inside)
        self._dozing = asyncio.create_task(self._doze(level, timeout_seconds))

    async def _doze(self, level: int, timeout_seconds: float) -> None:
        deadline = self._clock.monotonic() + timeout_seconds
        try:
            await self._drain.emptied(deadline)
            self.engine.sleep(level)
            async with asyncio.timeout(_SLEEP_SECONDS):
                await self.engine.wait(RuntimeState.ASLEEP, RuntimeState.STARTING, RuntimeState.FAILED)
        except (LlmosError, TimeoutError) as error:
            log.warning("did not go to sleep", error=error)  # the operator sees it, and takes the next step
        finally:
            self._dozing = None

    def wake(self) -> None:
        """Serve again; nothing happens where the model does not sleep. Raises ApiError (503) without an engine."""
        if self._dozing is not None:
            self._dozing.cancel()
        try:
            self.engine.wake()
        except LlmosError as error:
            raise unavailable("engine_unavailable", f"{error}", retry_after=2.0, refused="loading") from error

    def set_budget(self, memory_bytes: int) -> None:
        """Keep below so many bytes from now on; its effect shows in the status. Raises ApiError (503) without an engine."""
        self.changes.refuse_while_running()
        try:
            self.engine.set_budget(memory_bytes)
        except LlmosError as error:
            raise unavailable("engine_unavailable", f"{error}", retry_after=2.0, refused="loading") from error

    def requantise(self, precision: str, budget_bytes: int, timeout_seconds: float) -> None:
        """Begin to serve the model at ``precision``; its effect shows in the status. Raises ApiError: 400, 409, 503."""
        if self._dozing is not None or self._drain.draining:
            text = f"The model is {self.state().value}, or goes to sleep."
            raise unavailable("engine_unavailable", text, retry_after=2.0, refused="loading")
        self.changes.begin(precision, budget_bytes, timeout_seconds)

    # ------------------------------------------------------------ adapters

    async def load_adapter(
        self, name: str, uri: str, *, folders: tuple[str, ...] = (), param: str | None = None
    ) -> None:
        """Serve an adapter, from one of ``folders`` if there are any. Raises ApiError naming ``param``."""
        if name == self.settings.model_name:
            raise bad_request("invalid_value", f"'{name}' is the name of the base model.", "lora_name")
        self.changes.refuse_while_running()
        try:
            result = await self.engine.load_adapter(name, uri, folders)
        except LlmosError as error:
            raise _adapter_error(error, param) from error
        self._swaps("load", result.seconds)

    async def unload_adapter(self, name: str, *, param: str | None = None) -> None:
        """Stop serving an adapter; return when its last request has ended. Raises ApiError naming ``param``."""
        self.changes.refuse_while_running()
        try:
            result = await self.engine.unload_adapter(name)
        except LlmosError as error:
            raise _adapter_error(error, param) from error
        self._swaps("unload", result.seconds)

    def _not_ready(self, status: EngineStatus) -> ApiError:
        failure = self.failure()
        if failure is not None and failure.permanent:
            text = f"The model cannot be served: {failure.reason}: {failure.message}"
            return unavailable("model_failed", text, retry_after=60.0, refused="failed")
        eta = status.progress.eta_seconds if status.progress is not None else None
        text = f"The model is not ready: {self.state().value}."
        return unavailable("model_not_ready", text, retry_after=float(eta or 5), refused="loading")

    # ------------------------------------------------------------ for probes and the operator

    def state(self) -> RuntimeState:
        """Return the state as the operator is told it."""
        state = self.engine.status().state
        if self._unreadable is not None:
            return RuntimeState.FAILED
        if self._drain.draining and state is RuntimeState.READY:
            return RuntimeState.DRAINING
        if state is RuntimeState.READY and (
            self.served is None or self.served.info is not self.engine.status().info
        ):
            return RuntimeState.WARMING
        return state

    def not_ready(self) -> str:
        """Return why the runtime must not get requests, "" if it may."""
        if self._drain.draining:
            return "draining"
        if self.engine.holding:
            return "the model changes its format"
        state = self.state()
        if state is not RuntimeState.READY:
            return f"the model is {state.value}"
        if self._dozing is not None:
            return "the model goes to sleep"
        return "the queue is full" if self._admission.is_full() else ""

    @property
    def format(self) -> str:
        """The format in use, or the one that is being loaded."""
        order = self.engine.order
        return order.format if order is not None else self.settings.format

    def failure(self) -> Failure | None:
        """Return why the runtime cannot serve, or the last trouble while a new try is under way."""
        if self._unreadable is not None:
            return self._unreadable
        found = self.engine.status().failure
        if found is None:
            return None
        known = found.reason if found.reason in set(Reason) else Reason.LOAD_FAILED
        return Failure(reason=known, message=found.message, permanent=found.permanent)

    def status(self) -> RuntimeStatus:
        """Return all that the operator may know."""
        status = self.engine.status()
        age = None if self.last_request_at is None else int(self._clock.monotonic() - self.last_request_at)
        told = status.info or status.progress
        return RuntimeStatus(
            state=self.state(),
            model=self._model(status),
            load=reporting.load(status),
            memory=reporting.memory(status.memory),
            requests=reporting.requests(status.stats, age),
            failure=self.failure(),
            load_seconds=dict(told.stage_seconds) if told else {},
            load_path=status.info.load_path if status.info else "",
            progress=self.progress() if self.progress is not None else None,
            adapters=reporting.adapters(status.adapters),
            change=self.changes.report,
        )

    def _model(self, status: EngineStatus) -> ModelInfo:
        info = status.info
        if info is None:
            return ModelInfo(name=self.settings.model_name, format=self.format)
        return ModelInfo(
            name=self.settings.model_name,
            digest=info.digest,
            revision=info.revision,
            format=info.format,
            architecture=info.architecture,
            max_model_len=info.max_model_len,
            quality_loss_milli=info.quality_loss_milli,
        )


def _adapter_error(error: LlmosError, param: str | None) -> ApiError:
    if isinstance(error, Permanent):
        status = _ADAPTER_STATUS.get(error.reason, HTTPStatus.BAD_REQUEST)
        return ApiError(status, f"adapter_{_snake(error.reason)}", f"{error}.", param=param)
    return unavailable("engine_unavailable", f"{error}.", retry_after=2.0, refused="loading")


def _snake(reason: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in reason).lstrip("_")
