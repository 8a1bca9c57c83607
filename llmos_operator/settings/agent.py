"""Settings of `llmos agent`."""

from __future__ import annotations

import os
from typing import Literal

from pydantic import Field, field_validator

from llmos_operator.api import names
from llmos_operator.api.quantity import parse_bytes
from llmos_operator.settings.base import Group, ProcessSettings, Seconds


class ModelCacheSettings(Group):
    """Models the node keeps for ModelCaches."""

    path: str = ""
    """Folder for them, as the agent sees it; empty: this node keeps none."""
    budget: str = ""
    """Bytes for all of them together, like 500Gi; empty: as much as the disk holds."""
    parallel: int = Field(default=2, ge=1, le=16)
    """Models downloaded at the same time."""
    hub_endpoint: str = "https://huggingface.co"
    """Hub for hf:// models."""
    endpoint: str = ""
    """Address of the object store for s3:// and gs:// where a Secret names none; empty: the provider's own."""
    region: str = ""
    """Region of s3:// buckets where a Secret names none."""

    @field_validator("budget")
    @classmethod
    def _bytes(cls, value: str) -> str:
        if value:
            parse_bytes(value)
        return value


class AgentSettings(ProcessSettings):
    """`llmos agent`."""

    node: str = Field(default_factory=lambda: os.environ.get(names.ENV_NODE_NAME, ""))
    """Node this agent reports for."""
    mode: Literal["auto", "nvml", "simulated"] = "auto"
    """auto: NVML where it loads, simulated devices where the node announces them."""
    operator_url: str = f"http://llmos-operator.{names.SYSTEM_NAMESPACE}.svc:{names.PORT_INGEST}"
    """Where telemetry goes."""
    sample_interval: Seconds = 1.0
    """Seconds between samples of a device."""
    process_interval: Seconds = 10.0
    """Least seconds between process lists of a device."""
    status_interval: Seconds = 60.0
    """Seconds between GPUNode writes when nothing changed."""
    pod_resources_socket: str = "/var/lib/kubelet/pod-resources/kubelet.sock"
    """Socket on which the kubelet tells which pod holds which device; empty: it is not asked."""
    pod_resources_interval: Seconds = 5.0
    """Seconds between questions to the kubelet."""
    dcgm_metrics: bool = False
    """Whether /metrics also has the names of dcgm-exporter, for dashboards that exist already."""
    model_cache: ModelCacheSettings = ModelCacheSettings()
    """Models kept on the node."""
    seed: int = 0
    """Seed of the noise of simulated devices."""
    token_file: str = "/var/run/secrets/kubernetes.io/serviceaccount/token"  # noqa: S105 - a path
    """ServiceAccount token to authenticate with, where the kubeconfig has none."""
