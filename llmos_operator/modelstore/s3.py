"""`s3://bucket/prefix`: Amazon S3 and what speaks its API (MinIO, Ceph, R2, Google Cloud Storage with HMAC keys).

Sources: ListObjectsV2 and error codes of https://docs.aws.amazon.com/AmazonS3/latest/API/.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import xml.etree.ElementTree as ET
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote_plus, urlencode, urlsplit
from urllib.request import Request

from llmos_operator.api.conditions import Reason
from llmos_operator.errors import Permanent
from llmos_operator.modelstore.remote import Access, Listing, RemoteFile, check_files, safe_path, wanted
from llmos_operator.modelstore.sigv4 import Keys, signed

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from llmos_operator.modelstore.http import Http
    from llmos_operator.modelstore.remote import Place

_LISTING_BYTES = 8 << 20
_DEFAULT_REGION = "us-east-1"
_REGION_CODES = frozenset(
    {"PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}
)
_KEY_CODES = frozenset(
    {"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "ExpiredToken", "InvalidSecurity"}
)


class _OtherRegion(Permanent):
    """The bucket is elsewhere; ``region`` is "" where the answer does not say."""

    def __init__(self, message: str, region: str) -> None:
        super().__init__(message, reason=Reason.MODEL_NOT_FOUND)
        self.region = region


class S3:
    """A prefix of a bucket. Without keys requests are not signed: public buckets answer them."""

    def __init__(
        self, place: Place, access: Access, http: Http, *, now: Callable[[], dt.datetime] | None = None
    ) -> None:
        bucket, _, prefix = place.uri.partition("://")[2].partition("/")
        self.place = place
        self._bucket, self._prefix = bucket, prefix.strip("/")
        self._http = http
        self._now = now or (lambda: dt.datetime.now(dt.UTC))
        self._endpoint = (access.get("AWS_ENDPOINT_URL") or access.endpoint).rstrip("/")
        self._region = access.get("AWS_REGION") or access.region or _DEFAULT_REGION
        name = access.get("AWS_ACCESS_KEY_ID")
        secret = access.get("AWS_SECRET_ACCESS_KEY")
        if bool(name) != bool(secret):
            raise place.refuse(
                f"the Secret of {place.secret} has only one of AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; add the other",
                Reason.ACCESS_DENIED,
            )
        self._keys = Keys(name, secret, access.get("AWS_SESSION_TOKEN")) if name else None
        if self._endpoint and urlsplit(self._endpoint).scheme not in {"http", "https"}:
            raise place.refuse(
                f"the endpoint {self._endpoint!r} is no address; write it like https://minio.storage.svc:9000",
                Reason.SOURCE_NOT_ALLOWED,
            )

    def listing(self) -> Listing:
        """Return the objects below the prefix that a model needs; a prefix that is itself a GGUF file is that file."""
        names, files = [], []
        for key, size, etag in self.objects():
            path = self._relative(key)
            if path is None or key.endswith("/"):
                continue
            names.append(path)
            if wanted(safe_path(path, self.place)):
                # An ETag is an MD5 only without KMS and parts, so it tells versions apart and proves nothing.
                files.append(RemoteFile(path, self._url(key), size, version=etag))
        check_files(tuple(files), tuple(names), self.place)
        return Listing(tuple(files))

    def objects(self) -> list[tuple[str, int, str]]:
        """Return (key, bytes, ETag) of all objects whose keys begin with the prefix."""
        found: list[tuple[str, int, str]] = []
        token = ""
        while True:
            page, token = self._page(token)
            found += page
            if not token:
                return found
            if len(found) > 50_000:  # noqa: PLR2004 - a bucket's root, rather than a model
                raise self.place.refuse(
                    "there are more than 50000 objects below it; name a prefix of its own",
                    Reason.UNSUPPORTED,
                )

    def _relative(self, key: str) -> str | None:
        """Return the path of an object inside the model, None for a neighbour that only begins alike."""
        if not self._prefix:
            return key
        if key == self._prefix:
            return key.rpartition("/")[2]
        return key.removeprefix(self._prefix + "/") if key.startswith(self._prefix + "/") else None

    def _page(self, token: str) -> tuple[list[tuple[str, int, str]], str]:
        query = {"list-type": "2", "encoding-type": "url", "max-keys": "1000"}
        query |= {"prefix": self._prefix} if self._prefix else {}
        query |= {"continuation-token": token} if token else {}
        before = self._region
        try:
            data, _ = self._http.read(lambda: self.signed("", query=query), self.explain, _LISTING_BYTES)
        except _OtherRegion as moved:
            if moved.region in {"", before}:
                raise
            self._region = moved.region  # once: a second answer of this kind has the same region
            data, _ = self._http.read(lambda: self.signed("", query=query), self.explain, _LISTING_BYTES)
        return _parsed(data, self.place)

    def request(self, file: RemoteFile, headers: Mapping[str, str]) -> Request:
        """Return a signed request for an object."""
        return self._signed(file.url, headers)

    def signed(
        self,
        key: str,
        *,
        method: str = "GET",
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> Request:
        """Return a request for an object, or for the bucket itself where ``key`` is empty."""
        return self._signed(self._url(key, query), headers or {}, method, body)

    def _signed(
        self, url: str, headers: Mapping[str, str], method: str = "GET", body: bytes | None = None
    ) -> Request:
        made = {**headers, **({"Content-Type": "application/octet-stream"} if body is not None else {})}
        if self._keys is not None:
            digest = hashlib.sha256(body or b"").hexdigest()
            made = signed(
                url, made, self._keys, region=self._region, at=self._now(), method=method, body_sha256=digest
            )
        # http only where an administrator's endpoint says so
        return Request(url, data=body, headers=made, method=method)  # noqa: S310

    def _url(self, key: str, query: Mapping[str, str] | None = None) -> str:
        """Return an object's address: the bucket is a host name at Amazon, and a folder elsewhere."""
        if self._endpoint:
            base = f"{self._endpoint}/{quote(self._bucket)}"
        elif "." in self._bucket:  # no certificate covers such a host name
            base = f"https://s3.{self._region}.amazonaws.com/{quote(self._bucket)}"
        else:
            base = f"https://{self._bucket}.s3.{self._region}.amazonaws.com"
        return f"{base}/{quote(key, safe='/-_.~')}" + (
            f"?{urlencode(query, quote_via=quote, safe='-_.~')}" if query else ""
        )

    def explain(self, status: int, body: bytes, url: str) -> Permanent | None:
        """Return what an error code of S3 means."""
        del url
        fields = error_fields(body)
        code, place = fields.get("Code", ""), self.place
        if code == "NoSuchBucket":
            return place.refuse(
                f"there is no bucket {self._bucket!r} at {self._where()}", Reason.MODEL_NOT_FOUND
            )
        if code in _REGION_CODES or status in {301, 307}:
            return _OtherRegion(
                f"{place.field} = {place.shown}: the bucket is in another region than {self._region!r}"
                + (f", in {fields['Region']!r}" if "Region" in fields else "")
                + f"; set AWS_REGION in the Secret of {place.secret}",
                fields.get("Region", ""),
            )
        if code in _KEY_CODES:
            return place.refuse(
                f"{self._where()} does not accept the keys ({code}); correct the Secret of {place.secret}",
                Reason.ACCESS_DENIED,
            )
        if code == "RequestTimeTooSkewed":
            return place.refuse("the clock of this node is wrong by minutes; set it", Reason.ACCESS_DENIED)
        if status == 403:  # noqa: PLR2004
            who = "the keys may not" if self._keys else "without keys nobody may"
            return place.refuse(
                f"access denied: {who} list and read it; name a Secret with AWS_ACCESS_KEY_ID and "
                f"AWS_SECRET_ACCESS_KEY that may (s3:ListBucket, s3:GetObject) in {place.secret}",
                Reason.ACCESS_DENIED,
            )
        return None

    def _where(self) -> str:
        return self._endpoint or f"Amazon S3 ({self._region})"


def _parsed(data: bytes, place: Place) -> tuple[list[tuple[str, int, str]], str]:
    """Return (key, size, ETag) of a page and the token of the next one."""
    root = xml_of(data)
    if root is None or not root.tag.endswith("ListBucketResult"):
        raise place.refuse(
            "the endpoint does not answer as S3 does; correct AWS_ENDPOINT_URL", Reason.DOWNLOAD_FAILED
        )
    space = root.tag.removesuffix("ListBucketResult")
    found = []
    for one in root.iter(f"{space}Contents"):
        key, size = one.findtext(f"{space}Key") or "", one.findtext(f"{space}Size") or ""
        if not size.isdecimal():
            raise place.refuse("the listing has an object without a size", Reason.DOWNLOAD_FAILED)
        found.append((unquote_plus(key), int(size), one.findtext(f"{space}ETag") or ""))
    more = (root.findtext(f"{space}IsTruncated") or "") == "true"
    return found, (root.findtext(f"{space}NextContinuationToken") or "") if more else ""


def error_fields(body: bytes) -> dict[str, str]:
    """Return the fields of an answer in XML, as of an error; none if it is none."""
    root = xml_of(body)
    return (
        {} if root is None else {child.tag.rpartition("}")[2]: (child.text or "").strip() for child in root}
    )


def xml_of(data: bytes) -> ET.Element | None:
    """Return an answer as XML, None if it is none or has a document type."""
    if b"<!DOCTYPE" in data[:4096] or b"<!ENTITY" in data:  # no answer of S3 has one, and only they can grow
        return None
    try:
        # While it joins parts, S3 sends white space first.
        return ET.fromstring(data.strip())  # noqa: S314 - bounded, and without entities of its own
    except ET.ParseError:
        return None


def interoperable(place: Place, access: Access, http: Http) -> S3:
    """Return a bucket of Google Cloud Storage as S3 sees it: HMAC keys sign its XML API in S3's way.

    Source: https://cloud.google.com/storage/docs/interoperability.
    """
    keys = {name: access.get(name) for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
    return S3(place, Access(keys, access.endpoint or "https://storage.googleapis.com", "auto"), http)
