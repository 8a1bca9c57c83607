"""The routes of a model hub, as `huggingface_hub` uses them.

Errors carry `X-Error-Code` (RepoNotFound, RevisionNotFound, EntryNotFound, GatedRepo), from which clients make their
exceptions. Files are served with Range support and identified by `X-Linked-Etag` and `X-Repo-Commit`.
"""

from __future__ import annotations

import asyncio
import hmac
from typing import TYPE_CHECKING, Any, Never

from aiohttp import web

if TYPE_CHECKING:
    from pathlib import Path

    from llmos_operator.local.hub.store import Repository, Store, StoredFile

Json = dict[str, Any]
_CHUNK = 1 << 18
_FILE: web.RequestKey[StoredFile] = web.RequestKey("file", object)  # type: ignore[arg-type]


class HubServer:
    """Serves a :class:`Store`. ``bandwidth`` (bytes a second, 0: no bound) slows files down, each on its own."""

    def __init__(self, store: Store, *, bandwidth: int = 0) -> None:
        self._store = store
        self._bandwidth = bandwidth

    def app(self) -> web.Application:
        """Return the application."""
        app = web.Application()
        name = "{organisation:[^/]+}/{model:[^/]+}"
        app.add_routes(
            [
                web.get("/healthz", self._healthy),
                web.get("/api/models", self._list),
                web.get(f"/api/models/{name}", self._info),
                web.get(f"/api/models/{name}/revision/{{revision:.+}}", self._info),
                web.get(f"/api/models/{name}/tree/{{revision:[^/]+}}", self._tree),
                web.get(f"/api/models/{name}/tree/{{revision:[^/]+}}/{{folder:.+}}", self._tree),
                web.get(f"/{name}/resolve/{{revision:[^/]+}}/{{path:.+}}", self._resolve),
            ]
        )
        app.on_response_prepare.append(_identify)
        return app

    async def _healthy(self, _request: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def _list(self, _request: web.Request) -> web.Response:
        return web.json_response([{"id": name, "modelId": name} for name in self._store.names()])

    async def _info(self, request: web.Request) -> web.Response:
        repository = await self._repository(request)
        body = {
            "id": repository.name,
            "modelId": repository.name,
            "sha": repository.commit,
            "private": False,
            "gated": "manual" if self._store.token(repository.name) else False,
            "disabled": False,
            "tags": [],
            "downloads": 0,
            "likes": 0,
            "siblings": [_sibling(entry) for entry in repository.files.values()],
        }
        return web.json_response(body, headers={"X-Repo-Commit": repository.commit})

    async def _tree(self, request: web.Request) -> web.Response:
        repository = await self._repository(request)
        prefix = request.match_info.get("folder", "").rstrip("/")
        prefix = f"{prefix}/" if prefix else ""
        recursive = request.query.get("recursive", "").lower() in {"1", "true"}
        entries: dict[str, Json] = {}
        for entry in repository.files.values():
            rest = entry.path.removeprefix(prefix)
            if not entry.path.startswith(prefix):
                continue
            folder = rest.partition("/")[0] if "/" in rest and not recursive else ""
            if folder:
                entries[prefix + folder] = {
                    "type": "directory",
                    "path": prefix + folder,
                    "size": 0,
                    "oid": repository.commit,
                }
            else:
                entries[entry.path] = _tree_entry(entry)
        return web.json_response(list(entries.values()), headers={"X-Repo-Commit": repository.commit})

    async def _resolve(self, request: web.Request) -> web.StreamResponse:
        repository = await self._repository(request)
        self._authorise(request, repository)
        path = request.match_info["path"]
        entry = repository.files.get(path)
        if entry is None:
            _refuse(404, "EntryNotFound", f"{path} does not exist in {repository.name}", repository.commit)
        request[_FILE] = entry
        headers = {
            "X-Repo-Commit": repository.commit,
            "X-Linked-Etag": f'"{entry.etag}"',
            "X-Linked-Size": str(entry.size),
            "Content-Type": "application/octet-stream",
        }
        if self._bandwidth and request.method == "GET":
            return await self._slow(request, repository.root / path, headers)
        return web.FileResponse(repository.root / path, headers=headers, chunk_size=_CHUNK)

    async def _slow(self, request: web.Request, path: Path, headers: dict[str, str]) -> web.StreamResponse:
        size = path.stat().st_size  # noqa: ASYNC240 - one stat of a local file
        asked = request.http_range
        start, stop = asked.start or 0, min(asked.stop or size, size)
        status = 206 if asked.start is not None else 200
        response = web.StreamResponse(status=status, headers={**headers, "Accept-Ranges": "bytes"})
        response.content_length = stop - start
        if status == 206:  # noqa: PLR2004 - Partial Content
            response.headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        await response.prepare(request)
        step = max(1, min(_CHUNK, self._bandwidth // 20))
        with path.open("rb") as file:
            file.seek(start)
            for offset in range(start, stop, step):
                await response.write(file.read(min(step, stop - offset)))
                await asyncio.sleep(step / self._bandwidth)
        await response.write_eof()
        return response

    async def _repository(self, request: web.Request) -> Repository:
        name = f"{request.match_info['organisation']}/{request.match_info['model']}"
        # Hashing a new model takes seconds; other requests go on meanwhile.
        repository = await asyncio.to_thread(self._store.repository, name)
        if repository is None:
            _refuse(404, "RepoNotFound", f"Repository {name} not found in this mirror")
        revision = request.match_info.get("revision")
        if revision is not None and not repository.at(revision):
            _refuse(404, "RevisionNotFound", f"{name} has only the revisions main and {repository.commit}")
        return repository

    def _authorise(self, request: web.Request, repository: Repository) -> None:
        token = self._store.token(repository.name)
        if not token:
            return
        given = request.headers.get("Authorization", "")
        if not given:
            _refuse(401, "GatedRepo", f"Access to model {repository.name} is restricted; send a token")
        if not hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
            _refuse(403, "GatedRepo", f"Access to model {repository.name} is restricted; this token has none")


async def _identify(request: web.Request, response: web.StreamResponse) -> None:
    """Replace the ETag that aiohttp derives from a file's time by that of its contents."""
    entry = request.get(_FILE)
    if entry is not None and response.status < 400:  # noqa: PLR2004 - not an error
        response.headers["ETag"] = f'"{entry.etag}"'


def _refuse(status: int, code: str, message: str, commit: str = "") -> Never:
    kinds: dict[int, type[web.HTTPError]] = {
        401: web.HTTPUnauthorized,
        403: web.HTTPForbidden,
        404: web.HTTPNotFound,
    }
    headers = {"X-Error-Code": code, "X-Error-Message": message} | (
        {"X-Repo-Commit": commit} if commit else {}
    )
    raise kinds[status](headers=headers, text=message)


def _sibling(entry: StoredFile) -> Json:
    body: Json = {"rfilename": entry.path, "size": entry.size, "blobId": entry.oid}
    return body | ({"lfs": _lfs(entry)} if entry.sha256 else {})


def _tree_entry(entry: StoredFile) -> Json:
    body: Json = {"type": "file", "path": entry.path, "size": entry.size, "oid": entry.oid}
    return body | ({"lfs": _lfs(entry) | {"oid": entry.sha256}} if entry.sha256 else {})


def _lfs(entry: StoredFile) -> Json:
    return {"sha256": entry.sha256, "size": entry.size, "pointerSize": 134}
