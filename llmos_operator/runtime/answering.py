"""Makes answers: lets a planned request in, feeds the engine, hands out pieces, counts what it cost."""

from __future__ import annotations

import uuid
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import TYPE_CHECKING

from llmos_operator.observability import tracing
from llmos_operator.runtime import spans
from llmos_operator.runtime.answers import ApiError, bad_request, unavailable
from llmos_operator.runtime.choices import Choice, Piece, Tally, tally
from llmos_operator.runtime.ipc import FinishReason, Submit
from llmos_operator.runtime.ipc.client import EngineLost, EngineUnavailable
from llmos_operator.runtime.outputs import Outputs, Stopping

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from llmos_operator.observability.tracing import Tracer
    from llmos_operator.runtime.admission import Admission
    from llmos_operator.runtime.drain import Drain
    from llmos_operator.runtime.ipc import RequestOutput
    from llmos_operator.runtime.ipc.switch import EngineSwitch
    from llmos_operator.runtime.metrics import RequestMetrics
    from llmos_operator.runtime.planning import Plan
    from llmos_operator.runtime.served import ServedModel

WINDOWS_AT_ONCE = 4  # of one recording: the others' requests have their turn beside it
DEADLINE_FACTOR = 2.0  # what waits twice as long as the longest expected wait is given up


@dataclass(frozen=True, slots=True)
class Kitchen:
    """What every answer needs."""

    engine: EngineSwitch
    admission: Admission
    drain: Drain
    metrics: RequestMetrics
    monotonic: Callable[[], float]
    max_wait_seconds: float
    tracer: Tracer = tracing.OFF


class Answer:
    """One request being answered. Use :meth:`open`; then iterate over :meth:`pieces`."""

    def __init__(self, kitchen: Kitchen, plan: Plan, model: ServedModel) -> None:
        self.plan = plan
        self.model = model
        self.id = _prefix(plan) + uuid.uuid4().hex
        self.choices = [
            Choice.start(plan, index, f"{self.id}-{index}", model.vocabulary)
            for index in range(plan.sequences)
        ]
        at_once = WINDOWS_AT_ONCE if plan.sounds else len(self.choices)
        self.outputs = Outputs(kitchen.engine, self._submits(kitchen), at_once)
        self._by_id = {choice.request_id: choice for choice in self.choices}
        self._kitchen = kitchen
        self._began = kitchen.monotonic()
        self._first_token: float | None = None  # seconds after that

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Answer]:
        """Submit to the engine; on leaving, cancel what is unfinished and count. Raises ApiError (429, 503)."""
        kitchen = self._kitchen
        kitchen.admission.enter(self.plan.sequences)
        try:
            async with self.outputs:
                kitchen.drain.track(self.outputs)
                yield self
        except EngineUnavailable as error:
            raise unavailable(
                "model_not_ready", f"The model is not ready: {error}.", retry_after=5.0, refused="loading"
            ) from error
        except EngineLost as error:
            # Not declined for the gateway to repeat: a request that kills engines must not travel.
            raise ApiError(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "engine_lost",
                f"The model was lost: {error}.",
                retry_after=error.after,
            ) from error
        finally:
            kitchen.drain.forget(self.outputs)
            kitchen.admission.leave(self.plan.sequences)
            self._count()
            if kitchen.tracer.on:
                spans.answered(kitchen.tracer, self, self._first_token)

    async def pieces(self) -> AsyncIterator[list[tuple[Choice, Piece]]]:
        """Yield what is new, as often as something is, until all answers are over. Raises ApiError, EngineLost."""
        while self.outputs.open:
            try:
                outputs = await self.outputs.next()
            except Stopping:
                yield [(choice, choice.abort()) for choice in self.choices if not choice.finish_reason]
                return
            now = self._kitchen.monotonic()
            found = [(choice, self._take(choice, output, now)) for choice, output in self._known(outputs)]
            if any(piece for _, piece in found):
                yield [(choice, piece) for choice, piece in found if piece]

    def usage(self) -> Tally:
        """Return the tokens so far."""
        return tally(self.plan, self.choices)

    def _known(self, outputs: list[RequestOutput]) -> list[tuple[Choice, RequestOutput]]:
        return [(self._by_id[one.request_id], one) for one in outputs if one.request_id in self._by_id]

    def _take(self, choice: Choice, output: RequestOutput, now: float) -> Piece:
        was_over = bool(choice.finish_reason)
        piece = choice.take(output)
        if was_over:
            return piece
        if output.tokens:
            self._time(choice, len(output.tokens), now)
        if choice.finish_reason == FinishReason.ERROR:
            raise _failed(output, self.plan.grammar_param)
        if choice.finish_reason and not output.finish_reason:
            self.outputs.drop(choice.request_id)
        return piece

    def _time(self, choice: Choice, tokens: int, now: float) -> None:
        metrics = self._kitchen.metrics
        if choice.first_token_at:
            metrics.inter_token.observe((now - choice.last_token_at) / tokens)
        else:
            choice.first_token_at = now
            if self._first_token is None:
                self._first_token = now - self._began
                tracing.current().event(spans.FIRST_TOKEN)
            metrics.first_token.observe(now - self._began)
        choice.last_token_at = now

    def _submits(self, kitchen: Kitchen) -> list[Submit]:
        deadline = kitchen.monotonic() + DEADLINE_FACTOR * kitchen.max_wait_seconds
        found = []
        for choice in self.choices:
            prompt, repeat = divmod(choice.index, self.plan.n)
            sampling = self.plan.samplings[prompt]
            if sampling.seed is not None and repeat:
                # The same seed for all n would make n equal answers.
                sampling = replace(sampling, seed=sampling.seed + repeat)
            found.append(
                Submit(
                    request_id=choice.request_id,
                    prompt=self.plan.prompts[prompt],
                    sampling=sampling,
                    tenant=self.plan.tenant,
                    # Later windows of a recording are begun when earlier ones have ended, however long that takes.
                    deadline_at=None if self.plan.sounds and prompt else deadline,
                    grammar=self.plan.grammar,
                    adapter=self.model.adapter,
                    audio=self.plan.sounds[prompt] if self.plan.sounds else b"",
                    script=self.plan.script,
                    times=self.plan.times,
                )
            )
        return found

    def _count(self) -> None:
        metrics, now = self._kitchen.metrics, self._kitchen.monotonic()
        metrics.choices.observe(self.plan.n)
        for choice in self.choices:
            prompt = choice.index // self.plan.n
            metrics.ended[choice.finish_reason or "abort"].inc()
            metrics.prompt_tokens.observe(choice.prompt_tokens)
            metrics.generation_tokens.observe(choice.made)
            metrics.max_tokens.observe(self.plan.samplings[prompt].max_tokens)
            metrics.end_to_end.observe(now - self._began)
            if choice.made > 1:
                metrics.per_token.observe((choice.last_token_at - choice.first_token_at) / (choice.made - 1))
            self._count_timing(choice)

    def _count_timing(self, choice: Choice) -> None:
        timing, metrics = choice.timing, self._kitchen.metrics
        if timing is None or not timing.scheduled_at:
            return
        first = timing.first_token_at or timing.finished_at
        metrics.queue.observe(max(0.0, timing.scheduled_at - timing.arrived_at))
        metrics.prefill.observe(max(0.0, first - timing.scheduled_at))
        metrics.decode.observe(max(0.0, timing.finished_at - first))
        metrics.inference.observe(max(0.0, timing.finished_at - timing.scheduled_at))
        self._kitchen.admission.finished(max(0.0, timing.finished_at - timing.scheduled_at))


def _prefix(plan: Plan) -> str:
    if plan.sounds:
        return "trsc-"
    return "chatcmpl-" if plan.chat else "cmpl-"


def _failed(output: RequestOutput, grammar_param: str) -> ApiError:
    """Return the answer to a request that the engine gave up."""
    if output.bad_grammar:
        text = f"Invalid '{grammar_param}': {output.message}."
        return bad_request("invalid_json_schema", text, grammar_param)
    if output.message.startswith("adapter ") and output.message.endswith(" is not loaded"):
        # Unloaded while the request was on its way.
        return ApiError(HTTPStatus.NOT_FOUND, "model_not_found", f"The {output.message}.", param="model")
    if "deadline" in output.message:
        return ApiError(
            HTTPStatus.TOO_MANY_REQUESTS,
            "overloaded",
            "The request waited too long for its start. Try again later.",
            retry_after=5.0,
            refused="overloaded",
        )
    return ApiError(
        HTTPStatus.INTERNAL_SERVER_ERROR,
        "generation_failed",
        f"The answer could not be made: {output.message}.",
    )
