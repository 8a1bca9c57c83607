"""The port to Kubernetes: what the rest of the package may ask of an API server, in raw JSON.

Two things implement it: :class:`llmos_operator.cluster.transport.Transport` over HTTP and
:class:`llmos_operator.cluster.fake.FakeCluster` in memory; one contract suite runs on both.

Objects are plain dicts as the API serves them. Every method raises only errors of `llmos_operator.errors` and
`llmos_operator.cluster.failures`; none retries by itself (see `cluster.retry`). Reads without a resource version are
linearizable (the API server answers them from etcd or proves its cache current), so `get` is the "quorum GET" that
settles an ambiguous write.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from llmos_operator.api import names

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Kind:
    """A resource type: where its objects live in the API."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        """`apps/v1`, or `v1` for the core group."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str = "", name: str = "", subresource: str = "") -> str:
        """Return the URL path of a collection, an object or its subresource."""
        root = f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"
        scope = f"/namespaces/{namespace}" if self.namespaced and namespace else ""
        parts = [part for part in (self.plural, name, subresource) if part]
        return f"{root}{scope}/{'/'.join(parts)}"


NODES = Kind("", "v1", "nodes", "Node", namespaced=False)
NAMESPACES = Kind("", "v1", "namespaces", "Namespace", namespaced=False)
PODS = Kind("", "v1", "pods", "Pod")
SERVICES = Kind("", "v1", "services", "Service")
SECRETS = Kind("", "v1", "secrets", "Secret")
EVENTS = Kind("events.k8s.io", "v1", "events", "Event")
LEASES = Kind("coordination.k8s.io", "v1", "leases", "Lease")
PRIORITY_CLASSES = Kind("scheduling.k8s.io", "v1", "priorityclasses", "PriorityClass", namespaced=False)
POD_DISRUPTION_BUDGETS = Kind("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget")
ENDPOINT_SLICES = Kind("discovery.k8s.io", "v1", "endpointslices", "EndpointSlice")
TOKEN_REVIEWS = Kind("authentication.k8s.io", "v1", "tokenreviews", "TokenReview", namespaced=False)
JOBS = Kind("batch", "v1", "jobs", "Job")
RESOURCE_SLICES = Kind("resource.k8s.io", "v1", "resourceslices", "ResourceSlice", namespaced=False)
RESOURCE_CLAIMS = Kind("resource.k8s.io", "v1", "resourceclaims", "ResourceClaim")
VOLUME_CLAIMS = Kind("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim")
VOLUMES = Kind("", "v1", "persistentvolumes", "PersistentVolume", namespaced=False)
DEPLOYMENTS = Kind("apps", "v1", "deployments", "Deployment")
MODEL_WORKLOADS = Kind(names.GROUP, names.VERSION, "modelworkloads", "ModelWorkload")
WORKLOAD_QUEUES = Kind(names.GROUP, names.VERSION, "workloadqueues", "WorkloadQueue", namespaced=False)
GPU_NODES = Kind(names.GROUP, names.VERSION, "gpunodes", "GPUNode", namespaced=False)
MODEL_CACHES = Kind(names.GROUP, names.VERSION, "modelcaches", "ModelCache", namespaced=False)
_KUEUE = ("kueue.x-k8s.io", "v1beta2")
KUEUE_WORKLOADS = Kind(*_KUEUE, "workloads", "Workload")
KUEUE_FLAVORS = Kind(*_KUEUE, "resourceflavors", "ResourceFlavor", namespaced=False)
KUEUE_PRIORITIES = Kind(*_KUEUE, "workloadpriorityclasses", "WorkloadPriorityClass", namespaced=False)
MODEL_PROFILES = Kind(names.GROUP, names.VERSION, "modelprofiles", "ModelProfile", namespaced=False)


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a list. All pages of a list carry the same resource version: the list is one moment."""

    items: tuple[Json, ...]
    resource_version: str


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """A change: `type` is ADDED, MODIFIED, DELETED or BOOKMARK (an object with only a resource version)."""

    type: str
    object: Json

    @property
    def resource_version(self) -> str:
        """Version of the object, where a watch may be resumed."""
        return str(self.object.get("metadata", {}).get("resourceVersion", ""))


@dataclass(frozen=True, slots=True)
class TokenIdentity:
    """Who a bearer token belongs to, as the API server says."""

    username: str
    groups: tuple[str, ...] = ()
    extra: tuple[tuple[str, tuple[str, ...]], ...] = ()

    def extra_value(self, key: str) -> str:
        """Return the first value of ``key`` in the identity's extra fields, or ""."""
        return next((values[0] for name, values in self.extra if name == key and values), "")


class ClusterPort(Protocol):
    """What may be asked of an API server."""

    def list_pages(
        self,
        kind: Kind,
        *,
        namespace: str = "",
        label_selector: str = "",
        field_selector: str = "",
        limit: int = 250,
        metadata_only: bool = False,
    ) -> AsyncIterator[Page]:
        """Yield the objects of ``kind`` page by page. Raises `Expired` when a slow reader lost its place.

        With ``metadata_only`` they have no more than ``apiVersion``, ``kind`` and ``metadata``.
        """
        ...

    def watch(
        self,
        kind: Kind,
        *,
        resource_version: str,
        namespace: str = "",
        label_selector: str = "",
        field_selector: str = "",
        timeout_seconds: int = 290,
        inactivity_seconds: float = 75.0,
    ) -> AsyncIterator[WatchEvent]:
        """Yield changes after ``resource_version`` until the server ends the stream.

        Raises `Expired` (410), `Retryable` when the stream breaks, and `Silent` when nothing, not even a bookmark (the
        server sends one a minute for kinds that ever change), came for ``inactivity_seconds``.
        """
        ...

    async def get(self, kind: Kind, name: str, *, namespace: str = "") -> Json:
        """Return the object as it is in etcd now. Raises `NotFound`."""
        ...

    async def create(self, kind: Kind, body: Json, *, namespace: str = "") -> Json:
        """Create and return an object. Raises `AlreadyExists`, `Invalid`, `Ambiguous`."""
        ...

    async def replace(self, kind: Kind, body: Json, *, namespace: str = "") -> Json:
        """PUT an object; its `metadata.resourceVersion` is the precondition. Raises `Conflict`, `NotFound`."""
        ...

    async def apply(
        self,
        kind: Kind,
        body: Json,
        *,
        manager: str,
        namespace: str = "",
        subresource: str = "",
        force: bool = True,
    ) -> Json:
        """Server-side apply ``body`` as field manager ``manager``.

        `metadata.uid` in ``body`` is a precondition: an object recreated under the same name raises `Conflict`.
        """
        ...

    async def patch_status(self, kind: Kind, body: Json, *, manager: str, namespace: str = "") -> Json:
        """Server-side apply ``body`` to the status subresource, forced. Same preconditions as :meth:`apply`."""
        ...

    async def merge_patch(
        self, kind: Kind, name: str, patch: Json, *, namespace: str = "", subresource: str = ""
    ) -> Json:
        """JSON merge patch. `metadata.uid` and `metadata.resourceVersion` in ``patch`` are preconditions."""
        ...

    async def delete(
        self,
        kind: Kind,
        name: str,
        *,
        namespace: str = "",
        uid: str = "",
        resource_version: str = "",
        grace_seconds: int | None = None,
    ) -> None:
        """Delete an object, if it still has ``uid`` and ``resource_version``. Raises `NotFound`, `Conflict`."""
        ...

    async def evict(
        self, name: str, *, namespace: str, uid: str = "", grace_seconds: int | None = None
    ) -> None:
        """Evict a pod through the Eviction API. Raises `Disrupted` while a PodDisruptionBudget refuses."""
        ...

    async def token_review(self, token: str) -> TokenIdentity | None:
        """Return who ``token`` authenticates, or None if it authenticates nobody."""
        ...

    async def create_event(self, body: Json, *, namespace: str) -> None:
        """Record an events.k8s.io/v1 Event."""
        ...

    async def close(self) -> None:
        """End all connections."""
        ...
