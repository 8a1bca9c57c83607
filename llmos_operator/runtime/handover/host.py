"""The model behind a vLLM: fetched, started, followed over crashes, put to sleep; and the truth about it for whoever asks."""

from __future__ import annotations

import asyncio
import contextlib
from http import HTTPStatus
from typing import TYPE_CHECKING

from llmos_operator.api.conditions import Reason
from llmos_operator.api.runtime.messages import (
    Failure,
    LoadProgress,
    MemoryReport,
    ModelInfo,
    RequestStats,
    RuntimeState,
    RuntimeStatus,
)
from llmos_operator.errors import Permanent, Retryable
from llmos_operator.observability.logging import logger
from llmos_operator.runtime.answers import ApiError, unavailable
from llmos_operator.runtime.handover import fetching
from llmos_operator.runtime.handover.adapters import Adapters
from llmos_operator.runtime.handover.figures import Figures
from llmos_operator.runtime.handover.slumber import Slumber
from llmos_operator.runtime.handover.watch import Watch
from llmos_operator.runtime.loader.progress import Stages

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from llmos_operator.clock import Clock
    from llmos_operator.runtime.admission import Admission
    from llmos_operator.runtime.drain import Drain
    from llmos_operator.runtime.handover.fetching import Fetched
    from llmos_operator.runtime.handover.link import Link
    from llmos_operator.runtime.ipc.messages import Progress
    from llmos_operator.runtime.settings import RuntimeSettings

log = logger(__name__)

LOOK_SECONDS = 0.5


class VllmHost:
    """What the rest of the front, the probes and the operator know of a vLLM."""

    def __init__(
        self,
        settings: RuntimeSettings,
        link: Link,
        admission: Admission,
        drain: Drain,
        clock: Clock,
        swaps: Callable[[str, float], None] = lambda _, __: None,
        *,
        look_seconds: float = LOOK_SECONDS,
    ) -> None:
        """``swaps`` is told of each adapter that came or went."""
        self.settings = settings
        self.link = link
        self.state_now = RuntimeState.STARTING
        self.figures = Figures()
        self.last_request_at: float | None = None  # monotonic seconds
        self.max_model_len = 0
        self.created = int(clock.now())
        self.adapters = Adapters(settings, link, clock, swaps)
        self.slumber = Slumber(settings, link, drain, clock)
        self._admission = admission
        self._drain = drain
        self._clock = clock
        self._look_seconds = look_seconds
        self._watch = Watch(self, settings.engine_stuck_seconds, clock.monotonic)
        self._hint = asyncio.Event()
        self._stages = Stages(clock, self._note)
        self._progress: Progress | None = None
        self._load_seconds: dict[str, float] = {}
        self._load_path = ""
        self._model: Fetched | None = None
        self.trouble: Failure | None = None

    @property
    def folder(self) -> Path:
        """The folder shared with vLLM's container."""
        return self.settings.engine_dir

    async def run(self) -> None:
        """Fetch the model, let vLLM start with it, and follow it until cancelled."""
        model = await self._fetch()
        if model is None:
            await asyncio.Event().wait()  # the operator reads why, and decides
            return
        self._model = model
        on_host = not self.settings.engine_has_devices
        lines = fetching.order(model, memory_limit=self.settings.memory_limit_bytes, on_host=on_host)
        fetching.give(self.folder, lines)
        log.info("vLLM may start", model=str(model.folder), architecture=model.architecture)
        self.begin()
        while True:
            await self._watch.look()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._look_seconds):
                    await self._hint.wait()
            self._hint.clear()

    async def _fetch(self) -> Fetched | None:
        order = self.settings.load_order()
        self._stages.enter(RuntimeState.STARTING)
        while True:
            try:
                model = await asyncio.to_thread(fetching.fetch, order, self._stages)
            except Retryable as error:
                log.warning("the model cannot be had yet", error=error, after=error.after)
                self.trouble = Failure(reason=Reason.LOAD_FAILED, message=str(error), permanent=False)
                await asyncio.sleep(error.after)
            except Permanent as error:
                self.fail(error)
                return None
            else:
                self.trouble = None
                return model

    # ------------------------------------------------------------ for the watch

    def begin(self) -> None:
        """Follow vLLM on its way up, for the first time or again."""
        if self._load_path:
            self._stages = Stages(self._clock, self._note)  # how long the former load took is told already
        self.figures = Figures()
        self.adapters.forget()
        self.slumber.level = 0
        self.state_now = RuntimeState.LOADING
        self._stages.enter(RuntimeState.LOADING, self._model.weights_bytes if self._model else 0)

    async def serve(self, max_model_len: int, there: frozenset[str]) -> None:
        """Load the adapters that are not ``there``, and be ready: vLLM is up. Raises EngineLost."""
        self.max_model_len = max_model_len
        self._stages.enter(RuntimeState.WARMING)
        self.state_now = RuntimeState.WARMING
        try:
            await self.adapters.load_all(there)
        except Permanent as error:
            self.fail(error)
            return
        except Retryable as error:
            self.trouble = Failure(reason=Reason.LOAD_FAILED, message=str(error), permanent=False)
            await asyncio.sleep(error.after)
            return  # the next look finds it warming still
        self._stages.leave()
        self._load_seconds = dict(self._stages.seconds)
        self._load_path = "cold" if self._model is not None and self._model.cold else "warm"
        self.trouble = None
        self.created = int(self._clock.now())
        self.state_now = RuntimeState.READY
        log.info("serving", model=self.settings.model_name, context=max_model_len, restarts=self.restarts)

    def observe(self, figures: Figures) -> None:
        """Take vLLM's figures."""
        self.figures = figures
        self._admission.observe(figures.stats())

    def fail(self, error: Permanent) -> None:
        """Nothing will be served."""
        log.error("the model cannot be served", reason=error.reason, error=error)
        known = error.reason if error.reason in set(Reason) else Reason.LOAD_FAILED
        self.trouble = Failure(reason=known, message=str(error))
        self.state_now = RuntimeState.FAILED

    @property
    def restarts(self) -> int:
        """How often vLLM was started again."""
        return max(0, fetching.starts(self.folder) - 1)

    # ------------------------------------------------------------ for requests

    def require(self) -> None:
        """Raise ApiError (503) unless requests can be relayed."""
        if self.state_now is RuntimeState.READY and not self.slumber.dozing:
            self.last_request_at = self._clock.monotonic()
            return
        if self.trouble is not None and self.trouble.permanent:
            text = f"The model cannot be served: {self.trouble.reason}: {self.trouble.message}"
            raise unavailable("model_failed", text, retry_after=60.0, refused="failed")
        text = f"The model is not ready: {self.state().value}."
        raise unavailable("model_not_ready", text, retry_after=5.0, refused="loading")

    def look_soon(self) -> None:
        """A request lost vLLM: look now whether it is there."""
        self._hint.set()

    def names(self) -> list[str]:
        """Return what requests may ask for: the model, then its adapters."""
        return [self.settings.model_name, *self.adapters.names()]

    # ------------------------------------------------------------ orders of the operator

    def sleep(self, level: int, timeout_seconds: float) -> None:
        """Sleep once what is in progress has ended. Raises ApiError where that cannot be."""
        self.slumber.sleep(self, level, timeout_seconds)

    def wake(self) -> None:
        """Serve again; nothing happens where the model does not sleep."""
        self.slumber.wake(self)

    def woken(self, seconds: float) -> None:
        """Serve again: vLLM is awake, after so long."""
        self._load_seconds, self._load_path = {RuntimeState.LOADING.value: seconds}, "hot"
        self.state_now = RuntimeState.READY

    def set_budget(self, memory_bytes: int) -> None:
        """Refuse: vLLM makes its KV cache once, when it starts."""
        raise ApiError(
            HTTPStatus.CONFLICT,
            "unsupported",
            f"vLLM's KV cache has the size it was started with; it cannot come down to {memory_bytes} bytes.",
        )

    def requantise(self, precision: str, budget_bytes: int, timeout_seconds: float) -> None:
        """Refuse: vLLM makes its weights once, when it starts."""
        del budget_bytes, timeout_seconds
        text = f"vLLM serves the format it was started with; {precision} needs another pod."
        raise ApiError(HTTPStatus.CONFLICT, "unsupported", text)

    async def load_adapter(self, name: str, uri: str, *, param: str | None = None) -> None:
        """Serve an adapter. Raises ApiError naming ``param``."""
        self.require()
        await self.adapters.load(name, uri, param=param)

    async def unload_adapter(self, name: str, *, param: str | None = None) -> None:
        """Stop serving an adapter. Raises ApiError naming ``param``."""
        await self.adapters.unload(name, param=param)

    # ------------------------------------------------------------ for probes and the operator

    def state(self) -> RuntimeState:
        """Return the state as the operator is told it."""
        if self._drain.draining and self.state_now is RuntimeState.READY:
            return RuntimeState.DRAINING
        if self.state_now is RuntimeState.STARTING and self._progress is not None:
            return self._progress.stage
        return self.state_now

    def not_ready(self) -> str:
        """Return why the runtime must not get requests, "" if it may."""
        if self._drain.draining:
            return "draining"
        if self.state_now is not RuntimeState.READY:
            return f"the model is {self.state().value}"
        if self.slumber.dozing:
            return "the model goes to sleep"
        return "the queue is full" if self._admission.is_full() else ""

    def status(self) -> RuntimeStatus:
        """Return all that the operator may know. Memory on devices is the agent's to measure: vLLM does not tell it."""
        seen, model = self.figures, self._model
        age = None if self.last_request_at is None else int(self._clock.monotonic() - self.last_request_at)
        asleep = self.state_now is RuntimeState.ASLEEP
        weights = model.weights_bytes if model is not None else 0
        return RuntimeStatus(
            state=self.state(),
            model=self._told(),
            load=self._load(),
            memory=MemoryReport(
                limit_bytes=self.settings.memory_limit_bytes,
                host_bytes=weights if asleep and self.slumber.level == 1 else 0,
            ),
            requests=RequestStats(
                running=seen.running,
                waiting=seen.waiting,
                finished=seen.finished,
                aborted=seen.aborted,
                prompt_tokens=seen.prompt_tokens,
                generation_tokens=seen.generation_tokens,
                kv_usage_milli=seen.kv_usage_milli,
                last_request_age_seconds=age,
                first_tokens=seen.first_tokens,
                first_token_millis=seen.first_token_millis,
            ),
            failure=self.trouble,
            load_seconds=self._load_seconds,
            load_path=self._load_path,
            adapters=tuple(self.adapters.reports()),
        )

    def _told(self) -> ModelInfo:
        model = self._model
        if model is None:
            return ModelInfo(name=self.settings.model_name, format=self.settings.format)
        return ModelInfo(
            name=self.settings.model_name,
            digest=model.digest,
            revision=model.revision,
            format=self.settings.format,
            architecture=model.architecture,
            max_model_len=self.max_model_len,
        )

    def _load(self) -> LoadProgress:
        if self.state_now in {RuntimeState.READY, RuntimeState.ASLEEP}:
            return LoadProgress(stage=RuntimeState.READY)
        return self._progress.report() if self._progress is not None else LoadProgress()

    def _note(self, progress: Progress) -> None:
        self._progress = progress
