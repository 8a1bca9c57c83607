"""What an administrator decides about the pods and services the builders make. Values only; read from settings above."""

from __future__ import annotations

from collections.abc import Mapping  # noqa: TC003 - dataclass fields are read by tools at runtime
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class PodSettings:
    """Settings of runtime pods. Seconds, user ids; empty strings mean "none"."""

    image: str
    image_pull_policy: str = "IfNotPresent"
    cache_host_path: str = ""
    model_cache_path: str = ""  # folder of each node in which agents keep copies of models
    runtime_class_name: str = ""
    run_as_user: int = 65532
    service_account: str = "default"
    control_secret: str = "llmos-runtime-control"  # noqa: S105 - a Secret's name
    startup_seconds: float = 1800.0
    hub_endpoint: str = ""
    trace_endpoint: str = ""  # that runtimes send spans to
    trace_ratio: float = 1.0
    env: Mapping[str, str] = field(default_factory=dict)
