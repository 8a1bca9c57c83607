"""The folder of a node that keeps models: one entry for each model and revision, one download for many processes.

::

    ROOT/models/<key>/lock            flock: exclusive while it is made or deleted, shared while somebody uses it
                      /record.json    written last: an entry without it is not whole
                      /progress.json  bytes so far, while it is made
                      /used           its time is that of the last use anybody noticed
                      /files/…        the model

Locks are the kernel's and end with their process, so there is nothing to clean up after a crash, and they work through
a read-only mount. What a record says of sizes is compared at each use; an entry that differs is made again.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from llmos_operator.api.runtime.uris import model_key
from llmos_operator.errors import Retryable
from llmos_operator.modelstore.remote import StoredFile
from llmos_operator.observability.logging import logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from llmos_operator.modelstore.http import Http
    from llmos_operator.modelstore.remote import Place, Source

log = logger(__name__)

_VERSION = 1
_WAIT_SECONDS = 0.5  # between looks at what another process downloads
_TELL_SECONDS = 1.0  # between writes of progress.json
# Somebody who only looks whether an entry is in use holds its lock for an instant.
_GLANCES, _GLANCE_SECONDS = 5, 0.02
_LOCK, _RECORD, _PROGRESS, _USED, _FILES = "lock", "record.json", "progress.json", "used", "files"


@dataclass(frozen=True, slots=True)
class Entry:
    """A whole model on the disk."""

    key: str
    uri: str  # without its query, which may be a signature
    revision: str
    resolved: str  # commit or digest the revision stood for
    size: int  # bytes
    seconds: float  # that making it took: what a miss costs
    files: tuple[StoredFile, ...]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a download has come."""

    done: int
    total: int  # 0: not known yet


class Lease:
    """A model in use: it is not deleted while this object's process lives and :meth:`release` has not been called."""

    def __init__(self, folder: Path, entry: Entry, descriptor: int, *, fetched: int = 0) -> None:
        self.folder = folder
        self.entry = entry
        self.fetched = fetched  # bytes that came over the network for it just now
        self._descriptor = descriptor

    def release(self) -> None:
        """Let the model go."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class Store:
    """Entries below ``root``. A store that cannot be written serves what it has."""

    def __init__(self, root: Path) -> None:
        self.models = root / "models"

    def folder(self, key: str) -> Path:
        """Return the folder of an entry, which need not exist."""
        return self.models / key

    def use(self, uri: str, revision: str) -> Lease | None:
        """Return a whole entry, None if there is none now."""
        return use_folder(self.folder(model_key(uri, revision)), uri, revision)

    def obtain(
        self,
        place: Place,
        source: Callable[[], tuple[Source, Http]],
        *,
        report: Callable[[int, int], None],
        make_room: Callable[[int], None] = lambda _bytes: None,
        limit: int = 0,
    ) -> Lease:
        """Return the entry of ``place``, downloading it unless it is there; while another process does, wait for it.

        ``make_room`` is called with the bytes that will be needed before they are. Raises as `Download.run`.
        """
        key = model_key(place.uri, place.revision)
        folder = self.folder(key)
        folder.mkdir(parents=True, exist_ok=True)
        with _exclusive(folder, report) as descriptor:
            found = read_entry(folder, place.uri, place.revision)
            fetched = 0
            if found is None:
                found, fetched = self._make(place, folder, source, report, make_room, limit)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            return Lease(folder / _FILES, found, os.dup(descriptor), fetched=fetched)

    def _make(
        self,
        place: Place,
        folder: Path,
        source: Callable[[], tuple[Source, Http]],
        report: Callable[[int, int], None],
        make_room: Callable[[int], None],
        limit: int,
    ) -> tuple[Entry, int]:
        # Not for those who only look: the agent has no room for what unpacks archives.
        from llmos_operator.modelstore.download import Download  # noqa: PLC0415

        began = time.monotonic()
        (folder / _RECORD).unlink(missing_ok=True)
        opened, http = source()
        listing = opened.listing()
        make_room(listing.total_bytes)
        teller = _Teller(folder / _PROGRESS, report)
        work = Download(opened, http, folder / _FILES, report=teller.tell, limit=limit)
        try:
            files = work.run(listing)
        finally:
            (folder / _PROGRESS).unlink(missing_ok=True)
        size = sum(one.size for one in files)
        key = model_key(place.uri, place.revision)
        seconds = round(time.monotonic() - began, 3)
        entry = Entry(key, place.shown, place.revision, listing.revision, size, seconds, files)
        _write(folder / _RECORD, {"version": _VERSION, **asdict(entry)})
        touch(folder)
        return entry, work.fetched

    def entries(self) -> list[Entry]:
        """Return what is whole, by key."""
        return [entry for folder in self._folders() if (entry := read_entry(folder)) is not None]

    def progress(self, key: str) -> Progress | None:
        """Return how far the download of an entry has come, None if none runs."""
        return read_progress(self.folder(key))

    def delete(self, key: str) -> int:
        """Delete an entry unless it is in use or being made; return the bytes of it, 0 if it stays."""
        folder = self.folder(key)
        with _if_free(folder) as free:
            if not free:
                return 0
            size = _bytes_below(folder)
            (folder / _RECORD).unlink(missing_ok=True)  # first: half of an entry is none
            shutil.rmtree(folder / _FILES, ignore_errors=True)
            # The lock stays: somebody may be waiting for it.
            return size

    def in_use(self, key: str) -> bool:
        """Return whether a process uses or makes an entry now."""
        with _if_free(self.folder(key)) as free:
            return not free

    def last_used(self, key: str) -> float:
        """Return when an entry was last seen in use, in epoch seconds; 0.0 if never."""
        try:
            return (self.folder(key) / _USED).stat().st_mtime
        except OSError:
            return 0.0

    def held_bytes(self) -> int:
        """Return the bytes of all entries on the disk, whole or not."""
        return sum(_bytes_below(folder) for folder in self._folders())

    def keys(self) -> list[str]:
        """Return the keys of all entries, whole or not."""
        return [folder.name for folder in self._folders()]

    def _folders(self) -> list[Path]:
        try:
            return sorted(one for one in self.models.iterdir() if (one / _FILES).is_dir())
        except OSError:
            return []


def use_folder(folder: Path, uri: str, revision: str) -> Lease | None:
    """Return the entry in ``folder`` if it is whole and of that model; works on a read-only mount."""
    try:
        descriptor = os.open(folder / _LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    held = _locked(descriptor, fcntl.LOCK_SH)
    for _ in range(_GLANCES):
        if held or (folder / _PROGRESS).exists():
            break
        time.sleep(_GLANCE_SECONDS)
        held = _locked(descriptor, fcntl.LOCK_SH)
    entry = read_entry(folder, uri, revision) if held else None
    if entry is None:
        os.close(descriptor)
        return None
    with suppress(OSError):  # mounted read-only: the node's agent notices the lock and touches it
        touch(folder)
    return Lease(folder / _FILES, entry, descriptor)


def await_folder(folder: Path, uri: str, revision: str, report: Callable[[int, int], None]) -> Lease | None:
    """Return the entry in ``folder``, waiting while somebody downloads it; None if there is none and none is coming."""
    while True:
        found = use_folder(folder, uri, revision)
        if found is not None or not _being_made(folder):
            return found
        _pass_on(folder, report)
        time.sleep(_WAIT_SECONDS)


def read_entry(folder: Path, uri: str = "", revision: str = "") -> Entry | None:
    """Return what a record says, if every file is there in the size it had."""
    try:
        record = json.loads((folder / _RECORD).read_bytes())
        if record["version"] != _VERSION or (uri and record["key"] != model_key(uri, revision)):
            return None
        files = tuple(StoredFile(str(f["path"]), int(f["size"]), str(f["sha256"])) for f in record["files"])
        for one in files:
            if (folder / _FILES / one.path).stat().st_size != one.size:
                log.warning("a kept model is damaged and is made again", key=folder.name, file=one.path)
                return None
        return Entry(
            str(record["key"]),
            str(record["uri"]),
            str(record["revision"]),
            str(record["resolved"]),
            int(record["size"]),
            float(record["seconds"]),
            files,
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def read_progress(folder: Path) -> Progress | None:
    """Return how far the download in ``folder`` has come, None if none runs."""
    try:
        note = json.loads((folder / _PROGRESS).read_bytes())
        return Progress(int(note["done"]), int(note["total"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def touch(folder: Path) -> None:
    """Note that an entry is in use now. Raises OSError where nothing can be written."""
    (folder / _USED).touch()


class _Teller:
    """Passes progress on, and writes it for other processes now and then."""

    def __init__(self, path: Path, report: Callable[[int, int], None]) -> None:
        self._path, self._report = path, report
        self._at = 0.0

    def tell(self, done: int, total: int) -> None:
        self._report(done, total)
        now = time.monotonic()
        if now - self._at >= _TELL_SECONDS:
            self._at = now
            _write(self._path, {"done": done, "total": total})


@contextmanager
def _exclusive(folder: Path, report: Callable[[int, int], None]) -> Iterator[int]:
    """Hold the entry's lock alone; while another process has it, report how far that has come."""
    descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        while not _locked(descriptor, fcntl.LOCK_EX):
            if _locked(descriptor, fcntl.LOCK_SH):
                # Others use it. If it is whole, nothing is to be made and all share it.
                if read_entry(folder) is not None:
                    break
                fcntl.flock(descriptor, fcntl.LOCK_UN)
                raise Retryable(
                    f"the kept model {folder.name} is damaged and in use; it is made again when those end",
                    after=10.0,
                )
            _pass_on(folder, report)
            time.sleep(_WAIT_SECONDS)
        yield descriptor
    finally:
        os.close(descriptor)


def _locked(descriptor: int, how: int) -> bool:
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def _if_free(folder: Path) -> Iterator[bool]:
    """Hold the entry's lock alone if nobody has it."""
    try:
        descriptor = os.open(folder / _LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        yield True  # no lock was ever made: nobody can hold it
        return
    try:
        yield _locked(descriptor, fcntl.LOCK_EX)
    finally:
        os.close(descriptor)


def _being_made(folder: Path) -> bool:
    try:
        descriptor = os.open(folder / _LOCK, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return not _locked(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)


def _pass_on(folder: Path, report: Callable[[int, int], None]) -> None:
    seen = read_progress(folder)
    if seen is not None:
        report(seen.done, seen.total)


def _bytes_below(folder: Path) -> int:
    total = 0
    for one in folder.rglob("*"):
        try:
            total += one.stat().st_blocks * 512 if one.is_file() else 0
        except OSError:
            continue  # deleted meanwhile
    return total


def _write(path: Path, value: object) -> None:
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(json.dumps(value), encoding="utf-8")
    fresh.replace(path)
