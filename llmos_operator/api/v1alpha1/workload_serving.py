"""ModelWorkload: how an Inference workload serves, scales and is rolled out."""

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from llmos_operator.api.meta import LocalReference
from llmos_operator.api.schema import (
    DURATION_PATTERN,
    INT32_MAX,
    Duration,
    KubeModel,
    ListMap,
    ListSet,
    PositiveDuration,
    Rule,
)


class ScalingMetric(StrEnum):
    """What the number of replicas follows."""

    QUEUE_DEPTH = "QueueDepth"
    RUNNING_REQUESTS = "RunningRequests"
    REQUESTS_PER_MINUTE = "RequestsPerMinute"
    KV_CACHE_PERCENT = "KVCachePercent"


class MetricTarget(KubeModel):
    """One metric and its aim per replica."""

    type: ScalingMetric = Field(
        description="QueueDepth: requests waiting. RunningRequests: requests being answered. RequestsPerMinute: arrivals. "
        "KVCachePercent: used share of the KV cache."
    )
    target: int = Field(ge=1, le=1_000_000, description="Value per replica to aim for.")


class Idle(KubeModel):
    """What happens to a workload without requests."""

    rules = (
        Rule(
            "!has(self.sleepAfter) || !has(self.scaleToZeroAfter) || "
            f"!self.sleepAfter.matches('{DURATION_PATTERN}') || !self.scaleToZeroAfter.matches('{DURATION_PATTERN}') || "
            "duration(self.sleepAfter) < duration(self.scaleToZeroAfter)",
            "scaleToZeroAfter must be longer than sleepAfter",
            ".scaleToZeroAfter",
        ),
    )
    sleep_after: PositiveDuration | None = Field(
        default=None,
        description="Time without requests after which weights move to host memory, where sharing is Shared. Without it: never.",
    )
    lend_after: PositiveDuration | None = Field(
        default=None,
        description="Time without requests after which KV cache beyond one full context is lent to work of lower priority that can be "
        "evicted at any moment, where sharing is Shared. With requests it is called back. Without it: never.",
    )
    scale_to_zero_after: PositiveDuration | None = Field(
        default=None,
        description="Time without requests after which the last replica is removed. Needs minReplicas: 0.",
    )


class ColdStart(StrEnum):
    """What a request to a workload without replicas gets."""

    HOLD = "Hold"
    REJECT = "Reject"


class Scaling(KubeModel):
    """How the number of replicas follows demand."""

    rules = (
        Rule(
            "self.minReplicas <= self.maxReplicas",
            "maxReplicas must not be below minReplicas",
            ".maxReplicas",
        ),
        Rule(
            "self.minReplicas == 0 || !has(self.idle) || !has(self.idle.scaleToZeroAfter)",
            "scaleToZeroAfter needs minReplicas: 0",
            ".idle.scaleToZeroAfter",
        ),
    )
    min_replicas: int = Field(
        default=1,
        ge=0,
        le=1000,
        description="Fewest replicas; those above it are given up first for work of higher standing. 0: may be scaled to zero.",
    )
    max_replicas: int = Field(ge=1, le=1000, description="Most replicas.")
    metrics: Annotated[tuple[MetricTarget, ...], ListMap(("type",)), Field(max_length=4)] = Field(
        default=(),
        description="What the number of replicas follows; the largest result counts, the latency of slo among them. "
        "Empty: that latency alone, or QueueDepth with target 4 where slo is not given.",
    )
    idle: Idle | None = Field(
        default=None, description="What happens to a workload without requests. Empty: nothing."
    )
    cold_start: ColdStart = Field(
        default=ColdStart.HOLD,
        description="Hold: the gateway keeps a request until a replica is ready, for a bounded time. Reject: 503 with Retry-After at once.",
    )


class ServedApi(StrEnum):
    """Parts of the serving API."""

    CHAT = "chat"
    COMPLETIONS = "completions"
    EMBEDDINGS = "embeddings"
    TRANSCRIPTIONS = "transcriptions"
    CLASSIFY = "classify"
    SCORE = "score"


class RateLimit(KubeModel):
    """Limits per API key, or of all requests where there are no keys."""

    requests_per_minute: int | None = Field(
        default=None, ge=1, le=INT32_MAX, description="Most requests in a minute. Empty: no limit."
    )
    tokens_per_minute: int | None = Field(
        default=None,
        ge=1,
        le=INT32_MAX,
        description="Most tokens, read and generated, in a minute. Empty: no limit.",
    )


class Serving(KubeModel):
    """How clients reach the model."""

    port: Annotated[
        int, Rule("self != 8001", "8001 is the port of the runtime's control API: choose another one")
    ] = Field(
        default=8000,
        ge=1024,
        le=65535,
        description="Port of the pod that serves the API. The Service listens on port 80.",
    )
    apis: Annotated[tuple[ServedApi, ...], ListSet(), Field(max_length=5)] = Field(
        default=(), description="Parts of the API to serve. Empty: what the model can do."
    )
    api_key_secret_ref: LocalReference | None = Field(
        default=None,
        description="Secret whose key `keys` lists the API keys that are accepted, one a line. Empty: no key is asked for.",
    )
    rate_limit: RateLimit | None = Field(default=None, description="Limits per API key. Empty: none.")
    drain_timeout: Duration = Field(
        default="60s",
        description="Longest time requests in flight may take to finish when a replica is taken down.",
    )


class Slo(KubeModel):
    """Latency the workload is scaled and placed for."""

    ttft: PositiveDuration | None = Field(
        default=None,
        description="Time to the first token, 95th percentile. With scaling, replicas are kept for half of it as the wait for a slot.",
    )
    itl: PositiveDuration | None = Field(
        default=None,
        description="Time between two tokens, 95th percentile. With scaling, it limits the requests a replica works on at a time; "
        "the measured mean stands for the percentile.",
    )


class RolloutStrategy(StrEnum):
    """How a changed workload replaces its replicas."""

    ROLLING_UPDATE = "RollingUpdate"
    RECREATE = "Recreate"


class Rollout(KubeModel):
    """How a change of model, precision or engine reaches the replicas."""

    rules = (
        Rule(
            "self.strategy != 'RollingUpdate' || self.maxSurge + self.maxUnavailable > 0",
            "maxSurge and maxUnavailable must not both be 0: no replica could ever be replaced",
            ".maxUnavailable",
        ),
    )
    strategy: RolloutStrategy = Field(
        default=RolloutStrategy.ROLLING_UPDATE,
        description="RollingUpdate: one after the other. Recreate: all old ones end first.",
    )
    max_surge: int = Field(
        default=0,
        ge=0,
        le=1000,
        description="Replicas above the wanted number during a rolling update; with maxUnavailable 0, new ones serve before old ones go. Each needs devices; without room for one, old replicas are replaced in place.",
    )
    max_unavailable: int = Field(
        default=1, ge=0, le=1000, description="Replicas that may be missing during a rollout."
    )
    canary_traffic_percent: int = Field(
        default=0,
        ge=0,
        le=100,
        description="Per cent of the requests at the gateway for replicas of a changed spec. From 1 to 99 at least one starts beside the old ones, and those stay; 0 or 100 promotes: the update goes on. Changing it restarts nothing.",
    )
