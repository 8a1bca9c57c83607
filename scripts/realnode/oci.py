"""An image as an archive that `ctr images import` takes: the OCI image layout.

https://github.com/opencontainers/image-spec/blob/v1.1.0/image-layout.md and config.md: blobs by digest, a manifest, a
configuration whose ``diff_ids`` are the digests of the uncompressed layers. Layers stay uncompressed: they go to this
machine only, and compressing costs more than it saves.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from scripts.realnode.recipe import Recipe

_CHUNK = 1 << 20
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar"


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer: an uncompressed tar and its digest."""

    path: Path
    digest: str
    size: int

    @classmethod
    def read(cls, path: Path) -> Layer:
        """Return the layer in a file."""
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while block := file.read(_CHUNK):
                digest.update(block)
        return cls(path, f"sha256:{digest.hexdigest()}", path.stat().st_size)


def write_layer(path: Path, folders: Iterable[tuple[Path, str]]) -> Layer:
    """Pack ``folders`` (what, where in the image) into a layer; the same files of the same times give the same digest."""
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for folder, place in folders:
            for parent in reversed(Path(place).parents[:-1] if place else []):
                tar.addfile(_folder(str(parent)))
            tar.add(folder, place or ".", filter=_anonymous)
    return Layer.read(path)


def _folder(name: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.mode = tarfile.DIRTYPE, 0o755
    return info


def _anonymous(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    info.mtime = int(info.mtime)  # compiled modules name their source's; with another they are no use
    return info


def write_image(path: Path, name: str, recipe: Recipe, layers: Sequence[Layer], architecture: str) -> str:
    """Write the archive of an image called ``name``; return its digest. Blobs' names are their digests."""
    config = _json(
        {
            "architecture": architecture,
            "os": "linux",
            "config": {
                "Env": [f"{key}={value}" for key, value in recipe.environment.items()],
                "Entrypoint": list(recipe.entrypoint),
                "Cmd": list(recipe.command),
                "WorkingDir": recipe.working_directory,
                "User": recipe.user,
                "ExposedPorts": {f"{port}/tcp": {} for port in recipe.ports},
                "Labels": recipe.labels,
            },
            "rootfs": {"type": "layers", "diff_ids": [layer.digest for layer in layers]},
        }
    )
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "config": _descriptor(_CONFIG, config),
            "layers": [{"mediaType": _LAYER, "digest": one.digest, "size": one.size} for one in layers],
        }
    )
    entry = _descriptor(_MANIFEST, manifest) | {"annotations": {"io.containerd.image.name": name}}
    index = _json({"schemaVersion": 2, "manifests": [entry]})
    with tarfile.open(path, "w") as tar:
        _add(tar, "oci-layout", _json({"imageLayoutVersion": "1.0.0"}))
        _add(tar, "index.json", index)
        for blob in (config, manifest):
            _add(tar, f"blobs/sha256/{hashlib.sha256(blob).hexdigest()}", blob)
        for layer in layers:
            tar.add(layer.path, f"blobs/sha256/{layer.digest.removeprefix('sha256:')}")
    return f"sha256:{hashlib.sha256(manifest).hexdigest()}"


def _json(document: dict[str, Any]) -> bytes:
    return json.dumps(document, sort_keys=True).encode()


def _descriptor(kind: str, blob: bytes) -> dict[str, Any]:
    return {"mediaType": kind, "digest": f"sha256:{hashlib.sha256(blob).hexdigest()}", "size": len(blob)}


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))
