"""The agent's own Node: its UID, and on simulated nodes the annotations that announce devices and faults."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from llmos_operator.cluster.backoff import Curve
from llmos_operator.cluster.failures import NotFound
from llmos_operator.cluster.mirror import Change, Mirror
from llmos_operator.cluster.port import NODES
from llmos_operator.cluster.reflector import Reflector
from llmos_operator.errors import LlmosError, Retryable
from llmos_operator.observability.logging import logger

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from llmos_operator.cluster.port import ClusterPort, Json

log = logger(__name__)

CURVE: Final = Curve(base=0.5, cap=10.0)


def annotation(node: Json, name: str) -> str:
    """Return an annotation of an object, or ""."""
    return str(((node.get("metadata") or {}).get("annotations") or {}).get(name) or "")


async def wait_for_node(port: ClusterPort, name: str, rng: Random) -> Json:
    """Return the Node; wait until it is registered and the API server answers. Raises what waiting cannot heal."""
    failures = 0
    while True:
        try:
            return await port.get(NODES, name)
        except (NotFound, Retryable) as error:
            failures += 1
            if failures in {1, 10, 100}:
                log.warning("waiting for the Node", node=name, error=str(error), tries=failures)
            await asyncio.sleep(CURVE.delay(failures, rng))


async def follow_node(port: ClusterPort, name: str, changed: Callable[[Json], None]) -> None:
    """Call ``changed`` with the Node each time it changes, until cancelled. A deletion changes nothing."""

    def take(change: Change, body: dict[str, Any]) -> None:
        if change is Change.APPLIED:
            try:
                changed(body)
            except LlmosError as error:
                # An annotation that cannot be read leaves the devices as they are; it must not end the agent.
                log.warning("the Node's annotations cannot be used", node=name, error=str(error))

    await Reflector(port, Mirror(NODES, take), field_selector=f"metadata.name={name}").run()
