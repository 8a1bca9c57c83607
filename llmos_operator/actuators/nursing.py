"""What is done to nodes for a treatment: cordon and uncordon, and the Job that resets. Each after it is written down."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from llmos_operator.actuators.writequeue import Job, Rank
from llmos_operator.cluster.failures import AlreadyExists, NotFound
from llmos_operator.cluster.port import JOBS, NODES
from llmos_operator.errors import Conflict, LlmosError, Permanent
from llmos_operator.manifests.reset_job import ended, reset_job
from llmos_operator.observability.logging import logger

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from llmos_operator.actuators.care import CareWriter
    from llmos_operator.actuators.writequeue import WriteQueue
    from llmos_operator.cluster.port import ClusterPort
    from llmos_operator.state.care import Treatment

log = logger(__name__)


class Nursing:
    """Jobs of the write queue. What fails is tried again when it is asked for again, a few seconds later."""

    def __init__(
        self,
        port: ClusterPort,
        queue: WriteQueue,
        care: CareWriter,
        *,
        namespace: str,
        job: Mapping[str, Any],
        reset_ended: Callable[[str, Treatment, str], None],
    ) -> None:
        """`job` is the spec of the reset Job; `reset_ended` is told node, treatment, and why it failed, "" when it did not."""
        self._port = port
        self._queue = queue
        self._care = care
        self._namespace = namespace
        self._job = job
        self._reset_ended = reset_ended

    def write_down(self) -> None:
        """Write what is decided and not written."""
        for node in self._care.dirty():
            self._queue.submit(Job(Rank.SUPPORT, f"care {node}", partial(self._write, node)))

    def cordon(self, node: str, *, on: bool) -> None:
        """Keep new pods off a node, or let them on again."""
        self._queue.submit(Job(Rank.SUPPORT, f"cordon {node}", lambda: self._cordon(node, on=on)))

    def reset(self, node: str, one: Treatment) -> None:
        """Make the Job of a treatment, or look whether it has ended."""
        self._queue.submit(Job(Rank.SUPPORT, f"reset {node} {one.target}", lambda: self._reset(node, one)))

    async def _write(self, node: str) -> None:
        try:
            await self._care.write(node)
        except LlmosError as error:
            log.warning("care not written", node=node, error=error)

    async def _cordon(self, node: str, *, on: bool) -> None:
        try:
            await self._care.write(node)
            await self._port.merge_patch(NODES, node, {"spec": {"unschedulable": True if on else None}})
        except NotFound:
            return
        except LlmosError as error:
            log.warning("node not cordoned" if on else "node not uncordoned", node=node, error=error)
            return
        log.info("node cordoned" if on else "node uncordoned", node=node)

    async def _reset(self, node: str, one: Treatment) -> None:
        body = reset_job(self._job, node, one, self._namespace)
        name = body["metadata"]["name"]
        try:
            await self._care.write(node)
            try:
                made = await self._port.get(JOBS, name, namespace=self._namespace)
            except NotFound:
                made = await self._port.create(JOBS, body, namespace=self._namespace)
                log.info("reset Job made", node=node, target=one.target, job=name)
        except (AlreadyExists, Conflict):
            return  # looked at again
        except Permanent as error:
            log.warning("reset Job cannot be made", node=node, target=one.target, error=error)
            self._reset_ended(node, one, f"the Job cannot be made: {error}")
            return
        except LlmosError as error:
            log.warning("reset Job in doubt", node=node, target=one.target, error=error)
            return
        done = ended(made)
        if done is not None:
            self._reset_ended(node, one, "" if done else f"Job {name} failed, see its log")
