"""`hf://organisation/name` by the hub's HTTP API: for copies that a node keeps.

The runtime's own downloads go through huggingface_hub, which brings the cache layout other tools share; a node's agent
has no room for it, and the store needs files with digests alone.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from urllib.parse import quote
from urllib.request import Request

from llmos_operator.api.conditions import Reason
from llmos_operator.modelstore.remote import Listing, RemoteFile, check_files, safe_path, wanted

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmos_operator.errors import Permanent
    from llmos_operator.modelstore.http import Http
    from llmos_operator.modelstore.remote import Access, Place

_LISTING_BYTES = 8 << 20


class Hub:
    """One repository at one revision."""

    def __init__(self, place: Place, access: Access, http: Http) -> None:
        self.place = place
        self._model = place.uri.partition("://")[2].strip("/")
        self._revision = place.revision or "main"
        self._http = http
        self._token = access.get("token")
        self._endpoint = access.hub.rstrip("/")

    def listing(self) -> Listing:
        """Return the files of the commit that the revision stands for."""
        name = f"{self._endpoint}/api/models/{quote(self._model)}/revision/{quote(self._revision, safe='')}"
        data, _ = self._http.read(
            lambda: self._asking(f"{name}?blobs=true", {}), self.explain, _LISTING_BYTES
        )
        try:
            answer = json.loads(data)
            commit = str(answer["sha"])
            entries = [(str(one["rfilename"]), one) for one in answer.get("siblings") or ()]
        except (ValueError, KeyError, TypeError) as error:
            raise self.place.refuse(
                f"{self._endpoint} does not answer as a model hub", Reason.DOWNLOAD_FAILED
            ) from error
        base = f"{self._endpoint}/{quote(self._model)}/resolve/{quote(commit, safe='')}"
        files = tuple(
            _file(path, f"{base}/{quote(path)}", one)
            for path, one in entries
            if wanted(safe_path(path, self.place))
        )
        check_files(files, tuple(path for path, _ in entries), self.place)
        return Listing(files, commit)

    def request(self, file: RemoteFile, headers: Mapping[str, str]) -> Request:
        """Return a request for a file."""
        return self._asking(file.url, headers)

    def _asking(self, url: str, headers: Mapping[str, str]) -> Request:
        proof = {"Authorization": f"Bearer {self._token}"} if self._token else {}
        return Request(url, headers={**headers, **proof})  # noqa: S310 - the hub is the administrator's choice

    def explain(self, status: int, body: bytes, url: str) -> Permanent | None:
        """Return what a refusal means here: the public hub answers 401 for names that it does not know."""
        del body, url
        if status == 404:  # noqa: PLR2004
            return self.place.refuse(
                f"the hub has no {self._model} at revision {self._revision}", Reason.MODEL_NOT_FOUND
            )
        if status == 401 and not self._token:  # noqa: PLR2004
            return self.place.refuse(
                f"the hub has no {self._model}, or it is private: then name a Secret with a `token` in {self.place.secret}",
                Reason.MODEL_NOT_FOUND,
            )
        return None


def _file(path: str, url: str, entry: Mapping[str, Any]) -> RemoteFile:
    lfs = entry.get("lfs")
    digest = str(lfs.get("sha256") or lfs.get("oid") or "") if isinstance(lfs, dict) else ""
    size = entry.get("size")
    return RemoteFile(
        path, url, size if isinstance(size, int) else None, f"sha256:{digest}" if digest else ""
    )
