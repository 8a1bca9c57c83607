"""Fine-tuning on a CPU."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from llmos_operator.runtime.formats.checkpoint import open_checkpoint
from llmos_operator.runtime.formats.config import read_config
from llmos_operator.tuning.batches import parts, update
from llmos_operator.tuning.optimizer import Optimizer
from llmos_operator.tuning.recipe import Lora, Recipe
from tests.bench.report import Table
from tests.support.learning import encoder_of, learner_of
from tests.support.models import CHAT, packaged

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from llmos_operator.tuning.dataset import Sample

ROUNDS = 3
RECIPE = Recipe(lora=Lora(rank=16, alpha=32), batch_size=8, learning_rate=1e-4, steps=2 * ROUNDS)
PART_TOKENS = 2048
TOPICS = (
    "the tides", "a bicycle", "yeast", "the printing press", "glaciers", "a violin", "the silk road", "lichen",
    "a lighthouse", "sourdough", "the abacus", "moss", "a telescope", "the stirrup", "coral", "a canal",
)  # fmt: skip


def run() -> Sequence[Table]:
    """Return tokens a second of our loop and of a plain one over the same samples."""
    torch.set_num_threads(1)
    folder = packaged(CHAT)
    samples = _samples(folder)
    baseline = _plain(folder, samples)
    rows = []
    for title, loop in (
        ("plain loop: transformers, padded batch, all logits, fp32", baseline),
        ("llmos tune, fp32", _ours(folder, samples, "fp32", recompute=False)),
        ("llmos tune, fp32, layers recomputed", _ours(folder, samples, "fp32", recompute=True)),
        ("llmos tune, bf16", _ours(folder, samples, "bf16", recompute=False)),
    ):
        tokens, seconds, loss = loop
        rate = tokens / seconds
        against = rate / (baseline[0] / baseline[1])
        rows.append((title, f"{rate:.0f}", f"{against:.2f}", f"{loss:.3f}"))
    note = (
        f"SmolLM2 135M, LoRA of rank 16 beside all linear layers, {RECIPE.batch_size} conversations an update, "
        f"{min(len(s.tokens) for s in samples)} to {max(len(s.tokens) for s in samples)} tokens each, one thread. Tokens "
        f"without padding, by CPU time; the best of {ROUNDS} rounds of two updates. The loss is that of the last update: "
        "both loops learn the same."
    )
    return [Table("LoRA", ("loop", "tokens/s", "against plain", "last loss"), rows, note)]


def _samples(folder: Path) -> list[Sample]:
    encoder = encoder_of(folder)
    found = []
    for place, topic in enumerate(TOPICS):
        question = f"Tell me about {topic}. " + "Please be thorough. " * (place % 7 * 3)
        answer = f"Gladly. {topic.capitalize()} has a long history. " + "It matters to many people. " * (
            place % 4 * 2
        )
        found.append(encoder.completion(question, answer))
    return found


def _timed(step: Callable[[int], tuple[int, float]]) -> tuple[int, float, float]:
    """Return tokens, CPU seconds and last loss of the quickest of some rounds of two updates."""
    best: tuple[int, float] = (0, float("inf"))
    loss = 0.0
    for round_ in range(ROUNDS):
        began, tokens = time.process_time(), 0
        for number in (2 * round_, 2 * round_ + 1):
            count, loss = step(number)
            tokens += count
        took = time.process_time() - began
        if took < best[1]:
            best = (tokens, took)
    return (*best, loss)


def _ours(folder: Path, samples: list[Sample], fmt: str, *, recompute: bool) -> tuple[int, float, float]:
    learner = learner_of(folder, RECIPE, fmt)
    learner.recompute(on=recompute)
    optimizer = Optimizer(learner.parameters, RECIPE.weight_decay, RECIPE.max_gradient_norm)

    def step(number: int) -> tuple[int, float]:
        chosen = [samples[i] for i in update(range(len(samples)), RECIPE.batch_size, number, 0)]
        count, total = sum(sample.targets for sample in chosen), 0.0
        for part in parts(chosen, PART_TOKENS):
            loss = learner.summed_loss(part) / count
            loss.backward()
            total += float(loss.detach())
        optimizer.step(RECIPE.learning_rate)
        return sum(len(sample.tokens) for sample in chosen), total

    return _timed(step)


class _Plain(nn.Module):
    """The textbook's adapter."""

    def __init__(self, base: nn.Linear, lora_a: torch.Tensor) -> None:
        super().__init__()
        self.base = base
        self.lora_a = nn.Parameter(lora_a.clone())
        self.lora_b = nn.Parameter(torch.zeros(base.out_features, lora_a.shape[0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        low = functional.linear(x, self.lora_a)
        return self.base(x) + RECIPE.lora.scale * functional.linear(low, self.lora_b)


def _plain(folder: Path, samples: list[Sample]) -> tuple[int, float, float]:
    """A loop as tutorials write it: transformers' model, one padded batch an update, a mask, logits of all tokens."""
    from safetensors.torch import load_file  # noqa: PLC0415
    from transformers import LlamaConfig, LlamaForCausalLM  # noqa: PLC0415 - seconds

    config = read_config(folder)
    model = LlamaForCausalLM(LlamaConfig(**config.values))
    weights: dict[str, torch.Tensor] = {}
    for file in open_checkpoint(folder).files:
        weights |= load_file(file.path)
    model.load_state_dict({name: one.float() for name, one in weights.items()}, strict=False)
    model.requires_grad_(requires_grad=False)
    drawn = {
        n.rpartition(".")[0]: p for n, p in learner_of(folder, RECIPE).parameters.items() if n.endswith("_a")
    }
    for name, lora_a in drawn.items():
        owner, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(owner), attribute, _Plain(model.get_submodule(name), lora_a.data))
    model.train()
    learned = [one for one in model.parameters() if one.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=RECIPE.learning_rate, weight_decay=0.0)

    def step(number: int) -> tuple[int, float]:
        chosen = [samples[i] for i in update(range(len(samples)), RECIPE.batch_size, number, 0)]
        longest = max(len(sample.tokens) for sample in chosen)
        ids = torch.zeros(len(chosen), longest, dtype=torch.long)
        labels = torch.full((len(chosen), longest), -100)
        mask = torch.zeros(len(chosen), longest, dtype=torch.long)
        for row, sample in enumerate(chosen):
            tokens = torch.tensor(sample.tokens)
            ids[row, : len(tokens)], mask[row, : len(tokens)] = tokens, 1
            labels[row, : len(tokens)] = torch.where(torch.tensor(sample.learned), tokens, -100)
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        nn.utils.clip_grad_norm_(learned, RECIPE.max_gradient_norm)
        optimizer.step()
        optimizer.zero_grad()
        return sum(len(sample.tokens) for sample in chosen), float(loss.detach())

    return _timed(step)
