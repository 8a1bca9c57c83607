"""The models a node keeps: starts downloads for the ModelCaches that select the node, and tells what is there.

Downloads are processes of their own (`llmos fetch`), so that the agent stays small and a download that hangs or crashes
harms nobody. What is told goes into the GPUNode; the operator makes the ModelCaches' status from it.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import random
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from llmos_operator.api.conditions import Reason
from llmos_operator.api.quantity import parse_bytes
from llmos_operator.api.runtime.uris import carries_credentials, model_key
from llmos_operator.cluster.backoff import Curve, KeyedBackoff
from llmos_operator.cluster.failures import NotFound
from llmos_operator.cluster.mirror import Change, Mirror
from llmos_operator.cluster.port import MODEL_CACHES, SECRETS
from llmos_operator.cluster.reflector import Reflector
from llmos_operator.errors import LlmosError
from llmos_operator.modelstore.order import Order, Outcome
from llmos_operator.modelstore.store import Entry, Progress, Store, touch
from llmos_operator.observability.logging import logger
from llmos_operator.telemetry.node_watch import follow_node

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from llmos_operator.cluster.port import ClusterPort, Json
    from llmos_operator.settings import ModelCacheSettings
    from llmos_operator.telemetry.metrics import CopyMetrics

log = logger(__name__)

LOOK_SECONDS: Final = 2.0
TELL_SECONDS: Final = 5.0  # between reports of a download's progress
_CURVE: Final = Curve(base=5.0, cap=300.0)
_MOST_TOLD: Final = 128
_MESSAGE_LENGTH: Final = 1024


@dataclass(frozen=True, slots=True)
class Wanted:
    """One ModelCache."""

    name: str
    uri: str
    revision: str
    selector: Mapping[str, str]
    secret: str = ""
    limit_bytes: int = 0

    @property
    def key(self) -> str:
        """Name of the entry."""
        return model_key(self.uri, self.revision)


@dataclass(slots=True)
class _Known:
    """What is known of one model on this node."""

    uri: str
    revision: str
    state: str = "Pending"
    done: int = 0
    total: int = 0
    reason: str = ""
    message: str = ""
    speed: int = 0  # bytes a second
    seen: tuple[float, int] = (0.0, 0)  # monotonic seconds and bytes of the last look


@dataclass(slots=True)
class _Seen:
    """One look at the disk."""

    whole: dict[str, Entry] = field(default_factory=dict)
    coming: dict[str, Progress] = field(default_factory=dict)


class CopyKeeper:
    """Keeps the copies of one node."""

    def __init__(
        self,
        port: ClusterPort,
        settings: ModelCacheSettings,
        *,
        node: str,
        namespace: str,
        metrics: CopyMetrics,
        monotonic: Callable[[], float],
        changed: Callable[[], None] = lambda: None,
    ) -> None:
        """``changed`` is called when what is told has news."""
        self._port = port
        self._settings = settings
        self._node = node
        self._namespace = namespace
        self._metrics = metrics
        self._monotonic = monotonic
        self._changed = changed
        self._store = Store(Path(settings.path))
        self._caches: dict[str, Wanted] = {}
        self._labels: Mapping[str, str] | None = None  # None: not known yet
        self._known: dict[str, _Known] = {}
        self._running: dict[str, asyncio.Task[None]] = {}
        self._backoff: KeyedBackoff[str] = KeyedBackoff(_CURVE, random.Random())  # noqa: S311 - jitter
        self._told: list[Json] = []
        self._told_at = float("-inf")
        self._wake = asyncio.Event()
        self._mirror = Mirror(MODEL_CACHES, self._take)

    @property
    def models(self) -> list[Json]:
        """Return `status.models` of the GPUNode, as it was told last."""
        return self._told

    async def run(self) -> None:
        """Keep copies until cancelled, then end what downloads."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(Reflector(self._port, self._mirror).run(), name="model caches")
                group.create_task(follow_node(self._port, self._node, self._take_node), name="node labels")
                group.create_task(self._turn(), name="copies")
        finally:
            for task in self._running.values():
                task.cancel()
            await asyncio.gather(*self._running.values(), return_exceptions=True)

    def _take(self, change: Change, body: Json) -> None:
        name = str(body["metadata"]["name"])
        self._caches.pop(name, None)
        if change is Change.APPLIED and not body["metadata"].get("deletionTimestamp"):
            self._caches[name] = _wanted(body)
        self._wake.set()

    def _take_node(self, node: Json) -> None:
        self._labels = (node.get("metadata") or {}).get("labels") or {}
        self._wake.set()

    async def _turn(self) -> None:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_SECONDS):
                    await self._wake.wait()
            self._wake.clear()
            if not self._mirror.synced or self._labels is None:
                continue  # an order that is not seen yet must not look like one that is gone
            try:
                seen = await asyncio.to_thread(self._look)
            except OSError as error:
                log.warning("the folder of models cannot be read", path=self._settings.path, error=str(error))
                continue
            self._settle(seen)

    def _look(self) -> _Seen:
        """Look at the disk, and note which models are in use: their pods cannot, they see them read-only."""
        seen = _Seen({one.key: one for one in self._store.entries()})
        for key in seen.whole:
            if self._store.in_use(key):
                with suppress(OSError):
                    touch(self._store.folder(key))
        for key in self._running:
            progress = self._store.progress(key)
            if progress is not None:
                seen.coming[key] = progress
        return seen

    def wanted(self) -> dict[str, Wanted]:
        """Return the ModelCaches that select this node, by key; of two for one model the first by name."""
        labels = self._labels or {}
        found: dict[str, Wanted] = {}
        for name in sorted(self._caches):
            cache = self._caches[name]
            if all(labels.get(label) == value for label, value in cache.selector.items()):
                found.setdefault(cache.key, cache)
        return found

    def _settle(self, seen: _Seen) -> None:
        wanted, now = self.wanted(), self._monotonic()
        for key, task in self._running.items():
            if key not in wanted:
                task.cancel()
        for key, cache in wanted.items():
            entry = seen.whole.get(key)
            known = self._known.setdefault(key, _Known(cache.uri, cache.revision))
            if entry is not None:
                known.state, known.done, known.total, known.reason, known.message = (
                    "Ready",
                    entry.size,
                    entry.size,
                    "",
                    "",
                )
            elif key in self._running:
                _follow(known, seen.coming.get(key), now)
            else:
                if known.state == "Ready":  # somebody deleted it, or it is damaged
                    known.state, known.done = "Pending", 0
                if len(self._running) < self._settings.parallel and self._backoff.ready(key, now):
                    known.state = "Downloading"
                    self._running[key] = asyncio.create_task(
                        self._bring(cache, tuple(wanted)), name=f"copy {key}"
                    )
        for key, entry in seen.whole.items():
            if key not in wanted:  # nobody asks for it any more: it stays until its room is needed
                self._known[key] = _Known(entry.uri, entry.revision, "Ready", entry.size, entry.size)
        self._known = {key: one for key, one in self._known.items() if key in wanted or key in seen.whole}
        self._backoff.keep_only(set(wanted))
        self._metrics.show(
            {
                state: sum(one.state == state for one in self._known.values())
                for state in ("Ready", "Downloading", "Failed")
            },
            sum(entry.size for entry in seen.whole.values()),
        )
        self._tell(now)

    def _tell(self, now: float) -> None:
        fresh = [_json(key, one) for key, one in sorted(self._known.items())][:_MOST_TOLD]
        news = [(one["key"], one["state"]) for one in fresh] != [
            (one["key"], one["state"]) for one in self._told
        ]
        if fresh != self._told and (news or now - self._told_at >= TELL_SECONDS):
            self._told, self._told_at = fresh, now
            self._changed()

    async def _bring(self, cache: Wanted, keep: tuple[str, ...]) -> None:
        key = cache.key
        known = self._known[key]
        try:
            outcome = await self._download(cache, keep)
        except LlmosError as error:
            outcome = Outcome(reason=Reason.DOWNLOAD_FAILED, message=str(error))
        except OSError as error:
            outcome = Outcome(
                reason=Reason.DOWNLOAD_FAILED, message=f"the download could not be started: {error}"
            )
        finally:
            self._running.pop(key, None)
            self._wake.set()
        known.reason, known.message, known.speed = outcome.reason, outcome.message[:_MESSAGE_LENGTH], 0
        self._metrics.ended(ok=not outcome.reason)
        if outcome.reason:
            known.state = "Failed"
            self._backoff.fail(key, self._monotonic(), after=outcome.after)
            log.warning(
                "a model was not brought here", cache=cache.name, reason=outcome.reason, error=outcome.message
            )
        else:
            self._backoff.succeed(key)
            log.info("a model is kept here", cache=cache.name, key=key, bytes=outcome.bytes)

    async def _download(self, cache: Wanted, keep: tuple[str, ...]) -> Outcome:
        if carries_credentials(cache.uri):
            return Outcome(reason=Reason.SOURCE_NOT_ALLOWED, message="spec.uri carries a user or password")
        settings = self._settings
        order = Order(
            root=settings.path,
            uri=cache.uri,
            revision=cache.revision,
            secrets=await self._secrets(cache),
            hub=settings.hub_endpoint,
            endpoint=settings.endpoint,
            region=settings.region,
            limit_bytes=cache.limit_bytes,
            budget_bytes=parse_bytes(settings.budget) if settings.budget else 0,
            keep=keep,
        )
        environment = {name: value for name, value in os.environ.items() if name != "KUBECONFIG"}
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "llmos_operator",
            "fetch",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=environment,
        )
        try:
            output, _ = await process.communicate(order.text().encode())
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.kill()  # its parts are noted one by one, so nothing is lost that counts
                await process.wait()
        return _outcome(output, process.returncode)

    async def _secrets(self, cache: Wanted) -> dict[str, str]:
        """Return the credentials a ModelCache names. Raises LlmosError."""
        if not cache.secret:
            return {}
        try:
            body = await self._port.get(SECRETS, cache.secret, namespace=self._namespace)
        except NotFound:
            raise NotFound(
                f"spec.secretRef: there is no Secret {cache.secret!r} in the namespace {self._namespace}"
            ) from None
        data: dict[str, Any] = body.get("data") or {}
        return {key: base64.b64decode(value).decode("utf-8", "replace") for key, value in data.items()}


def _wanted(body: Json) -> Wanted:
    spec = body.get("spec") or {}
    return Wanted(
        name=str(body["metadata"]["name"]),
        uri=str(spec.get("uri") or ""),
        revision=str(spec.get("revision") or "main"),
        selector=dict(spec.get("nodeSelector") or {}),
        secret=str((spec.get("secretRef") or {}).get("name") or ""),
        limit_bytes=parse_bytes(str(spec["sizeLimit"])) if spec.get("sizeLimit") else 0,
    )


def _follow(known: _Known, progress: Progress | None, now: float) -> None:
    """Take how far a download has come; its speed is that since the last look, smoothed."""
    known.state, known.reason, known.message = "Downloading", "", ""
    if progress is None:
        return
    at, done = known.seen
    if at and now > at and progress.done >= done:
        fresh = int((progress.done - done) / (now - at))
        known.speed = fresh if not known.speed else (3 * known.speed + fresh) // 4
    known.seen = (now, progress.done)
    known.done, known.total = progress.done, progress.total


def _json(key: str, known: _Known) -> Json:
    found: Json = {
        "key": key,
        "uri": known.uri.partition("?")[0],
        "revision": known.revision,
        "state": known.state,
    }
    amounts = {"bytes": known.done, "bytesTotal": known.total}
    found |= {name: value for name, value in amounts.items() if value}
    if known.state == "Downloading" and known.speed and known.total > known.done:
        found["etaSeconds"] = (known.total - known.done) // known.speed
    words = {"reason": known.reason, "message": known.message}
    return found | {name: value for name, value in words.items() if value}


def _outcome(output: bytes, status: int | None) -> Outcome:
    try:
        return Outcome(**json.loads(output))
    except (ValueError, TypeError):
        return Outcome(
            reason=Reason.DOWNLOAD_FAILED, message=f"the download ended with status {status}", after=10.0
        )
