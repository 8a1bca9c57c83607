"""Models from far away through the node's store: object stores, registries, web servers, and copies a ModelCache keeps."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from llmos_operator.clock import SystemClock
from llmos_operator.modelstore.remote import Access, Place
from llmos_operator.modelstore.room import make_room
from llmos_operator.modelstore.sources import open_source
from llmos_operator.modelstore.store import Lease, Store, await_folder
from llmos_operator.observability.logging import logger
from llmos_operator.runtime.loader.sources import Resolved, begin_download

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmos_operator.runtime.ipc.messages import Load
    from llmos_operator.runtime.loader.progress import Stages

log = logger(__name__)


def kept(load: Load, stages: Stages) -> Resolved | None:
    """Return the copy that a ModelCache keeps on this node, waiting for one that is on its way; None if there is none.

    The copy is mounted read-only and held until this process ends, so that it is not deleted meanwhile.
    """
    if not load.kept_dir:
        return None
    begin_download(stages, 0)
    lease = await_folder(Path(load.kept_dir), load.uri, load.revision, stages.at)
    if lease is None:
        log.info("the node keeps no copy of the model; it is read from its source", uri=load.uri)
        return None
    return _resolved(lease)


def download(load: Load, stages: Stages, files: Sequence[str] = ()) -> Resolved:
    """Return the local copy of ``load.uri``: a folder, with ``files`` or all that a model needs.

    Runtimes that share the cache download once; the others wait and then share it.
    """
    # An adapter's files are not a model: they must not be taken for one that has the same address.
    place = Place(load.uri, "adapter" if files else load.revision)
    access = Access(dict(load.secrets) | ({"token": load.token} if load.token else {}))
    store = Store(Path(load.cache_dir or tempfile.gettempdir()))
    begin_download(stages, 0)

    def room(needed: int) -> None:
        make_room(store, needed, now=SystemClock().now())

    return _resolved(
        store.obtain(place, lambda: open_source(place, access, files=files), report=stages.at, make_room=room)
    )


def _resolved(lease: Lease) -> Resolved:
    # Never released: a model is in use until its engine ends, which closes the lock.
    return Resolved(lease.folder, lease.entry.resolved, lease.fetched)
