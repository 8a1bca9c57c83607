"""What all pods of the node process share, and what one pod's parts share."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from llmos_operator.cluster.events import Subject
from llmos_operator.local.kubelet.logs import pod_folder
from llmos_operator.local.kubelet.mounts import MountMap

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from llmos_operator.clock import Clock
    from llmos_operator.cluster.events import EventRecorder, EventType
    from llmos_operator.cluster.transport import Transport
    from llmos_operator.local.images import ImageTable
    from llmos_operator.local.kubelet.admission import NodeLedger
    from llmos_operator.local.kubelet.logs import LogKeeper
    from llmos_operator.local.kubelet.memory import MemoryWatch
    from llmos_operator.local.kubelet.model import Json
    from llmos_operator.local.kubelet.objects import ObjectSource
    from llmos_operator.local.kubelet.probes import Checker
    from llmos_operator.local.kubelet.volumes import PodVolumes
    from llmos_operator.local.layout import ClusterPaths


class EventReason(StrEnum):
    """Reasons of the kubelet's Events, in the kubelet's words."""

    STARTED = "Started"
    KILLING = "Killing"
    FAILED = "Failed"
    BACK_OFF = "BackOff"
    UNHEALTHY = "Unhealthy"
    FAILED_MOUNT = "FailedMount"
    FAILED_HOOK = "FailedLifecycleHook"
    OOM_KILLING = "OOMKilling"
    REJECTED = "FailedAdmission"


@dataclass(frozen=True, slots=True)
class Node:
    """One simulated node."""

    name: str
    address: str
    allocatable: Mapping[str, str]
    ledger: NodeLedger


@dataclass(frozen=True, slots=True)
class Shared:
    """What all pods share."""

    transport: Transport
    clock: Clock
    recorder: EventRecorder
    objects: ObjectSource
    images: ImageTable
    memory: MemoryWatch
    checker: Checker
    logs: LogKeeper
    paths: ClusterPaths
    api_url: str
    authority: bytes
    service_variables: Callable[[str], Mapping[str, str]]  # of a namespace
    pod_address: Callable[[str, str], str]  # of a pod by namespace and host name; "" while it has none
    crash_backoff_initial: float
    crash_backoff_max: float
    base_path: str  # PATH of containers


@dataclass(slots=True)
class PodContext:
    """What the containers of one pod share. `pod` is replaced whenever the API shows a newer one."""

    shared: Shared
    node: Node
    pod: Json
    pod_ip: str
    changed: Callable[[], None]
    volumes: PodVolumes = field(init=False)

    @property
    def host_ip(self) -> str:
        """The node's address."""
        return self.node.address

    @property
    def allocatable(self) -> Mapping[str, str]:
        """The node's allocatable quantities."""
        return self.node.allocatable

    @property
    def uid(self) -> str:
        """The pod's UID."""
        return str(self.pod["metadata"]["uid"])

    @property
    def key(self) -> str:
        """namespace/name, for messages."""
        return f"{self.pod['metadata']['namespace']}/{self.pod['metadata']['name']}"

    @property
    def restart_policy(self) -> str:
        """The pod's restart policy."""
        return str(self.pod["spec"].get("restartPolicy") or "Always")

    @property
    def grace_seconds(self) -> float:
        """How long a container has to end, unless a deletion says otherwise."""
        return float(self.pod["spec"].get("terminationGracePeriodSeconds", 30))

    @property
    def folder(self) -> Path:
        """Where volumes and files of the pod lie."""
        return self.shared.paths.pods / self.uid

    @property
    def log_folder(self) -> Path:
        """Where the logs of the pod lie."""
        meta = self.pod["metadata"]
        return pod_folder(self.shared.paths.pod_logs, meta["namespace"], meta["name"], self.uid)

    def mount_map(self, container: Json, termination_log: Path, environment: Mapping[str, str]) -> MountMap:
        """Return how a container's paths are to be rewritten; ``environment`` is what it asks for, as written."""
        mounts = self.volumes.mounts(container, environment)
        mounts[container.get("terminationMessagePath") or "/dev/termination-log"] = termination_log
        return MountMap(mounts)

    def event(self, kind: EventType, reason: EventReason, note: str, key: str = "") -> None:
        """Record an Event about the pod."""
        meta = self.pod["metadata"]
        subject = Subject("v1", "Pod", meta["name"], meta["namespace"], self.uid)
        self.shared.recorder.record(subject, kind, reason, note, key=key, action="Pod")
