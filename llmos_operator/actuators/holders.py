"""Makes and deletes holder pods. What fails is tried again when it is asked for again.

A holder pod's name is the first of its node's that is free, so that two processes that lead one after the other make the
same pod. A name is free once the kubelet has ceased to tell of it as well: its word is about names, and what it said of a
former pod of the name must not be believed of a new one.
"""

from __future__ import annotations

import itertools
from functools import partial
from typing import TYPE_CHECKING

from llmos_operator.actuators.writequeue import Job, Rank
from llmos_operator.api import names
from llmos_operator.cluster.failures import AlreadyExists, NotFound
from llmos_operator.cluster.port import DEPLOYMENTS, PODS
from llmos_operator.errors import Conflict, LlmosError, Retryable
from llmos_operator.manifests import holder
from llmos_operator.observability.logging import logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmos_operator.actuators.writequeue import WriteQueue
    from llmos_operator.clock import Clock
    from llmos_operator.cluster.backoff import KeyedBackoff
    from llmos_operator.cluster.mirror import Mirror
    from llmos_operator.cluster.port import ClusterPort, Json
    from llmos_operator.manifests.holder import HolderPodSettings
    from llmos_operator.state.ledger import NodeState
    from llmos_operator.state.store import Store
    from llmos_operator.state.types import Pod, PodKey

log = logger(__name__)

UNSEEN_SECONDS = 60.0  # for which a pod counts as leaving before the watch shows that it is


class HolderWriter:
    """Jobs of the write queue that make and delete holder pods."""

    def __init__(
        self,
        port: ClusterPort,
        store: Store,
        queue: WriteQueue,
        pods: Mirror,
        clock: Clock,
        backoff: KeyedBackoff[str],
        settings: HolderPodSettings,
        *,
        owner: str,
        done: Callable[[str], None],
        refused: Callable[[str, str], None],
    ) -> None:
        """`owner` names the Deployment holder pods go with, "" none; `backoff` spaces failed creates of a node.

        `done` is told made or removed, `refused` a node and why a pod cannot be made there.
        """
        self._port = port
        self._store = store
        self._queue = queue
        self._pods = pods
        self._clock = clock
        self._backoff = backoff
        self._settings = settings
        self._owner_name = owner
        self._owner: Json | None = None
        self._done = done
        self._refused = refused
        self._making: dict[PodKey, str] = {}  # creates that wait or are under way -> node
        self._alien: set[PodKey] = set()  # pods that are not holder pods and have the name of one

    def making(self, node: str) -> int:
        """Return how many holder pods of a node are being made and not seen yet."""
        return sum(name == node for name in self._making.values())

    def make(self, state: NodeState) -> bool:
        """Queue the creation of one more holder pod on a node. Returns False where it has to wait after a failure."""
        if not self._backoff.ready(state.name, self._clock.monotonic()):
            return False
        slot = next(slot for slot in itertools.count() if self._free(state, self._key(state.name, slot)))
        key = self._key(state.name, slot)
        self._making[key] = state.name
        self._queue.submit(
            Job(
                Rank.BIND,
                f"holder {key}",
                partial(self._make, key, state.name, slot),
                lambda: self._made(key),
            )
        )
        return True

    def remove(self, pod: Pod) -> None:
        """Queue the deletion of a holder pod; from now on nothing is placed on its device."""
        job = f"holder {pod.key} goes"
        if self._queue.holds(job):
            return
        self._store.assume_evicted(pod.key, self._clock.now() + UNSEEN_SECONDS)
        self._queue.submit(
            Job(
                Rank.RETIRE,
                job,
                partial(self._remove, pod),
                lambda: self._stays(pod.key),
            )
        )

    def _key(self, node: str, slot: int) -> PodKey:
        return f"{self._settings.namespace}/{names.holder_name(node, slot)}"

    def _free(self, state: NodeState, key: PodKey) -> bool:
        told = any(key in one.device.holders for one in state.devices)
        return not (told or key in state.pods or key in self._making or key in self._alien)

    async def _make(self, key: PodKey, node: str, slot: int) -> None:
        try:
            made = await self._port.create(
                PODS,
                holder.build(node, slot, self._settings, await self._find_owner()),
                namespace=self._settings.namespace,
            )
        except (AlreadyExists, Conflict):
            await self._adopt(key)
        except LlmosError as error:
            after = error.after if isinstance(error, Retryable) else 0.0
            self._backoff.fail(node, self._clock.monotonic(), after=after)
            log.warning("holder pod not made", pod=key, node=node, error=error)
            if not isinstance(error, Retryable):
                self._refused(node, str(error))
        else:
            self._backoff.succeed(node)
            self._pods.observe("ADDED", made)
            self._done("made")
            log.info("holder pod made", pod=key, node=node)
        finally:
            self._made(key)

    async def _adopt(self, key: PodKey) -> None:
        """Take the pod that has the name: another leader's, which the watch has not shown yet, or somebody's own."""
        try:
            found = await self._port.get(PODS, key.partition("/")[2], namespace=self._settings.namespace)
        except LlmosError as error:
            log.debug("pod with a holder pod's name not read", pod=key, error=error)
            return
        if (found["metadata"].get("labels") or {}).get(names.LABEL_ROLE) == names.ROLE_HOLDER:
            self._pods.observe("ADDED", found)
            return
        self._alien.add(key)
        log.warning("a pod that is no holder pod has the name of one; another name is taken", pod=key)

    async def _find_owner(self) -> Json | None:
        if self._owner is None and self._owner_name:
            try:
                self._owner = await self._port.get(
                    DEPLOYMENTS, self._owner_name, namespace=self._settings.namespace
                )
            except NotFound:
                log.warning("no such Deployment: nobody owns holder pods", deployment=self._owner_name)
                self._owner_name = ""
        return self._owner

    def _made(self, key: PodKey) -> None:
        self._making.pop(key, None)

    async def _remove(self, pod: Pod) -> None:
        namespace, _, name = pod.key.partition("/")
        try:
            await self._port.delete(PODS, name, namespace=namespace, uid=pod.uid)
        except (NotFound, Conflict):
            return  # gone, or another pod by now: the watch tells
        except LlmosError as error:
            log.warning("holder pod not deleted", pod=pod.key, error=error)
            self._stays(pod.key)
            return
        self._done("removed")
        log.info("holder pod deleted", pod=pod.key, node=pod.node)

    def _stays(self, key: PodKey) -> None:
        self._store.forget_eviction(key)
