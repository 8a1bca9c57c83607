"""What a place far away holds: files with sizes and digests, and how to ask for them.

Only files that a model needs and that cannot run are taken, and only under names that stay inside a folder.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from llmos_operator.api.conditions import Reason
from llmos_operator.errors import Permanent

if TYPE_CHECKING:
    from collections.abc import Mapping
    from urllib.request import Request

# Everything a model needs and nothing that could run: no pickles, no Python.
WANTED_SUFFIXES = (".safetensors", ".json", ".gguf", ".model", ".txt", ".jinja")
WEIGHT_SUFFIXES = (".safetensors", ".gguf")
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".h5", ".msgpack")
CHECKSUM_FILES = ("SHA256SUMS", "sha256sums.txt")  # as sha256sum(1) writes them
MAX_FILES = 2000
_IGNORED_FOLDERS = ("onnx/", "openvino/", "original/", ".git/")


@dataclass(frozen=True, slots=True)
class Place:
    """What a user wrote, and how the fields are called that an error must name."""

    uri: str
    revision: str = "main"
    field: str = "spec.model.uri"
    secret: str = "spec.model.secretRef"  # noqa: S105 - the name of a field

    @property
    def shown(self) -> str:
        """Return the URI without its query, which may be a signature."""
        return self.uri.partition("?")[0]

    def refuse(self, what: str, reason: Reason) -> Permanent:
        """Return the error that names field, value and ``what`` is wrong with it."""
        return Permanent(f"{self.field} = {self.shown}: {what}", reason=reason)


@dataclass(frozen=True, slots=True)
class Access:
    """Credentials and addresses. Values never appear in a repr, a log or an error."""

    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    endpoint: str = ""  # of the object store; "": the provider's own
    region: str = ""
    hub: str = "https://huggingface.co"

    def get(self, name: str) -> str:
        """Return a credential, "" if there is none."""
        return self.secrets.get(name, "").strip()


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file: ``path`` inside the model's folder, ``url`` to ask for. ``size`` in bytes, None if nobody knows."""

    path: str
    url: str
    size: int | None = None
    digest: str = ""  # "sha256:…" or "md5:…"; "" if none is published
    version: str = ""  # ETag: a part of another version is not taken
    ranges: bool = True  # whether parts can be asked for
    packed: str | None = (
        None  # a tar archive: the folder in it whose wanted members are the files, "" for all of it
    )


@dataclass(frozen=True, slots=True)
class Listing:
    """All files that are taken, and what the revision stands for ("" where there are none)."""

    files: tuple[RemoteFile, ...]
    revision: str = ""

    @property
    def total_bytes(self) -> int:
        """Bytes of all files whose size is known."""
        return sum(one.size or 0 for one in self.files)


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A whole file on the disk: ``path`` inside the model's folder."""

    path: str
    size: int
    sha256: str


class Source(Protocol):
    """A place with files of one model."""

    place: Place

    def listing(self) -> Listing:
        """Return what is there. Raises Permanent or Retryable that name field, value and fix."""
        ...

    def request(self, file: RemoteFile, headers: Mapping[str, str]) -> Request:
        """Return the request for a file, with ``headers`` and whatever proves who asks."""
        ...

    def explain(self, status: int, body: bytes, url: str) -> Permanent | None:
        """Return what a refusal means in this place, None where it means what it does everywhere."""
        ...


def wanted(path: str) -> bool:
    """Return whether a model may need the file ``path``."""
    name = path.rpartition("/")[2]
    if name in CHECKSUM_FILES:
        return True
    return name.endswith(WANTED_SUFFIXES) and not path.startswith(_IGNORED_FOLDERS)


def safe_path(path: str, place: Place) -> str:
    """Return ``path`` if it stays inside a folder. Raises Permanent(SourceNotAllowed) otherwise."""
    parts = path.split("/")
    bad = not path or len(path) > 1024 or "\\" in path or any(ord(char) < 32 for char in path)  # noqa: PLR2004
    if bad or any(part in {"", ".", ".."} for part in parts):
        raise place.refuse(
            f"it holds the file {path[:80]!r}, whose name leads out of the model's folder; rename it there",
            Reason.SOURCE_NOT_ALLOWED,
        )
    return path


def check_files(files: tuple[RemoteFile, ...], names: tuple[str, ...], place: Place) -> None:
    """Raise Permanent if ``files`` are no model; ``names`` are all names that were found, wanted or not."""
    if len(files) > MAX_FILES:
        raise place.refuse(
            f"it holds more than {MAX_FILES} files; name the model's own folder", Reason.UNSUPPORTED
        )
    if any(one.packed is not None or one.path.endswith(WEIGHT_SUFFIXES) for one in files):
        return
    pickles = [name for name in names if name.endswith(PICKLE_SUFFIXES)]
    if pickles:
        raise place.refuse(
            f"the only weights are {', '.join(pickles[:3])}: such files can run code when opened; convert the model to "
            "safetensors",
            Reason.UNSAFE_FORMAT,
        )
    what = "there is nothing" if not names else "there are files, but no safetensors and no GGUF among them"
    raise place.refuse(f"{what}; name the folder that holds the model", Reason.MODEL_NOT_FOUND)
