"""What a run leaves behind: an adapter as PEFT writes it, or a whole model; and the facts of how it came to be.

An adapter is a folder with `adapter_model.safetensors` and `adapter_config.json`. Names and keys are those of PEFT's
published format (https://huggingface.co/docs/peft/developer_guides/checkpoint), so that others' tools load it:
`base_model.model.<layer>.lora_A.weight` of [rank, in] and `….lora_B.weight` of [out, rank].
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from llmos_operator import __version__
from llmos_operator.tuning.checkpoints import write_tensors, write_text
from llmos_operator.tuning.model import published_files

if TYPE_CHECKING:
    from pathlib import Path

    from llmos_operator.tuning.checkpoints import Point
    from llmos_operator.tuning.dataset import Dataset
    from llmos_operator.tuning.model import Learner
    from llmos_operator.tuning.recipe import Recipe

FACTS = "training.json"  # written last: a folder with it is whole
ADAPTER, ADAPTER_CONFIG, CARD = "adapter_model.safetensors", "adapter_config.json", "README.md"
_METADATA = {"format": "pt"}


@dataclass(frozen=True, slots=True)
class Origin:
    """What a run was made from. Digests are "sha256:…"."""

    model: str
    revision: str
    digest: str
    format: str
    data: str
    data_digest: str
    fingerprint: str


def is_done(folder: Path, fingerprint: str) -> bool:
    """Return whether ``folder`` holds the result of this very run: it ended, and its process did not live to say so."""
    try:
        return bool(json.loads((folder / FACTS).read_bytes()).get("fingerprint") == fingerprint)
    except (OSError, ValueError, AttributeError):
        return False


def write_adapter(folder: Path, learner: Learner, recipe: Recipe, origin: Origin) -> None:
    """Write the adapter's two files. Raises OSError."""
    tensors = {peft_name(name): parameter.data for name, parameter in learner.parameters.items()}
    write_tensors(folder / ADAPTER, tensors, _METADATA)
    write_text(folder / ADAPTER_CONFIG, json.dumps(adapter_config(learner, recipe, origin), indent=2) + "\n")


def peft_name(name: str) -> str:
    """Return PEFT's name of a parameter, given ours: the layer's name and `lora_a` or `lora_b`."""
    layer, _, matrix = name.rpartition(".")
    return f"base_model.model.{layer}.{'lora_A' if matrix == 'lora_a' else 'lora_B'}.weight"


def adapter_config(learner: Learner, recipe: Recipe, origin: Origin) -> dict[str, Any]:
    """Return the contents of adapter_config.json."""
    return {
        "base_model_name_or_path": origin.model.removeprefix("hf://"),
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "lora_alpha": recipe.lora.alpha,
        "lora_dropout": recipe.lora.dropout,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": recipe.lora.rank,
        "revision": origin.revision or None,
        "target_modules": sorted({layer.rpartition(".")[2] for layer in learner.layers}),
        "task_type": "CAUSAL_LM",
        "use_dora": False,
        "use_rslora": False,
    }


def write_model(folder: Path, learner: Learner, base: Path) -> None:
    """Write all weights in bf16, beside the base model's config, tokenizer and template. Raises OSError."""
    for path in published_files(base):
        if path.name != "config.json":
            shutil.copyfile(path, folder / path.name)
    config = json.loads((base / "config.json").read_bytes())
    config.pop("dtype", None)
    write_text(folder / "config.json", json.dumps({**config, "torch_dtype": "bfloat16"}, indent=2) + "\n")
    write_tensors(folder / "model.safetensors", learner.parameters, _METADATA, dtype=torch.bfloat16)


def write_facts(folder: Path, recipe: Recipe, origin: Origin, data: Dataset, point: Point) -> None:
    """Write README.md and training.json, in this order. Raises OSError."""
    facts = facts_of(recipe, origin, data, point)
    write_text(folder / CARD, card(facts))
    write_text(folder / FACTS, json.dumps(facts, indent=1) + "\n")


def facts_of(recipe: Recipe, origin: Origin, data: Dataset, point: Point) -> dict[str, Any]:
    """Return all that is known of a run, as JSON."""
    settings: dict[str, Any] = {
        "method": recipe.method.value,
        "epochs": None if recipe.steps else recipe.epochs,
        "batchSize": recipe.batch_size,
        "maxLength": recipe.max_length,
        "learningRate": recipe.learning_rate,
        "schedule": recipe.schedule.value,
        "warmup": recipe.warmup,
        "weightDecay": recipe.weight_decay,
        "maxGradientNorm": recipe.max_gradient_norm,
        "seed": recipe.seed,
        "validation": recipe.validation,
    }
    if recipe.adapts:
        settings |= {"rank": recipe.lora.rank, "alpha": recipe.lora.alpha, "dropout": recipe.lora.dropout}
    return {
        "version": __version__,
        "fingerprint": origin.fingerprint,
        "base": {
            "model": origin.model,
            "revision": origin.revision,
            "digest": origin.digest,
            "format": origin.format,
        },
        "data": {
            "uri": origin.data,
            "digest": origin.data_digest,
            "lines": data.lines,
            "samples": len(data.samples),
            "tokens": data.tokens,
            "cut": data.cut,
            "dropped": data.dropped,
        },
        "settings": settings,
        "result": {
            "steps": point.step,
            "tokens": point.tokens,
            "seconds": round(point.seconds, 1),
            "firstLoss": point.first_loss,
            "loss": point.loss,
            "validationLoss": point.validation_loss,
        },
    }


def card(facts: dict[str, Any]) -> str:
    """Return README.md: the facts for people, with the header the hub's tools read."""
    base, data, result = facts["base"], facts["data"], facts["result"]
    adapts = facts["settings"]["method"] != "full"
    model = str(base["model"]).removeprefix("hf://")
    lines = [
        "---",
        f"base_model: {json.dumps(model)}",
        *(["library_name: peft"] if adapts else []),
        "---",
        f"# {'LoRA adapter for' if adapts else 'Fine-tuned'} {model}",
        "",
        f"Trained by llmos {facts['version']}. Losses are nats a learned token.",
        "",
        "| | |",
        "|---|---|",
        f"| base | {model}, revision {base['revision'] or '-'}, {base['digest']}, as {base['format']} |",
        f"| data | {data['uri']}, {data['digest']} |",
        (
            f"| samples | {data['samples']} of {data['lines']} lines, {data['tokens']} tokens; {data['cut']} cut, "
            f"{data['dropped']} left out |"
        ),
        f"| updates | {result['steps']}, {result['tokens']} tokens in {result['seconds']} s |",
        f"| loss | {result['firstLoss']:.4f} at first, {result['loss']:.4f} at last |",
    ]
    if result["validationLoss"] is not None:
        lines.append(f"| validation loss | {result['validationLoss']:.4f} |")
    lines += [f"| {name} | {value} |" for name, value in facts["settings"].items() if value is not None]
    return "\n".join(lines) + "\n"
