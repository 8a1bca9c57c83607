"""`https://…`: a plain web server, which cannot list. One GGUF file, or a folder with config.json and safetensors.

Which files there are follows from the names that every model has and from the index of its weights.
"""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote, urlsplit
from urllib.request import Request

from llmos_operator.api.conditions import Reason
from llmos_operator.errors import Permanent
from llmos_operator.modelstore.remote import CHECKSUM_FILES, Listing, RemoteFile, safe_path

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from llmos_operator.modelstore.http import Http
    from llmos_operator.modelstore.remote import Access, Place

CONFIG, SINGLE, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
_OPTIONAL = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "1_Pooling/config.json",
    CHECKSUM_FILES[0],
)
_INDEX_BYTES = 32 << 20


class _Absent(Permanent):
    """The server has no such file."""


class _Empty(Permanent):
    """The file has not even a first byte."""


class Web:
    """A folder of a web server; ``only`` are all files that are wanted of it, if they are known."""

    def __init__(self, place: Place, access: Access, http: Http, *, only: Sequence[str] = ()) -> None:
        self.place = place
        self._http = http
        self._token = access.get("token")
        self._only = tuple(only)
        parts = urlsplit(place.uri)
        self._query = f"?{parts.query}" if parts.query else ""  # may be a signature of the whole folder
        base, _, last = parts.path.rstrip("/").rpartition("/")
        self._gguf = unquote(last) if last.endswith(".gguf") else ""
        named = last.endswith((".gguf", ".json", ".safetensors"))
        self._base = f"{parts.scheme}://{parts.netloc}" + (base if named else parts.path.rstrip("/"))

    def listing(self) -> Listing:
        """Ask for each file that a model may have."""
        if self._only or self._gguf:
            return Listing(tuple(self._needed(path) for path in self._only or (self._gguf,)))
        found = [self._needed(CONFIG)]
        found += [one for path in _OPTIONAL if (one := self._probe(path)) is not None]
        index = self._probe(INDEX)
        if index is None:
            found.append(self._needed(SINGLE))
        else:
            found += [index, *(self._needed(part) for part in self._parts(index))]
        return Listing(tuple(found))

    def _parts(self, index: RemoteFile) -> list[str]:
        data, _ = self._http.read(lambda: self.request(index, {}), self.explain, _INDEX_BYTES)
        try:
            names = sorted({str(value) for value in json.loads(data)["weight_map"].values()})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise self.place.refuse(f"{INDEX} is no index of weights", Reason.CORRUPTED) from error
        for name in names:
            if "/" in name or name.startswith("."):
                raise self.place.refuse(
                    f"{INDEX} names {name[:80]!r}, which is no plain file name", Reason.CORRUPTED
                )
        return names

    def _needed(self, path: str) -> RemoteFile:
        found = self._probe(path)
        if found is None:
            raise self.place.refuse(
                f"there is no {path}: not found; a folder with config.json and safetensors, or a .gguf file, is expected",
                Reason.MODEL_NOT_FOUND,
            )
        return found

    def _probe(self, path: str) -> RemoteFile | None:
        """Return a file if it is there: asked for by its first byte, as not every server answers HEAD."""
        url = f"{self._base}/{quote(safe_path(path, self.place))}{self._query}"
        asked = RemoteFile(path, url)
        try:
            with self._http.open(
                lambda: self.request(asked, {"Range": "bytes=0-0"}), self._absent_or_known
            ) as answer:
                partial = answer.status == HTTPStatus.PARTIAL_CONTENT
                total = (answer.headers.get("Content-Range") or "").rpartition("/")[2] if partial else ""
                text = total if partial else answer.headers.get("Content-Length") or ""
                size = int(text) if text.isdecimal() else None
                etag = str(answer.headers.get("ETag") or "")
        except _Absent:
            return None
        except _Empty:
            return RemoteFile(path, url, 0, ranges=False)
        strong = "" if etag.startswith("W/") else etag
        return RemoteFile(path, url, size, version=strong, ranges=partial and size is not None)

    def request(self, file: RemoteFile, headers: Mapping[str, str]) -> Request:
        """Return a request for a file."""
        proof = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        return Request(file.url, headers={**headers, **proof})  # noqa: S310 - `sources` passes https only

    def explain(self, status: int, body: bytes, url: str) -> Permanent | None:
        """A refusal means what it means everywhere."""
        del status, body, url
        return None

    def _absent_or_known(self, status: int, body: bytes, url: str) -> Permanent | None:
        del body, url
        if status in {HTTPStatus.NOT_FOUND, HTTPStatus.GONE}:
            return _Absent("not there", reason=Reason.MODEL_NOT_FOUND)
        if status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return _Empty("empty", reason=Reason.MODEL_NOT_FOUND)
        return None
