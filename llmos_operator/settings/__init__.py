"""Settings of the long-running processes: one frozen object each, from a YAML file and the environment.

Order, later wins: defaults in these modules, the file given with ``--config``, environment variables. The variable of a
field is ``LLMOS_`` and its path in upper snake case joined by ``__``: ``runtime.cacheHostPath`` is
``LLMOS_RUNTIME__CACHE_HOST_PATH``. Lists and mappings are written as YAML (``[a, b]``). Variables that name no field
are ignored, because Kubernetes itself injects ``LLMOS_OPERATOR_SERVICE_HOST`` and the like into pods.

Durations are seconds. A bad value raises :class:`BadSettings`, which names field, source, value and fix.
"""

from __future__ import annotations

from llmos_operator.settings.agent import AgentSettings, ModelCacheSettings
from llmos_operator.settings.base import BadSettings, LogSettings, ProcessSettings, TracingSettings
from llmos_operator.settings.gateway import GatewaySettings
from llmos_operator.settings.loading import PREFIX, load
from llmos_operator.settings.operator import (
    ConsoleSettings,
    HealthSettings,
    HolderSettings,
    KueueSettings,
    LeaseSettings,
    OperatorSettings,
    PartitioningSettings,
    PriceSettings,
    ReservationSettings,
    ResourceClaimSettings,
    RuntimeSettings,
    ScaleUpSettings,
    SchedulingSettings,
    SourceSettings,
)

__all__ = [
    "PREFIX",
    "AgentSettings",
    "BadSettings",
    "ConsoleSettings",
    "GatewaySettings",
    "HealthSettings",
    "HolderSettings",
    "KueueSettings",
    "LeaseSettings",
    "LogSettings",
    "ModelCacheSettings",
    "OperatorSettings",
    "PartitioningSettings",
    "PriceSettings",
    "ProcessSettings",
    "ReservationSettings",
    "ResourceClaimSettings",
    "RuntimeSettings",
    "ScaleUpSettings",
    "SchedulingSettings",
    "SourceSettings",
    "TracingSettings",
    "load",
]
