"""Data URIs as local files: reading input, writing output so that it is there whole or not at all.

`pvc://claim/path` is a file below the folder the pod's claims are mounted in, `https://` input and objects of `s3://` and
`gs://` are fetched into a scratch folder first, what is written there is made in the scratch folder and sent by whoever
made it, `file://` is what it says where the cluster's administrator allows it.
"""

from __future__ import annotations

import dataclasses
import os
import urllib.error
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

from llmos_operator.api.conditions import Reason
from llmos_operator.api.runtime.data import (
    BUCKETS,
    READABLE,
    VOLUMES_ROOT,
    WRITABLE,
    WRITTEN_FIELDS,
    DataUri,
    credentials,
    parse,
)
from llmos_operator.errors import Permanent, Retryable
from llmos_operator.modelstore.bucket import Bucket
from llmos_operator.modelstore.http import SameHost, shown
from llmos_operator.modelstore.remote import Access, Place

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from http.client import HTTPResponse
    from typing import IO

_TIMEOUT_SECONDS: Final = 60
_CHUNK: Final = 1 << 20
_TEMPORARY: Final = ".llmos-partial"  # ending of a file that is being written


@dataclass(frozen=True, slots=True)
class Data:
    """Where the URIs of one run lead."""

    scratch: Path  # for input that is fetched; contents may vanish with the pod
    volumes: Path = Path(VOLUMES_ROOT)
    allow_file: bool = False
    beat: Callable[[], None] = lambda: None  # called while much is sent or received
    environ: Mapping[str, str] = dataclasses.field(
        default_factory=lambda: os.environ, repr=False
    )  # has credentials

    def readable(self, uri: str, field: str) -> Path:
        """Return an existing file or folder with the data of ``uri``; ``field`` is its name for messages.

        Raises Permanent (DataNotFound, UnsupportedScheme, SourceNotAllowed, AccessDenied) or Retryable for a network
        that fails for now.
        """
        parts = self._parts(uri, field, READABLE)
        if parts.scheme == "https":
            return self._fetched(uri, field)
        if (bucket := self.bucket(uri, field)) is not None:
            return self._object(bucket, uri, field)
        path = self._local(parts, uri, field)
        if not path.exists():
            raise Permanent(
                f"{field}: {uri}: no such file or folder; check claim and path", reason=Reason.DATA_NOT_FOUND
            )
        return path

    def writable(self, uri: str, field: str) -> Path:
        """Return the path ``uri`` is written to, its parent folder made. It may exist already.

        Of a bucket it is a scratch path: what is made there has to be sent to :meth:`bucket`. Raises Permanent (OutputNotWritable, UnsupportedScheme, SourceNotAllowed).
        """
        parts = self._parts(uri, field, WRITABLE)
        if parts.scheme in BUCKETS:
            path = self.scratch / _block_field(field) / "data"
        else:
            path = self._local(parts, uri, field)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Permanent(
                f"{field}: {uri}: cannot be written: {error.strerror}; check that the claim is mounted for writing",
                reason=Reason.OUTPUT_NOT_WRITABLE,
            ) from error
        return path

    def bucket(self, uri: str, field: str) -> Bucket | None:
        """Return where a URI of an object store leads, None for all others. Raises Permanent for unusable credentials."""
        if parse(uri).scheme not in BUCKETS:
            return None
        place = Place(uri, field=field, secret=f"spec.{field.split('.', maxsplit=1)[0]}.secretRef")
        missing = (
            Reason.OUTPUT_NOT_WRITABLE if _block_field(field) in WRITTEN_FIELDS else Reason.DATA_NOT_FOUND
        )
        return Bucket(place, Access(credentials(self.environ)), missing=missing, beat=self.beat)

    def _object(self, bucket: Bucket, uri: str, field: str) -> Path:
        found = bucket.objects().get(bucket.key)
        if found is None:
            raise Permanent(
                f"{field}: {uri}: no such object; check bucket and key", reason=Reason.DATA_NOT_FOUND
            )
        target = self._input()
        bucket.fetch(found, target)
        return target

    def _input(self) -> Path:
        # A name of ours: theirs may be too long for a file, or lead elsewhere.
        target = self.scratch / "input" / "data"
        target.parent.mkdir(parents=True, exist_ok=True)
        return target

    def _parts(self, uri: str, field: str, known: tuple[str, ...]) -> DataUri:
        try:
            parts = parse(uri)
        except ValueError as error:
            raise Permanent(f"{field}: {error}", reason=Reason.INVALID_SPEC) from error
        if parts.scheme not in known:
            works = ", ".join(f"{one}://" for one in known)
            raise Permanent(
                f"{field}: {parts.scheme}:// is not supported; use {works}", reason=Reason.UNSUPPORTED_SCHEME
            )
        if parts.scheme == "file" and not self.allow_file:
            raise Permanent(
                f"{field}: {uri}: file:// is not allowed here; use pvc://claim/path",
                reason=Reason.SOURCE_NOT_ALLOWED,
            )
        return parts

    def _local(self, parts: DataUri, uri: str, field: str) -> Path:
        path = unquote(parts.path)
        if parts.scheme == "file":
            return Path(path)
        root = (self.volumes / parts.host).resolve()
        joined = (root / path.lstrip("/")).resolve()
        if not joined.is_relative_to(root):  # a link in the volume, or an encoded ".."
            raise Permanent(f"{field}: {uri}: leaves its volume", reason=Reason.SOURCE_NOT_ALLOWED)
        return joined

    def _fetched(self, uri: str, field: str) -> Path:
        target = self._input()
        opener = urllib.request.build_opener(SameHost)
        try:
            with opener.open(uri, timeout=_TIMEOUT_SECONDS) as answer, replacing(target) as file:
                _copy(answer, file)
        except urllib.error.HTTPError as error:
            raise _translated(error, uri, field) from error
        except OSError as error:
            raise Retryable(f"{field}: reading {shown(uri)} failed: {error}", after=5.0) from error
        return target


def _block_field(field: str) -> str:
    """Return "output" of "batch.output.uri"."""
    return field.split(".")[1]


def _copy(answer: HTTPResponse, file: IO[bytes]) -> None:
    expected, got = int(answer.headers.get("Content-Length") or 0), 0
    while chunk := answer.read(_CHUNK):
        file.write(chunk)
        got += len(chunk)
    if got < expected:
        raise OSError(f"the connection ended after {got} of {expected} bytes")


def _translated(error: urllib.error.HTTPError, uri: str, field: str) -> Permanent | Retryable:
    if error.code in (401, 403):
        return Permanent(f"{field}: {shown(uri)}: access denied ({error.code})", reason=Reason.ACCESS_DENIED)
    if error.code in (404, 410):
        return Permanent(f"{field}: {shown(uri)}: not found", reason=Reason.DATA_NOT_FOUND)
    return Retryable(f"{field}: {shown(uri)}: the server answered {error.code}", after=5.0)


@contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that takes the place of ``path``, durably, when the block ends well, and vanishes if it raises."""
    temporary = path.with_name(path.name + _TEMPORARY)
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        put_in_place(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def put_in_place(temporary: Path, path: Path) -> None:
    """Rename a finished file (or folder, where ``path`` does not exist) and make the rename durable."""
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    except OSError:  # some network file systems refuse it for folders; the rename itself is still atomic
        pass
    finally:
        os.close(folder)
