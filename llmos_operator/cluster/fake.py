"""The port in memory: an API server small enough for unit tests and simulation.

It keeps the promises the rest of the package relies on (versions, watches with bookmarks and 410, preconditions,
server-side apply with field ownership, evictions with budgets, graceful pod deletion, ownerReference collection) and is
held to the real server by tests/component/operator/contract. It checks no schema and no permissions.

Failures are injected with :meth:`FakeCluster.fail`; tokens and budgets are set on the object.
"""

from __future__ import annotations

import asyncio
import copy
import itertools
import json
from collections import defaultdict, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llmos_operator.clock import Clock, FakeClock, rfc3339
from llmos_operator.cluster import port
from llmos_operator.cluster.failures import AlreadyExists, Disrupted, Expired, Invalid, NotFound
from llmos_operator.cluster.fieldset import merge_applied
from llmos_operator.cluster.selectors import matches_fields, matches_labels
from llmos_operator.errors import Conflict

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from llmos_operator.cluster.port import Json, Kind
    from llmos_operator.errors import LlmosError

_HISTORY = 4096
_UID = itertools.count(1)


@dataclass(slots=True)
class _Shelf:
    """Objects and history of one kind."""

    objects: dict[tuple[str, str], Json] = field(default_factory=dict)
    # version, type, object as it became, object as it was
    history: deque[tuple[int, str, Json, Json | None]] = field(default_factory=lambda: deque(maxlen=_HISTORY))
    compacted: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class FakeCluster:
    """:class:`~llmos_operator.cluster.port.ClusterPort` in memory."""

    def __init__(self, clock: Clock | None = None) -> None:
        self.tokens: dict[str, port.TokenIdentity] = {}
        # namespace/name of a pod -> evictions allowed; absent: all
        self.disruptions_allowed: dict[str, int] = {}
        self.events: list[Json] = []
        self.calls: list[tuple[str, str, str]] = []  # verb, plural, namespace/name
        self._clock = clock or FakeClock()
        self._version = 100
        self._shelves: defaultdict[str, _Shelf] = defaultdict(_Shelf)
        # uid, manager, subresource -> fields it applied last
        self._applied: dict[tuple[str, str, str], Json] = {}
        self._failures: deque[tuple[str, str, LlmosError, bool]] = deque()

    # -- what tests do --------------------------------------------------------------------------------------

    def fail(self, verb: str, plural: str, error: LlmosError, *, times: int = 1, done: bool = False) -> None:
        """Let the next ``times`` calls of ``verb`` on ``plural`` raise ``error``; ``done``: after having done the write."""
        self._failures.extend([(verb, plural, error, done)] * times)

    def compact(self) -> None:
        """Forget all history: watches from older versions get 410."""
        for shelf in self._shelves.values():
            shelf.compacted = self._version
            shelf.history.clear()

    def writes(self) -> list[tuple[str, str, str]]:
        """Return the calls that changed something, or tried to."""
        return [call for call in self.calls if call[0] not in {"get", "list", "watch"}]

    def finish_deletion(self, kind: Kind, name: str, namespace: str = "") -> None:
        """Do what a kubelet does when a pod has ended: delete it with no grace."""
        self._remove(kind, namespace, name)

    async def close(self) -> None:
        """Nothing to end."""

    # -- reading --------------------------------------------------------------------------------------------

    async def list_pages(
        self,
        kind: Kind,
        *,
        namespace: str = "",
        label_selector: str = "",
        field_selector: str = "",
        limit: int = 250,
        metadata_only: bool = False,
    ) -> AsyncIterator[port.Page]:
        """See the port."""
        self._enter("list", kind, namespace, "")
        fields = ("apiVersion", "kind", "metadata")
        found = [
            copy.deepcopy({key: body[key] for key in fields if key in body} if metadata_only else body)
            for _, body in sorted(self._shelves[kind.plural].objects.items())
            if _selected(body, namespace, label_selector, field_selector)
        ]
        version = str(self._version)
        for start in range(0, max(len(found), 1), limit):
            yield port.Page(tuple(found[start : start + limit]), version)
            await asyncio.sleep(0)

    async def watch(
        self,
        kind: Kind,
        *,
        resource_version: str,
        namespace: str = "",
        label_selector: str = "",
        field_selector: str = "",
        timeout_seconds: int = 290,
        inactivity_seconds: float = 75.0,
    ) -> AsyncIterator[port.WatchEvent]:
        """See the port. A bookmark follows whenever all history has been sent."""
        del timeout_seconds, inactivity_seconds
        self._enter("watch", kind, namespace, "")
        shelf = self._shelves[kind.plural]
        at = int(resource_version or 0)
        while True:
            if at < shelf.compacted:
                raise Expired(f"too old resource version: {at} ({shelf.compacted})")
            shelf.changed.clear()
            for version, event_type, body, former in list(shelf.history):
                if version <= at:
                    continue
                at = version
                event = _as_seen(event_type, body, former, (namespace, label_selector, field_selector))
                if event is not None:
                    yield event
            if at < self._version and not shelf.changed.is_set():
                at = self._version
                yield port.WatchEvent("BOOKMARK", {"metadata": {"resourceVersion": str(at)}})
            await shelf.changed.wait()

    async def get(self, kind: Kind, name: str, *, namespace: str = "") -> Json:
        """See the port."""
        self._enter("get", kind, namespace, name)
        return copy.deepcopy(self._find(kind, namespace, name))

    # -- writing --------------------------------------------------------------------------------------------

    async def create(self, kind: Kind, body: Json, *, namespace: str = "") -> Json:
        """See the port."""
        name = str(body["metadata"].get("name", ""))
        late = self._enter("create", kind, namespace, name)
        result = self._create(kind, body, namespace, name)
        return _leave(late, result)

    def _create(self, kind: Kind, body: Json, namespace: str, name: str) -> Json:
        if not name:
            raise Invalid(f"create {kind.plural}: metadata.name is required")
        if (namespace, name) in self._shelves[kind.plural].objects:
            raise AlreadyExists(f'{kind.plural} "{name}" already exists')
        made: Json = {"apiVersion": kind.api_version, "kind": kind.kind} | copy.deepcopy(body)
        meta = made["metadata"]
        meta.update({"name": name, "uid": f"uid-{next(_UID)}", "generation": 1})
        meta["creationTimestamp"] = rfc3339(self._clock.now())
        if kind.namespaced:
            meta["namespace"] = namespace
        self._store(kind, namespace, name, made, "ADDED", None)
        return copy.deepcopy(made)

    async def replace(self, kind: Kind, body: Json, *, namespace: str = "") -> Json:
        """See the port."""
        name = str(body["metadata"]["name"])
        late = self._enter("update", kind, namespace, name)
        old = self._find(kind, namespace, name)
        _check(kind, old, body["metadata"])
        new = copy.deepcopy(body)
        new["metadata"] |= {key: old["metadata"][key] for key in ("uid", "creationTimestamp")}
        return _leave(late, self._update(kind, namespace, name, old, new))

    async def apply(
        self,
        kind: Kind,
        body: Json,
        *,
        manager: str,
        namespace: str = "",
        subresource: str = "",
        force: bool = True,
    ) -> Json:
        """See the port. Conflicts between managers are not modelled: every apply counts as forced."""
        del force
        name = str(body["metadata"]["name"])
        late = self._enter("apply", kind, namespace, f"{name}/{subresource}" if subresource else name)
        meta = body["metadata"]
        wanted = _owned(body, subresource)
        try:
            old = self._find(kind, namespace, name)
        except NotFound:
            if subresource:
                raise
            if meta.get("uid"):
                raise Conflict(f"{kind.plural} {name}: uid mismatch: the object does not exist") from None
            made = self._create(kind, body, namespace, name)
            self._applied[made["metadata"]["uid"], manager, subresource] = wanted
            return _leave(late, made)
        _check(kind, old, meta)
        key = (old["metadata"]["uid"], manager, subresource)
        new = merge_applied(old, self._applied.get(key, {}), wanted)
        self._applied[key] = wanted
        return _leave(late, self._update(kind, namespace, name, old, new))

    async def patch_status(self, kind: Kind, body: Json, *, manager: str, namespace: str = "") -> Json:
        """See the port."""
        return await self.apply(kind, body, manager=manager, namespace=namespace, subresource="status")

    async def merge_patch(
        self, kind: Kind, name: str, patch: Json, *, namespace: str = "", subresource: str = ""
    ) -> Json:
        """See the port."""
        late = self._enter("patch", kind, namespace, f"{name}/{subresource}" if subresource else name)
        old = self._find(kind, namespace, name)
        _check(kind, old, patch.get("metadata", {}))
        return _leave(late, self._update(kind, namespace, name, old, _merge(old, patch)))

    async def delete(
        self,
        kind: Kind,
        name: str,
        *,
        namespace: str = "",
        uid: str = "",
        resource_version: str = "",
        grace_seconds: int | None = None,
    ) -> None:
        """See the port."""
        late = self._enter("delete", kind, namespace, name)
        old = self._find(kind, namespace, name)
        _check(kind, old, {"uid": uid, "resourceVersion": resource_version})
        self._delete(kind, namespace, name, old, grace_seconds)
        _leave(late, {})

    async def evict(
        self, name: str, *, namespace: str, uid: str = "", grace_seconds: int | None = None
    ) -> None:
        """See the port."""
        late = self._enter("evict", port.PODS, namespace, name)
        old = self._find(port.PODS, namespace, name)
        _check(port.PODS, old, {"uid": uid})
        key = f"{namespace}/{name}"
        allowed = self.disruptions_allowed.get(key)
        if allowed is not None and "deletionTimestamp" not in old["metadata"]:
            if allowed <= 0:
                raise Disrupted(
                    "Cannot evict pod as it would violate the pod's disruption budget.", after=5.0
                )
            self.disruptions_allowed[key] = allowed - 1
        self._delete(port.PODS, namespace, name, old, grace_seconds)
        _leave(late, {})

    async def token_review(self, token: str) -> port.TokenIdentity | None:
        """See the port."""
        self._enter("create", port.TOKEN_REVIEWS, "", "")
        return self.tokens.get(token)

    async def create_event(self, body: Json, *, namespace: str) -> None:
        """See the port."""
        self._enter("create", port.EVENTS, namespace, str(body["metadata"]["name"]))
        self.events.append(copy.deepcopy(body))

    # -- inside ---------------------------------------------------------------------------------------------

    def _enter(self, verb: str, kind: Kind, namespace: str, name: str) -> LlmosError | None:
        """Note a call. Raises an injected failure; returns one that is to be raised after the write."""
        self.calls.append((verb, kind.plural, f"{namespace}/{name}"))
        for index, (at, plural, error, done) in enumerate(self._failures):
            if at == verb and plural == kind.plural:
                del self._failures[index]
                if done:
                    return error
                raise error
        return None

    def _find(self, kind: Kind, namespace: str, name: str) -> Json:
        found = self._shelves[kind.plural].objects.get((namespace, name))
        if found is None:
            raise NotFound(f'{kind.plural} "{name}" not found')
        return found

    def _update(self, kind: Kind, namespace: str, name: str, old: Json, new: Json) -> Json:
        if _essence(new) == _essence(old):
            return copy.deepcopy(old)  # the API server does not write what changes nothing
        if new.get("spec") != old.get("spec"):
            new["metadata"]["generation"] = old["metadata"].get("generation", 1) + 1
        self._store(kind, namespace, name, new, "MODIFIED", old)
        return copy.deepcopy(new)

    def _store(
        self, kind: Kind, namespace: str, name: str, body: Json, event_type: str, old: Json | None
    ) -> None:
        self._version += 1
        body["metadata"]["resourceVersion"] = str(self._version)
        shelf = self._shelves[kind.plural]
        shelf.objects[namespace, name] = body
        self._tell(shelf, event_type, body, old)

    def _tell(self, shelf: _Shelf, event_type: str, body: Json, old: Json | None) -> None:
        shelf.history.append((self._version, event_type, copy.deepcopy(body), old))
        shelf.changed.set()

    def _delete(self, kind: Kind, namespace: str, name: str, old: Json, grace: int | None) -> None:
        if "deletionTimestamp" in old["metadata"] and grace != 0:
            return
        running = kind == port.PODS and old.get("spec", {}).get("nodeName")
        grace = (
            old.get("spec", {}).get("terminationGracePeriodSeconds", 30)
            if grace is None and running
            else grace or 0
        )
        if running and grace and old.get("status", {}).get("phase") not in {"Succeeded", "Failed"}:
            new = copy.deepcopy(old)
            new["metadata"]["deletionTimestamp"] = rfc3339(self._clock.now() + grace)
            new["metadata"]["deletionGracePeriodSeconds"] = grace
            self._store(kind, namespace, name, new, "MODIFIED", old)
            return
        self._remove(kind, namespace, name)

    def _remove(self, kind: Kind, namespace: str, name: str) -> None:
        shelf = self._shelves[kind.plural]
        old = self._find(kind, namespace, name)
        del shelf.objects[namespace, name]
        self._version += 1
        last = copy.deepcopy(old)
        last["metadata"]["resourceVersion"] = str(self._version)
        self._tell(shelf, "DELETED", last, old)
        self._collect(old["metadata"]["uid"])

    def _collect(self, owner_uid: str) -> None:
        """Delete what the object owned, as the garbage collector would."""
        owned = [
            (kind, key, body)
            for kind in (port.PODS, port.SERVICES)
            for key, body in self._shelves[kind.plural].objects.items()
            if any(ref.get("uid") == owner_uid for ref in body["metadata"].get("ownerReferences", ()))
        ]
        for kind, (namespace, name), body in owned:
            self._delete(kind, namespace, name, body, None)


def _owned(body: Json, subresource: str) -> Json:
    """Return the fields of an apply that its manager will own."""
    if subresource:
        return {subresource: copy.deepcopy(body.get(subresource, {}))}
    owned = {part: value for part, value in body.items() if part not in {"apiVersion", "kind", "metadata"}}
    kept = ("labels", "annotations", "ownerReferences")
    meta = {part: body["metadata"][part] for part in kept if part in body["metadata"]}
    return copy.deepcopy(owned | ({"metadata": meta} if meta else {}))


def _leave(late: LlmosError | None, result: Json) -> Json:
    if late is not None:
        raise late
    return copy.deepcopy(result)


def _check(kind: Kind, old: Json, wanted: Json) -> None:
    """Raise Conflict if UID or resource version in ``wanted`` is not that of ``old``."""
    for key in ("uid", "resourceVersion"):
        if wanted.get(key) and wanted[key] != old["metadata"][key]:
            raise Conflict(
                f"{kind.plural}: Precondition failed: {key} {wanted[key]} is not {old['metadata'][key]}"
            )


def _essence(body: Json) -> str:
    meta = {
        key: value for key, value in body["metadata"].items() if key not in {"resourceVersion", "generation"}
    }
    return json.dumps({**body, "metadata": meta}, sort_keys=True)


def _merge(old: Json, patch: Json) -> Json:
    """RFC 7386 merge; metadata's preconditions stay as they are."""
    new = copy.deepcopy(old)
    for key, value in patch.items():
        if value is None:
            new.pop(key, None)
        elif isinstance(value, dict):
            base = new.get(key)
            new[key] = _merge(base if isinstance(base, dict) else {}, value)
        else:
            new[key] = copy.deepcopy(value)
    return new


def _selected(body: Json, namespace: str, labels: str, fields: str) -> bool:
    if namespace and body["metadata"].get("namespace") != namespace:
        return False
    return matches_labels(body["metadata"].get("labels") or {}, labels) and matches_fields(body, fields)


def _as_seen(
    event_type: str, body: Json, former: Json | None, selection: tuple[str, str, str]
) -> port.WatchEvent | None:
    """Return the event as a watcher with a selection sees it: objects enter and leave its view."""
    inside = _selected(body, *selection)
    was_inside = former is not None and _selected(former, *selection)
    if event_type == "DELETED":
        return port.WatchEvent("DELETED", copy.deepcopy(body)) if was_inside else None
    if inside:
        return port.WatchEvent("MODIFIED" if was_inside else "ADDED", copy.deepcopy(body))
    return port.WatchEvent("DELETED", copy.deepcopy(body)) if was_inside else None
