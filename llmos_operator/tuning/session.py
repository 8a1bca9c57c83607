"""One run from model and data to its result."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmos_operator.api.runtime.messages import RuntimeState
from llmos_operator.api.runtime.training_memory import TrainingSize
from llmos_operator.observability.logging import logger
from llmos_operator.runtime.backends import build
from llmos_operator.runtime.formats.checkpoint import open_checkpoint
from llmos_operator.runtime.formats.config import read_config, read_eos
from llmos_operator.runtime.loader.pipeline import standard_folder, trim_memory, verify
from llmos_operator.runtime.loader.progress import Stages
from llmos_operator.runtime.loader.sources import resolve
from llmos_operator.tuning import model as models
from llmos_operator.tuning import result, spans
from llmos_operator.tuning.batches import split
from llmos_operator.tuning.checkpoints import Checkpoints
from llmos_operator.tuning.dataset import read_dataset
from llmos_operator.tuning.encoding import Encoder
from llmos_operator.tuning.memory import MOST_TOKENS, Meter, plan_parts
from llmos_operator.tuning.spans import RunSpans, Stopped
from llmos_operator.tuning.training import Saving, Trainer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from llmos_operator.clock import Clock
    from llmos_operator.runtime.formats.config import ModelConfig
    from llmos_operator.runtime.ipc.messages import Load, Progress
    from llmos_operator.tuning.checkpoints import Point
    from llmos_operator.tuning.dataset import Dataset
    from llmos_operator.tuning.memory import Parts
    from llmos_operator.tuning.model import Learner
    from llmos_operator.tuning.progress import Board
    from llmos_operator.tuning.recipe import Order

log = logger(__name__)


@dataclass(frozen=True, slots=True)
class _Ready:
    """All that learning begins with."""

    folder: Path
    origin: result.Origin
    data: Dataset
    learner: Learner
    meter: Meter
    plan: Parts


class Session:
    """What one process does."""

    def __init__(
        self,
        load: Load,
        order: Order,
        dataset: Path,
        data_digest: str,
        board: Board,
        clock: Clock,
        stop: Callable[[], bool],
        told: RunSpans | None = None,
    ) -> None:
        self._load = load
        self._order = order
        self._dataset = dataset
        self._data_digest = data_digest
        self._board = board
        self._clock = clock
        self._stop = stop
        self._told = told or RunSpans()

    def run(
        self, output: Path, checkpoint: Path | None, written: Callable[[Path], None] | None = None
    ) -> str:
        """Train, write the result into the folder ``output``, and return one line about it.

        ``written`` is told the folder of each checkpoint; where there is one, the last update is followed by a checkpoint, too,
        as the result may have a long way to go.

        Raises Stopped, Permanent, Retryable, OSError.
        """
        with self._told.part(spans.LOAD):
            try:
                ready = self._prepare(output)
            finally:
                self._told.stage("")
        if ready is None:
            return "the result is there already"
        saving = None
        if checkpoint is not None:
            kept = Checkpoints(checkpoint, ready.origin.fingerprint, written or (lambda _: None))
            saving = Saving(kept, self._order.checkpoint_every, at_end=written is not None)
        with self._told.part(spans.LEARN) as span:
            try:
                point = self._trainer(ready, saving).run()
            finally:
                spans.learned(span, self._board.now)
        with self._told.part(spans.RESULT):
            self._write(output, ready, point)
        return f"{point.step} updates, loss {point.first_loss:.3f} to {point.loss:.3f}"

    def _prepare(self, output: Path) -> _Ready | None:
        """Load model and data; None if ``output`` has the result already."""
        load, recipe = self._load, self._order.recipe
        stages = Stages(self._clock, self._advance)
        stages.enter(RuntimeState.STARTING)
        build.use_threads(load.threads)
        source = resolve(load, stages)
        folder = standard_folder(source, load, stages)
        config = read_config(folder)
        models.refuse(config, load.format, recipe)
        weights = open_checkpoint(folder)
        digest = verify(weights, load, stages)
        revision = source.revision or load.revision
        self._board.put(digest=digest, architecture=config.architecture, revision=revision)
        origin = self._origin(digest, revision)
        if result.is_done(output, origin.fingerprint):
            return None
        with self._told.part(spans.DATA):
            data = self._read(folder, config)
        device = build.choose_device(load.device)
        meter = Meter(load.memory_limit_bytes, device)
        base = meter.measure()
        learner = models.load(config, weights, digest, load, recipe, stages)
        stages.leave()
        trim_memory()
        return _Ready(folder, origin, data, learner, meter, self._plan(learner, data, meter, base))

    def _trainer(self, ready: _Ready, saving: Saving | None) -> Trainer:
        recipe, samples = self._order.recipe, ready.data.samples
        return Trainer(
            ready.learner,
            recipe,
            samples,
            split(len(samples), recipe.validation, recipe.seed),
            ready.plan,
            meter=ready.meter,
            board=self._board,
            clock=self._clock,
            saving=saving,
            stop=self._stop,
            told=self._told,
        )

    def _write(self, output: Path, ready: _Ready, point: Point) -> None:
        recipe = self._order.recipe
        if recipe.adapts:
            result.write_adapter(output, ready.learner, recipe, ready.origin)
        else:
            result.write_model(output, ready.learner, ready.folder)
        result.write_facts(output, recipe, ready.origin, ready.data, point)

    def _advance(self, stage: Progress) -> None:
        if self._board.now.state is not stage.stage or self._board.now.stage is None:
            self._told.stage(stage.stage.value)
        self._board.load(stage)
        if self._stop():
            raise Stopped

    def _origin(self, digest: str, revision: str) -> result.Origin:
        load = self._load
        fingerprint = self._order.recipe.fingerprint(model=digest, data=self._data_digest, format=load.format)
        return result.Origin(
            model=load.uri,
            revision=revision,
            digest=digest,
            format=load.format,
            data=self._order.dataset,
            data_digest=self._data_digest,
            fingerprint=fingerprint,
        )

    def _read(self, folder: Path, config: ModelConfig) -> Dataset:
        most = min(self._order.recipe.max_length, config.max_positions)
        encoder = Encoder(folder, read_eos(folder, config))
        with self._dataset.open("rb") as lines:
            data = read_dataset(lines, encoder, most)
        log.info(
            "data read",
            lines=data.lines,
            samples=len(data.samples),
            length=data.tokens,
            cut=data.cut,
            dropped=data.dropped,
        )
        return data

    def _plan(self, learner: Learner, data: Dataset, meter: Meter, base: int) -> Parts:
        recipe = self._order.recipe
        longest = max(len(sample.tokens) for sample in data.samples)
        size = TrainingSize(
            learner.format,
            rank=recipe.lora.rank if recipe.adapts else 0,
            targets=tuple({layer.rpartition(".")[2] for layer in learner.layers}),
        )
        plan = plan_parts(
            learner.shape,
            size,
            base_bytes=base,
            limit_bytes=meter.room(),
            longest=longest,
            most=min(MOST_TOKENS[learner.device.type], recipe.batch_size * longest),
        )
        guess = plan.estimate
        self._board.put(
            samples=len(data.samples),
            base_bytes=base,
            limit_bytes=meter.limit,
            weights_bytes=learner.weights_bytes,
            predicted_bytes=guess.total_bytes if guess is not None else 0,
        )
        log.info(
            "training",
            layers=len(learner.layers),
            parameters=sum(one.numel() for one in learner.parameters.values()),
            part=plan.tokens,
            recompute=plan.recompute,
            predicted_mib=self._board.now.predicted_bytes >> 20,
        )
        return plan
