"""Finds out how big a model is before it is placed: config and weight headers of hf, https and file sources.

A few kilobytes are read per weight file (its header), whatever the model weighs. What cannot be served is refused
here, before any GPU is taken for it: missing models, pickle-only repositories, configs that ask for code.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import quote

from llmos_operator.actuators.fetch import Fetcher, Missing, Piece
from llmos_operator.api.conditions import Reason
from llmos_operator.api.runtime import gguf, modelfiles
from llmos_operator.errors import Permanent

if TYPE_CHECKING:
    from llmos_operator.api.runtime.memory import ModelShape
    from llmos_operator.settings import SourceSettings

_FIRST_BYTES = 256 << 10  # holds the whole header of nearly every weight file
_LISTING_BYTES = 8 << 20
_PARALLEL = 4
_UNSEEN = frozenset({"s3", "gs", "oci"})  # their places answer nobody without credentials
_CONFIG, _SINGLE, _INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True, slots=True)
class Inspection:
    """What was learned of a model from its metadata."""

    shape: ModelShape
    source_format: str
    source_bytes: int
    resolved_revision: str = ""


class Repository(Protocol):
    """Files of one model. `names` is None where they cannot be listed."""

    names: tuple[str, ...] | None
    revision: str

    async def read(self, name: str, limit: int, *, whole: bool = True) -> Piece:
        """Return the beginning of a file. Raises Missing."""
        ...


class Inspector:
    """Inspects models by URI."""

    def __init__(self, sources: SourceSettings) -> None:
        self._sources = sources
        self._fetcher = Fetcher(sources)

    async def close(self) -> None:
        """End all connections."""
        await self._fetcher.close()

    async def inspect(self, uri: str, revision: str) -> Inspection:
        """Return what the model's metadata says.

        Raises Permanent (ModelNotFound, AccessDenied, UnsafeConfig, UnsafeFormat, Corrupted, Unsupported,
        SourceNotAllowed, UnsupportedScheme) and Retryable.
        """
        repository = await self._open(uri, revision or "main")
        return await _inspect(repository)

    async def _open(self, uri: str, revision: str) -> Repository:
        scheme, _, rest = uri.partition("://")
        if scheme == "hf":
            return await _open_hub(self._fetcher, self._sources.hub_endpoint.rstrip("/"), rest, revision)
        if scheme == "https":
            return _Web(self._fetcher, uri.rstrip("/"))
        if scheme == "file" and self._sources.allow_file:
            return _Folder(Path(rest))
        raise _refuse_scheme(scheme)


def _refuse_scheme(scheme: str) -> Permanent:
    if scheme in _UNSEEN:
        return Permanent(
            f"the operator reads no Secrets and so cannot look into {scheme}://: set spec.resources.memory to the memory one "
            "replica needs on each device",
            reason=Reason.ACCESS_DENIED,
        )
    if scheme == "pvc":
        return Permanent(
            "the operator mounts no claims and so cannot look into pvc://: set spec.resources.memory to the memory one replica "
            "needs on each device",
            reason=Reason.ACCESS_DENIED,
        )
    if scheme == "file":
        return Permanent(
            "file:// models are not allowed here; an administrator may set sources.allowFile",
            reason=Reason.SOURCE_NOT_ALLOWED,
        )
    return Permanent(
        f"{scheme}:// models cannot be loaded by this release; use hf://, https://, s3://, gs://, oci:// or pvc://claim/path",
        reason=Reason.UNSUPPORTED_SCHEME,
    )


async def _inspect(repository: Repository) -> Inspection:
    if repository.names is not None:
        _refuse_pickle_only(repository.names)
        only_gguf = _single_gguf(repository.names)
        if only_gguf:
            return await _inspect_gguf(repository, only_gguf)
    raw = await repository.read(_CONFIG, modelfiles.MAX_CONFIG_BYTES)
    config = await asyncio.to_thread(modelfiles.parse_config, raw.data)
    files = await _weight_files(repository)
    gate = asyncio.Semaphore(_PARALLEL)

    async def one(name: str) -> tuple[tuple[modelfiles.Tensor, ...], int]:
        async with gate:
            return await _header(repository, name)

    headers = await asyncio.gather(*(one(name) for name in files))
    shape = modelfiles.shape_of(config, [tensor for tensors, _ in headers for tensor in tensors])
    return Inspection(
        shape, modelfiles.source_format(shape), sum(size for _, size in headers), repository.revision
    )


def _refuse_pickle_only(names: tuple[str, ...]) -> None:
    if any(name.endswith((".safetensors", ".gguf")) for name in names):
        return
    pickles = [name for name in names if name.endswith(modelfiles.PICKLE_SUFFIXES)]
    if pickles:
        raise Permanent(
            f"the only weights are {', '.join(pickles[:5])}: such files can run code when opened; "
            "use a model that is published as safetensors or GGUF",
            reason=Reason.UNSAFE_FORMAT,
        )


def _single_gguf(names: tuple[str, ...]) -> str:
    """Return the GGUF file of a repository without safetensors, "" otherwise."""
    if _SINGLE in names or _INDEX in names:
        return ""
    found = [name for name in names if name.endswith(".gguf") and "/" not in name]
    if len(found) > 1:
        raise Permanent(
            f"several GGUF files ({', '.join(found[:5])}); use a repository with one, or with safetensors",
            reason=Reason.UNSUPPORTED,
        )
    return found[0] if found else ""


async def _weight_files(repository: Repository) -> tuple[str, ...]:
    try:
        index = await repository.read(_INDEX, modelfiles.MAX_INDEX_BYTES)
    except Missing:
        return (_SINGLE,)
    return await asyncio.to_thread(modelfiles.parse_index, index.data)


async def _header(repository: Repository, name: str) -> tuple[tuple[modelfiles.Tensor, ...], int]:
    piece = await repository.read(name, _FIRST_BYTES, whole=False)
    length = modelfiles.header_length(piece.data[: modelfiles.LENGTH_BYTES], piece.size, name)
    end = modelfiles.LENGTH_BYTES + length
    if end > len(piece.data):
        piece = await repository.read(name, end, whole=False)
    if end > len(piece.data):
        raise Permanent(f"{name} ends inside its header: it is truncated", reason=Reason.CORRUPTED)
    data_size = None if piece.size is None else piece.size - end
    header = piece.data[modelfiles.LENGTH_BYTES : end]
    tensors = await asyncio.to_thread(modelfiles.parse_header, header, data_size, name)
    return tensors, piece.size or 0


async def _inspect_gguf(repository: Repository, name: str) -> Inspection:
    limit = 4 << 20
    while True:
        piece = await repository.read(name, limit, whole=False)
        try:
            shape = await asyncio.to_thread(gguf.parse_header, piece.data, name)
        except gguf.NeedMore as error:
            if piece.size is not None and len(piece.data) >= piece.size:
                raise Permanent(
                    f"{name} ends inside its header: it is truncated", reason=Reason.CORRUPTED
                ) from error
            limit = min(limit * 4, gguf.MAX_HEADER_BYTES)
            continue
        return Inspection(shape, modelfiles.source_format(shape), piece.size or 0, repository.revision)


class _Hub:
    """A repository of a model hub, at one commit."""

    def __init__(self, fetcher: Fetcher, base: str, revision: str, names: tuple[str, ...] | None) -> None:
        self.names = names
        self.revision = revision
        self._fetcher = fetcher
        self._base = base

    async def read(self, name: str, limit: int, *, whole: bool = True) -> Piece:
        """Return the beginning of a file."""
        return await self._fetcher.read(f"{self._base}/{quote(name)}", limit, whole=whole)


async def _open_hub(fetcher: Fetcher, hub: str, model: str, revision: str) -> _Hub:
    url = f"{hub}/api/models/{quote(model)}/revision/{quote(revision, safe='')}"
    try:
        piece = await fetcher.read(url, _LISTING_BYTES)
    except Missing as error:
        raise Permanent(
            f"the hub has no model {model!r} with revision {revision!r}; correct spec.model",
            reason=Reason.MODEL_NOT_FOUND,
        ) from error
    try:
        answer = json.loads(piece.data)
        commit = str(answer.get("sha") or revision)
        names = tuple(str(one["rfilename"]) for one in answer.get("siblings") or ())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Permanent(f"{url}: not the answer of a model hub", reason=Reason.DOWNLOAD_FAILED) from error
    return _Hub(fetcher, f"{hub}/{quote(model)}/resolve/{quote(commit, safe='')}", commit, names or None)


class _Web:
    """A folder on a web server; its files cannot be listed. A URL of a .gguf file stands for that file."""

    def __init__(self, fetcher: Fetcher, base: str) -> None:
        folder, _, last = base.rpartition("/")
        self.names: tuple[str, ...] | None = (last,) if last.endswith(".gguf") else None
        self.revision = ""
        self._fetcher = fetcher
        self._base = folder if self.names else base

    async def read(self, name: str, limit: int, *, whole: bool = True) -> Piece:
        """Return the beginning of a file."""
        return await self._fetcher.read(f"{self._base}/{quote(name)}", limit, whole=whole)


class _Folder:
    """A folder the operator can see itself: only where settings allow file sources."""

    def __init__(self, path: Path) -> None:
        if not path.is_dir():
            raise Permanent(f"{path} is not a folder the operator can see", reason=Reason.MODEL_NOT_FOUND)
        self.names: tuple[str, ...] | None = tuple(
            sorted(one.name for one in path.iterdir() if one.is_file())
        )
        self.revision = ""
        self._path = path

    async def read(self, name: str, limit: int, *, whole: bool = True) -> Piece:
        """Return the beginning of a file."""
        return await asyncio.to_thread(self._read, name, limit, whole=whole)

    def _read(self, name: str, limit: int, *, whole: bool) -> Piece:
        try:
            with (self._path / name).open("rb") as file:
                data = file.read(limit + 1)
            size = (self._path / name).stat().st_size
        except FileNotFoundError as error:
            raise Missing(f"file://{self._path / name}") from error
        except OSError as error:
            raise Permanent(f"{self._path / name}: {error.strerror}", reason=Reason.ACCESS_DENIED) from error
        if whole and len(data) > limit:
            raise Permanent(f"{name} is larger than {limit} bytes", reason=Reason.CORRUPTED)
        return Piece(data[:limit], size)
