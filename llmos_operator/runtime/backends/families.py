"""The model classes that are served, and how to make one without giving its weights memory.

A model is built from the checked values of its config alone (no `from_pretrained`, no auto classes, no file is looked
at), with parameters on the meta device; buffers, such as rotary frequencies, are computed as usual.
"""

from __future__ import annotations

import contextlib
import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from llmos_operator.errors import Permanent
from llmos_operator.runtime.backends.attention import NAME, PackedContext, packed_attention
from llmos_operator.runtime.backends.hearing import HEARING, hearing_attention
from llmos_operator.runtime.backends.products import Linear

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llmos_operator.runtime.formats.config import ModelConfig

ALL_ATTENTION_FUNCTIONS.register(NAME, packed_attention)
ALL_ATTENTION_FUNCTIONS.register(HEARING, hearing_attention)


@dataclass(frozen=True, slots=True)
class Family:
    """Where transformers keeps a model type; ``backbone`` is the attribute under the head, "" for an encoder.

    ``classifier`` is the class of an encoder that classifies, and ``head`` the submodule that makes logits of hidden states.
    """

    module: str
    config_class: str
    model_class: str
    backbone: str = "model"
    classifier: str = ""
    head: str = "lm_head"
    attention: str = NAME


FAMILIES = {
    "llama": Family("llama", "LlamaConfig", "LlamaForCausalLM"),
    "mistral": Family("mistral", "MistralConfig", "MistralForCausalLM"),
    "qwen2": Family("qwen2", "Qwen2Config", "Qwen2ForCausalLM"),
    "qwen3": Family("qwen3", "Qwen3Config", "Qwen3ForCausalLM"),
    "phi3": Family("phi3", "Phi3Config", "Phi3ForCausalLM"),
    "gemma3_text": Family("gemma3", "Gemma3TextConfig", "Gemma3ForCausalLM"),
    "bert": Family(
        "bert", "BertConfig", "BertModel", backbone="", classifier="BertForSequenceClassification"
    ),
    "roberta": Family(
        "roberta", "RobertaConfig", "RobertaModel", backbone="", classifier="RobertaForSequenceClassification"
    ),
    "xlm-roberta": Family(
        "xlm_roberta",
        "XLMRobertaConfig",
        "XLMRobertaModel",
        backbone="",
        classifier="XLMRobertaForSequenceClassification",
    ),
    "vit": Family(
        "vit", "ViTConfig", "ViTModel", "", classifier="ViTForImageClassification", attention="sdpa"
    ),
    "resnet": Family(
        "resnet",
        "ResNetConfig",
        "ResNetModel",
        "",
        classifier="ResNetForImageClassification",
        attention="eager",
    ),
    "convnext": Family(
        "convnext",
        "ConvNextConfig",
        "ConvNextModel",
        "",
        classifier="ConvNextForImageClassification",
        attention="eager",
    ),
    "convnextv2": Family(
        "convnextv2",
        "ConvNextV2Config",
        "ConvNextV2Model",
        "",
        classifier="ConvNextV2ForImageClassification",
        attention="eager",
    ),
    "whisper": Family(
        "whisper",
        "WhisperConfig",
        "WhisperForConditionalGeneration",
        backbone="model.decoder",
        head="proj_out",
        attention=HEARING,
    ),
}


def build_empty(config: ModelConfig) -> nn.Module:
    """Return the model of ``config`` with parameters on the meta device, in eval mode.

    Raises Permanent(reason=Corrupted) when transformers rejects the values.
    """
    family = FAMILIES[config.model_type]
    package = importlib.import_module(f"transformers.models.{family.module}.modeling_{family.module}")
    settings = importlib.import_module(f"transformers.models.{family.module}.configuration_{family.module}")
    try:
        made = getattr(settings, family.config_class)(**config.values)
        made._attn_implementation = family.attention  # noqa: SLF001 - the documented way is from_pretrained, which reads files
        with _parameters_on_meta():
            if config.labels:
                model: nn.Module = getattr(package, family.classifier)(made)
            else:
                # Sentence encoders do not use the pooling layer.
                options = {} if family.backbone else {"add_pooling_layer": False}
                model = getattr(package, family.model_class)(made, **options)
    except Exception as error:  # the library's validators raise types of their own
        raise Permanent(
            f"config.json does not describe a {config.model_type}: {error}", reason="Corrupted"
        ) from error
    for name, module in list(model.named_modules()):
        if type(module) is nn.Linear:
            replace_module(model, name, Linear.of(module))
    return model.eval().requires_grad_(requires_grad=False)


def attach_context(model: nn.Module, context: PackedContext) -> None:
    """Hang ``context`` on every module that computes attention."""
    for module in model.modules():
        if hasattr(module, "layer_idx") or type(module).__name__.endswith("SelfAttention"):
            module.llmos_context = context  # type: ignore[assignment]


@contextlib.contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """While active, parameters that modules register are replaced by meta tensors of their shape and dtype."""
    register = nn.Module.register_parameter

    def to_meta(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and param.device.type != "meta":
            param = nn.Parameter(param.data.to("meta"), requires_grad=False)
        register(self, name, param)

    nn.Module.register_parameter = to_meta  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def set_tensor(model: nn.Module, name: str, tensor: torch.Tensor) -> None:
    """Replace the parameter or buffer ``name`` by ``tensor``."""
    owner_name, _, attribute = name.rpartition(".")
    owner = model.get_submodule(owner_name)
    if attribute in owner._parameters:  # noqa: SLF001 - buffers and parameters are told apart here only
        owner._parameters[attribute] = nn.Parameter(tensor, requires_grad=False)  # noqa: SLF001
    else:
        owner._buffers[attribute] = tensor  # noqa: SLF001


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Put ``module`` where ``name`` is."""
    owner_name, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(owner_name), attribute, module)


def parameter_counts(model: nn.Module) -> dict[str, int]:
    """Return parameters by kind for the memory model: linear, embedding (with an untied head), other."""
    counts = {"linear": 0, "embedding": 0, "other": 0}
    seen: set[int] = set()
    for name, module in model.named_modules():
        for parameter in module._parameters.values():  # noqa: SLF001 - own parameters, without children
            if parameter is None or id(parameter) in seen:
                continue
            seen.add(id(parameter))
            counts[_kind(name, module, parameter)] += parameter.numel()
    return counts


def _kind(name: str, module: nn.Module, parameter: Any) -> str:
    if isinstance(module, nn.Embedding) or name in ("lm_head", "proj_out"):
        return "embedding"
    return "linear" if isinstance(module, nn.Linear) and parameter.dim() > 1 else "other"
