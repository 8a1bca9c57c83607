"""What a workload needs beside its pods: its Service, and its namespace's control token.

Both are created before or beside the first pod and found again afterwards; neither is ever read by content. The
operator has no right to read Secrets: the token is derived from a master key, so it never needs to.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import TYPE_CHECKING

from llmos_operator.api import names
from llmos_operator.api.conditions import Reason
from llmos_operator.cluster.failures import AlreadyExists
from llmos_operator.cluster.port import SECRETS, SERVICES
from llmos_operator.errors import Permanent
from llmos_operator.manifests import service as service_manifest
from llmos_operator.observability.logging import logger

if TYPE_CHECKING:
    from llmos_operator.cluster.mirror import Mirror
    from llmos_operator.cluster.port import ClusterPort, Json
    from llmos_operator.cluster.retry import Retrier
    from llmos_operator.state.types import Workload

log = logger(__name__)


class ControlTokens:
    """Control tokens by namespace: HMAC-SHA256 of the namespace under the installation's master key."""

    def __init__(self, master_key: bytes) -> None:
        self._master_key = master_key

    def token(self, namespace: str) -> str:
        """Return the token runtimes of a namespace accept."""
        return hmac.new(self._master_key, namespace.encode(), hashlib.sha256).hexdigest()


class Support:
    """Makes Services and control Secrets, each once."""

    def __init__(
        self, port: ClusterPort, retrier: Retrier, services: Mirror, tokens: ControlTokens, secret_name: str
    ) -> None:
        self._port = port
        self._retrier = retrier
        self._services = services
        self._tokens = tokens
        self._secret_name = secret_name
        self._namespaces: set[str] = set()
        self._owners: dict[tuple[str, str], str] = {}  # namespace, name of a Service -> UID of its workload

    def note_service(self, body: Json, *, exists: bool) -> None:
        """Take a Service as the watch shows it."""
        meta = body["metadata"]
        key = (meta.get("namespace", ""), meta["name"])
        if exists and service_manifest.is_ours(body):
            self._owners[key] = service_manifest.owner_uid(body)
        else:
            self._owners.pop(key, None)

    def has_service(self, workload: Workload) -> bool:
        """Return whether the workload's Service exists and is its own."""
        return self._owns(workload, workload.name)

    def has_gang_service(self, workload: Workload) -> bool:
        """Return whether the headless Service of the workload's members exists, where it needs one."""
        return workload.members == 1 or self._owns(workload, names.gang_service(workload.name, workload.uid))

    def _owns(self, workload: Workload, service: str) -> bool:
        return self._owners.get((workload.namespace, service)) == workload.uid

    async def before_bind(self, workload: Workload) -> None:
        """Make sure that the namespace has its control Secret: a pod that names a missing one cannot start."""
        namespace = workload.namespace
        if namespace in self._namespaces:
            return
        body = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {
                "name": self._secret_name,
                "namespace": namespace,
                "labels": {names.LABEL_MANAGED_BY: names.MANAGED_BY},
            },
            "type": "Opaque",
            "stringData": {"token": self._tokens.token(namespace)},
        }

        async def create() -> None:
            try:
                await self._port.create(SECRETS, body, namespace=namespace)
            except AlreadyExists:
                log.debug("control secret exists", namespace=namespace)

        await self._retrier.call(create)
        self._namespaces.add(namespace)

    def forget_namespace(self, namespace: str) -> None:
        """Make the control Secret of a namespace again before its next pod: somebody may have deleted it."""
        self._namespaces.discard(namespace)

    async def ensure_service(self, workload: Workload) -> None:
        """Create the workload's Service, or take over one left by a former workload of its name.

        Raises Permanent(NameTaken) if somebody else's Service has the name.
        """
        if self.has_service(workload):
            return
        await self._ensure(workload, service_manifest.build(workload))

    async def ensure_gang_service(self, workload: Workload) -> None:
        """Create the headless Service of the workload's members. Raises as :meth:`ensure_service`."""
        if not self.has_gang_service(workload):
            await self._ensure(workload, service_manifest.build_headless(workload))

    async def _ensure(self, workload: Workload, body: Json) -> None:
        try:
            made = await self._port.create(SERVICES, body, namespace=workload.namespace)
        except AlreadyExists:
            made = await self._take_over(workload, body)
        self._services.observe("MODIFIED", made)

    async def _take_over(self, workload: Workload, body: Json) -> Json:
        name = str(body["metadata"]["name"])
        found = await self._port.get(SERVICES, name, namespace=workload.namespace)
        if not service_manifest.is_ours(found):
            raise Permanent(
                f"Service {workload.namespace}/{name} belongs to somebody else; rename the workload or delete that Service",
                reason=Reason.NAME_TAKEN,
            )
        if service_manifest.owner_uid(found) == workload.uid:
            return found
        # Left by a workload of the same name that is gone. Its ownerReference would let the garbage collector end it,
        # so owner and selector are replaced, on condition that nobody touched it meanwhile.
        meta = {**body["metadata"], "resourceVersion": found["metadata"]["resourceVersion"]}
        spec = {"selector": body["spec"]["selector"], "ports": body["spec"]["ports"]}
        return await self._port.merge_patch(
            SERVICES, name, {"metadata": meta, "spec": spec}, namespace=workload.namespace
        )
