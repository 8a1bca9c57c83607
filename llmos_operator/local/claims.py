"""Gives every PersistentVolumeClaim a volume: a folder of this machine, as a provisioner of hostPath volumes would.

The volume is made for one claim and names it; the controller manager's volume controller binds the two. It goes with
the claim, the folder stays. Claims that name a volume, or a StorageClass that exists, are left to whoever keeps those.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from llmos_operator.cluster import port
from llmos_operator.cluster.failures import AlreadyExists, NotFound
from llmos_operator.cluster.mirror import Change, Mirror
from llmos_operator.cluster.reflector import Reflector
from llmos_operator.errors import LlmosError
from llmos_operator.observability.logging import logger

if TYPE_CHECKING:
    from pathlib import Path

    from llmos_operator.cluster.port import Json
    from llmos_operator.cluster.transport import Transport

log = logger(__name__)

STORAGE_CLASSES = port.Kind("storage.k8s.io", "v1", "storageclasses", "StorageClass", namespaced=False)
PROVISIONED_BY: Final = "pv.kubernetes.io/provisioned-by"
PROVISIONER: Final = "llmos.dev/local"
_RETRY_SECONDS = 5.0


def volume_name(claim: Json) -> str:
    """Return the name of a claim's volume; a later claim of the same name has another."""
    return f"pvc-{claim['metadata']['uid']}"


def volume_for(claim: Json, folders: Path) -> Json:
    """Return the volume of a claim."""
    meta, spec = claim["metadata"], claim["spec"]
    reference = {"apiVersion": "v1", "kind": "PersistentVolumeClaim"}
    reference |= {key: meta[key] for key in ("namespace", "name", "uid")}
    return {
        "metadata": {"name": volume_name(claim), "annotations": {PROVISIONED_BY: PROVISIONER}},
        "spec": {
            "capacity": {"storage": spec["resources"]["requests"]["storage"]},
            "accessModes": spec["accessModes"],
            "storageClassName": spec.get("storageClassName") or "",
            "persistentVolumeReclaimPolicy": "Retain",
            "claimRef": reference,
            "hostPath": {
                "path": str(folders / meta["namespace"] / meta["name"]),
                "type": "DirectoryOrCreate",
            },
        },
    }


class ClaimBinder:
    """Watches claims and keeps their volumes."""

    def __init__(self, transport: Transport, folders: Path) -> None:
        """Contents of claims are in `folders`, by namespace and name."""
        self._transport = transport
        self._folders = folders
        self._waiting: dict[str, Json] = {}  # claims without a volume, by UID
        self._gone: set[str] = set()  # volumes whose claims are gone
        self._dirty = asyncio.Event()

    def reflector(self) -> Reflector:
        """Return what must run to keep this fresh."""
        return Reflector(self._transport, Mirror(port.VOLUME_CLAIMS, self.observe))

    def observe(self, change: Change, claim: Json) -> None:
        """Take a change of a claim."""
        uid = claim["metadata"]["uid"]
        self._waiting.pop(uid, None)
        if change is Change.DELETED:
            self._gone.add(volume_name(claim))
        elif not claim["spec"].get("volumeName"):
            self._waiting[uid] = claim
        self._dirty.set()

    async def run(self) -> None:
        """Make and remove volumes until cancelled."""
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            try:
                for uid, claim in list(self._waiting.items()):
                    await self._provide(claim)
                    self._waiting.pop(uid, None)
                for name in sorted(self._gone):
                    await self._remove(name)
                    self._gone.discard(name)
            except LlmosError as error:
                log.warning("claims wait for their volumes", error=error)
                await asyncio.sleep(_RETRY_SECONDS)
                self._dirty.set()

    async def _provide(self, claim: Json) -> None:
        if await self._kept_by_others(claim["spec"].get("storageClassName") or ""):
            return
        try:
            await self._transport.create(port.VOLUMES, volume_for(claim, self._folders))
        except AlreadyExists:
            log.debug("volume was made before", volume=volume_name(claim))

    async def _kept_by_others(self, storage_class: str) -> bool:
        if not storage_class:
            return False
        try:
            await self._transport.get(STORAGE_CLASSES, storage_class)
        except NotFound:
            return False
        return True

    async def _remove(self, name: str) -> None:
        try:
            await self._transport.delete(port.VOLUMES, name)
        except NotFound:
            log.debug("volume was not ours, or is gone", volume=name)
