"""Asks NVIDIA's mig-manager to cut the GPUs of a node, by its label; tells the node's GPUNode by an Event."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from llmos_operator.actuators.writequeue import Job, Rank
from llmos_operator.api import names
from llmos_operator.cluster.events import Subject
from llmos_operator.cluster.port import NODES
from llmos_operator.errors import LlmosError
from llmos_operator.observability.logging import logger
from llmos_operator.state.cutting import FAILED, Recut, dump

if TYPE_CHECKING:
    from llmos_operator.actuators.writequeue import WriteQueue
    from llmos_operator.clock import Clock
    from llmos_operator.cluster.events import EventRecorder, EventType
    from llmos_operator.cluster.port import ClusterPort
    from llmos_operator.scheduler.plan import Cut
    from llmos_operator.state.store import Store
    from llmos_operator.state.types import Node

log = logger(__name__)


class Cutting:
    """Carries out Cut actions. The node gives nothing from the moment one is taken."""

    def __init__(
        self, port: ClusterPort, store: Store, queue: WriteQueue, recorder: EventRecorder, clock: Clock
    ) -> None:
        self._port = port
        self._store = store
        self._queue = queue
        self._recorder = recorder
        self._clock = clock

    def carry_out(self, cut: Cut) -> bool:
        """Queue the write. Returns False if the node is not there, or somebody holds some of it by now."""
        state = self._store.node(cut.node)
        before = state.node if state is not None else None
        if before is None:
            return False
        if cut.abandoned:
            self._submit(cut, before, _labels({names.LABEL_MIG_STATE: FAILED}))
            return True
        recut = Recut(float(int(self._clock.now())), cut.layout, tuple(profile for profile, _ in cut.counts))
        if not self._store.assume_cut(cut.node, recut):
            return False
        # Without its state: an old success must not be read as a new one.
        asked = _labels({names.LABEL_MIG_CONFIG: cut.layout, names.LABEL_MIG_STATE: None})
        asked["metadata"]["annotations"] = {names.ANNOTATION_MIG_RECUT: dump(recut)}
        self._submit(cut, before, asked)
        return True

    def _submit(self, cut: Cut, before: Node, patch: dict[str, Any]) -> None:
        job = Job(
            Rank.SUPPORT,
            f"cut {cut.node}",
            partial(self._write, cut, before, patch),
            partial(self._store.forget_cut, before),
        )
        self._queue.submit(job)

    async def _write(self, cut: Cut, before: Node, patch: dict[str, Any]) -> None:
        try:
            await self._port.merge_patch(NODES, cut.node, patch)
        except LlmosError as error:
            log.warning("node not asked to cut its GPUs", node=cut.node, layout=cut.layout, error=error)
            self._store.forget_cut(before)
            return
        log.info("GPUs are cut", node=cut.node, layout=cut.layout, reason=cut.reason)
        subject = Subject(names.API_VERSION, "GPUNode", cut.node)
        kind: EventType = "Warning" if cut.abandoned else "Normal"
        self._recorder.record(
            subject, kind, cut.reason, cut.explanation, key=f"{cut.layout} {self._clock.now():.0f}"
        )


def _labels(labels: dict[str, str | None]) -> dict[str, Any]:
    return {"metadata": {"labels": labels}}
