"""What the settings of every process share."""

from __future__ import annotations

import os
import socket
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator
from pydantic.alias_generators import to_camel

from llmos_operator.api import names
from llmos_operator.errors import Permanent
from llmos_operator.observability.receivers import check_endpoint

Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(gt=0, le=86_400)]


class BadSettings(Permanent):
    """A setting cannot be used. The message names field, source, value and fix; the process must not start."""

    def __init__(self, message: str) -> None:
        super().__init__(message, reason="BadSettings")


class Group(BaseModel):
    """Base of settings groups: immutable, camelCase in files, unknown keys refused."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
    )


class LogSettings(Group):
    """What a process writes to standard error."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe level that is written: debug, info, warning or error."""
    format: Literal["json", "text"] = "json"
    """json for collectors, text for people."""


class TracingSettings(Group):
    """Spans over OTLP (OpenTelemetry), HTTP with protobuf."""

    endpoint: str = ""
    """Address of an OTLP receiver, like http://otel-collector.monitoring.svc:4318; empty: no spans, unless OTEL_EXPORTER_OTLP_ENDPOINT names one."""
    sample_ratio: float = Field(default=1.0, ge=0, le=1)
    """Share of requests without a trace of their own that are traced, 0 to 1; placements always are. OTEL_TRACES_SAMPLER counts instead where it is set."""

    @field_validator("endpoint")
    @classmethod
    def _address(cls, value: str) -> str:
        return check_endpoint(value) if value else value


class ProcessSettings(Group):
    """What every process has."""

    host: str = "0.0.0.0"  # noqa: S104 - a pod serves on its own address
    """Address to bind servers to."""
    health_port: Port = names.PORT_HEALTH
    """Port of /livez, /readyz and /metrics; 0 picks a free one."""
    namespace: str = Field(
        default_factory=lambda: os.environ.get(names.ENV_POD_NAMESPACE) or names.SYSTEM_NAMESPACE
    )
    """Namespace of the installation."""
    identity: str = Field(default_factory=lambda: os.environ.get(names.ENV_POD_NAME) or socket.gethostname())
    """Name of this process among its replicas."""
    log: LogSettings = LogSettings()
    """Logging."""
