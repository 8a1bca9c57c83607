"""The same model at another precision, in the pod that serves it.

Where both fit, the new engine is loaded and warmed beside the old one, which serves until the flip and then finishes
what it has: nobody waits. Where memory does not allow both, new requests are held, the old engine ends after its last
answer, and the new one starts. A new engine that does not come up leaves the old format serving, or starts it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from http import HTTPStatus
from typing import TYPE_CHECKING

from llmos_operator.api.conditions import Reason
from llmos_operator.api.runtime.messages import ChangeState, Failure, FormatChange, RuntimeState
from llmos_operator.observability.logging import logger
from llmos_operator.runtime.answers import ApiError, bad_request
from llmos_operator.runtime.ipc.client import EngineUnavailable
from llmos_operator.runtime.ipc.messages import Failed

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmos_operator.clock import Clock
    from llmos_operator.runtime.ipc.client import EngineClient, EngineStatus
    from llmos_operator.runtime.ipc.messages import EngineInfo, Load
    from llmos_operator.runtime.ipc.switch import EngineSwitch

log = logger(__name__)


@dataclasses.dataclass(frozen=True, slots=True)
class Order:
    """A change that was found to be possible. Bytes, seconds."""

    load: Load  # of the new engine
    former: Load
    need_bytes: int  # of the new engine beside R0, with the KV cache of one context
    ceiling_bytes: int  # that both engines together may use; 0: no limit
    beside: bool
    timeout_seconds: float


class Requantising:
    """Changes of format, one at a time."""

    def __init__(
        self,
        switch: EngineSwitch,
        clock: Clock,
        allowed: tuple[str, ...],
        flipped: Callable[[EngineInfo], None],
        observe: Callable[[str, float], None],
    ) -> None:
        """``flipped`` is called with the model as the engine has it that serves from then on, ``observe`` at each end."""
        self.report: FormatChange | None = None
        self._switch = switch
        self._clock = clock
        self._allowed = allowed
        self._flipped = flipped
        self._observe = observe
        self._task: asyncio.Task[None] | None = None

    @property
    def running(self) -> bool:
        """Whether a change goes on; the former engine may still finish what it has."""
        return self._task is not None and not self._task.done()

    def refuse_while_running(self) -> None:
        """Raise ApiError (409) while a change goes on."""
        if self.running and self.report is not None:
            text = f"The model is changing from {self.report.former} to {self.report.format}; wait until that is over."
            raise ApiError(HTTPStatus.CONFLICT, "change_in_progress", text, retry_after=5.0)

    def begin(self, precision: str, budget_bytes: int, timeout_seconds: float) -> None:
        """Begin to change to ``precision``; the same one changes nothing. Raises ApiError: 400, 409, with the numbers."""
        self.refuse_while_running()
        status, former = self._switch.status(), self._switch.order
        if status.state is not RuntimeState.READY or status.info is None or former is None:
            raise ApiError(
                HTTPStatus.CONFLICT,
                "not_ready",
                f"The model is {status.state.value}, not Ready.",
                retry_after=5.0,
            )
        if precision == status.info.format:
            return
        self._refuse(precision, status.info)
        order = plan(status, status.info, former, precision, budget_bytes, timeout_seconds)
        self.report = FormatChange(format=precision, former=former.format, beside=order.beside)
        log.info(
            "changing the format",
            former=former.format,
            to=precision,
            beside=order.beside,
            need_mib=order.need_bytes >> 20,
            free_mib=status.memory.free_bytes >> 20,
            budget_mib=order.load.memory_limit_bytes >> 20,
        )
        self._task = asyncio.create_task(self._change(order))

    async def stop(self) -> None:
        """Give a change up that goes on."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    def _refuse(self, precision: str, info: EngineInfo) -> None:
        served = [name for name, _ in info.format_bytes]
        if self._allowed and precision not in self._allowed:
            text = (
                f"'{precision}' is not one of the formats this workload allows: {', '.join(self._allowed)}."
            )
            raise bad_request("format_not_allowed", text, "precision")
        if precision not in served:
            text = f"{info.architecture} is served at {', '.join(served)}, not at '{precision}'."
            raise bad_request("unsupported_value", text, "precision")

    # ------------------------------------------------------------ the change

    async def _change(self, order: Order) -> None:
        began = self._clock.monotonic()
        engine = self._switch.current.sibling()
        try:
            if order.beside:
                failure = await self._beside(engine, order)
            else:
                failure = await self._one_after_the_other(engine, order)
            self._tell(order, failure, self._clock.monotonic() - began)
            await self._switch.retire(order.timeout_seconds)
            if failure is None and order.beside:
                _limit(engine, order.load.memory_limit_bytes)
        finally:
            if engine is not self._switch.current:
                await engine.unload()

    async def _beside(self, engine: EngineClient, order: Order) -> Failed | None:
        """Bring ``engine`` up beside the one in use, and flip; return why not."""
        old = self._switch.current
        if order.ceiling_bytes:
            _limit(old, order.ceiling_bytes - order.need_bytes)
        await engine.load(order.load)
        failure = await _came_up(engine, old)
        if failure is not None:
            await engine.unload()
            _limit(old, order.former.memory_limit_bytes)
            return failure
        if order.ceiling_bytes:
            memory = old.status().memory
            left = order.ceiling_bytes - max(0, memory.measured_bytes - memory.base_bytes)
            if left < order.load.memory_limit_bytes:
                _limit(engine, left)
        self._flip(engine, beside=True, ceiling_bytes=order.ceiling_bytes)
        return None

    async def _one_after_the_other(self, engine: EngineClient, order: Order) -> Failed | None:
        """End the engine in use, start ``engine``, and go on; return why not: then the former format is loaded again."""
        old, switch = self._switch.current, self._switch
        switch.hold()
        try:
            before = old.status()
            await switch.end_current(order.timeout_seconds)
            await engine.load(order.load)
            switch.use(engine, beside=False)
            failure = await _came_up(engine, old, before)
            if failure is not None:
                await engine.unload()
                await old.load(order.former)
                switch.use(old, beside=False)
                await old.loaded()
            self._flip(switch.current, beside=False)
        finally:
            switch.release()
        return failure

    def _flip(self, engine: EngineClient, *, beside: bool, ceiling_bytes: int = 0) -> None:
        info = engine.status().info
        if info is not None:
            self._flipped(info)
        self._switch.use(engine, beside=beside, ceiling_bytes=ceiling_bytes)

    def _tell(self, order: Order, failure: Failed | None, seconds: float) -> None:
        state = ChangeState.FAILED if failure is not None else ChangeState.DONE
        path = "beside" if order.beside else "one_after_the_other"
        self._observe(path if failure is None else "failed", seconds)
        told = None
        if failure is not None:
            known = failure.reason if failure.reason in set(Reason) else Reason.LOAD_FAILED
            told = Failure(reason=known, message=failure.message, permanent=failure.permanent)
            log.warning(
                "the format was not changed", to=order.load.format, reason=known, detail=failure.message
            )
        else:
            log.info("the format was changed", to=order.load.format, seconds=round(seconds, 2), path=path)
        self.report = FormatChange(
            state=state,
            format=order.load.format,
            former=order.former.format,
            beside=order.beside,
            seconds=seconds,
            failure=told,
        )


def plan(
    status: EngineStatus,
    info: EngineInfo,
    former: Load,
    precision: str,
    budget_bytes: int,
    timeout_seconds: float,
) -> Order:
    """Return how to change to ``precision``. Raises ApiError (409) where it does not fit into the budget.

    Both engines at once need the device's or the machine's measured free memory, and must stay below the larger of the
    two budgets. On a GPU the new engine takes its whole budget when it starts.
    """
    if former.ranks > former.here:
        text = "Devices of several pods share this model: its format changes with new pods only."
        raise ApiError(HTTPStatus.CONFLICT, "unsupported", text)
    memory = status.memory
    budget = budget_bytes or former.memory_limit_bytes
    need = dict(info.format_bytes)[precision]
    if budget and memory.base_bytes + need > budget:
        raise ApiError(
            HTTPStatus.CONFLICT,
            "out_of_memory",
            f"At {precision} the model needs {(memory.base_bytes + need) >> 20} MiB with one context of "
            f"{info.max_model_len} tokens; the budget is {budget >> 20} MiB.",
            param="budgetBytes",
        )
    ceiling = max(budget, former.memory_limit_bytes) if former.memory_limit_bytes else 0
    on_cpu = info.device == "cpu"
    taken = need if on_cpu else budget - memory.base_bytes
    # Soon after a load pages of the weights have not been touched: measured less than it will be.
    least = memory.predicted_bytes - memory.kv_bytes
    used = max(memory.measured_bytes, least) if on_cpu else memory.predicted_bytes
    room = min(memory.free_bytes, ceiling - used) if ceiling else memory.free_bytes
    load = dataclasses.replace(
        former,
        format=precision,
        memory_limit_bytes=budget,
        digest=info.digest,  # the same weights, whatever their source has by now
        max_model_len=info.max_model_len,  # what clients were told stays true
        base_bytes=memory.base_bytes,  # two engines share pages: neither could measure it
    )
    return Order(
        load=load,
        former=former,
        need_bytes=taken,
        ceiling_bytes=ceiling if on_cpu else 0,  # the rows of a GPU's KV cache stay
        beside=former.ranks == 1 and 0 < taken <= room,
        timeout_seconds=timeout_seconds,
    )


def _limit(engine: EngineClient, memory_bytes: int) -> None:
    """Give an engine a limit, if there is one; it refuses what one context does not fit into."""
    if memory_bytes:
        with contextlib.suppress(EngineUnavailable):  # it is being started again
            engine.set_budget(memory_bytes)


async def _came_up(
    engine: EngineClient, old: EngineClient, before: EngineStatus | None = None
) -> Failed | None:
    """Wait for ``engine``; return its first failure, or that it has not the adapters that are served."""
    failure = await engine.loaded()
    if failure is not None:
        return failure
    there = {one.name for one in engine.status().adapters}
    missing = [one.name for one in (before or old.status()).adapters if one.name not in there]
    if missing:
        return Failed("LoadFailed", f"adapter {missing[0]} could not be loaded into the new engine")
    return None
