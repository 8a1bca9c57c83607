"""One run from model and data to its result."""

from __future__ import annotations

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
from llmos_operator.tuning import result
from llmos_operator.tuning.batches import split
from llmos_operator.tuning.checkpoints import Checkpoints
from llmos_operator.tuning.dataset import read_dataset
from llmos_operator.tuning.encoding import Encoder
from llmos_operator.tuning.memory import MOST_TOKENS, Meter, plan_parts
from llmos_operator.tuning.training import Saving, Stopped, Trainer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from llmos_operator.clock import Clock
    from llmos_operator.runtime.formats.config import ModelConfig
    from llmos_operator.runtime.ipc.messages import Load, Progress
    from llmos_operator.tuning.dataset import Dataset
    from llmos_operator.tuning.memory import Parts
    from llmos_operator.tuning.model import Learner
    from llmos_operator.tuning.progress import Board
    from llmos_operator.tuning.recipe import Order

log = logger(__name__)


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
    ) -> None:
        self._load = load
        self._order = order
        self._dataset = dataset
        self._data_digest = data_digest
        self._board = board
        self._clock = clock
        self._stop = stop

    def run(self, output: Path, checkpoint: Path | None) -> str:
        """Train, write the result into the folder ``output``, and return one line about it.

        Raises Stopped, Permanent, Retryable, OSError.
        """
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
            return "the result is there already"
        data = self._read(folder, config)
        device = build.choose_device(load.device)
        meter = Meter(load.memory_limit_bytes, device)
        base = meter.measure()
        learner = models.load(config, weights, digest, load, recipe, stages)
        stages.leave()
        trim_memory()
        plan = self._plan(learner, data, meter, base)
        saving = None
        if checkpoint is not None:
            saving = Saving(Checkpoints(checkpoint, origin.fingerprint), self._order.checkpoint_every)
        trainer = Trainer(
            learner,
            recipe,
            data.samples,
            split(len(data.samples), recipe.validation, recipe.seed),
            plan,
            meter=meter,
            board=self._board,
            clock=self._clock,
            saving=saving,
            stop=self._stop,
        )
        point = trainer.run()
        if recipe.adapts:
            result.write_adapter(output, learner, recipe, origin)
        else:
            result.write_model(output, learner, folder)
        result.write_facts(output, recipe, origin, data, point)
        return f"{point.step} updates, loss {point.first_loss:.3f} to {point.loss:.3f}"

    def _advance(self, stage: Progress) -> None:
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
