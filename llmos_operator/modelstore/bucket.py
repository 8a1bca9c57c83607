"""Objects of a bucket as files: listed, read and written whole, for data rather than models.

An object appears whole or not at all, and replaces the one before; large ones are sent in parts.
Source: https://docs.aws.amazon.com/AmazonS3/latest/userguide/mpuoverview.html.
"""

from __future__ import annotations

import http.client
import io
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Final
from xml.sax.saxutils import escape

from llmos_operator.api.conditions import Reason
from llmos_operator.errors import Permanent, Retryable
from llmos_operator.modelstore.http import TRIES, Http, reason_of
from llmos_operator.modelstore.s3 import S3, error_fields, interoperable, xml_of
from llmos_operator.observability.logging import logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from http.client import HTTPResponse
    from pathlib import Path
    from typing import IO

    from llmos_operator.modelstore.remote import Access, Place

log = logger(__name__)

PART_BYTES: Final = 32 << 20
_MOST_PARTS: Final = 10_000
_ANSWER_BYTES: Final = 1 << 20
_CHUNK: Final = 1 << 20
# A slow upload, two writers, keys that a new pod may have anew; an object that changed, a disk that is full.
_PASSING_CODES: Final = frozenset({"RequestTimeout", "OperationAborted", "ExpiredToken"})
_PASSING: Final = frozenset({HTTPStatus.PRECONDITION_FAILED, HTTPStatus.INSUFFICIENT_STORAGE})
_TOLD_ELSEWHERE: Final = frozenset({404, 408, 425, 429, 500, 502, 503, 504})  # by `Http`


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object: ``size`` in bytes, ``version`` its ETag."""

    key: str
    size: int
    version: str


class Bucket:
    """The objects whose keys begin with the key that a URI names. All methods raise Permanent or Retryable.

    Errors name field, value and fix.
    """

    def __init__(
        self,
        place: Place,
        access: Access,
        *,
        missing: Reason = Reason.DATA_NOT_FOUND,
        http: Http | None = None,
        beat: Callable[[], None] = lambda: None,
    ) -> None:
        """``place.uri`` is s3://bucket/key or gs://bucket/key; ``missing`` is the reason where there is none of it.

        ``beat`` is called while much is sent or received.
        """
        self.place = place
        self._missing = missing
        self.key = place.uri.partition("://")[2].partition("/")[2].strip("/")
        self._http = http or Http(place)
        self._beat = beat
        google = place.uri.startswith("gs://")
        self._s3 = interoperable(place, access, self._http) if google else S3(place, access, self._http)

    # ------------------------------------------------------------ reading

    def objects(self) -> dict[str, StoredObject]:
        """Return all objects by key."""
        with self._translated():
            return {key: StoredObject(key, size, version) for key, size, version in self._s3.objects()}

    def note(self, key: str, name: str) -> str:
        """Return what was noted under ``name`` when an object was written, "" if nothing was."""
        request = partial(self._s3.signed, key, method="HEAD")
        with self._translated(), self._http.open(request, self._explain_reading) as answer:
            found = (answer.headers.get(f"x-{store}-meta-{name}") for store in ("amz", "goog"))
            return next((one for one in found if one), "")

    def append(self, one: StoredObject, file: IO[bytes]) -> None:
        """Append the object to an open file; what a broken connection left out is asked for again. Raises OSError, too."""
        start = file.tell()
        for number in range(1, TRIES + 1):
            try:
                self._append_rest(one, file, start)
            except _Cut as error:
                if number == TRIES:
                    raise self._later(
                        f"{one.key} ended after {file.tell() - start} of {one.size} bytes: {error}"
                    ) from error
                self._http.sleep(0.5 * 2 ** (number - 1))
            else:
                return

    def _append_rest(self, one: StoredObject, file: IO[bytes], start: int) -> None:
        got = file.tell() - start
        if got >= one.size:
            return
        headers = {"If-Match": one.version} if one.version else {}
        headers |= {"Range": f"bytes={got}-"} if got else {}
        request = partial(self._s3.signed, one.key, headers=headers)
        with self._translated(), self._http.open(request, self._explain_reading) as answer:
            if answer.status != HTTPStatus.PARTIAL_CONTENT:  # all of it, asked for or not
                file.seek(start)
                file.truncate()
            while chunk := _chunk(answer):
                file.write(chunk)
                self._beat()
        if file.tell() - start != one.size:
            raise _Cut(f"{one.size} bytes were listed")

    def fetch(self, one: StoredObject, target: Path) -> None:
        """Write the object to a local file."""
        with target.open("wb") as file:
            self.append(one, file)

    # ------------------------------------------------------------ writing

    def put(
        self,
        key: str,
        source: Path,
        *,
        start: int = 0,
        end: int | None = None,
        notes: Mapping[str, str] | None = None,
    ) -> None:
        """Write the bytes from ``start`` to ``end`` of a local file as an object, with ``notes`` about it."""
        headers = {f"x-amz-meta-{name}": value for name, value in (notes or {}).items()}
        with source.open("rb") as file:
            size = (file.seek(0, io.SEEK_END) if end is None else end) - start
            file.seek(start)
            if size <= PART_BYTES:
                self._send("PUT", key, {}, file.read(size), headers)
            else:
                self._put_parts(key, file, size, headers)

    def check_writable(self) -> None:
        """Write and remove a small object beside the key, so that missing rights show before any work is done."""
        key = f"{self.key}.llmos-probe"
        self._send("PUT", key, {}, b"")
        self.delete(key)

    def delete(self, key: str) -> None:
        """Remove an object; one that is not there is no error."""
        self._send("DELETE", key, {})

    def _put_parts(self, key: str, file: IO[bytes], size: int, headers: Mapping[str, str]) -> None:
        upload = self._begun(key, headers)
        try:
            tags = []
            for number, part in enumerate(_parts(file, size), 1):
                query = {"partNumber": str(number), "uploadId": upload}
                tags.append(self._send("PUT", key, query, part)[1])
                self._beat()
            self._end(key, upload, tags, size)
        except BaseException:
            # What was sent would be stored, and paid for, without being seen.
            self._abandon(key, upload)
            raise

    def _begun(self, key: str, headers: Mapping[str, str]) -> str:
        answer, _ = self._send("POST", key, {"uploads": ""}, b"", headers)
        upload = error_fields(answer).get("UploadId", "")
        if not upload:
            raise self.place.refuse(
                "the endpoint does not take uploads in parts as S3 does", Reason.OUTPUT_NOT_WRITABLE
            )
        return upload

    def _end(self, key: str, upload: str, tags: list[str], size: int) -> None:
        parts = "".join(
            f"<Part><PartNumber>{number}</PartNumber><ETag>{escape(tag)}</ETag></Part>"
            for number, tag in enumerate(tags, 1)
        )
        body = f"<CompleteMultipartUpload>{parts}</CompleteMultipartUpload>".encode()
        try:
            answer, _ = self._send("POST", key, {"uploadId": upload}, body)
        except Permanent as error:
            found = self.objects().get(key) if error.reason == self._missing else None
            if found is not None and found.size == size:
                return  # the answer to an earlier try was lost
            raise
        root = xml_of(answer)
        if root is None or root.tag.rpartition("}")[2] != "CompleteMultipartUploadResult":
            # The status was sent before the parts were joined.
            raise self._later(f"{key} was not put together: {error_fields(answer).get('Code', 'no answer')}")

    def _abandon(self, key: str, upload: str) -> None:
        try:
            self._send("DELETE", key, {"uploadId": upload})
        except (Permanent, Retryable) as error:
            # The error before it is the one to tell.
            log.warning("parts of an upload may be left in the bucket", key=key, detail=str(error))

    def _send(
        self,
        method: str,
        key: str,
        query: Mapping[str, str],
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> tuple[bytes, str]:
        """Send a request that writes; return the answer and its ETag."""
        request = partial(self._s3.signed, key, method=method, query=query, headers=headers, body=body)
        with self._translated():
            answer, told = self._http.read(request, self._explain_writing, _ANSWER_BYTES)
        return answer, str(told.get("ETag") or "")

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except Permanent as error:
            if error.reason != Reason.MODEL_NOT_FOUND:
                raise
            raise Permanent(str(error), reason=self._missing) from error

    def _later(self, what: str) -> Retryable:
        return Retryable(f"{self.place.field} = {self.place.shown}: {what}", after=5.0)

    def _explain_reading(self, status: int, body: bytes, url: str) -> Permanent | Retryable | None:
        code = error_fields(body).get("Code", "")
        if code in _PASSING_CODES or status in _PASSING:
            return self._later(f"the store answered {status} {code}".strip())
        return self._s3.explain(status, body, url)

    def _explain_writing(self, status: int, body: bytes, url: str) -> Permanent | Retryable | None:
        told, code = self._explain_reading(status, body, url), error_fields(body).get("Code", "")
        if isinstance(told, Retryable):
            return told
        if status == HTTPStatus.FORBIDDEN and code in {"", "AccessDenied"}:
            return self.place.refuse(
                "access denied: name a Secret with keys that may write there (s3:PutObject, s3:DeleteObject, "
                f"s3:AbortMultipartUpload) in {self.place.secret}",
                Reason.OUTPUT_NOT_WRITABLE,
            )
        if told is None and status not in _TOLD_ELSEWHERE:
            return self.place.refuse(
                f"the store refuses what is written there ({status} {code}); see its log, or name another place",
                Reason.OUTPUT_NOT_WRITABLE,
            )
        return told


class _Cut(Exception):  # noqa: N818 - it is told by another error
    """A connection ended before the object did."""


def _chunk(answer: HTTPResponse) -> bytes:
    try:
        return answer.read(_CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise _Cut(reason_of(error)) from error


def _parts(file: IO[bytes], size: int) -> Iterator[bytes]:
    most = max(PART_BYTES, -(-size // _MOST_PARTS))
    while size > 0:
        part = file.read(min(most, size))
        if not part:
            raise OSError(f"the file ended {size} bytes early")
        size -= len(part)
        yield part
