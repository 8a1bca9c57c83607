"""Bookkeeping of one kind: which objects exist at which version, and how fresh that knowledge is.

A mirror keeps no objects, only name, UID and version of each; changes go on to a sink. Whoever sees objects (reflector,
kopf handlers, the 30 s resync, answers to our own writes) feeds the mirror, which drops what is older than what it
already passed on. So several sources may feed one mirror, in any order, and the sink sees each change once.

Resource versions are compared as numbers: Kubernetes promises that since 1.35 (KEP-5504), and etcd revisions always
were.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from llmos_operator.cluster.port import Json, Kind

ObjectKey = tuple[str, str]  # namespace ("" if cluster-scoped), name


class Change(StrEnum):
    """What a sink is told."""

    APPLIED = "Applied"
    DELETED = "Deleted"


@dataclass(frozen=True, slots=True)
class Known:
    """Version of an object as last passed on."""

    uid: str
    version: int


class Mirror:
    """Versions of the objects of one kind."""

    def __init__(
        self,
        kind: Kind,
        sink: Callable[[Change, Json], None],
        *,
        on_synced: Callable[[], None] = lambda: None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`sink` gets each change once, in order per object; for DELETED only `metadata` is sure to be there."""
        self.kind = kind
        self.synced = False  # a complete list has been passed on
        self.version = 0  # newest resource version seen
        self.repaired = 0  # changes only a resync brought to light
        self._sink = sink
        self._on_synced = on_synced
        self._monotonic = monotonic
        self._known: dict[ObjectKey, Known] = {}
        self._buried: dict[ObjectKey, int] = {}  # deletions that lists begun earlier may still contradict
        self._fresh_at: float | None = None

    def __len__(self) -> int:
        return len(self._known)

    def touch(self) -> None:
        """Note a sign of life of the source (event, bookmark, list)."""
        self._fresh_at = self._monotonic()

    def age(self) -> float:
        """Return seconds since the last sign of life; infinity before the first."""
        return float("inf") if self._fresh_at is None else self._monotonic() - self._fresh_at

    def known(self, key: ObjectKey) -> Known | None:
        """Return UID and version of an object as last passed on."""
        return self._known.get(key)

    def observe(self, event_type: str, body: Json) -> bool:
        """Take one object as seen now. ``event_type`` is a watch event's type. Returns whether it was news."""
        key, uid, version = identify(body)
        known = self._known.get(key)
        if version <= self._buried.get(key, -1):
            return False
        # A deletion may carry the version of the last update: some proxies and old servers send it so.
        last_words = event_type == "DELETED" and known == Known(uid, version)
        if known is not None and version <= known.version and not last_words:
            return False
        self.version = max(self.version, version)
        if event_type == "DELETED":
            return self._delete(key, body, version)
        if known is not None and known.uid != uid:
            self._delete(key, _tombstone(key, known), known.version)
        self._known[key] = Known(uid, version)
        self._sink(Change.APPLIED, body)
        return True

    def _delete(self, key: ObjectKey, body: Json, version: int) -> bool:
        self._buried[key] = version
        if self._known.pop(key, None) is None:
            return False
        self._sink(Change.DELETED, body)
        return True

    def settle(self, listed: Collection[ObjectKey], version: int) -> int:
        """Close a complete list made at ``version`` whose objects were observed. Returns the number of deletions.

        What a watch reported after ``version`` stands; what the list lacks and nothing later brought is deleted.
        """
        changes = 0
        for key, known in [(key, known) for key, known in self._known.items() if key not in listed]:
            if known.version <= version:
                changes += self._delete(key, _tombstone(key, known), version)
        self._buried = {key: at for key, at in self._buried.items() if at > version}
        self.version = max(self.version, version)
        self.touch()
        if not self.synced:
            self.synced = True
            self._on_synced()
        return changes

    def behind(self, listed: Mapping[ObjectKey, Known]) -> bool:
        """Return whether a list shows an object, or a version of one, that was not passed on yet."""
        return any(
            there.version > self._buried.get(key, -1)
            and ((here := self._known.get(key)) is None or there.version > here.version)
            for key, there in listed.items()
        )

    def reset(self) -> None:
        """Forget versions, not objects: the API server's history was replaced and its versions went back."""
        self._known = {key: Known(known.uid, -1) for key, known in self._known.items()}
        self._buried.clear()
        self.version = 0


def identify(body: Json) -> tuple[ObjectKey, str, int]:
    """Return key, UID and version of an object."""
    meta = body["metadata"]
    return (
        (meta.get("namespace", ""), meta["name"]),
        meta.get("uid", ""),
        int(meta.get("resourceVersion") or 0),
    )


def _tombstone(key: ObjectKey, known: Known) -> Json:
    namespace, name = key
    meta = {"name": name, "uid": known.uid, "resourceVersion": str(max(known.version, 0))}
    return {"metadata": meta | ({"namespace": namespace} if namespace else {})}
