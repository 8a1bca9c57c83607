"""Making room in a store before a download: within a budget, and within what the disk has."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from llmos_operator.modelstore.eviction import Kept, to_evict
from llmos_operator.observability.logging import logger

if TYPE_CHECKING:
    from collections.abc import Collection

    from llmos_operator.modelstore.store import Store

log = logger(__name__)


def make_room(store: Store, needed: int, *, now: float, budget: int = 0, keep: Collection[str] = ()) -> int:
    """Delete entries until ``needed`` bytes fit; return how many bytes are still missing, 0 if none.

    Entries in use and those in ``keep`` stay, whatever is missing. ``budget`` bounds the bytes of all entries, 0: the
    disk alone does. ``now`` is in epoch seconds.
    """
    missing = _missing(store, needed, budget)
    if missing <= 0:
        return 0
    idle = [
        Kept(one.key, one.size, one.seconds, store.last_used(one.key))
        for one in store.entries()
        if one.key not in keep and not store.in_use(one.key)
    ]
    for chosen in to_evict(idle, missing, now):
        freed = store.delete(chosen.key)  # 0 if somebody took it this moment
        if freed:
            log.info("a kept model made room", key=chosen.key, bytes=freed, reload_seconds=chosen.seconds)
    return max(0, _missing(store, needed, budget))


def _missing(store: Store, needed: int, budget: int) -> int:
    free = shutil.disk_usage(store.models if store.models.exists() else store.models.parent).free
    beyond = store.held_bytes() + needed - budget if budget else 0
    return max(needed - free, beyond)
