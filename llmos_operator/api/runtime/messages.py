"""Messages of the runtime's control API (`GET /control/v1/status`, `POST /control/v1/drain`, …).

JSON in camelCase on the wire, pydantic at both ends. Units: bytes, seconds, tokens. Unknown fields are ignored so that
operator and runtime may differ by one release.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

# Runtimes run what tenants bring, so what they say is bounded here: a status that does not fit into the API's types would
# otherwise be the operator's trouble. Numbers are put into range and texts cut, so that neither end can fail by it.
Count = Annotated[int, AfterValidator(lambda number: min(max(number, 0), (1 << 53) - 1))]
Seconds = Annotated[int, AfterValidator(lambda number: min(max(number, 0), (1 << 31) - 1))]
Word = Annotated[str, AfterValidator(lambda text: text[:253])]
Cause = Annotated[str, Field(min_length=1), AfterValidator(lambda text: text[:128])]
Digest = Annotated[str, AfterValidator(lambda text: text[:71])]
Text = Annotated[str, AfterValidator(lambda text: text[:4096])]


class Wire(BaseModel):
    """Base of control messages: immutable, camelCase on the wire, tolerant of newer fields."""

    model_config = ConfigDict(
        alias_generator=to_camel, validate_by_name=True, validate_by_alias=True, extra="ignore", frozen=True
    )


class RuntimeState(StrEnum):
    """Life of one model in the runtime; the load stages are also reasons of condition ModelLoaded."""

    STARTING = "Starting"
    DOWNLOADING = "Downloading"
    VERIFYING = "Verifying"
    QUANTIZING = "Quantizing"
    LOADING = "Loading"
    WARMING = "Warming"
    READY = "Ready"
    DRAINING = "Draining"
    ASLEEP = "Asleep"
    FAILED = "Failed"

    @property
    def loading_is_over(self) -> bool:
        """Whether no load goes on: it ended well, or badly."""
        return self in {self.READY, self.DRAINING, self.ASLEEP, self.FAILED}


class LoadProgress(Wire):
    """Progress of the current load stage."""

    stage: RuntimeState = RuntimeState.STARTING
    bytes_done: Count = 0
    bytes_total: Count = 0
    bytes_per_second: Count = 0
    eta_seconds: Seconds | None = None


class RankReport(Wire):
    """Memory of one of several devices that share a model, in bytes."""

    rank: Count = 0
    weights_bytes: Count = 0
    measured_bytes: Count = 0


class MemoryReport(Wire):
    """Memory per device as the formula predicted it and as it was measured, in bytes: of several, the fullest one's."""

    predicted_bytes: Count = 0
    measured_bytes: Count = 0
    peak_bytes: Count = 0
    weights_bytes: Count = 0
    kv_bytes: Count = 0
    base_bytes: Count = 0
    limit_bytes: Count = 0
    host_bytes: Count = 0  # of weights that wait in host memory while the model sleeps
    full_bytes: Count = 0  # what would be in use with the whole KV budget written; 0: not told
    needed_bytes: Count = (
        0  # the same with as much KV cache as was needed so far, at least one context; 0: not told
    )
    ranks: Annotated[tuple[RankReport, ...], AfterValidator(lambda many: many[:64])] = ()  # (): one device


class RequestStats(Wire):
    """Counters of the serving engine since start; `running` and `waiting` are current."""

    running: Count = 0
    waiting: Count = 0
    finished: Count = 0
    aborted: Count = 0
    prompt_tokens: Count = 0
    generation_tokens: Count = 0
    kv_usage_milli: Count = 0  # 0..1000 of the KV budget
    last_request_age_seconds: Seconds | None = None  # None: no request yet
    first_tokens: Count = 0  # requests that have got one
    first_token_millis: Count = 0  # they waited for it, added up from their arrival at the engine


class Failure(Wire):
    """Why the runtime cannot serve. `reason` is one of api.conditions.Reason; a permanent one is not retried."""

    reason: Cause
    message: Text
    permanent: bool = True


class ModelInfo(Wire):
    """The model as it is served."""

    name: Word = ""
    digest: Digest = ""  # sha256 over the weight files' digests, "sha256:…"
    revision: Word = ""
    format: Word = ""
    architecture: Word = ""
    max_model_len: Count = 0
    quality_loss_milli: int | None = (
        None  # perplexity against the source, thousandths of a percent; None: unmeasured
    )


class WorkProgress(Wire):
    """How far work that ends has come: a FineTune in steps, a Batch in requests."""

    unit: Word = ""  # "steps" | "requests"
    done: Count = 0
    total: Count = 0  # 0: not known yet
    failed: Count = 0  # of `done`: requests that got an error instead of an answer
    saved: Count = 0  # of `done`: what would not be done again after a restart
    saved_age_seconds: Seconds | None = None  # since progress was last saved; None: never


class AdapterReport(Wire):
    """A LoRA adapter as it is served."""

    name: Word
    uri: Text = ""
    digest: Digest = ""
    rank: Count = 0
    weights_bytes: Count = 0


class ChangeState(StrEnum):
    """How far a change of format is."""

    RUNNING = "Running"
    DONE = "Done"
    FAILED = "Failed"


class FormatChange(Wire):
    """The last change of format that was ordered. After a failure the former format serves, or is being loaded again."""

    state: ChangeState = ChangeState.RUNNING
    format: Word = ""
    former: Word = ""
    beside: bool = False  # both engines were there at once: nobody waited
    seconds: Annotated[float, Field(ge=0, le=1e9)] = 0.0  # from the order until the new format served
    failure: Failure | None = None


class RuntimeStatus(Wire):
    """Answer of `GET /control/v1/status`."""

    state: RuntimeState = RuntimeState.STARTING
    model: ModelInfo = ModelInfo()
    load: LoadProgress = LoadProgress()
    memory: MemoryReport = MemoryReport()
    requests: RequestStats = RequestStats()
    failure: Failure | None = None
    load_seconds: dict[Word, Annotated[float, Field(ge=0, le=1e9)]] = {}  # by stage name, of the last load
    load_path: Word = ""  # cold | warm | hot
    progress: WorkProgress | None = None  # None: serving
    adapters: Annotated[tuple[AdapterReport, ...], AfterValidator(lambda many: many[:64])] = ()
    change: FormatChange | None = None  # None: none was ordered


class DrainRequest(Wire):
    """Body of `POST /control/v1/drain`: stop taking requests, finish those in flight."""

    timeout_seconds: int = 60


class SleepRequest(Wire):
    """Body of `POST /control/v1/sleep`: give the device's memory back and keep the process.

    Level 1 keeps the weights in host memory, level 2 drops them. Nothing new is taken; requests in progress get
    ``timeout_seconds`` to end.
    """

    level: Annotated[int, Field(ge=1, le=2)] = 1
    timeout_seconds: Annotated[float, Field(ge=0, le=600)] = 2.0


class AdapterRequest(Wire):
    """Body of `POST /control/v1/adapters`: serve a LoRA adapter as ``name``, from any source a model may come from."""

    name: Annotated[str, Field(min_length=1, max_length=63)]
    uri: Annotated[str, Field(min_length=1, max_length=1024)]


class RequantiseRequest(Wire):
    """Body of `POST /control/v1/requantise`: serve the same model at another precision, without a new pod.

    ``budget_bytes`` is the memory budget from then on; 0 keeps the present one. What is in progress may take
    ``timeout_seconds`` to end.
    """

    precision: Annotated[str, Field(min_length=1, max_length=16)]
    budget_bytes: Annotated[int, Field(ge=0)] = 0
    timeout_seconds: Annotated[float, Field(ge=0, le=3600)] = 60.0


class BudgetRequest(Wire):
    """Body of `POST /control/v1/budget`: shrink or grow the KV budget so that the device total stays below it."""

    memory_bytes: int
