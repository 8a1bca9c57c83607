"""ModelWorkload: which model, on which engine, at which precision."""

from enum import StrEnum
from typing import Annotated

from pydantic import BeforeValidator, Field, StringConstraints

from llmos_operator.api import vllm
from llmos_operator.api.meta import ClusterReference, LocalReference
from llmos_operator.api.schema import (
    IntOrString,
    KubeModel,
    ListAtomic,
    ListMap,
    ListSet,
    OrEmpty,
    Percent,
    Rule,
    Sha256,
)
from llmos_operator.api.v1alpha1.workload_pod import RESERVED_ENV, RESERVED_ENV_MESSAGE

_NO_PARENT = Rule(
    "!self.matches('(^|/)[.][.](/|$)') && !self.matches('[[:space:]]')",
    "must not contain '..' segments or white space",
)
_NO_PASSWORD = Rule(
    "!self.matches('^[a-z0-9]+://[^/]*@')",
    "must not carry a user or password: put credentials into a Secret and name it in secretRef",
)

ModelUri = Annotated[
    str,
    StringConstraints(min_length=1, max_length=1024),
    Rule(
        "self.matches('^(hf|s3|gs|oci|pvc|https|file)://.+')",
        "must start with hf://, s3://, gs://, oci://, pvc://, https:// or file://, like hf://organisation/name",
    ),
    Rule(
        "!self.startsWith('hf://') || self.matches('^hf://[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*$')",
        "an hf:// model is written hf://organisation/name; a revision belongs into model.revision",
    ),
    Rule(
        "!self.startsWith('file://') || self.startsWith('file:///')",
        "a file:// model needs an absolute path, like file:///models/x",
    ),
    _NO_PARENT,
    _NO_PASSWORD,
]
"""Where a model comes from."""

DataUri = Annotated[
    str,
    StringConstraints(min_length=1, max_length=1024),
    Rule(
        "self.matches('^(hf|s3|gs|pvc|https|file)://.+')",
        "must start with hf://, s3://, gs://, pvc://, https:// or file://, like s3://bucket/data.jsonl",
    ),
    _NO_PARENT,
    _NO_PASSWORD,
]
"""Where data is read from."""

OutputUri = Annotated[
    str,
    StringConstraints(min_length=1, max_length=1024),
    Rule(
        "self.matches('^(s3|gs|pvc|file)://.+')",
        "must be a place that can be written: s3://, gs://, pvc:// or file://, like pvc://claim/results",
    ),
    _NO_PARENT,
    _NO_PASSWORD,
]
"""Where data is written to."""


class ModelSource(KubeModel):
    """Which weights to load and where they come from."""

    uri: ModelUri = Field(
        description="Where the model comes from. Schemes: hf (a model hub), s3, gs, oci (an image or artifact), "
        "pvc (pvc://claim/path, a claim of this namespace), https, and file where the operator's settings allow it."
    )
    revision: Annotated[str, StringConstraints(max_length=255)] = Field(
        default="main",
        description="Branch, tag or commit of the model's repository. Pin a commit for repeatable loads.",
    )
    name: Annotated[
        str,
        StringConstraints(max_length=253),
        Rule(
            "self == '' || self.matches('^[A-Za-z0-9]([A-Za-z0-9._:/-]*[A-Za-z0-9])?$')",
            "must be made of letters, digits and . _ : / -, like org/model-name",
        ),
    ] = Field(
        default="",
        description="Name clients ask for in the `model` field of a request. Empty: the workload's name.",
    )
    digest: Sha256 = Field(
        default="",
        description="sha256 digest the weights must have, as status.model.digest shows it. Empty: not checked.",
    )
    secret_ref: LocalReference | None = Field(
        default=None, description="Secret with the credentials of the model's source (key `token` for hf)."
    )
    cache_ref: ClusterReference | None = Field(
        default=None, description="ModelCache to read the model from, where a node has a copy."
    )


class Adapter(KubeModel):
    """One LoRA adapter that is served beside the base model."""

    name: Annotated[
        str,
        StringConstraints(min_length=1, max_length=63),
        Rule(
            "self.matches('^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$')",
            "must be made of letters, digits and . _ -",
        ),
    ] = Field(description="Name clients ask for in the `model` field to get this adapter.")
    uri: ModelUri = Field(
        description="Where the adapter comes from: hf, https, pvc (pvc://claim/folder, as a FineTune writes it) or file."
    )


class AdapterLimits(KubeModel):
    """How much memory is kept for LoRA adapters on each device: so many, at most of that rank."""

    max_adapters: int = Field(
        default=0,
        ge=0,
        le=64,
        description="Adapters that fit at once: those of spec.adapters and those loaded while it runs. At least as many as "
        "spec.adapters has are kept room for.",
    )
    max_rank: int = Field(
        default=16, ge=1, le=512, description="Highest rank of an adapter; one of a higher rank is refused."
    )


class EngineName(StrEnum):
    """Engines that can serve a model."""

    BUILTIN = "builtin"
    VLLM = vllm.ENGINE
    CUSTOM = "custom"


class EnvVar(KubeModel):
    """One environment variable with a literal value."""

    name: Annotated[
        str,
        StringConstraints(min_length=1, max_length=128),
        Rule(
            "self.matches('^[A-Za-z_][A-Za-z0-9_]*$')",
            "must be a name of letters, digits and _, like OMP_NUM_THREADS",
        ),
        Rule(
            "!self.startsWith('LLMOS_')",
            "variables LLMOS_* are set by the operator: use the fields of the spec",
        ),
        Rule(f"!self.matches('{RESERVED_ENV}')", RESERVED_ENV_MESSAGE),
    ] = Field(description="Name of the variable.")
    value: Annotated[str, StringConstraints(max_length=4096)] = Field(
        default="", description="Its value. Secrets do not belong here: use model.secretRef or podTemplate."
    )


class Engine(KubeModel):
    """Which program runs the model."""

    rules = (
        Rule(
            "self.name != 'custom' || (has(self.image) && self.image != '')",
            "engine custom needs an image",
            ".image",
        ),
        Rule(
            "self.name != 'vllm' || (has(self.image) && self.image != '')",
            "engine vllm needs an image, like vllm/vllm-openai:v0.32.0",
            ".image",
        ),
        Rule(
            f"self.name != 'vllm' || !has(self.args) || !self.args.exists(arg, arg.matches('{vllm.pattern()}'))",
            "an argument of engine vllm sets what the operator decides: model, served name, address, precision, context, memory, "
            "parallelism, adapters, keys and sleep belong to the fields of the spec",
            ".args",
        ),
    )
    name: EngineName = Field(
        default=EngineName.BUILTIN,
        description="builtin: the operator's own runtime. vllm: vLLM (0.14 or newer) from an image of yours, "
        "behind the runtime, which fetches the model and starts, watches and drains it. custom: any image that "
        "serves the runtime's API, started with args alone; of a replica of several pods only rank 0 serves.",
    )
    image: Annotated[
        str,
        StringConstraints(max_length=512),
        Rule("!self.matches('[[:space:]]')", "must be an image reference without white space"),
    ] = Field(
        default="",
        description="Image of the engine; engines vllm and custom need one. Empty: the one the operator is configured with.",
    )
    args: Annotated[
        tuple[Annotated[str, StringConstraints(max_length=1024)], ...], ListAtomic(), Field(max_length=64)
    ] = Field(
        default=(),
        description="Arguments appended to the engine's command. Of vllm: options of `vllm serve`, without those the "
        "operator decides.",
    )
    env: Annotated[tuple[EnvVar, ...], ListMap(("name",)), Field(max_length=64)] = Field(
        default=(), description="Further environment of the engine."
    )


class QuantizationMode(StrEnum):
    """Who chooses the precision."""

    AUTO = "Auto"
    NONE = "None"
    FIXED = "Fixed"


class WeightFormat(StrEnum):
    """Precisions of weights."""

    BF16 = "bf16"
    FP8 = "fp8"
    INT8 = "int8"
    INT4 = "int4"
    NF4 = "nf4"
    GPTQ = "gptq"
    AWQ = "awq"
    GGUF = "gguf"


class KvCacheDtype(StrEnum):
    """Precisions of the KV cache."""

    AUTO = "auto"
    BF16 = "bf16"
    FP8 = "fp8"
    INT8 = "int8"


DEFAULT_ALLOWED = (WeightFormat.BF16, WeightFormat.INT8, WeightFormat.INT4)
_BITS = "{'bf16': 16, 'fp8': 8, 'int8': 8, 'int4': 4, 'nf4': 4, 'gptq': 4, 'awq': 4, 'gguf': 4}"


class Quantization(KubeModel):
    """At which precision the weights are kept, and who decides it."""

    rules = (
        Rule(
            "self.mode != 'Fixed' || (has(self.format) && self.format != '')",
            "mode Fixed needs a format: bf16, fp8, int8, int4, nf4, gptq, awq or gguf",
            ".format",
        ),
        Rule(
            "self.mode == 'Fixed' || !has(self.format) || self.format == ''",
            "format is used by mode Fixed only: set mode: Fixed, or list the format in allowed",
            ".format",
        ),
        Rule(
            "self.mode != 'Fixed' || !has(self.allowed) || !has(self.format) || self.format in self.allowed",
            "format is not one of allowed: add it there, or leave allowed out",
            ".format",
        ),
        Rule(
            f"self.mode != 'Fixed' || !has(self.format) || self.format == '' || {_BITS}[self.format] >= self.minBits",
            "format has fewer bits than minBits: choose a wider format or lower minBits",
            ".format",
        ),
        Rule(
            f"self.mode != 'Auto' || (has(self.allowed) ? self.allowed : ['bf16']).exists(f, {_BITS}[f] >= self.minBits)",
            "no allowed format has minBits bits: allow a wider format or lower minBits",
            ".allowed",
        ),
    )
    mode: QuantizationMode = Field(
        default=QuantizationMode.AUTO,
        description="Auto: the best allowed format that fits where the workload is placed. None: the precision the model was "
        "published in. Fixed: exactly `format`.",
    )
    format: Annotated[WeightFormat | None, BeforeValidator(lambda value: value or None), OrEmpty()] = Field(
        default=None, description="The format for mode Fixed."
    )
    allowed: Annotated[tuple[WeightFormat, ...], ListSet(), Field(min_length=1, max_length=8)] | None = Field(
        default=None, description="Formats that mode Auto may choose from. Without it: bf16, int8 and int4."
    )
    min_bits: int = Field(default=4, ge=2, le=16, description="Fewest bits per weight that are acceptable.")
    max_quality_loss: Percent = Field(
        default="5%",
        description="Largest acceptable growth of perplexity against the source precision, as measured in the model's "
        "ModelProfile. A format without a measurement is judged by its published estimate.",
    )
    kv_cache_dtype: KvCacheDtype = Field(
        default=KvCacheDtype.AUTO, description="Precision of the KV cache. auto: that of the activations."
    )
    allow_downgrade_on_pressure: bool = Field(
        default=True,
        description="Whether a running workload may be moved to a narrower allowed format so that another one fits. "
        "Applies to mode Auto.",
    )

    def choices(self) -> tuple[WeightFormat, ...]:
        """Return the formats that may be chosen, in the order written; empty in mode None: the source precision."""
        if self.mode is QuantizationMode.NONE:
            return ()
        if self.mode is QuantizationMode.FIXED:
            return (self.format,) if self.format else ()
        return self.allowed or DEFAULT_ALLOWED


class Context(KubeModel):
    """How much text one replica holds."""

    max_model_len: Annotated[
        int | str,
        IntOrString(),
        Rule(
            "type(self) == int ? self >= 16 && self <= 16777216 : string(self) == 'auto'",
            "must be auto or a number of tokens from 16 to 16777216",
        ),
    ] = Field(
        default="auto",
        description="Longest prompt plus answer in tokens. auto: as much of the model's own limit as fits on the device.",
    )
    max_num_seqs: int = Field(
        default=64, ge=1, le=4096, description="Most requests one replica generates for at the same time."
    )
