"""`vllm serve` as the operator calls it: which options it sets itself, and what a user's arguments must leave alone.

Pure tables, shared by the CRD's rule, the operator's check and the pod builder. Options as of vLLM 0.32:
https://docs.vllm.ai/en/latest/cli/serve/
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

ENGINE: Final = "vllm"  # spec.engine.name
# Options of `vllm serve` that the operator decides, by the field that decides them.
_DECIDED: Final = {
    "spec.model": ("model", "model-tag", "revision", "config", "download-dir"),
    "spec.model.name": ("served-model-name",),
    "spec.quantization": ("dtype", "quantization"),
    "spec.quantization.kvCacheDtype": ("kv-cache-dtype",),
    "spec.context.maxModelLen": ("max-model-len",),
    "spec.context.maxNumSeqs": ("max-num-seqs",),
    "spec.resources": (
        "gpu-memory-utilization",
        "memory-utilization",
        "kv-cache-memory-bytes",
        "kv-cache-memory",
        "num-gpu-blocks-override",
    ),
    "spec.parallelism": (
        "tensor-parallel-size",
        "pipeline-parallel-size",
        "data-parallel",
        "nnodes",
        "node-rank",
        "master-addr",
        "master-port",
        "headless",
    ),
    "spec.adapters and spec.adapterLimits": (
        "enable-lora",
        "lora-modules",
        "max-loras",
        "max-lora-rank",
        "max-cpu-loras",
    ),
    "spec.serving": ("host", "port", "uds", "grpc", "ssl", "root-path", "disable-uvicorn-access-log"),
    "spec.serving.apiKeySecretRef": ("api-key",),
    "spec.scheduling.disruption": ("enable-sleep-mode",),
}
_SHORT: Final = {
    "-tp": "spec.parallelism",
    "-pp": "spec.parallelism",
    "-dp": "spec.parallelism",
    "-n": "spec.parallelism",
    "-r": "spec.parallelism",
    "-q": "spec.quantization",
}
_FAMILIES: Final = ("data-parallel", "ssl", "grpc")  # options that begin with it are meant as well
_NEVER: Final = "trust-remote-code"
_LEAST_LETTERS: Final = 3  # an abbreviation shorter than this is argparse's to refuse

DTYPES: Final = {"bf16": "bfloat16", "fp8": "bfloat16", "nf4": "bfloat16"}
METHODS: Final = {"fp8": "fp8", "nf4": "bitsandbytes"}  # what vLLM converts to while it loads
FORMATS: Final = ("bf16", "fp8", "nf4", "gptq", "awq")  # the last two as the checkpoint has them
KV_DTYPES: Final = {"auto": "auto", "bf16": "bfloat16", "fp8": "fp8"}
LORA_RANKS: Final = (8, 16, 32, 64, 128, 256, 320, 512)  # ranks --max-lora-rank knows


def refusal(engine: Mapping[str, Any]) -> str:
    """Return why a `spec.engine` that names vLLM cannot be taken, naming field, value and fix; "" if it can."""
    if not engine.get("image"):
        return "spec.engine.image: engine vllm needs an image, like vllm/vllm-openai:v0.32.0"
    return refused_argument([str(one) for one in engine.get("args") or ()])


def refused_argument(args: Sequence[str]) -> str:
    """Return why arguments of a user cannot be taken, naming field, value and fix; "" if they can."""
    for index, one in enumerate(args):
        name = _option(one)
        if name is None:
            continue
        at = f"spec.engine.args[{index}]: {one.partition('=')[0][:60]}"
        if _meant(name, _NEVER):
            return f"{at} would run code out of the model's files, which no runtime of this cluster does; remove it"
        field = _SHORT.get(name) or next(
            (field for field, options in _DECIDED.items() if any(_meant(name, option) for option in options)),
            "",
        )
        if field:
            return f"{at} is set by the operator from {field}; remove it here"
    return ""


def pattern() -> str:
    """Return the same as a regular expression for the CRD's rule; abbreviations are left to :func:`refused_argument`."""
    names = sorted({_NEVER, *(option for options in _DECIDED.values() for option in options)})
    alternatives = "|".join(
        (f"{name}.*" if name in _FAMILIES else name).replace("-", "[-_]") for name in names
    )
    short = "|".join(key.removeprefix("-") for key in _SHORT)
    return f"^(--({alternatives})|-({short}))(=.*)?$"


def lora_rank(rank: int) -> int:
    """Return the least rank vLLM can keep room for that holds adapters of ``rank``."""
    return next((one for one in LORA_RANKS if one >= rank), LORA_RANKS[-1])


def _option(argument: str) -> str | None:
    """Return the option an argument names, "-x" with its dash; None for a value."""
    head = argument.strip().partition("=")[0]
    if head.startswith("--"):
        return head[2:].replace("_", "-").partition(".")[0].removeprefix("no-")
    return head if head in _SHORT else None


def _meant(name: str, option: str) -> bool:
    """Return whether ``name`` is the option or one of its family, or argparse could take it for one."""
    if name == option or (option in _FAMILIES and name.startswith(option)):
        return True
    return len(name) >= _LEAST_LETTERS and option.startswith(name)
