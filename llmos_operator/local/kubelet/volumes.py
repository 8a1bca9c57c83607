"""A pod's volumes as directories below its folder.

Files of Secrets, ConfigMaps, the downward API and tokens are written as a kubelet does it: a new directory, then one
atomic swap of the link `..data`, so readers see either the old set or the new one.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmos_operator.local.kubeconfig import write_pod_kubeconfig
from llmos_operator.local.kubelet.environment import (
    ConfigProblem,
    expand,
    field_value,
    references,
    resource_value,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from llmos_operator.clock import Clock
    from llmos_operator.local.kubelet.environment import PodFacts
    from llmos_operator.local.kubelet.model import Json
    from llmos_operator.local.kubelet.objects import Data, ObjectSource

_DEFAULT_MODE = 0o644
_TOKEN_SECONDS = 3600
_REFRESH_FRACTION = 0.8
_REFRESHED = ("secret", "configMap", "downwardAPI", "projected")
SUPPORTED = ("emptyDir", "hostPath", "persistentVolumeClaim", *_REFRESHED)
_ACCOUNT_PATH = "/var/run/secrets/kubernetes.io/serviceaccount"

Files = dict[str, tuple[bytes, int]]


@dataclass(slots=True)
class PodVolumes:
    """Makes and refreshes the volumes of one pod under ``folder``."""

    folder: Path
    claims: Path  # contents of PersistentVolumeClaims: namespace/name
    facts: PodFacts
    objects: ObjectSource
    clock: Clock
    paths: dict[str, Path] = field(default_factory=dict)
    _tokens: dict[tuple[str, int], tuple[str, float]] = field(
        default_factory=dict
    )  # value and time of renewal

    async def set_up(self) -> None:
        """Make all volumes. Raises :class:`ConfigProblem` (say it and try again) and `Retryable`."""
        for volume in self.facts.pod["spec"].get("volumes") or []:
            self.paths[volume["name"]] = await self._make(volume)

    async def refresh(self) -> None:
        """Write again what has changed: Secrets, ConfigMaps, labels, tokens near their end."""
        for volume in self.facts.pod["spec"].get("volumes") or []:
            if any(kind in volume for kind in _REFRESHED):
                await self._make(volume)

    @property
    def refresh_at(self) -> float:
        """When a token should be renewed, in epoch seconds; infinity if there is none."""
        return min((at for _, at in self._tokens.values()), default=float("inf"))

    def tear_down(self) -> None:
        """Remove the pod's folder. Host paths stay."""
        shutil.rmtree(self.folder, ignore_errors=True)

    async def _make(self, volume: Json) -> Path:
        name: str = volume["name"]
        target: Path = self.folder / "volumes" / name
        if "hostPath" in volume:
            return _host_path(volume["hostPath"])
        if "emptyDir" in volume:
            return _empty_dir(target)
        if claim := volume.get("persistentVolumeClaim"):
            return await self._claim(claim)
        if not any(kind in volume for kind in _REFRESHED):
            kind = next((key for key in volume if key != "name"), "?")
            msg = f'volume "{name}": {kind} volumes are not supported by the local cluster; use one of {", ".join(SUPPORTED)}'
            raise ConfigProblem(msg)
        write_atomically(target, await self._files(volume))
        return target

    async def _claim(self, source: Json) -> Path:
        """Return the folder of a claim: that of its volume, else, while it has none, the one it would be given."""
        namespace, name = self.facts.pod["metadata"]["namespace"], str(source["claimName"])
        claim = await self.objects.claim(namespace, name)
        if claim is None:
            msg = f'persistentvolumeclaim "{name}" not found'
            raise ConfigProblem(msg)
        bound = str(claim["spec"].get("volumeName") or "")
        volume = await self.objects.volume(bound) if bound else None
        if volume is None:
            return _empty_dir(self.claims / namespace / name)
        return _volume_path(volume)

    async def _files(self, volume: Json) -> Files:
        if secret := volume.get("secret"):
            return await self._keyed("Secret", secret.get("secretName", ""), secret, _mode(secret))
        if config := volume.get("configMap"):
            return await self._keyed("ConfigMap", config.get("name", ""), config, _mode(config))
        if downward := volume.get("downwardAPI"):
            return self._downward(downward, _mode(downward))
        projected = volume["projected"]
        files: Files = {}
        for source in projected.get("sources") or []:
            files |= await self._projected(source, _mode(projected))
        return files

    async def _projected(self, source: Json, mode: int) -> Files:
        if secret := source.get("secret"):
            return await self._keyed("Secret", secret["name"], secret, mode)
        if config := source.get("configMap"):
            return await self._keyed("ConfigMap", config["name"], config, mode)
        if downward := source.get("downwardAPI"):
            return self._downward(downward, mode)
        if wanted := source.get("serviceAccountToken"):
            audience = wanted.get("audience")
            seconds = int(wanted.get("expirationSeconds") or _TOKEN_SECONDS)
            return {wanted["path"]: ((await self._token(audience or "", seconds)).encode(), 0o600)}
        msg = f"projected volume source {sorted(source)} is not supported by the local cluster"
        raise ConfigProblem(msg)

    async def _token(self, audience: str, seconds: int) -> str:
        now = self.clock.now()
        value, renew_at = self._tokens.get((audience, seconds), ("", 0.0))
        if now >= renew_at:
            token = await self.objects.token(self.facts.pod, [audience] if audience else [], seconds)
            value, renew_at = token.value, now + (token.expires_at - now) * _REFRESH_FRACTION
            self._tokens[audience, seconds] = (value, renew_at)
        return value

    async def _keyed(self, kind: str, name: str, source: Json, mode: int) -> Files:
        data = await self.objects.data(kind, self.facts.pod["metadata"]["namespace"], name)
        if data is None:
            if source.get("optional"):
                return {}
            msg = f'{kind.lower()} "{name}" not found'
            raise ConfigProblem(msg)
        return select_items(kind, name, data, source, mode)

    def _downward(self, source: Json, mode: int) -> Files:
        files: Files = {}
        for item in source.get("items") or []:
            if reference := item.get("fieldRef"):
                text = field_value(reference["fieldPath"], self.facts)
            else:
                reference = item["resourceFieldRef"]
                container = _container(self.facts.pod, reference.get("containerName", ""))
                text = resource_value(reference, container, self.facts)
            files[item["path"]] = (text.encode(), int(item.get("mode") or mode))
        return files

    def mounts(self, container: Json, environment: Mapping[str, str]) -> dict[str, Path]:
        """Return mount path -> real path for a container's volume mounts; `subPathExpr` is about its environment.

        Raises :class:`ConfigProblem`.
        """
        result = {}
        for mount in container.get("volumeMounts") or []:
            target = self.paths[mount["name"]]
            sub = _sub_path(mount, environment)
            if sub:
                target = target / sub
                if not target.exists():
                    target.mkdir(parents=True)
            result[mount["mountPath"]] = target
        return result

    def kubeconfig(self, container: Json, server: str, authority: bytes) -> Path | None:
        """Return a kubeconfig for the container's ServiceAccount token, None if it mounts none."""
        mounts = container.get("volumeMounts") or []
        volume = next((mount["name"] for mount in mounts if mount["mountPath"] == _ACCOUNT_PATH), None)
        if volume is None:
            return None
        path = self.folder / "kubeconfig"
        if not path.exists():
            namespace = self.facts.pod["metadata"]["namespace"]
            write_pod_kubeconfig(path, server, authority, self.paths[volume] / "token", namespace)
        return path


def _sub_path(mount: Json, environment: Mapping[str, str]) -> str:
    """Return the part of a volume that is mounted, "" for all of it."""
    expression = mount.get("subPathExpr") or ""
    if not expression:
        return str(mount.get("subPath") or "")
    missing = sorted({name for name in references(expression) if not environment.get(name)})
    if missing:
        raise ConfigProblem(f"missing value for {', '.join(missing)}")
    path = expand(expression, environment)
    if path.startswith("/") or ".." in path.split("/"):
        raise ConfigProblem(f"subPathExpr {expression} is {path}; use a relative path without ..")
    return path


def _mode(source: Json) -> int:
    value = source.get("defaultMode")
    return _DEFAULT_MODE if value is None else int(value)


def _container(pod: Json, name: str) -> Json:
    for container in [*pod["spec"]["containers"], *(pod["spec"].get("initContainers") or [])]:
        if container["name"] == name:
            found: dict[str, Any] = container
            return found
    msg = f'downward API: no container "{name}" in the pod'
    raise ConfigProblem(msg)


def select_items(kind: str, name: str, data: Data, source: Mapping[str, Any], mode: int) -> Files:
    """Return the files a Secret or ConfigMap volume shows: all keys, or the items listed."""
    items = source.get("items")
    if not items:
        return {key: (value, mode) for key, value in data.items()}
    files: Files = {}
    for item in items:
        if item["key"] not in data:
            if source.get("optional"):
                continue
            msg = f"references non-existent {kind.lower()} key: {item['key']} (in {name})"
            raise ConfigProblem(msg)
        files[item["path"]] = (data[item["key"]], int(item.get("mode") or mode))
    return files


def _empty_dir(path: Path) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    return path


def _host_path(source: Json) -> Path:
    path, kind = Path(source["path"]), source.get("type") or ""
    try:
        if kind == "DirectoryOrCreate" and not path.exists():
            path.mkdir(parents=True)
        elif kind == "FileOrCreate" and not path.exists():
            path.touch()
    except OSError as error:
        raise ConfigProblem(f"hostPath {path}: {error.strerror}") from error
    checks: dict[str, tuple[Callable[[], bool], str]] = {
        "Directory": (path.is_dir, "directory"),
        "File": (path.is_file, "file"),
        "Socket": (path.is_socket, "socket file"),
        "CharDevice": (path.is_char_device, "character device"),
        "BlockDevice": (path.is_block_device, "block device"),
    }
    holds, words = checks.get(kind.removesuffix("OrCreate"), (path.exists, "path that exists"))
    if kind and not holds():
        raise ConfigProblem(f"hostPath type check failed: {path} is not a {words}")
    return path


def _volume_path(volume: Json) -> Path:
    """Return the folder of a PersistentVolume. Which nodes it is on, is for who places the pod to know."""
    spec = volume["spec"]
    if "hostPath" in spec:
        return _host_path(spec["hostPath"])
    if "local" in spec:
        return _host_path({"path": spec["local"]["path"], "type": "Directory"})
    msg = (
        f'persistentvolume "{volume["metadata"]["name"]}": its kind is not supported by the local cluster; '
        "use hostPath or local"
    )
    raise ConfigProblem(msg)


def write_atomically(target: Path, files: Files) -> None:
    """Make ``target`` hold exactly ``files``; nothing is touched when it already does."""
    data = target / "..data"
    if data.exists() and _holds(data, files):
        return
    target.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix="..", dir=target))
    for path, (content, mode) in files.items():
        destination = fresh / path
        destination.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(destination, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        destination.chmod(mode)
    previous = target / data.readlink() if data.is_symlink() else None
    link = target / "..data_new"
    link.unlink(missing_ok=True)
    link.symlink_to(fresh.name)
    link.replace(data)
    _link_names(target, files)
    if previous is not None:
        shutil.rmtree(previous, ignore_errors=True)


def _link_names(target: Path, files: Files) -> None:
    wanted = {path.partition("/")[0] for path in files}
    for name in wanted:
        entry = target / name
        if not entry.is_symlink():
            entry.symlink_to(Path("..data", name))
    for entry in target.iterdir():
        if entry.name not in wanted and not entry.name.startswith(".."):
            entry.unlink()


def _holds(data: Path, files: Files) -> bool:
    root = data.resolve()
    present = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    return present == set(files) and all(
        (data / path).read_bytes() == content for path, (content, _) in files.items()
    )
