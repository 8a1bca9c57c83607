"""Models from a plain web server: one GGUF file, or a folder with config.json and safetensors.

Files go to ``<cache>/https/<digest of the URL>/``, a partial one is resumed with Range, and a file appears under its
name only when it is whole. Redirects may not leave HTTPS; the token goes to the first host only.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from llmos_operator.errors import Permanent, Retryable
from llmos_operator.runtime.formats.checkpoint import INDEX, SINGLE
from llmos_operator.runtime.loader.sources import Resolved, begin_download

if TYPE_CHECKING:
    from collections.abc import Sequence
    from http.client import HTTPMessage
    from typing import IO

    from llmos_operator.runtime.ipc.messages import Load
    from llmos_operator.runtime.loader.progress import Stages

_TIMEOUT_SECONDS = 60
_CHUNK = 1 << 20
_OPTIONAL = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "1_Pooling/config.json",
)


def download(load: Load, stages: Stages, files: Sequence[str] = ()) -> Resolved:
    """Return the local copy of ``load.uri``: a folder, with ``files`` or what a model needs, or the GGUF file inside it."""
    root = Path(load.cache_dir or tempfile.gettempdir()) / "https"
    folder = root / hashlib.sha256(load.uri.encode()).hexdigest()[:32]
    folder.mkdir(parents=True, exist_ok=True)
    web = _Web(load, stages)
    begin_download(stages, 0)
    if files:
        for wanted in files:
            web.fetch(urljoin(load.uri.rstrip("/") + "/", wanted), folder / wanted)
        return Resolved(folder, "", web.fetched)
    name = urlsplit(load.uri).path.rpartition("/")[2]
    if name.endswith(".gguf"):
        web.fetch(load.uri, folder / name)
        return Resolved(folder / name, "", web.fetched)
    base = load.uri if name.endswith((".json", ".safetensors")) else load.uri.rstrip("/") + "/"
    web.fetch(urljoin(base, "config.json"), folder / "config.json")
    for optional in _OPTIONAL:
        web.fetch(urljoin(base, optional), folder / optional, optional=True)
    if web.fetch(urljoin(base, INDEX), folder / INDEX, optional=True):
        weight_map = json.loads((folder / INDEX).read_bytes()).get("weight_map", {})
        for part in sorted({str(value) for value in weight_map.values()}):
            if "/" in part or part.startswith("."):
                raise Permanent(f"{INDEX} names {part!r}, which is no plain file name", reason="Corrupted")
            web.fetch(urljoin(base, part), folder / part)
    else:
        web.fetch(urljoin(base, SINGLE), folder / SINGLE)
    return Resolved(folder, "", web.fetched)


class SameHost(urllib.request.HTTPRedirectHandler):
    """Follows redirects over HTTPS only, without the token when the host changes."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        """Return the follow-up request. Raises Permanent for one that leaves HTTPS."""
        if urlsplit(newurl).scheme != "https" and urlsplit(req.full_url).scheme == "https":
            raise Permanent(
                f"{urlsplit(req.full_url).hostname} redirects away from https", reason="SourceNotAllowed"
            )
        follow = super().redirect_request(req, fp, code, msg, headers, newurl)
        if follow is not None and urlsplit(newurl).hostname != urlsplit(req.full_url).hostname:
            follow.headers.pop("Authorization", None)
        return follow


class _Web:
    """Fetches files and counts what came over the network."""

    def __init__(self, load: Load, stages: Stages) -> None:
        self._load = load
        self._stages = stages
        self._opener = urllib.request.build_opener(SameHost)
        self.fetched = 0
        self._total = 0

    def fetch(self, url: str, target: Path, *, optional: bool = False) -> bool:
        """Have ``target`` whole; False if it is optional and the server has none."""
        if target.is_file():
            return True
        partial = target.with_name(target.name + ".partial")
        have = partial.stat().st_size if partial.is_file() else 0
        headers = {"Range": f"bytes={have}-"} if have else {}
        if self._load.token:
            headers["Authorization"] = f"Bearer {self._load.token}"
        try:
            request = urllib.request.Request(url, headers=headers)  # noqa: S310 - sources.resolve passes https only
            with self._opener.open(request, timeout=_TIMEOUT_SECONDS) as answer:
                self._store(answer, partial, append=have > 0 and answer.status == 206)  # noqa: PLR2004
        except urllib.error.HTTPError as error:
            if error.code == 416 and have:  # noqa: PLR2004 - nothing is left to send: the partial file is whole
                partial.replace(target)
                return True
            if error.code in (404, 410) and optional:
                return False
            raise _translated(error, url) from error
        except OSError as error:
            raise Retryable(f"downloading {shown(url)} failed: {error}", after=5.0) from error
        shutil.move(partial, target)
        return True

    def _store(self, answer: Any, partial: Path, *, append: bool) -> None:
        expected = int(answer.headers.get("Content-Length") or 0)
        self._total += expected
        self._stages.at(self.fetched, self._total)
        got = 0
        partial.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("ab" if append else "wb") as file:
            while chunk := answer.read(_CHUNK):
                file.write(chunk)
                got += len(chunk)
                self.fetched += len(chunk)
                self._stages.at(self.fetched, self._total)
        if expected and got < expected:
            raise OSError(f"the connection ended after {got} of {expected} bytes")


def _translated(error: urllib.error.HTTPError, url: str) -> Permanent | Retryable:
    if error.code in (401, 403):
        return Permanent(f"{shown(url)}: access denied ({error.code})", reason="AccessDenied")
    if error.code in (404, 410):
        return Permanent(f"{shown(url)}: not found", reason="ModelNotFound")
    return Retryable(f"{shown(url)}: the server answered {error.code}", after=5.0)


def shown(url: str) -> str:
    """Return a URL without query and user, which may hold credentials."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}{parts.path}"
