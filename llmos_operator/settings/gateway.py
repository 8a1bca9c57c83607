"""Settings of `llmos gateway`."""

from __future__ import annotations

from pydantic import Field

from llmos_operator.api import names
from llmos_operator.settings.base import Port, ProcessSettings, Seconds, TracingSettings


class GatewaySettings(ProcessSettings):
    """`llmos gateway`."""

    serving_port: Port = names.PORT_GATEWAY
    """Port of the OpenAI-style endpoint; 0 picks a free one."""
    operator_url: str = f"http://llmos-operator.{names.SYSTEM_NAMESPACE}.svc:{names.PORT_INGEST}"
    """Where demand reports go."""
    hold_timeout: Seconds = 120.0
    """Longest a request waits for a cold workload before 503."""
    hold_limit: int = Field(default=256, ge=0)
    """Requests held at once per workload; further ones get 503 at once."""
    request_timeout: Seconds = 600.0
    """Longest a request may take altogether."""
    max_body: int = Field(default=8 << 20, ge=1024)
    """Largest request body in bytes."""
    max_audio_body: int = Field(default=25 << 20, ge=1024)
    """Largest body of a request with a file of sound (`/v1/audio/`) in bytes."""
    max_buffered: int = Field(default=128 << 20, ge=1024)
    """Bytes of all request bodies in memory at once; further requests get 503."""
    max_depth: int = Field(default=64, ge=1, le=512)
    """Deepest nesting of a JSON body."""
    body_timeout: Seconds = 30.0
    """Seconds a request body may take to arrive."""
    connect_timeout: Seconds = 2.0
    """Seconds a connection to a replica may take before another replica is tried."""
    prefix_affinity: bool = True
    """Whether prompts that begin alike go to one replica, unless it is much busier than another."""
    keys_file: str = ""
    """File of hashed API keys; empty lets everybody in."""
    default_namespace: str = ""
    """Namespace that wins where several serve a model of the same name; empty makes clients say which."""
    hosts: dict[str, str] = Field(default={})
    """Host name of a request to the namespace it means, for names that several namespaces serve."""
    access_log: bool = True
    """Whether to write one line per request."""
    tracing: TracingSettings = TracingSettings()
    """Spans of requests."""
    drain_delay: Seconds = 5.0
    """Seconds between a stop signal and the end of listening, for load balancers to notice."""
    drain_timeout: Seconds = 50.0
    """Seconds requests in flight may take to finish after listening has ended."""
