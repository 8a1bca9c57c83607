"""`oci://registry/repository:tag`: a model in a container registry, as an artifact or inside an image.

Layers with a name are files (ORAS, ModelPack); other tar layers are opened, and of an image what lies in `/models` is
taken, as KServe's "modelcar" images have it. Every byte is checked against the digest that the manifest names.
Sources: https://github.com/opencontainers/distribution-spec/blob/v1.1.1/spec.md,
https://distribution.github.io/distribution/spec/auth/token/, https://github.com/modelpack/model-spec.
"""

from __future__ import annotations

import base64
import hashlib
import json
import platform
import re
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode, urlsplit
from urllib.request import Request

from llmos_operator.api.conditions import Reason
from llmos_operator.errors import Permanent
from llmos_operator.modelstore.remote import Listing, RemoteFile, check_files, safe_path, wanted

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmos_operator.modelstore.http import Http
    from llmos_operator.modelstore.remote import Access, Place

_MANIFEST_BYTES = 4 << 20
_TITLES = ("org.opencontainers.image.title", "org.cncf.model.filepath")
_INDEXES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
_ACCEPTED = ", ".join(
    (
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
        *_INDEXES,
    )
)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_REPOSITORY = re.compile(r"[a-z0-9]+([._/-]+[a-z0-9]+)*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_CHALLENGE = re.compile(r'(\w+)="([^"]*)"')
_IMAGE_FOLDER = "models/"  # where KServe's "modelcar" images have the model
_TOKEN_SECONDS = 50.0  # the specification promises a token at least 60 seconds


class _Challenge(Permanent):
    """The registry asks who is there."""


class Registry:
    """One repository of a registry at one tag or digest."""

    def __init__(self, place: Place, access: Access, http: Http) -> None:
        self.place = place
        self._http = http
        self._user, self._password = access.get("username"), access.get("password")
        self._token = access.get("token")
        self._proof = f"Bearer {self._token}" if self._token else ""
        self._proved_at: float | None = None  # None: the proof does not grow old
        host, _, rest = place.uri.partition("://")[2].partition("/")
        name, _, digest = rest.partition("@")
        name, _, tag = name.partition(":")
        pinned = "" if place.revision == "main" else place.revision
        self._reference = digest or tag or pinned or "latest"
        self._repository = name
        good = _DIGEST.fullmatch(self._reference) or _TAG.fullmatch(self._reference)
        if not _REPOSITORY.fullmatch(name) or not good:
            raise place.refuse("write it like oci://registry.example/team/model:tag", Reason.INVALID_SPEC)
        # As container tools do: plain HTTP for a registry of this machine only.
        local = (urlsplit(f"//{host}").hostname or "") in {"localhost", "127.0.0.1"}
        self._base = f"{'http' if local else 'https'}://{host}/v2/{name}"

    def listing(self) -> Listing:
        """Return the layers that are files of the model, or hold some."""
        manifest, digest = self._manifest(self._reference)
        if "manifests" in manifest:
            manifest, digest = self._manifest(self._of_this_machine(manifest))
        files, names = [], []
        for layer in manifest.get("layers") or ():
            file, name = self._layer(layer)
            names.append(name)
            if file is not None:
                files.append(file)
        check_files(tuple(files), tuple(names), self.place)
        return Listing(tuple(files), digest)

    def _layer(self, layer: Mapping[str, Any]) -> tuple[RemoteFile | None, str]:
        digest, media = str(layer.get("digest") or ""), str(layer.get("mediaType") or "")
        size = layer.get("size")
        if not _DIGEST.fullmatch(digest) or not isinstance(size, int) or size < 0:
            raise self.place.refuse("the manifest has a layer without digest or size", Reason.CORRUPTED)
        notes = layer.get("annotations") or {}
        title = next((str(notes[key]) for key in _TITLES if notes.get(key)), "")
        url = f"{self._base}/blobs/{digest}"
        if media.endswith((".tar", "+gzip", ".tar.gzip", ".tar+gzip")) or not title:
            return RemoteFile(
                f"{digest.removeprefix('sha256:')}.tar",
                url,
                size,
                digest,
                packed="" if title else _IMAGE_FOLDER,
            ), title
        path = safe_path(title, self.place)
        return (RemoteFile(path, url, size, digest), path) if wanted(path) else (None, path)

    def _manifest(self, reference: str) -> tuple[dict[str, Any], str]:
        """Return a manifest and its digest, which is checked if it was asked for by digest."""
        url = f"{self._base}/manifests/{reference}"
        data = self._read(url, {"Accept": _ACCEPTED})
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        if _DIGEST.fullmatch(reference) and reference != digest:
            raise self.place.refuse(
                f"the registry's manifest has digest {digest}, not {reference}", Reason.CORRUPTED
            )
        try:
            manifest = json.loads(data)
        except ValueError as error:
            raise self.place.refuse("the registry's manifest is not JSON", Reason.CORRUPTED) from error
        if not isinstance(manifest, dict):
            raise self.place.refuse("the registry's manifest is no object", Reason.CORRUPTED)
        return manifest, digest

    def _of_this_machine(self, index: Mapping[str, Any]) -> str:
        mine = _ARCHITECTURES.get(platform.machine(), "amd64")
        entries = [one for one in index["manifests"] if _DIGEST.fullmatch(str(one.get("digest") or ""))]
        fit = [one for one in entries if (one.get("platform") or {}).get("architecture") == mine]
        # Artifacts have no platform; attestations say "unknown".
        plain = [one for one in entries if not one.get("platform")]
        if not fit and not plain:
            raise self.place.refuse(f"the image has no variant for {mine}", Reason.UNSUPPORTED)
        return str((fit or plain)[0]["digest"])

    def _read(self, url: str, headers: Mapping[str, str]) -> bytes:
        try:
            data, _ = self._http.read(lambda: self._asking(url, headers), self._first, _MANIFEST_BYTES)
        except _Challenge:
            self._answer_challenge(url)
            data, _ = self._http.read(lambda: self._asking(url, headers), self.explain, _MANIFEST_BYTES)
        return data

    def _answer_challenge(self, url: str) -> None:
        """Prove who asks, in the way the registry names. Raises Permanent(AccessDenied)."""
        kind, fields = parse_challenge(self._http.challenge(Request(url, headers={"Accept": _ACCEPTED})))  # noqa: S310
        basic = base64.b64encode(f"{self._user}:{self._password}".encode()).decode()
        if kind == "basic":
            if not self._user:
                raise self._denied()
            self._proof = f"Basic {basic}"
            return
        realm = fields.get("realm", "")
        parts, own = urlsplit(realm), urlsplit(url)
        # The password goes there, so it must be as safe as the registry itself.
        if kind != "bearer" or not (
            parts.scheme == "https" or (parts.scheme, parts.hostname) == (own.scheme, own.hostname)
        ):
            raise self.place.refuse(
                "the registry asks for a proof that is not supported", Reason.ACCESS_DENIED
            )
        query = {"service": fields.get("service", ""), "scope": f"repository:{self._repository}:pull"}
        headers = {"Authorization": f"Basic {basic}"} if self._user else {}
        address = f"{realm}?{urlencode(query)}"
        data, _ = self._http.read(lambda: Request(address, headers=headers), self.explain, _MANIFEST_BYTES)  # noqa: S310
        try:
            answer = json.loads(data)
            self._proof = f"Bearer {answer.get('token') or answer['access_token']}"
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise self.place.refuse(
                "the registry's token service gave no token", Reason.ACCESS_DENIED
            ) from error
        self._proved_at = time.monotonic()

    def request(self, file: RemoteFile, headers: Mapping[str, str]) -> Request:
        """Return a request for a blob."""
        if self._proved_at is not None and time.monotonic() - self._proved_at > _TOKEN_SECONDS:
            self._answer_challenge(f"{self._base}/manifests/{self._reference}")
        return self._asking(file.url, headers)

    def _asking(self, url: str, headers: Mapping[str, str]) -> Request:
        proof = {"Authorization": self._proof} if self._proof else {}
        return Request(url, headers={**headers, **proof})  # noqa: S310 - https, or this machine

    def _first(self, status: int, body: bytes, url: str) -> Permanent | None:
        if status == 401 and not self._token:  # noqa: PLR2004
            return _Challenge("who is there?", reason=Reason.ACCESS_DENIED)
        return self.explain(status, body, url)

    def explain(self, status: int, body: bytes, url: str) -> Permanent | None:
        """Return what a refusal means here."""
        del body, url
        if status in {401, 403}:
            return self._denied()
        if status == 404:  # noqa: PLR2004
            return self.place.refuse(
                f"the registry has no {self._repository} at {self._reference}", Reason.MODEL_NOT_FOUND
            )
        return None

    def _denied(self) -> Permanent:
        return self.place.refuse(
            f"the registry denies access to {self._repository}; name a Secret with `username` and `password` (or `token`) "
            f"that may pull it in {self.place.secret}",
            Reason.ACCESS_DENIED,
        )


def parse_challenge(header: str) -> tuple[str, dict[str, str]]:
    """Return kind (lower case) and parameters of a WWW-Authenticate header."""
    kind, _, rest = header.strip().partition(" ")
    return kind.lower(), dict(_CHALLENGE.findall(rest))
