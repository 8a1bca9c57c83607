"""`llmos fetch`: bring one model into a node's store and end. The agent starts it; one process for each download.

The order comes on standard input and the outcome goes to standard output, each as one JSON object: credentials are in
no argument and no environment. How far it has come stands in the entry's progress.json meanwhile.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from llmos_operator.api.conditions import Reason
from llmos_operator.clock import SystemClock
from llmos_operator.errors import Permanent, Retryable
from llmos_operator.modelstore.order import Order, Outcome, parse_order
from llmos_operator.modelstore.remote import Access, Place
from llmos_operator.modelstore.room import make_room
from llmos_operator.modelstore.sources import open_source
from llmos_operator.modelstore.store import Store
from llmos_operator.observability import logging

if TYPE_CHECKING:
    from collections.abc import Sequence

FIELD, SECRET_FIELD = "spec.uri", "spec.secretRef"  # of a ModelCache


def fetch(order: Order) -> Outcome:
    """Have the model in the store."""
    place = Place(order.uri, order.revision, FIELD, SECRET_FIELD)
    access = Access(order.secrets, order.endpoint, order.region, order.hub)
    store = Store(Path(order.root))

    def room(needed: int) -> None:
        missing = make_room(
            store, needed, now=SystemClock().now(), budget=order.budget_bytes, keep=order.keep
        )
        if missing:
            raise place.refuse(
                f"it needs {needed} bytes and {missing} are missing on the node: what it keeps is in use or asked for by other "
                f"ModelCaches (budget {order.budget_bytes or 'the disk'}); make room, or raise modelCache.budget",
                Reason.DISK_FULL,
            )

    try:
        lease = store.obtain(
            place,
            lambda: open_source(place, access),
            report=lambda _done, _total: None,
            make_room=room,
            limit=order.limit_bytes,
        )
    except Permanent as error:
        return Outcome(reason=error.reason, message=str(error), permanent=True)
    except Retryable as error:
        return Outcome(reason=Reason.DOWNLOAD_FAILED, message=str(error), after=error.after)
    except OSError as error:
        return Outcome(
            reason=Reason.DOWNLOAD_FAILED,
            message=f"the folder {order.root} cannot be used: {error}",
            after=30.0,
        )
    lease.release()
    return Outcome(bytes=lease.entry.size)


def main(argv: Sequence[str] | None = None) -> int:
    """Read an order, follow it, print the outcome; return 0 whatever the outcome, 2 for an order that cannot be read."""
    del argv
    logging.setup("info", "json", process="fetch")
    try:
        order = parse_order(sys.stdin.read())
    except (ValueError, TypeError, KeyError) as error:
        sys.stderr.write(f"llmos fetch: no order on standard input: {type(error).__name__}\n")
        return 2
    sys.stdout.write(json.dumps(asdict(fetch(order))) + "\n")
    return 0
