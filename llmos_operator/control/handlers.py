"""kopf's part: it watches ModelWorkloads and the small kinds and hands every event on, nothing else.

kopf runs in a thread with an event loop of its own, because at its end it cancels every task of its loop and it takes
over signal handling. Its handlers are event handlers: they write nothing to the API, and each only passes the raw
object to the control loop. Events kopf loses are found by the resync; whether its watch lives is judged there too.
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import kopf

from llmos_operator.api import names
from llmos_operator.cluster import credentials

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from llmos_operator.cluster.port import Json, Kind

    Deliver = Callable[[Kind, str, Json], None]  # kind, event type, object; may be called from any thread


def registry_of(kinds: Sequence[Kind], deliver: Deliver) -> kopf.OperatorRegistry:
    """Return kopf's handlers for ``kinds``."""
    registry = kopf.OperatorRegistry()

    def subscribe(kind: Kind) -> None:
        async def hand_on(event: Any, **_: Any) -> None:
            # The type is None for objects of the first list.
            deliver(kind, event["type"] or "ADDED", event["object"])

        kopf.on.event(kind.group, kind.version, kind.plural, id=f"hand-on-{kind.plural}", registry=registry)(
            hand_on
        )

    for kind in kinds:
        subscribe(kind)
    kopf.on.login(id="credentials", registry=registry)(_login)
    return registry


async def _login(**kwargs: Any) -> Any:
    """Log kopf in the way the transport does: KUBECONFIG, else the pod's ServiceAccount, else plugins."""
    if os.environ.get("KUBECONFIG"):
        found = kopf.login_with_kubeconfig(**kwargs)
        known = found and (found.token or found.username or found.certificate_path or found.certificate_data)
        if found is not None and not known:  # kopf does not know `tokenFile`
            found = replace(found, token=credentials.find().token() or None)
        return found or kopf.login_via_client(**kwargs)
    return kopf.login_with_service_account(**kwargs) or kopf.login_via_client(**kwargs)


class NothingKept(kopf.DiffBaseStorage):
    """No handler asks what has changed on an object, so kopf need not copy every object to find out."""

    def build(self, **_: Any) -> kopf.BodyEssence:
        """Return no content, where kopf would copy the object's."""
        return kopf.BodyEssence()

    def fetch(self, **_: Any) -> kopf.BodyEssence | None:
        """Return that nothing was stored."""
        return None

    def store(self, **_: Any) -> None:
        """Store nothing."""


def settings_of() -> kopf.OperatorSettings:
    """Return kopf's settings: no Events, no peering, no discovery, no traces on objects, short timeouts."""
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.posting.loggers = False
    settings.scanning.disabled = True
    settings.peering.standalone = True
    settings.networking.request_timeout = 10.0
    settings.networking.connect_timeout = 5.0
    settings.watching.server_timeout = 300  # goes into the query as it is: a float is refused
    settings.watching.connect_timeout = 5.0
    settings.watching.inactivity_timeout = 75.0
    settings.watching.chunk_size = 500
    settings.queueing.idle_timeout = 1.0
    settings.process.ultimate_exiting_timeout = None
    # Never written, as there are no stateful handlers; named all the same, so that none could be taken for kopf's.
    settings.persistence.finalizer = f"{names.GROUP}/kopf"
    settings.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=names.GROUP)
    settings.persistence.diffbase_storage = NothingKept()
    return settings


class KopfThread:
    """kopf's operator in a thread of its own."""

    def __init__(self, kinds: Sequence[Kind], deliver: Deliver, namespaces: Sequence[str] = ()) -> None:
        self._kinds = kinds
        self._deliver = deliver
        self._namespaces = namespaces
        self._stop = threading.Event()

    async def run(self) -> None:
        """Watch until :meth:`stop`; raises what ended kopf otherwise."""
        try:
            await asyncio.to_thread(self._main)
        except asyncio.CancelledError:
            self._stop.set()
            raise
        if not self._stop.is_set():
            raise RuntimeError("kopf ended by itself")

    def stop(self) -> None:
        """Let kopf end."""
        self._stop.set()

    def _main(self) -> None:
        # It warns that signals do not reach its thread, which is what the thread is for.
        logging.getLogger("kopf._core.reactor.running").setLevel(logging.ERROR)
        scope: dict[str, Any] = (
            {"namespaces": list(self._namespaces)} if self._namespaces else {"clusterwide": True}
        )
        asyncio.run(
            kopf.operator(
                registry=registry_of(self._kinds, self._deliver),
                settings=settings_of(),
                standalone=True,
                stop_flag=self._stop,
                # Unused without peers. Else kopf makes one of the user's name, and an image's uid 65532 has none.
                identity=cast("Any", "llmos-operator"),
                **scope,
            )
        )
