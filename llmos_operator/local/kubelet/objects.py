"""What pods refer to: Secrets, ConfigMaps and ServiceAccount tokens.

Secrets and ConfigMaps are watched, as a kubelet does, so that a volume follows its source at once and idle pods cost
no requests. What the watch has not brought yet is asked for directly.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from llmos_operator.clock import parse_rfc3339
from llmos_operator.cluster import port
from llmos_operator.cluster.failures import NotFound
from llmos_operator.cluster.mirror import Change, Mirror
from llmos_operator.cluster.port import Kind
from llmos_operator.cluster.reflector import Reflector
from llmos_operator.local.kubelet.environment import ConfigProblem

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from llmos_operator.cluster.transport import Transport
    from llmos_operator.local.kubelet.model import Json

CONFIG_MAPS = Kind("", "v1", "configmaps", "ConfigMap")
SERVICE_ACCOUNTS = Kind("", "v1", "serviceaccounts", "ServiceAccount")
_KINDS = {"Secret": port.SECRETS, "ConfigMap": CONFIG_MAPS}

Data = dict[str, bytes]


@dataclass(frozen=True, slots=True)
class Token:
    """A ServiceAccount token and when it ends (epoch seconds)."""

    value: str
    expires_at: float


class ObjectSource:
    """Reads objects for pods; `on_change(kind, namespace, name)` is called when one changes or goes."""

    def __init__(self, transport: Transport, on_change: Callable[[str, str, str], None]) -> None:
        self._transport = transport
        self._on_change = on_change
        self._known: dict[tuple[str, str, str], Data] = {}

    def reflectors(self) -> list[Reflector]:
        """Return what must run to keep this source fresh. Helm's release records are left out: they are big."""
        secrets = Mirror(port.SECRETS, partial(self._observe, "Secret"))
        configs = Mirror(CONFIG_MAPS, partial(self._observe, "ConfigMap"))
        return [
            Reflector(self._transport, secrets, field_selector="type!=helm.sh/release.v1"),
            Reflector(self._transport, configs),
        ]

    def _observe(self, kind: str, change: Change, body: Json) -> None:
        meta = body["metadata"]
        key = (kind, meta["namespace"], meta["name"])
        if change is Change.DELETED:
            self._known.pop(key, None)
        else:
            self._known[key] = decode(kind, body)
        self._on_change(*key)

    async def data(self, kind: str, namespace: str, name: str) -> Data | None:
        """Return the data of a `Secret` or `ConfigMap`, None if there is none. Raises `Retryable`."""
        known = self._known.get((kind, namespace, name))
        if known is not None:
            return known
        try:
            body = await self._transport.get(_KINDS[kind], name, namespace=namespace)
        except NotFound:
            return None
        return decode(kind, body)

    async def claim(self, namespace: str, name: str) -> Json | None:
        """Return a PersistentVolumeClaim, None if there is none. Raises `Retryable`."""
        try:
            return await self._transport.get(port.VOLUME_CLAIMS, name, namespace=namespace)
        except NotFound:
            return None

    async def volume(self, name: str) -> Json | None:
        """Return a PersistentVolume, None if there is none. Raises `Retryable`."""
        try:
            return await self._transport.get(port.VOLUMES, name)
        except NotFound:
            return None

    async def token(self, pod: Json, audiences: list[str], seconds: int) -> Token:
        """Return a token of the pod's ServiceAccount, bound to the pod (it names pod and node, and dies with the pod).

        Raises :class:`ConfigProblem` if the ServiceAccount is gone, and `Retryable`.
        """
        meta, account = pod["metadata"], pod["spec"].get("serviceAccountName") or "default"
        reference = {"kind": "Pod", "apiVersion": "v1", "name": meta["name"], "uid": meta["uid"]}
        spec: dict[str, Any] = {"expirationSeconds": seconds, "boundObjectRef": reference}
        if audiences:
            spec["audiences"] = audiences
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        path = SERVICE_ACCOUNTS.path(meta["namespace"], account, "token")
        try:
            answer = await self._transport.request(
                "POST", path, body=body, verb="create", plural="tokenrequests"
            )
        except NotFound as error:
            msg = f'serviceaccount "{account}" not found'
            raise ConfigProblem(msg) from error
        status = answer["status"]
        return Token(status["token"], parse_rfc3339(status["expirationTimestamp"]))


def decode(kind: str, body: Json) -> Data:
    """Return the bytes of a Secret or ConfigMap by key."""
    texts: Mapping[str, str] = body.get("data") or {}
    binary: Mapping[str, str] = body.get("binaryData") or {}
    if kind == "Secret":
        return {key: base64.b64decode(value) for key, value in texts.items()}
    return {key: value.encode() for key, value in texts.items()} | {
        key: base64.b64decode(value) for key, value in binary.items()
    }


def volume_references(spec: Json) -> set[tuple[str, str]]:
    """Return (kind, name) of all Secrets and ConfigMaps a pod's volumes show."""
    found = set()
    for volume in spec.get("volumes") or []:
        for source in [volume, *((volume.get("projected") or {}).get("sources") or [])]:
            if secret := source.get("secret"):
                found.add(("Secret", secret.get("secretName") or secret.get("name") or ""))
            if config := source.get("configMap"):
                found.add(("ConfigMap", config.get("name") or ""))
    return found


def environment_references(container: Json) -> set[tuple[str, str]]:
    """Return (kind, name) of all Secrets and ConfigMaps a container's environment names."""
    found = set()
    for source in container.get("envFrom") or []:
        for field, kind in (("configMapRef", "ConfigMap"), ("secretRef", "Secret")):
            if source.get(field):
                found.add((kind, source[field]["name"]))
    for entry in container.get("env") or []:
        value = entry.get("valueFrom") or {}
        for field, kind in (("configMapKeyRef", "ConfigMap"), ("secretKeyRef", "Secret")):
            if value.get(field):
                found.add((kind, value[field]["name"]))
    return found
