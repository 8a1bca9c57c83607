"""Model URIs to local folders."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from llmos_operator.api.runtime.messages import RuntimeState
from llmos_operator.api.runtime.uris import carries_credentials
from llmos_operator.errors import Permanent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmos_operator.runtime.ipc.messages import Load
    from llmos_operator.runtime.loader.progress import Stages

_FAR = frozenset({"s3", "gs", "oci", "https"})  # hf has a library of its own


@dataclass(frozen=True, slots=True)
class Resolved:
    """A model on the local disk: a folder, or (of a claim) one GGUF file. ``fetched`` bytes came over the network just now."""

    path: Path
    revision: str = ""
    fetched: int = 0


def resolve(load: Load, stages: Stages, *, files: Sequence[str] = ()) -> Resolved:
    """Return where the model lies, downloading it into the cache if need be; ``files`` are all that is wanted of it.

    Raises Permanent (ModelNotFound, AccessDenied, UnsupportedScheme, SourceNotAllowed, Corrupted) or Retryable.
    """
    if carries_credentials(load.uri):
        # Said without the URI: this goes to logs, Events and the status.
        raise Permanent(
            "spec.model.uri carries a user or password: put the token into a Secret and name it in spec.model.secretRef",
            reason="SourceNotAllowed",
        )
    scheme, _, rest = load.uri.partition("://") if "://" in load.uri else ("", "", load.uri)
    if not files and (copy := _kept(load, stages)) is not None:
        return copy
    if scheme == "hf":
        from llmos_operator.runtime.loader.hub import download  # noqa: PLC0415 - one source, one library

        return download(load, stages, files)
    if scheme in _FAR:
        from llmos_operator.runtime.loader.remote import download as fetch  # noqa: PLC0415 - as above

        return fetch(load, stages, files)
    if scheme == "pvc":
        claim, _, path = rest.partition("/")
        root = Path(load.pvc_root) / claim
        found = _local(_below(root, unquote(path)), load)
        _refuse_links_out(root.resolve(), found.path)
        return found
    if scheme in ("file", ""):
        if not load.allow_file:
            raise Permanent(
                f"{load.uri}: local paths are not allowed here; the operator's setting allowFileSources permits them",
                reason="SourceNotAllowed",
            )
        return _local(Path(unquote(urlsplit(load.uri).path) if scheme else load.uri), load)
    raise Permanent(
        f"unknown scheme {scheme!r} in {load.uri}; known: hf, s3, gs, oci, https, pvc, file",
        reason="UnsupportedScheme",
    )


def _kept(load: Load, stages: Stages) -> Resolved | None:
    from llmos_operator.runtime.loader.remote import kept  # noqa: PLC0415 - as above

    return kept(load, stages)


def _below(root: Path, path: str) -> Path:
    """Return ``root/path`` and refuse to leave ``root``."""
    joined = (root / path.lstrip("/")).resolve()
    if not joined.is_relative_to(root.resolve()):
        raise Permanent(f"path {path!r} leaves its volume", reason="SourceNotAllowed")
    return joined


def _refuse_links_out(root: Path, path: Path) -> None:
    """Refuse a model with links that lead out of its volume: they would be read with the rights of this process."""
    for one in path.rglob("*"):  # does not go into linked folders
        if one.is_symlink() and not one.resolve().is_relative_to(root):
            raise Permanent(
                f"{one.relative_to(root)} is a link that leaves its volume; put the file itself there",
                reason="SourceNotAllowed",
            )


def _local(path: Path, load: Load) -> Resolved:
    if not path.exists():
        raise Permanent(f"{load.uri}: no such file or folder", reason="ModelNotFound")
    return Resolved(path, load.revision)


def begin_download(stages: Stages, total: int) -> None:
    """Enter the stage Downloading."""
    stages.enter(RuntimeState.DOWNLOADING, total)
