"""Messages of the runtime's control API (`GET /control/v1/status`, `POST /control/v1/drain`, …).

JSON in camelCase on the wire, pydantic at both ends. Units: bytes, seconds, tokens. Unknown fields are ignored so that
operator and runtime may differ by one release.
"""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel


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


class LoadProgress(Wire):
    """Progress of the current load stage."""

    stage: RuntimeState = RuntimeState.STARTING
    bytes_done: int = 0
    bytes_total: int = 0
    bytes_per_second: int = 0
    eta_seconds: int | None = None


class MemoryReport(Wire):
    """Memory per device as the formula predicted it and as it was measured, in bytes."""

    predicted_bytes: int = 0
    measured_bytes: int = 0
    peak_bytes: int = 0
    weights_bytes: int = 0
    kv_bytes: int = 0
    base_bytes: int = 0
    limit_bytes: int = 0


class RequestStats(Wire):
    """Counters of the serving engine since start; `running` and `waiting` are current."""

    running: int = 0
    waiting: int = 0
    finished: int = 0
    aborted: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    kv_usage_milli: int = 0  # 0..1000 of the KV budget
    last_request_age_seconds: int | None = None  # None: no request yet


class Failure(Wire):
    """Why the runtime cannot serve. `reason` is one of api.conditions.Reason; a permanent one is not retried."""

    reason: str
    message: str
    permanent: bool = True


class ModelInfo(Wire):
    """The model as it is served."""

    name: str = ""
    digest: str = ""  # sha256 over the weight files' digests, "sha256:…"
    revision: str = ""
    format: str = ""
    architecture: str = ""
    max_model_len: int = 0
    quality_loss_milli: int | None = (
        None  # perplexity against the source, thousandths of a percent; None: unmeasured
    )


class RuntimeStatus(Wire):
    """Answer of `GET /control/v1/status`."""

    state: RuntimeState = RuntimeState.STARTING
    model: ModelInfo = ModelInfo()
    load: LoadProgress = LoadProgress()
    memory: MemoryReport = MemoryReport()
    requests: RequestStats = RequestStats()
    failure: Failure | None = None
    load_seconds: dict[str, float] = {}  # by stage name, of the last load
    load_path: str = ""  # cold | warm | hot


class DrainRequest(Wire):
    """Body of `POST /control/v1/drain`: stop taking requests, finish those in flight."""

    timeout_seconds: int = 60


class BudgetRequest(Wire):
    """Body of `POST /control/v1/budget`: shrink or grow the KV budget so that the device total stays below it."""

    memory_bytes: int
