"""Object stores and a registry on loopback: the dialects of S3, Google Cloud Storage and OCI over real HTTP.

Faults are part of a store: connections that end early, answers that fail for a while, a bucket in another region.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.server
import json
import re
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from collections.abc import Iterator

ACCESS, SECRET = "minio-user", "minio-pass-of-the-test"
USER, PASSWORD = "robot", "registry-pass-of-the-test"


@dataclass
class Storage:
    """What is stored, how it misbehaves, and what was asked."""

    url: str = ""
    buckets: dict[str, dict[str, bytes]] = field(default_factory=dict)
    region: str = "us-east-1"
    private: bool = True
    page: int = 1000  # objects of one page of a listing
    token: str = ""  # that GCS asks for
    manifests: dict[str, bytes] = field(default_factory=dict)  # by "repository:reference"
    blobs: dict[str, bytes] = field(default_factory=dict)  # by digest
    cuts: dict[str, int] = field(default_factory=dict)  # how many answers of a path end in their middle
    failures: dict[str, list[int]] = field(default_factory=dict)  # statuses that a path answers first
    seen: list[tuple[str, str]] = field(default_factory=list)  # path, Range
    headers: list[dict[str, str]] = field(default_factory=list)
    gate: threading.Event | None = None  # files wait for it
    read_only: bool = False
    ranges: bool = True
    lost: int = 0  # answers to the end of an upload that do not arrive
    refusals: dict[str, tuple[int, str]] = field(
        default_factory=dict
    )  # status and code that writes to a path get
    notes: dict[str, dict[str, str]] = field(default_factory=dict)  # x-amz-meta- headers by "/bucket/key"
    uploads: dict[str, dict[int, bytes]] = field(default_factory=dict)  # parts by upload
    writes: list[tuple[str, str]] = field(default_factory=list)  # method and path

    def asked(self, path: str) -> list[str]:
        """Ranges that were asked of ``path``."""
        return [span for where, span in self.seen if where == path]

    def push(self, repository: str, tag: str, layers: list[tuple[str, str, bytes]]) -> str:
        """Store an artifact of (media type, title, content) layers; return the digest of its manifest."""
        entries = []
        for media, title, content in layers:
            digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
            self.blobs[digest] = content
            notes = {"annotations": {"org.opencontainers.image.title": title}} if title else {}
            entries.append({"mediaType": media, "digest": digest, "size": len(content), **notes})
        manifest = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.empty.v1+json",
                "digest": "sha256:" + "0" * 64,
                "size": 2,
            },
            "layers": entries,
        }
        return self.store_manifest(repository, tag, manifest)

    def store_manifest(self, repository: str, tag: str, manifest: dict[str, Any]) -> str:
        """Store a manifest under its tag and its digest."""
        raw = json.dumps(manifest).encode()
        digest = f"sha256:{hashlib.sha256(raw).hexdigest()}"
        self.manifests[f"{repository}:{tag}"] = self.manifests[f"{repository}:{digest}"] = raw
        return digest


@contextmanager
def storage() -> Iterator[Storage]:
    """Run a store until the block ends."""
    made = Storage()

    class Handler(_Handler):
        store = made

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    made.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield made
    finally:
        if made.gate is not None:
            made.gate.set()
        server.shutdown()
        server.server_close()
        thread.join(10)


class _Handler(http.server.BaseHTTPRequestHandler):
    store: Storage

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.store.seen.append((path, self.headers.get("Range") or ""))
        self.store.headers.append(dict(self.headers))
        waiting = self.store.failures.get(path)
        if waiting:
            self._answer(waiting.pop(0), b"later", {"Retry-After": "0"})
        elif path.startswith("/v2/"):
            self._registry(path)
        elif path == "/token":
            self._registry_token()
        elif path.startswith(("/storage/v1/", "/download/storage/v1/")):
            self._google()
        else:
            self._s3(path)

    do_HEAD = do_GET  # noqa: N815 - named by http.server

    def do_PUT(self) -> None:
        self._write()

    def do_POST(self) -> None:
        self._write()

    def do_DELETE(self) -> None:
        self._write()

    # -- S3

    def _write(self) -> None:  # noqa: PLR0911 - one for each answer
        path = unquote(urlsplit(self.path).path)
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.store.writes.append((self.command, path))
        self.store.headers.append(dict(self.headers))
        if path in self.store.refusals:
            return self._s3_error(*self.store.refusals[path])
        waiting = self.store.failures.get(path)
        if waiting:
            return self._answer(waiting.pop(0), b"later", {"Retry-After": "0"})
        if trouble := self._signature_trouble():
            return self._s3_error(*trouble)
        if (
            self.headers["Authorization"]
            and self.headers["x-amz-content-sha256"] != hashlib.sha256(body).hexdigest()
        ):
            return self._s3_error(400, "XAmzContentSHA256Mismatch")
        bucket, _, key = path.lstrip("/").partition("/")
        objects = self.store.buckets.get(bucket)
        if objects is None:
            return self._s3_error(404, "NoSuchBucket")
        if self.store.read_only:
            return self._s3_error(403, "AccessDenied")
        return self._change(objects, key, path, body)

    def _change(self, objects: dict[str, bytes], key: str, path: str, body: bytes) -> None:  # noqa: PLR0911
        query = {
            name: values[0]
            for name, values in parse_qs(urlsplit(self.path).query, keep_blank_values=True).items()
        }
        upload = query.get("uploadId", "")
        if upload and upload not in self.store.uploads:
            return self._s3_error(404, "NoSuchUpload")
        if self.command == "DELETE":
            if upload:
                del self.store.uploads[upload]
            else:
                objects.pop(key, None)
            return self._answer(204, b"")
        if self.command == "PUT":
            if upload:
                self.store.uploads[upload][int(query["partNumber"])] = body
            else:
                self._keep(objects, key, path, body)
            return self._answer(200, b"", {"ETag": _etag(body)})
        if "uploads" in query:
            upload = f"upload+{len(self.store.uploads)}/{key}"
            self.store.uploads[upload] = {}
            self._note(path)
            return self._answer(200, _xml("InitiateMultipartUploadResult", UploadId=upload))
        parts = self.store.uploads.pop(upload)
        told = re.findall(r"<PartNumber>(\d+)</PartNumber><ETag>([^<]+)</ETag>", body.decode())
        if [(int(number), tag) for number, tag in told] != [(n, _etag(parts[n])) for n in sorted(parts)]:
            return self._answer(200, _xml("Error", Code="InvalidPart"))
        objects[key] = b"".join(parts[number] for number in sorted(parts))
        if self.store.lost:
            self.store.lost -= 1
            return self._answer(503, b"")
        return self._answer(200, b" \n" + _xml("CompleteMultipartUploadResult", Key=key))

    def _keep(self, objects: dict[str, bytes], key: str, path: str, body: bytes) -> None:
        objects[key] = body
        self._note(path)

    def _note(self, path: str) -> None:
        self.store.notes[path] = {
            name.lower(): value
            for name, value in self.headers.items()
            if name.lower().startswith("x-amz-meta-")
        }

    def _s3(self, path: str) -> None:
        trouble = self._signature_trouble()
        if trouble:
            return self._s3_error(*trouble)
        bucket, _, key = path.lstrip("/").partition("/")
        objects = self.store.buckets.get(bucket)
        if objects is None:
            return self._s3_error(404, "NoSuchBucket")
        query = parse_qs(urlsplit(self.path).query)
        if not key and "list-type" in query:
            return self._s3_list(objects, query)
        if key not in objects:
            return self._s3_error(404, "NoSuchKey")
        return self._send(path, objects[key])

    def _s3_list(self, objects: dict[str, bytes], query: dict[str, list[str]]) -> None:
        prefix, after = query.get("prefix", [""])[0], query.get("continuation-token", [""])[0]
        keys = sorted(key for key in objects if key.startswith(prefix) and key > after)
        page, more = keys[: self.store.page], len(keys) > self.store.page
        found = "".join(
            f"<Contents><Key>{quote(key)}</Key><Size>{len(objects[key])}</Size>"
            f"<ETag>{escape(_etag(objects[key]))}</ETag></Contents>"
            for key in page
        )
        token = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if more else ""
        text = (
            '<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}{found}</ListBucketResult>"
        )
        return self._answer(200, text.encode(), {"Content-Type": "application/xml"})

    def _s3_error(self, status: int, code: str, region: str = "") -> None:
        where = f"<Region>{region}</Region>" if region else ""
        self._answer(status, f"<Error><Code>{code}</Code>{where}<Message>no</Message></Error>".encode())

    def _signature_trouble(self) -> tuple[Any, ...] | None:
        """Check the request as S3 does: from what arrived, not from what was meant."""
        given = self.headers.get("Authorization") or ""
        if not given:
            return (403, "AccessDenied") if self.store.private else None
        match = re.fullmatch(
            r"AWS4-HMAC-SHA256 Credential=([^/]+)/(\d{8})/([^/]+)/s3/aws4_request,\s*SignedHeaders=([^,]+),\s*Signature=(\w+)",
            given,
        )
        if match is None:
            return 400, "AuthorizationHeaderMalformed"
        access, day, region, names, signature = match.groups()
        if access != ACCESS:
            return 403, "InvalidAccessKeyId"
        if region != self.store.region:
            return 400, "AuthorizationHeaderMalformed", self.store.region
        if "host" not in names.split(";") or "x-amz-date" not in names.split(";"):
            return 403, "SignatureDoesNotMatch"
        path, _, query = self.path.partition("?")
        lines = [f"{name}:{self.headers[name]}" for name in names.split(";")]
        body = self.headers["x-amz-content-sha256"]
        wanted = "\n".join([self.command, path, "&".join(sorted(query.split("&"))), *lines, "", names, body])
        scope = f"{day}/{region}/s3/aws4_request"
        text = f"AWS4-HMAC-SHA256\n{self.headers['x-amz-date']}\n{scope}\n{hashlib.sha256(wanted.encode()).hexdigest()}"
        key = ("AWS4" + SECRET).encode()
        for part in [*scope.split("/"), text]:
            key = hmac.new(key, part.encode(), hashlib.sha256).digest()
        return None if hmac.compare_digest(key.hex(), signature) else (403, "SignatureDoesNotMatch")

    # -- Google

    def _google(self) -> None:
        wanted = f"Bearer {self.store.token}" if self.store.token else None
        if wanted and self.headers.get("Authorization") != wanted:
            return self._answer(401, b"{}")
        raw = urlsplit(self.path)
        parts = [unquote(one) for one in raw.path.removeprefix("/download").split("/")]  # …/b/BUCKET/o[/NAME]
        objects = self.store.buckets.get(parts[4])
        query = parse_qs(raw.query)
        if objects is None:
            return self._answer(404, b"{}")
        if len(parts) == 7 and query.get("alt") == ["media"]:
            return self._send(f"/{parts[4]}/{parts[6]}", objects[parts[6]])
        prefix, after = query.get("prefix", [""])[0], query.get("pageToken", [""])[0]
        keys = sorted(key for key in objects if key.startswith(prefix) and key > after)
        page = keys[: self.store.page]
        items = [
            {
                "name": key,
                "size": str(len(objects[key])),
                "generation": "7",
                "md5Hash": base64.b64encode(hashlib.md5(objects[key]).digest()).decode(),  # noqa: S324
            }
            for key in page
        ]
        answer = {"items": items} | ({"nextPageToken": page[-1]} if len(keys) > len(page) else {})
        return self._answer(200, json.dumps(answer).encode())

    # -- registry

    def _registry(self, path: str) -> None:
        if self.store.private and self.headers.get("Authorization") != "Bearer good":
            host = self.headers["Host"]
            asks = f'Bearer realm="http://{host}/token",service="registry",scope="repository:x:pull"'
            return self._answer(401, b"{}", {"WWW-Authenticate": asks})
        match = re.fullmatch(r"/v2/(.+)/(manifests|blobs)/([^/]+)", path)
        if match is None:
            return self._answer(404, b"{}")
        repository, kind, reference = match.groups()
        if kind == "manifests":
            raw = self.store.manifests.get(f"{repository}:{reference}")
            return self._answer(200 if raw is not None else 404, raw or b"{}")
        if reference not in self.store.blobs:
            return self._answer(404, b"{}")
        return self._send(path, self.store.blobs[reference])

    def _registry_token(self) -> None:
        good = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        ok = self.headers.get("Authorization") == f"Basic {good}"
        self._answer(200 if ok else 401, b'{"token": "good"}' if ok else b"{}")

    # -- files

    def _send(self, path: str, content: bytes) -> None:
        if self.store.gate is not None:
            self.store.gate.wait(60)
        asked = self.headers.get("Range") or "" if self.store.ranges else ""
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", asked)
        start = int(match[1]) if match else 0
        end = min(len(content), int(match[2]) + 1) if match and match[2] else len(content)
        asked = self.headers.get("If-Match")
        if asked and asked != _etag(content):
            return self._answer(412, b"")
        if match and start >= len(content):
            return self._answer(416, b"")
        body = content[start:end]
        self.send_response(206 if match else 200)
        if match:
            self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", _etag(content))
        for name, value in self.store.notes.get(path, {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return None
        if self.store.cuts.get(path, 0) > 0 and len(body) > 1:
            self.store.cuts[path] -= 1
            body = body[: len(body) // 2]
        self.wfile.write(body)
        return None

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _xml(root: str, **fields: str) -> bytes:
    inner = "".join(f"<{name}>{escape(value)}</{name}>" for name, value in fields.items())
    return f'<{root} xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{inner}</{root}>'.encode()


def _etag(content: bytes) -> str:
    return f'"{hashlib.md5(content).hexdigest()}"'  # noqa: S324 - as S3 has it
