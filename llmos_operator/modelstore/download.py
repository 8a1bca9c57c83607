"""Bringing files here: in parts, several at once, going on where an earlier try stopped.

A file that is not whole is `NAME.partial` beside a note of the parts it has; a file has its name only when it is whole
and has the digest that is published for it. Work in a folder is one process's at a time: the caller holds its lock.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import json
import os
import shutil
import threading
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from llmos_operator.api.conditions import Reason
from llmos_operator.errors import LlmosError, Permanent, Retryable
from llmos_operator.modelstore.http import reason_of, shown
from llmos_operator.modelstore.remote import CHECKSUM_FILES, StoredFile
from llmos_operator.modelstore.unpack import unpack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from http.client import HTTPResponse
    from pathlib import Path

    from llmos_operator.modelstore.http import Http
    from llmos_operator.modelstore.remote import Listing, RemoteFile, Source

PART_BYTES = 32 << 20
WORKERS = 4
_CHUNK = 1 << 20
_READ_TRIES = 5  # of one part, while each brings something
_CHECKSUM_BYTES = 4 << 20
_NOTE = ".listing.json"  # versions of the files that are here
_NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})


class Download:
    """One download into ``folder``. ``report(done, total)`` hears of bytes, one call at a time."""

    def __init__(
        self,
        source: Source,
        transport: Http,
        folder: Path,
        *,
        report: Callable[[int, int], None] = lambda _done, _total: None,
        limit: int = 0,
        part_bytes: int = PART_BYTES,
        workers: int = WORKERS,
    ) -> None:
        """``limit`` is the largest model in bytes, 0: any."""
        self._source, self._http, self._folder = source, transport, folder
        self._report, self._limit = report, limit
        self._part, self._workers = part_bytes, workers
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._done = self._total = 0
        self.fetched = 0  # bytes that came over the network

    def run(self, listing: Listing) -> tuple[StoredFile, ...]:
        """Have all files of ``listing`` whole; return them in order of their paths.

        Raises Permanent (TooLarge, DiskFull, Corrupted, AccessDenied, …) or Retryable; what has come stays for the next try.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        self._total = listing.total_bytes
        self._check_size(self._total)
        self._check_space(listing)
        try:
            files = self._with_published_digests(listing.files)
            self._drop_changed(files)
            plain = [one for one in files if one.packed is None]
            packed = [one for one in files if one.packed is not None]
            stored = self._fetch_all([*plain, *packed])
            for one in packed:
                layer = stored.pop(one.path)
                for path, size in self._unpacked(one, layer):
                    stored[path] = StoredFile(path, size, _hash(self._folder / path, "sha256"))
        except OSError as error:
            raise self._disk(error) from error
        if packed and not any(path.endswith((".safetensors", ".gguf")) for path in stored):
            raise self._source.place.refuse(
                "its layers hold no safetensors and no GGUF; put the model's files into /models of the image",
                Reason.MODEL_NOT_FOUND,
            )
        return tuple(stored[path] for path in sorted(stored))

    def _drop_changed(self, files: Iterable[RemoteFile]) -> None:
        """Delete what an earlier try brought of files that have changed since: a model is of one version."""
        note = self._folder / _NOTE
        now = {one.path: _identity(one) for one in files}
        try:
            before = json.loads(note.read_bytes())
        except (OSError, ValueError):
            before = {}
        for path in [path for path, identity in now.items() if before.get(path) != identity]:
            (self._folder / path).unlink(missing_ok=True)
        note.write_text(json.dumps(now), encoding="utf-8")

    def _unpacked(self, file: RemoteFile, layer: StoredFile) -> list[tuple[str, int]]:
        archive = self._folder / layer.path
        found = unpack(archive, file.packed or "", self._folder, self._source.place, self._limit)
        archive.unlink()
        return found

    def _check_size(self, total: int) -> None:
        if self._limit and total > self._limit:
            raise self._source.place.refuse(
                f"the model has {total} bytes, more than the limit of {self._limit}", Reason.TOO_LARGE
            )

    def _check_space(self, listing: Listing) -> None:
        missing = sum(one.size or 0 for one in listing.files if not (self._folder / one.path).exists()) - sum(
            one.stat().st_blocks * 512 for one in self._folder.rglob("*.partial")
        )
        missing += sum(
            one.size or 0 for one in listing.files if one.packed is not None
        )  # beside what comes out of it
        free = shutil.disk_usage(self._folder).free
        if missing > free:
            raise self._full(f"{missing} bytes are missing and {free} are free")

    def _full(self, what: str) -> Permanent:
        return self._source.place.refuse(
            f"the disk of {self._folder} is full: {what}; make room there, or choose a larger disk",
            Reason.DISK_FULL,
        )

    def _disk(self, error: OSError) -> LlmosError:
        if error.errno in _NO_SPACE:
            return self._full(str(error.strerror))
        return Retryable(f"{self._source.place.shown}: writing to {self._folder} failed: {error}", after=10.0)

    # -- checksums

    def _with_published_digests(self, files: Iterable[RemoteFile]) -> list[RemoteFile]:
        """Return ``files`` with the digests of a checksum file among them; the checksum file itself is not kept."""
        known: dict[str, str] = {}
        kept: list[RemoteFile] = []
        for one in files:
            if one.path in CHECKSUM_FILES:
                data, _ = self._http.read(
                    lambda one=one: self._source.request(one, {}),  # type: ignore[misc]
                    self._source.explain,
                    _CHECKSUM_BYTES,
                )
                known |= parse_checksums(data)
                self._total -= one.size or 0
            else:
                kept.append(one)
        return [replace(one, digest=known[one.path]) if one.path in known else one for one in kept]

    # -- parts

    def _fetch_all(self, files: list[RemoteFile]) -> dict[str, StoredFile]:
        stored: dict[str, StoredFile] = {}
        with ThreadPoolExecutor(self._workers, thread_name_prefix="fetch") as pool:
            for one in files:
                stored[one.path] = self._fetch(one, pool)
        return stored

    def _fetch(self, file: RemoteFile, pool: ThreadPoolExecutor) -> StoredFile:
        target = self._folder / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_file() and (file.size is None or target.stat().st_size == file.size):
            found = self._checked(file, target)
            if found is not None:
                self._count(found.size, came=False)
                return found
            target.unlink()
        partial = target.with_name(target.name + ".partial")
        for last in (False, True):
            if file.size is None or not file.ranges:
                self._stream(file, partial)
            else:
                self._parts(file, partial, pool)
            found = self._checked(file, partial)
            if found is not None:
                _forget(partial, but_file=True)
                partial.replace(target)
                return found
            self._count(-partial.stat().st_size, came=False)
            _forget(partial)
            if last:
                raise self._source.place.refuse(
                    f"{file.path} does not have the digest that is published for it ({file.digest}), twice; publish it again",
                    Reason.CORRUPTED,
                )
        raise AssertionError("unreachable")

    def _parts(self, file: RemoteFile, partial: Path, pool: ThreadPoolExecutor) -> None:
        """Have every part of a file whose size is known."""
        size = file.size or 0
        ledger = _Ledger(partial, [size, self._part, *_identity(file)])
        count = max(1, -(-size // self._part))
        with partial.open("r+b" if partial.exists() else "w+b") as out:
            missing = [number for number in range(count) if number not in ledger.have]
            self._count(sum(min(self._part, size - n * self._part) for n in ledger.have), came=False)

            def one(number: int) -> None:
                start = number * self._part
                self._part_of(file, out.fileno(), start, min(size, start + self._part))
                with self._lock:
                    ledger.add(number)

            jobs = [pool.submit(one, number) for number in missing if size]
            done, waiting = wait(jobs, return_when=FIRST_EXCEPTION)
            failed = next((job for job in done if job.exception() is not None), None)
            if failed is not None:
                self._stop.set()
                for job in waiting:
                    job.cancel()
                wait(waiting)
                failed.result()

    def _part_of(self, file: RemoteFile, descriptor: int, start: int, end: int) -> None:
        """Write bytes ``start`` to ``end`` of a file, going on after each cut."""
        at, tries = start, 0
        while at < end:
            if self._stop.is_set():
                raise Retryable("another part failed")
            with self._ask(file, at, end) as answer:
                if answer.status != http.client.PARTIAL_CONTENT:
                    raise Retryable(
                        f"{shown(file.url)}: parts were promised, but the whole file came", after=5.0
                    )
                before = at
                error: _Cut | None = None
                try:
                    for chunk in _chunks(answer, end - at):
                        os.pwrite(descriptor, chunk, at)
                        at += len(chunk)
                        self._count(len(chunk))
                except _Cut as cut:
                    error = cut
            if at < end:
                tries = 0 if at > before + _CHUNK else tries + 1
                if tries >= _READ_TRIES:
                    why = (
                        reason_of(error)
                        if error
                        else f"the connection ended after {at - start} of {end - start} bytes"
                    )
                    raise Retryable(f"{shown(file.url)}: {why}", after=5.0)
                self._http.sleep(min(5.0, 0.2 * 2**tries))

    def _ask(self, file: RemoteFile, start: int, end: int) -> HTTPResponse:
        headers = {"Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
        if file.version:
            headers["If-Match"] = file.version
        return self._http.open(lambda: self._source.request(file, headers), self._explain)

    def _stream(self, file: RemoteFile, partial: Path) -> None:
        """Read a file of unknown size, or from a server without parts, from its beginning."""
        headers = {"Accept-Encoding": "identity"}
        got = 0
        with (
            self._http.open(lambda: self._source.request(file, headers), self._explain) as answer,
            partial.open("wb") as out,
        ):
            expected = int(answer.headers.get("Content-Length") or 0)
            try:
                for chunk in _chunks(answer, 1 << 62):
                    out.write(chunk)
                    got += len(chunk)
                    self._count(len(chunk))
                    self._check_size(self._done)
            except _Cut as cut:
                raise Retryable(f"{shown(file.url)}: {cut}", after=5.0) from cut
        if got < expected:
            self._count(-got, came=False)
            raise Retryable(
                f"{shown(file.url)}: the connection ended after {got} of {expected} bytes", after=5.0
            )

    def _explain(self, status: int, body: bytes, url: str) -> Permanent | None:
        if status in {http.client.PRECONDITION_FAILED, http.client.REQUESTED_RANGE_NOT_SATISFIABLE}:
            return self._source.place.refuse(
                f"{shown(url)} changed while it was read; try again when it is complete", Reason.CORRUPTED
            )
        return self._source.explain(status, body, url)

    def _checked(self, file: RemoteFile, path: Path) -> StoredFile | None:
        """Return the file if it has the size and the digest that are published for it."""
        size = path.stat().st_size
        if file.size is not None and size != file.size:
            return None
        algorithm, _, wanted = file.digest.partition(":")
        if algorithm == "md5" and _hash(path, "md5") != wanted:
            return None
        digest = _hash(path, "sha256")
        return None if algorithm == "sha256" and digest != wanted else StoredFile(file.path, size, digest)

    def _count(self, more: int, *, came: bool = True) -> None:
        with self._lock:
            self._done += more
            self.fetched += more if came else 0
            self._report(self._done, max(self._total, self._done))


def _identity(file: RemoteFile) -> list[Any]:
    """Return what tells two versions of a file apart, as JSON has it; addresses without their signatures."""
    return [shown(file.url), file.size, file.version, file.digest]


class _Ledger:
    """Which parts of a partial file are there. A note of another version is worth nothing."""

    def __init__(self, partial: Path, identity: list[Any]) -> None:
        self._path = partial.with_name(partial.name + ".json")
        self._identity = identity
        self.have: set[int] = set()
        try:
            note = json.loads(self._path.read_bytes())
            if note["identity"] == identity and partial.exists():
                self.have = {int(one) for one in note["parts"]}
        except (OSError, ValueError, KeyError, TypeError):
            self.have = set()
        if not self.have:
            partial.unlink(missing_ok=True)

    def add(self, number: int) -> None:
        """Note a part as written."""
        self.have.add(number)
        fresh = self._path.with_name(self._path.name + ".new")
        fresh.write_text(
            json.dumps({"identity": self._identity, "parts": sorted(self.have)}), encoding="utf-8"
        )
        fresh.replace(self._path)


def _forget(partial: Path, *, but_file: bool = False) -> None:
    partial.with_name(partial.name + ".json").unlink(missing_ok=True)
    if not but_file:
        partial.unlink(missing_ok=True)


class _Cut(Exception):  # noqa: N818 - what happened to the connection
    """The connection ended early; told apart from errors of the disk."""


def _chunks(answer: HTTPResponse, most: int) -> Iterator[bytes]:
    """Yield what comes, at most ``most`` bytes. Raises _Cut."""
    while most > 0:
        try:
            chunk = answer.read(min(_CHUNK, most))
        except (OSError, http.client.HTTPException) as error:
            raise _Cut(reason_of(error)) from error
        if not chunk:
            return
        most -= len(chunk)
        yield chunk


def _hash(path: Path, algorithm: str) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()


def parse_checksums(data: bytes) -> dict[str, str]:
    """Return "sha256:…" by path from the lines of sha256sum(1); other lines count for nothing."""
    found = {}
    for line in data.decode("utf-8", "replace").splitlines():
        digest, _, name = line.strip().partition(" ")
        if len(digest) == hashlib.sha256().digest_size * 2 and not set(digest.lower()) - set(
            "0123456789abcdef"
        ):
            found[name.lstrip(" *").removeprefix("./")] = f"sha256:{digest.lower()}"
    return found
