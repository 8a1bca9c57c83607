"""`gs://bucket/prefix`: Google Cloud Storage by its JSON API, with an access token or none.

HMAC keys, which do not expire, speak the S3 dialect of the same service instead: see `sources`.
Source: https://cloud.google.com/storage/docs/json_api/v1/objects.
"""

from __future__ import annotations

import base64
import binascii
import json
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlencode
from urllib.request import Request

from llmos_operator.api.conditions import Reason
from llmos_operator.modelstore.remote import Listing, RemoteFile, check_files, safe_path, wanted

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmos_operator.errors import Permanent
    from llmos_operator.modelstore.http import Http
    from llmos_operator.modelstore.remote import Access, Place

ENDPOINT = "https://storage.googleapis.com"
_LISTING_BYTES = 8 << 20
_MOST_PAGES = 50
_FIELDS = "items(name,size,md5Hash,generation),nextPageToken"


class GoogleStorage:
    """A prefix of a bucket."""

    def __init__(self, place: Place, access: Access, http: Http) -> None:
        bucket, _, prefix = place.uri.partition("://")[2].partition("/")
        self.place = place
        self._bucket, self._prefix = bucket, prefix.strip("/")
        self._http = http
        self._token = access.get("token")
        self._endpoint = (access.endpoint or ENDPOINT).rstrip("/")

    def listing(self) -> Listing:
        """Return the objects below the prefix that a model needs."""
        names: list[str] = []
        files: list[RemoteFile] = []
        token = ""
        for _ in range(_MOST_PAGES):
            page = self._page(token)
            for item in page.get("items") or ():
                path = self._relative(str(item["name"]))
                if path is None or path.endswith("/"):
                    continue
                names.append(path)
                if wanted(safe_path(path, self.place)):
                    files.append(self._file(path, item))
            token = str(page.get("nextPageToken") or "")
            if not token:
                check_files(tuple(files), tuple(names), self.place)
                return Listing(tuple(files))
        raise self.place.refuse("it holds too many objects; name the model's own prefix", Reason.UNSUPPORTED)

    def _relative(self, name: str) -> str | None:
        if not self._prefix:
            return name
        if name == self._prefix:
            return name.rpartition("/")[2]
        return name.removeprefix(self._prefix + "/") if name.startswith(self._prefix + "/") else None

    def _page(self, token: str) -> dict[str, Any]:
        query = {"prefix": self._prefix, "fields": _FIELDS, "maxResults": "1000"}
        query |= {"pageToken": token} if token else {}
        url = f"{self._endpoint}/storage/v1/b/{quote(self._bucket, safe='')}/o?{urlencode(query)}"
        data, _ = self._http.read(lambda: self._asking(url, {}), self.explain, _LISTING_BYTES)
        try:
            page = json.loads(data)
        except ValueError:
            page = None
        if not isinstance(page, dict):
            raise self.place.refuse("the answer is not Google Cloud Storage's", Reason.DOWNLOAD_FAILED)
        return page

    def _file(self, path: str, item: Mapping[str, Any]) -> RemoteFile:
        generation = str(item.get("generation") or "")
        query = {"alt": "media"} | ({"generation": generation} if generation else {})
        bucket, name = quote(self._bucket, safe=""), quote(str(item["name"]), safe="")
        try:
            size = int(item["size"])
            md5 = base64.b64decode(str(item.get("md5Hash") or ""), validate=True).hex()
        except (KeyError, ValueError, binascii.Error) as error:
            raise self.place.refuse(
                f"object {path[:80]!r} has no usable size or hash", Reason.DOWNLOAD_FAILED
            ) from error
        # Without If-Match: the generation in the address names the version.
        url = f"{self._endpoint}/download/storage/v1/b/{bucket}/o/{name}?{urlencode(query)}"
        return RemoteFile(path, url, size, f"md5:{md5}" if md5 else "")

    def request(self, file: RemoteFile, headers: Mapping[str, str]) -> Request:
        """Return a request for an object."""
        return self._asking(file.url, headers)

    def _asking(self, url: str, headers: Mapping[str, str]) -> Request:
        proof = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        return Request(url, headers={**headers, **proof})  # noqa: S310 - the endpoint is the administrator's

    def explain(self, status: int, body: bytes, url: str) -> Permanent | None:
        """Return what a refusal means here."""
        del body
        if status == 404 and url.partition("?")[0].endswith("/o"):  # noqa: PLR2004
            return self.place.refuse(f"there is no bucket {self._bucket!r}", Reason.MODEL_NOT_FOUND)
        if status == 401:  # noqa: PLR2004
            what = "the access token has expired or is wrong" if self._token else "it is not public"
            return self.place.refuse(
                f"{what}; put HMAC keys (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY), which do not expire, or a fresh "
                f"`token` into a Secret and name it in {self.place.secret}",
                Reason.ACCESS_DENIED,
            )
        return None
