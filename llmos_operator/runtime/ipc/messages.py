"""What front and engine say to each other: frozen values, one class a message.

Front to engine: Load, Submit, Cancel, Embed, SetBudget, Sleep, Wake, Unload, Shutdown, LoadAdapter, UnloadAdapter.
Engine to front: Progress, Ready, StepOutput, EmbedResult, Stats, Failed, AdapterResult.

Units: bytes, seconds, tokens. Times named ``*_at`` are seconds of CLOCK_MONOTONIC, which all processes of one machine
share. New fields go to the end of a class and carry a default: frames are positional and tolerate a shorter or longer
sender (see codec).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from llmos_operator.api.runtime.data import VOLUMES_ROOT
from llmos_operator.api.runtime.messages import LoadProgress, RuntimeState


class FinishReason(StrEnum):
    """Why a request ended; an empty reason in RequestOutput means that it goes on."""

    STOP = "stop"  # end-of-sequence or one of stop_token_ids
    LENGTH = "length"  # max_tokens or the context limit
    ABORT = "abort"  # cancelled by the front, or the engine is going away
    ERROR = "error"  # the message says why; other requests go on


# ---------------------------------------------------------------- front to engine


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How to choose tokens. ``temperature`` 0 is greedy, and then top_p, top_k, min_p and seed have no effect.

    Penalties count prompt and output for ``repetition_penalty``, output only for the other two, as vLLM and OpenAI do.
    The order is: logit_bias, penalties, temperature, min_p, top_k, top_p.
    """

    max_tokens: int = 16
    temperature: float = 1.0
    top_p: float = 1.0  # (0, 1]; 1 = off
    top_k: int = 0  # 0 = off
    min_p: float = 0.0  # [0, 1]; 0 = off
    seed: int | None = None  # same seed, prompt and model: same output, whatever else is in the batch
    stop_token_ids: tuple[int, ...] = ()  # beside the model's own end-of-sequence tokens
    ignore_eos: bool = False
    min_tokens: int = 0  # no stop before so many output tokens
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()  # (token id, added to its logit)
    logprobs: int | None = None  # None: none; n: the chosen token's and the n most likely ones'
    prompt_logprobs: bool = False  # logprob of every prompt token after the first (completions `echo`)


@dataclass(frozen=True, slots=True)
class AdapterSource:
    """A LoRA adapter to have from the start. Without ``demanded`` a load goes on when it cannot be had."""

    name: str
    uri: str
    demanded: bool = True


@dataclass(frozen=True, slots=True)
class Load:
    """Resolve, verify, convert and load one model. Answered by Progress frames, then Ready or Failed."""

    uri: str  # hf, s3, gs, oci, https, file or pvc://…, or a plain absolute path
    revision: str = "main"
    digest: str = ""  # "" or "sha256:…": anything else is refused
    format: str = "bf16"  # fp32 | bf16 | int8 | int4
    cache_dir: str = ""  # node cache; "" = no cache that outlives the process
    memory_limit_bytes: int = 0  # for the whole runtime; 0 = no limit but the machine's
    max_model_len: int = 0  # tokens; 0 = what model and memory allow
    max_num_seqs: int = 64
    kv_dtype: str = "auto"  # auto | bf16 | fp32
    allow_file: bool = False  # file:// and plain paths
    hf_endpoint: str = ""  # "" = the library's default
    token: str = field(default="", repr=False)  # hub or https bearer token; never logged
    secrets: tuple[tuple[str, str], ...] = field(
        default=(), repr=False
    )  # (key, value) of other sources; never logged
    kept_dir: str = ""  # where the copy is mounted that a ModelCache keeps on this node; "" = none
    device: str = "auto"  # auto | cpu | cuda
    threads: int = 0  # torch threads of all ranks; 0 = OMP_NUM_THREADS, else the CPUs this process may use
    max_quality_loss_milli: int = 5000  # of perplexity against the source, thousandths of a percent; -1 = any
    base_pids: tuple[int, ...] = ()  # processes whose memory counts beside the engine's (front, zygote)
    pvc_root: str = VOLUMES_ROOT  # where claims are mounted: pvc://claim/path is <pvc_root>/claim/path
    adapters: tuple[AdapterSource, ...] = ()
    max_adapters: int = 0  # adapters that memory is kept for; 0 = none can be loaded
    max_adapter_rank: int = 16
    tensor: int = 1  # devices that share each layer, one process each
    pipeline: int = 1  # stages of consecutive layers, one process each
    local: int = 0  # of all these processes, those of this pod; 0 = all
    rank: int = 0  # more than 0: do not load, follow rank 0, which waits at `meeting`
    meeting: tuple[str, int] = ("", 0)  # host and port at which ranks of several pods reach rank 0
    listen: str = ""  # address that rank 0 opens the port on
    meeting_token: str = field(default="", repr=False)  # what they know of each other by; never logged
    base_bytes: int = 0  # R0 as an engine of this runtime measured it that was alone; 0 = measure

    @property
    def ranks(self) -> int:
        """Processes that share the model, rank 0 included."""
        return self.tensor * self.pipeline

    @property
    def here(self) -> int:
        """Of them, those of this pod."""
        return self.local or self.ranks


@dataclass(frozen=True, slots=True)
class Submit:
    """Generate from a tokenised prompt. Answered by RequestOutput entries of StepOutput frames."""

    request_id: str  # unique among running requests
    prompt: tuple[int, ...]
    sampling: SamplingParams = SamplingParams()
    priority: int = 0  # higher runs first
    tenant: str = ""  # fairness within a priority
    deadline_at: float | None = None  # not started by then: finished with ERROR "deadline"
    adapter: str = ""  # name of a loaded adapter; "" = base model
    grammar: str = ""  # what the answer keeps to, in the dialect of grammar.text; "" = free
    audio: bytes = field(
        default=b"", repr=False
    )  # of a speech model: one window, 16 bit little-endian samples at 16 kHz
    script: tuple[tuple[int, ...], ...] = ()  # of a speech model: which tokens may come first, place by place
    times: bool = False  # of a speech model: whether it says when


@dataclass(frozen=True, slots=True)
class Cancel:
    """Stop a request within one step. Unknown ids are ignored: the request may just have ended."""

    request_id: str


@dataclass(frozen=True, slots=True)
class Embed:
    """One vector for each input. Answered by one EmbedResult."""

    request_id: str
    inputs: tuple[tuple[int, ...], ...]
    normalize: bool = True
    dimensions: int = 0  # keep the first so many; 0 = all
    classify: bool = False  # of a classifier: probabilities of its labels in place of vectors
    second_from: tuple[
        int, ...
    ] = ()  # of inputs that are two texts: where in each the second one's token type begins
    pictures: tuple[
        bytes, ...
    ] = ()  # of an image classifier, in place of inputs: rows of red, green, blue, 8 bits


@dataclass(frozen=True, slots=True)
class SetBudget:
    """New memory limit of the whole runtime: the KV budget shrinks or grows to fit, preempting where it must."""

    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Sleep:
    """Give memory back and keep the process; requests in progress are aborted.

    Level 1: the KV cache is dropped, the weights leave the device and stay in host memory where they can; 2: both are
    dropped.
    """

    level: int = 1


@dataclass(frozen=True, slots=True)
class Wake:
    """Undo Sleep. Answered by Ready."""


@dataclass(frozen=True, slots=True)
class Unload:
    """Abort what runs and end the engine process, which returns its memory to the machine."""


@dataclass(frozen=True, slots=True)
class LoadAdapter:
    """Read a LoRA adapter and serve it under ``name`` from the next step on. Answered by AdapterResult."""

    request_id: str
    name: str
    uri: str
    folders: tuple[str, ...] = ()  # not empty: the files must lie below one of these


@dataclass(frozen=True, slots=True)
class UnloadAdapter:
    """Take no more requests for an adapter; free it when its last one has ended. Answered by AdapterResult, then."""

    request_id: str
    name: str


@dataclass(frozen=True, slots=True)
class Shutdown:
    """End the engine process at once; nothing more is sent."""


# ---------------------------------------------------------------- engine to front


@dataclass(frozen=True, slots=True)
class Progress:
    """Progress of one load stage; sent on each change of stage and then at most five times a second."""

    stage: RuntimeState
    bytes_done: int = 0
    bytes_total: int = 0
    bytes_per_second: int = 0
    eta_seconds: int | None = None
    stage_seconds: tuple[tuple[str, float], ...] = ()  # stages that are over, with their duration

    def report(self) -> LoadProgress:
        """Return it as the operator is told."""
        return LoadProgress(
            stage=self.stage,
            bytes_done=self.bytes_done,
            bytes_total=self.bytes_total,
            bytes_per_second=self.bytes_per_second,
            eta_seconds=self.eta_seconds,
        )


@dataclass(frozen=True, slots=True)
class RankMemory:
    """Bytes of one rank of a model that is split over several devices."""

    rank: int
    weights_bytes: int
    measured_bytes: int


@dataclass(frozen=True, slots=True)
class EngineMemory:
    """Bytes of the whole runtime (front, zygote, engine) on its device, predicted and measured.

    Of a model that is split over several devices: of the one that has most.
    """

    predicted_bytes: int = 0
    measured_bytes: int = 0
    peak_bytes: int = 0
    weights_bytes: int = 0
    kv_bytes: int = 0  # the KV budget, allocated or not
    base_bytes: int = 0
    limit_bytes: int = 0
    host_bytes: int = 0  # of weights that wait in host memory while the model sleeps
    full_bytes: int = 0  # what would be in use with the whole KV budget written
    needed_bytes: int = (
        0  # the same with the KV cache that was needed so far: the most, a quarter more, at least one context
    )
    ranks: tuple[RankMemory, ...] = ()  # of a model that is split over several devices, by rank
    free_bytes: int = (
        0  # of the device: what nobody uses; of a CPU: of the machine, or of the container if that is less
    )


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """The model as loaded."""

    model_dir: str  # local directory with config.json and the tokenizer's files
    architecture: str
    digest: str  # "sha256:…" over the weight files' digests
    revision: str
    format: str
    device: str  # cpu | cuda
    max_model_len: int
    vocab_size: int
    eos_token_ids: tuple[int, ...] = ()
    generative: bool = True  # False: Embed only
    embedding_size: int = 0  # > 0: Embed is served
    kv_block_tokens: int = 16
    kv_blocks: int = 0
    max_num_seqs: int = 0
    quality_loss_milli: int | None = None  # perplexity against the source, thousandths of a percent
    quality_kl_micro: int | None = None  # mean KL divergence against the source, millionths of a nat
    load_path: str = "cold"  # cold: downloaded or converted; warm: from the cache; hot: woken up
    stage_seconds: tuple[tuple[str, float], ...] = ()
    apis: tuple[str, ...] = ()  # parts of the serving API it can answer; (): told by `generative`
    labels: tuple[str, ...] = ()  # of a classifier, by index
    window_samples: int = 0  # > 0: a speech model, which hears so many samples at once
    picture_bytes: int = 0  # > 0: an image classifier, of whose pictures each has so many
    format_bytes: tuple[
        tuple[str, int], ...
    ] = ()  # by format it is served at: beside R0, KV cache of one context


@dataclass(frozen=True, slots=True)
class AdapterInfo:
    """One adapter as it is served."""

    name: str
    uri: str
    digest: str  # "sha256:…" over its files
    rank: int
    weights_bytes: int


@dataclass(frozen=True, slots=True)
class Ready:
    """Loaded and warm."""

    info: EngineInfo
    memory: EngineMemory
    adapters: tuple[AdapterInfo, ...] = ()


@dataclass(frozen=True, slots=True)
class AdapterResult:
    """An adapter is there, or gone, or why not; ``adapters`` are all that are served now."""

    request_id: str
    adapters: tuple[AdapterInfo, ...]
    error: str = ""
    reason: str = ""  # with an error: one of api.conditions.Reason
    seconds: float = 0.0  # from the order to its effect


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Logprob of a chosen (or prompt) token and of the most likely ones at its place, natural logarithm."""

    token: int
    logprob: float
    rank: int = 0  # 1 = the most likely; 0 = not computed
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Timing:
    """Moments of one request in the engine, CLOCK_MONOTONIC seconds."""

    arrived_at: float
    scheduled_at: float
    first_token_at: float
    finished_at: float


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """What one step gave one request: usually one token, several with speculation, none with a plain finish."""

    request_id: str
    tokens: tuple[int, ...] = ()
    finish_reason: str = ""  # a FinishReason, or "" while it goes on
    stop_token: int | None = None  # the token that ended it; it is not part of `tokens`
    logprobs: tuple[TokenLogprob, ...] = ()  # one for each of `tokens` where asked for
    prompt_logprobs: tuple[TokenLogprob, ...] = ()  # with the first output, where asked for
    cached_tokens: int = 0  # prompt tokens taken from the prefix cache, with the first output
    message: str = ""  # with ERROR and ABORT
    timing: Timing | None = None  # with the last output
    bad_grammar: bool = False  # with ERROR: the request's grammar is why


@dataclass(frozen=True, slots=True)
class StepOutput:
    """All new tokens of one engine step, one frame."""

    outputs: tuple[RequestOutput, ...]


@dataclass(frozen=True, slots=True)
class EmbedResult:
    """Vectors as little-endian float32, row after row; ``error`` is empty on success."""

    request_id: str
    vectors: bytes = b""
    dimensions: int = 0
    prompt_tokens: int = 0
    error: str = ""


@dataclass(frozen=True, slots=True)
class AdapterUse:
    """Requests of one adapter."""

    name: str
    running: int
    waiting: int


@dataclass(frozen=True, slots=True)
class Stats:
    """Counters since the engine's start and current gauges; at least once a second, which makes it the heartbeat."""

    running: int = 0
    waiting: int = 0
    finished: int = 0
    aborted: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    first_tokens: int = 0  # requests that have got one
    first_token_seconds: float = 0.0  # they waited for it, added up
    kv_blocks_used: int = 0
    kv_blocks_total: int = 0
    preemptions: int = 0
    prefix_query_tokens: int = 0
    prefix_hit_tokens: int = 0
    draft_tokens: int = 0
    accepted_tokens: int = 0
    steps: int = 0
    step_seconds: float = 0.0  # spent inside steps
    memory: EngineMemory = EngineMemory()
    adapters: tuple[AdapterUse, ...] = ()  # in use


@dataclass(frozen=True, slots=True)
class Failed:
    """The engine cannot serve and ends. ``reason`` is one of api.conditions.Reason."""

    reason: str
    message: str
    permanent: bool = True


FrontMessage = (
    Load
    | Submit
    | Cancel
    | Embed
    | SetBudget
    | Sleep
    | Wake
    | Unload
    | Shutdown
    | LoadAdapter
    | UnloadAdapter
)
EngineMessage = Progress | Ready | StepOutput | EmbedResult | Stats | Failed | AdapterResult
Message = FrontMessage | EngineMessage
