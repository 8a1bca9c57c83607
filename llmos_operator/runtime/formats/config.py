"""config.json, read as data: an allow-list of keys, bounded numbers, nothing that could name code.

``auto_map`` and its kind make a Hugging Face library import Python from the repository; published attacks used other
keys as well (CVE-2026-4372: ``_attn_implementation_internal``). So: keys that mean code refuse the model, every other
key that this runtime does not use is dropped.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmos_operator.api.runtime.abilities import CLASSIFY, SCORE, TRANSCRIPTIONS, apis_of
from llmos_operator.api.runtime.memory import ModelShape
from llmos_operator.api.runtime.modelfiles import decoder_sizes
from llmos_operator.api.runtime.pictures import TYPES as PICTURES
from llmos_operator.api.runtime.pictures import picture_sizes
from llmos_operator.api.runtime.prequantized import scheme_of
from llmos_operator.errors import Permanent

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from llmos_operator.api.runtime.prequantized import Scheme

MAX_CONFIG_BYTES = 1 << 20
CODE_KEYS = frozenset(
    {
        "auto_map",
        "custom_pipelines",
        "trust_remote_code",
        "_attn_implementation_internal",
        "attn_implementation",
    }
)
# Upper bounds of what is believed; far above any published model, far below what exhausts memory.
BOUNDS = {
    "hidden_size": 1 << 16,
    "intermediate_size": 1 << 19,
    "num_hidden_layers": 512,
    "num_attention_heads": 1024,
    "num_key_value_heads": 1024,
    "head_dim": 1024,
    "vocab_size": 1 << 21,
    "max_position_embeddings": 1 << 24,
    "type_vocab_size": 1024,
    "d_model": 1 << 16,
    "encoder_layers": 512,
    "decoder_layers": 512,
    "encoder_attention_heads": 1024,
    "decoder_attention_heads": 1024,
    "encoder_ffn_dim": 1 << 19,
    "decoder_ffn_dim": 1 << 19,
    "max_source_positions": 1 << 16,
    "max_target_positions": 1 << 16,
    "num_mel_bins": 1024,
}
_NEEDED = ("hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
_NEEDED_OF_SPEECH = (
    "d_model",
    "encoder_layers",
    "decoder_layers",
    "decoder_attention_heads",
    "vocab_size",
    "max_source_positions",
    "max_target_positions",
)
MAX_LABELS = 10_000
_ACTIVATIONS = {"Identity": "regression", "Sigmoid": "multi_label_classification"}
_HOP_SAMPLES = 160
_LABEL_CHARACTERS = 256
_KEPT = frozenset(
    {
        *BOUNDS,
        "activation_function",
        "depths",
        "downsample_in_bottleneck",
        "downsample_in_first_stage",
        "embedding_size",
        "hidden_sizes",
        "image_size",
        "layer_scale_init_value",
        "layer_type",
        "num_stages",
        "patch_size",
        "qkv_bias",
        "attention_bias",
        "attn_logit_softcapping",
        "bos_token_id",
        "eos_token_id",
        "final_logit_softcapping",
        "hidden_act",
        "hidden_activation",
        "layer_norm_eps",
        "layer_types",
        "max_window_layers",
        "mlp_bias",
        "original_max_position_embeddings",
        "pad_token_id",
        "partial_rotary_factor",
        "position_embedding_type",
        "problem_type",
        "query_pre_attn_scalar",
        "rms_norm_eps",
        "rope_local_base_freq",
        "rope_parameters",
        "rope_scaling",
        "rope_theta",
        "scale_embedding",
        "sliding_window",
        "sliding_window_pattern",
        "tie_word_embeddings",
        "use_bidirectional_attention",
        "use_sliding_window",
    }
)
SPEECH = "whisper"
_GENERATIVE = frozenset({"llama", "mistral", "qwen2", "qwen3", "gemma3_text", "phi3", SPEECH})
_ENCODERS = frozenset({"bert", "roberta", "xlm-roberta"})
_SERVED = _GENERATIVE | _ENCODERS | frozenset(PICTURES)
_PLAIN_DTYPES = {"bfloat16": 16, "float16": 16, "float32": 32}


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """What the runtime believes of a config.json."""

    model_type: str
    architecture: str
    values: Mapping[str, Any]  # allow-listed keys for the model's own config class
    source_bits: int
    labels: tuple[str, ...] = ()  # of a classifier, by index
    stored: Scheme | None = None  # how the weights are quantised in their files, None: they are plain

    @property
    def speech(self) -> bool:
        """Whether it writes down what it hears."""
        return self.model_type == SPEECH

    @property
    def pictures(self) -> bool:
        """Whether it classifies pictures."""
        return self.model_type in PICTURES

    @property
    def apis(self) -> tuple[str, ...]:
        """Parts of the serving API it can answer."""
        found = apis_of(self.architecture, generative=self.generative)
        return tuple(part for part in found if part != SCORE or len(self.labels) <= 1)

    @property
    def convertible(self) -> bool:
        """Whether it is served at formats that its weights are converted to."""
        return TRANSCRIPTIONS not in self.apis and CLASSIFY not in self.apis

    @property
    def generative(self) -> bool:
        """Whether it generates; an encoder only embeds."""
        return self.model_type in _GENERATIVE

    @property
    def max_positions(self) -> int:
        """Longest sequence the model was made for, in tokens."""
        limit = int(sizes_of(self)["max_position_embeddings"])
        # RoBERTa counts positions from pad_token_id + 1 on, so its table is two rows longer than its context.
        return limit - 2 if self.model_type in ("roberta", "xlm-roberta") else limit

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """End-of-sequence tokens."""
        return token_ids(self.values.get("eos_token_id"))


def read_json(path: Path, limit: int = MAX_CONFIG_BYTES) -> dict[str, Any]:
    """Return a JSON object from a file of at most ``limit`` bytes. Raises Permanent(reason=Corrupted)."""
    try:
        if path.stat().st_size > limit:
            raise Permanent(
                f"{path.name} has {path.stat().st_size} bytes, more than {limit}", reason="Corrupted"
            )
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise Permanent(f"{path.name} cannot be read as JSON: {error}", reason="Corrupted") from error
    if not isinstance(value, dict):
        raise Permanent(f"{path.name} is not a JSON object", reason="Corrupted")
    return value


def read_config(path: Path) -> ModelConfig:
    """Return the checked config of the model in the folder ``path``.

    Raises Permanent with reason UnsafeConfig (keys that mean code), Unsupported (a model type that is not served),
    or Corrupted (numbers outside their bounds).
    """
    raw = read_json(path / "config.json")
    unsafe = sorted(CODE_KEYS & raw.keys())
    if unsafe:
        raise Permanent(
            f"config.json has {', '.join(unsafe)}, which asks for code from the repository to run; "
            "this runtime runs none: publish the model without it",
            reason="UnsafeConfig",
        )
    model_type = str(raw.get("model_type"))
    if model_type not in _SERVED:
        served = ", ".join(sorted(_SERVED))
        raise Permanent(
            f"model type {model_type!r} is not served by this runtime (served: {served})",
            reason="Unsupported",
        )
    stored = scheme_of(raw)
    _check_bounds(raw)
    architectures = raw.get("architectures")
    first = str(architectures[0])[:100] if isinstance(architectures, list) and architectures else ""
    values = {key: raw[key] for key in sorted(_KEPT & raw.keys())}
    bits = _PLAIN_DTYPES.get(str(raw.get("torch_dtype", raw.get("dtype", "bfloat16"))), 16)
    if model_type == SPEECH:
        # Its config class takes these for other names of its encoder's sizes, which have names of their own.
        own = {key: value for key, value in values.items() if key not in decoder_sizes(raw)}
        return ModelConfig(model_type, _speech_architecture(first), own, bits)
    if model_type in PICTURES and not first.endswith("ForImageClassification"):
        wanted = "a ...ForImageClassification"
        raise Permanent(
            f"{first or 'the model'} is not served by this runtime; of {model_type} {wanted} is",
            reason="Unsupported",
        )
    labels = _labels(raw) if CLASSIFY in apis_of(first, generative=model_type in _GENERATIVE) else ()
    if labels:
        values["id2label"] = dict(enumerate(labels))
    if len(labels) == 1 and (activation := _activation(raw)):
        values["problem_type"] = activation
    return ModelConfig(model_type, first, values, stored.bits if stored else bits, labels, stored)


def _speech_architecture(named: str) -> str:
    wanted = "WhisperForConditionalGeneration"
    if named not in ("", wanted):
        raise Permanent(
            f"{named} is not served by this runtime; of whisper {wanted} is", reason="Unsupported"
        )
    return wanted


def _labels(raw: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the labels of a classifier by index; LABEL_0 and so on where it names none, as transformers does."""
    found = raw.get("id2label")
    if found is None:
        count = raw.get("num_labels", 2)
        if not (type(count) is int and 0 < count <= MAX_LABELS):
            raise Permanent(
                f"config.json: num_labels is {count!r}, not a number from 1 to {MAX_LABELS}",
                reason="Corrupted",
            )
        return tuple(f"LABEL_{index}" for index in range(count))
    if not isinstance(found, dict) or not 0 < len(found) <= MAX_LABELS:
        raise Permanent(f"config.json: id2label is no object of 1 to {MAX_LABELS} labels", reason="Corrupted")
    if set(found) != {str(index) for index in range(len(found))}:
        raise Permanent(
            f"config.json: the keys of id2label are not the numbers from 0 to {len(found) - 1}",
            reason="Corrupted",
        )
    return tuple(str(found[str(index)])[:_LABEL_CHARACTERS] for index in range(len(found)))


def _activation(raw: Mapping[str, Any]) -> str:
    """Return the problem_type that stands for what sentence-transformers makes of a single label, "" if it says nothing.

    Its cross-encoders name a class of torch; the name is looked up here and never imported.
    """
    own = raw.get("sentence_transformers")
    named = own.get("activation_fn") if isinstance(own, dict) else None
    name = str(named or raw.get("sbert_ce_default_activation_function") or "")
    if not name:
        return ""
    found = _ACTIVATIONS.get(name.rpartition(".")[2])
    if found is None:
        raise Permanent(
            f"config.json: activation_fn is {name[:100]!r}; of a single label {' and '.join(_ACTIVATIONS)} are served",
            reason="Unsupported",
        )
    return found


def sizes_of(config: ModelConfig) -> dict[str, Any]:
    """Return a config's values, a speech model's by the names that other models give those of a decoder."""
    values = {"max_position_embeddings": 512, **config.values}
    named = {**values, "model_type": config.model_type}
    return values | decoder_sizes(named) | picture_sizes(named)


def read_eos(path: Path, config: ModelConfig) -> tuple[int, ...]:
    """Return the end-of-sequence tokens: those of generation_config.json win over config.json's."""
    file = path / "generation_config.json"
    found = token_ids(read_json(file).get("eos_token_id")) if file.is_file() else ()
    return found or config.eos_token_ids


def token_ids(value: object) -> tuple[int, ...]:
    """Return one id, a list of ids or None as a tuple of ids."""
    items = value if isinstance(value, list) else [value]
    return tuple(item for item in items if type(item) is int and item >= 0)


def window_samples(config: ModelConfig) -> int:
    """Return how many samples a speech model hears at once, 0 for other models: two frames of 10 ms a position."""
    return 2 * _HOP_SAMPLES * int(config.values["max_source_positions"]) if config.speech else 0


def shape_of(config: ModelConfig, counts: Mapping[str, int]) -> ModelShape:
    """Return what the memory model needs; ``counts`` are parameters by kind: linear, embedding, other."""
    values = sizes_of(config)
    heads, hidden = int(values["num_attention_heads"]), int(values["hidden_size"])
    return ModelShape(
        architecture=config.architecture,
        linear_parameters=counts["linear"],
        embedding_parameters=counts["embedding"],
        other_parameters=counts["other"],
        layers=int(values["num_hidden_layers"]),
        hidden=hidden,
        intermediate=int(values.get("intermediate_size", 4 * hidden)),
        heads=heads,
        kv_heads=int(values.get("num_key_value_heads") or heads),
        head_dim=int(values.get("head_dim") or hidden // heads),
        vocab=int(values["vocab_size"]),
        max_positions=config.max_positions,
        source_bits=config.source_bits,
        generative=config.generative,
        cross_tokens=int(values["cross_tokens"]) if config.speech else 0,
        picture_floats=int(values.get("picture_floats", 0)),
        quantized=config.stored.format if config.stored is not None else "",
    )


def _check_bounds(raw: Mapping[str, Any]) -> None:
    for key, limit in BOUNDS.items():
        value = raw.get(key)
        if value is not None and not (type(value) is int and 0 < value <= limit):
            raise Permanent(
                f"config.json: {key} is {value!r}, not a number from 1 to {limit}", reason="Corrupted"
            )
    given = {**raw, **picture_sizes(raw)}
    for key in _NEEDED_OF_SPEECH if raw.get("model_type") == SPEECH else _NEEDED:
        if key not in given:
            raise Permanent(f"config.json lacks {key}", reason="Corrupted")
