"""The training loop: updates until the last one, with checkpoints on the way and an end whenever one is asked for.

Losses and gradients of an update are sums over its learned tokens, divided by their number, whatever parts it is
computed in. When memory runs short the update is begun again in smaller parts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from llmos_operator.api.conditions import Reason
from llmos_operator.api.runtime.messages import RuntimeState
from llmos_operator.errors import Permanent, Retryable
from llmos_operator.observability import tracing
from llmos_operator.observability.logging import logger
from llmos_operator.tuning import spans
from llmos_operator.tuning.batches import parts, update
from llmos_operator.tuning.checkpoints import Point
from llmos_operator.tuning.memory import ShortOfMemory
from llmos_operator.tuning.optimizer import Optimizer
from llmos_operator.tuning.spans import RunSpans, Stopped

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from llmos_operator.clock import Clock
    from llmos_operator.tuning.batches import Split
    from llmos_operator.tuning.checkpoints import Checkpoints
    from llmos_operator.tuning.dataset import Sample
    from llmos_operator.tuning.memory import Meter, Parts
    from llmos_operator.tuning.model import Learner
    from llmos_operator.tuning.progress import Board
    from llmos_operator.tuning.recipe import Recipe

log = logger(__name__)

_LOG_SECONDS = 10.0
_RANDOM, _RANDOM_CUDA = "random", "random.cuda"


@dataclass(frozen=True, slots=True)
class Saving:
    """Where checkpoints go and how many seconds apart, and whether the last update is followed by one."""

    checkpoints: Checkpoints
    every: float
    at_end: bool = False


class Trainer:
    """One run."""

    def __init__(
        self,
        learner: Learner,
        recipe: Recipe,
        samples: Sequence[Sample],
        division: Split,
        plan: Parts,
        *,
        meter: Meter,
        board: Board,
        clock: Clock,
        saving: Saving | None = None,
        stop: Callable[[], bool] = lambda: False,
        told: RunSpans | None = None,
    ) -> None:
        """``stop`` says whether the run has been asked to end; it is asked after every part."""
        self._learner = learner
        self._recipe = recipe
        self._samples = samples
        self._division = division
        self._plan = plan
        self._meter = meter
        self._board = board
        self._clock = clock
        self._saving = saving
        self._stop = stop
        self._told = told or RunSpans()
        self._total = recipe.total_steps(len(division.training))
        self._per_epoch = -(-len(division.training) // recipe.batch_size)
        self._optimizer = Optimizer(learner.parameters, recipe.weight_decay, recipe.max_gradient_norm)
        self._point = Point(0, plan.tokens, plan.recompute)
        self._saved_at = self._resumed_at = clock.monotonic()
        self._before = 0.0  # seconds spent learning by earlier processes
        self._said_at = 0.0
        self._random: dict[str, torch.Tensor] = {}  # as they were before the update that is under way

    def run(self) -> Point:
        """Train to the end and return where that is. Raises Stopped, Permanent (OutOfMemory), OSError."""
        torch.manual_seed(self._recipe.seed)  # dropout's; a checkpoint brings its own
        self._resume()
        self._random = _random_states()
        self._learner.recompute(on=self._plan.recompute)
        self._resumed_at = self._saved_at = self._clock.monotonic()
        self._show(state=RuntimeState.READY)
        while self._point.step < self._total:
            if self._stop():
                self._leave()
            self._update()
            at_end = self._point.step == self._total
            if self._division.validation and (at_end or self._point.step % self._per_epoch == 0):
                with self._told.part(spans.VALIDATION, {"llmos.updates": self._point.step}):
                    self._validate()
            if self._saving is not None and self._clock.monotonic() - self._saved_at >= self._saving.every:
                self._save(self._saving.checkpoints)
        if self._saving is not None and self._saving.at_end and not self._saved():
            self._save(self._saving.checkpoints)
        return self._point

    def _update(self) -> None:
        step = self._point.step
        self._random = _random_states()
        places = update(self._division.training, self._recipe.batch_size, step, self._recipe.seed)
        chosen = [self._samples[place] for place in places]
        while True:
            try:
                loss = self._gradients(chosen)
                break
            except (ShortOfMemory, MemoryError, RuntimeError) as error:
                if isinstance(error, RuntimeError) and not _is_memory(error):
                    raise
                self._retreat(chosen, str(error))
                _set_random(self._random)
        if not math.isfinite(loss):
            raise Permanent(
                f"the loss became {loss} in update {step + 1}: lower fineTune.training.learningRate",
                reason=Reason.FAILED,
            )
        self._random = _random_states()
        rate = self._recipe.rate(step, self._total)
        norm = self._optimizer.step(rate)
        now = self._clock.monotonic()
        self._point = Point(
            step=step + 1,
            part_tokens=self._plan.tokens,
            recompute=self._plan.recompute,
            tokens=self._point.tokens + sum(len(sample.tokens) for sample in chosen),
            seconds=self._before + now - self._resumed_at,
            loss=loss,
            first_loss=loss if step == 0 else self._point.first_loss,
            validation_loss=self._point.validation_loss,
        )
        self._show(learning_rate=rate, gradient_norm=norm)
        if now - self._said_at >= _LOG_SECONDS or step + 1 == self._total:
            self._said_at = now
            log.info("update", step=step + 1, of=self._total, loss=round(loss, 4), rate=rate)

    def _gradients(self, chosen: Sequence[Sample]) -> float:
        """Add up the gradients of an update; return its loss, nats a token."""
        count = sum(sample.targets for sample in chosen)
        total = 0.0
        for part in parts(chosen, self._plan.tokens):
            if self._stop():
                self._leave()
            loss = self._learner.summed_loss(part) / count
            self._meter.check()  # here a part's memory is at its most, nearly
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
            self._board.put()
        return total

    def _retreat(self, chosen: Sequence[Sample], why: str) -> None:
        """Make parts smaller for good. Raises Permanent(reason=OutOfMemory) when they are as small as can be."""
        self._optimizer.clear()
        self._meter.release()
        largest = max(sum(len(s.tokens) for s in part) for part in parts(chosen, self._plan.tokens))
        single = max(len(sample.tokens) for sample in chosen)
        smaller = self._plan.smaller(min(largest, self._plan.tokens), single)
        if smaller is None:
            raise Permanent(
                f"memory ran out with one sample of {single} tokens at a time ({why}): lower training.maxLength or "
                "lora.rank, choose a smaller format, or give more resources.memory",
                reason=Reason.OUT_OF_MEMORY,
            )
        log.warning("memory ran short", parts_of=smaller.tokens, recompute=smaller.recompute, detail=why)
        self._plan = smaller
        self._learner.recompute(on=smaller.recompute)
        self._board.put(retreats=self._board.now.retreats + 1)
        facts = {"llmos.part_tokens": smaller.tokens, "llmos.recompute": smaller.recompute}
        tracing.current().event(spans.RETREAT, facts)

    @torch.no_grad()
    def _validate(self) -> None:
        """Measure the loss on the samples that are kept from training."""
        chosen = [self._samples[place] for place in self._division.validation]
        total, count = 0.0, sum(sample.targets for sample in chosen)
        self._learner.model.eval()
        for part in parts(chosen, self._plan.tokens):
            if self._stop():
                break
            total += float(self._learner.summed_loss(part))
            self._board.put()
        else:
            found = total / count
            self._point = replace(self._point, validation_loss=found)
            log.info("validation", step=self._point.step, loss=round(found, 4))
            self._show()
        self._learner.model.train()

    # ------------------------------------------------------------ saving

    def _leave(self) -> None:
        self._optimizer.clear()
        if self._saving is not None and not self._saved():
            self._save(self._saving.checkpoints)
        raise Stopped

    def _saved(self) -> bool:
        return self._board.now.checkpoint_step == self._point.step

    def _save(self, checkpoints: Checkpoints) -> None:
        began = self._clock.monotonic()
        tensors = {**self._optimizer.tensors(), **self._random}
        try:
            with self._told.part(spans.CHECKPOINT, {"llmos.updates": self._point.step}):
                checkpoints.save(self._point, tensors)
        except Retryable as error:
            # A store that cannot be reached for now is no reason to lose what was learned since the last one.
            self._saved_at = self._clock.monotonic()
            log.warning("checkpoint is not where it belongs", step=self._point.step, detail=str(error))
            return
        self._saved_at = self._clock.monotonic()
        took = self._saved_at - began
        self._board.put(
            checkpoint_step=self._point.step,
            checkpoint_at=self._saved_at,
            checkpoint_seconds=took,
            checkpoints=self._board.now.checkpoints + 1,
        )
        log.info("checkpoint", step=self._point.step, seconds=round(took, 2))

    def _resume(self) -> None:
        found = self._saving.checkpoints.newest() if self._saving is not None else None
        if found is None:
            return
        point, tensors = found
        self._optimizer.restore(tensors, point.step)
        _set_random(tensors)
        self._point, self._before = point, point.seconds
        self._plan = replace(self._plan, tokens=point.part_tokens, recompute=point.recompute)
        self._board.put(checkpoint_step=point.step, checkpoint_at=self._clock.monotonic())
        tracing.current().event(spans.RESUMED, {"llmos.updates": point.step})
        log.info("goes on from a checkpoint", step=point.step, of=self._total)

    def _show(self, **changes: object) -> None:
        point = self._point
        self._board.put(
            step=point.step,
            total_steps=self._total,
            tokens=point.tokens,
            tokens_per_second=self._board.speed(point.tokens),
            loss=point.loss if point.step else None,
            validation_loss=point.validation_loss,
            part_tokens=self._plan.tokens,
            recompute=self._plan.recompute,
            measured_bytes=self._meter.used,
            peak_bytes=self._meter.peak,
            **changes,
        )


def _random_states() -> dict[str, torch.Tensor]:
    found = {_RANDOM: torch.get_rng_state()}
    return found | ({_RANDOM_CUDA: torch.cuda.get_rng_state()} if torch.cuda.is_available() else {})


def _set_random(states: Mapping[str, torch.Tensor]) -> None:
    torch.set_rng_state(states[_RANDOM])
    if _RANDOM_CUDA in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states[_RANDOM_CUDA])


def _is_memory(error: RuntimeError) -> bool:
    """Whether torch says that memory ran out: on a GPU a class of its own, on the CPU a text of its allocator."""
    return isinstance(error, torch.OutOfMemoryError) or "not enough memory" in str(error)
