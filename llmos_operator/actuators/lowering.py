"""Asks replicas to do with less memory, or to sleep, and undoes it: what the ledger counts, and the claim on the pod that says so.

Claims on other devices than planned, as the kubelet gave them, are written down the same way.

The store is changed first, then the claim is written down as it stands at that moment, however often that takes; so a
write that is late, repeated or in doubt leaves the last word on the pod. Telling the runtime, and watching it come down
or fall asleep, is the part of `control.yielding` and `control.sleepers`: until it was seen to, the pod counts with all it
had before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from llmos_operator.actuators.writequeue import Job, Rank, WriteQueue
from llmos_operator.api import names
from llmos_operator.cluster.failures import NotFound
from llmos_operator.cluster.port import PODS
from llmos_operator.errors import Conflict, LlmosError, Retryable
from llmos_operator.observability.logging import logger
from llmos_operator.scheduler.plan import Restore, Shrink, Sleep, Wake
from llmos_operator.state.convert.pods import claim_json

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmos_operator.actuators.outcomes import Outcomes
    from llmos_operator.clock import Clock
    from llmos_operator.cluster.port import ClusterPort
    from llmos_operator.state.store import Store
    from llmos_operator.state.types import Pod

log = logger(__name__)

EXPECTED_SECONDS = 20.0  # within which a runtime comes down, for the turn of the workload it makes room for
NARROW_SECONDS = 120.0  # the same where it has to load another format for that
FIRM_SECONDS = 300.0  # for which a replica that did not come down is not asked again
_RETRY_SECONDS = 1.0


class Lowering:
    """Claims that are lowered and restored, as jobs of the write queue."""

    def __init__(
        self,
        port: ClusterPort,
        store: Store,
        queue: WriteQueue,
        outcomes: Outcomes,
        clock: Clock,
        *,
        submit: Callable[..., Any],
    ) -> None:
        """`submit` queues a job that counts as work of its workload."""
        self._port = port
        self._store = store
        self._queue = queue
        self._outcomes = outcomes
        self._clock = clock
        self._submit = submit
        self._dropped: dict[
            str, tuple[str, str]
        ] = {}  # pods whose claims are to be written down when this may write again
        self.waking: set[str] = set()  # pods that are to serve again and whose runtimes may not know yet
        self.raised: set[str] = (
            set()
        )  # pods that have got their memory back and whose runtimes do not know yet

    def carry_out(self, action: Shrink | Restore | Sleep | Wake) -> bool:
        """Take one action on a claim; return whether it still makes sense."""
        match action:
            case Shrink():
                return self.shrink(action)
            case Restore():
                return self.restore(action)
            case Sleep():
                return self.sleep(action)
            case Wake():
                return self.wake(action)

    def shrink(self, shrink: Shrink) -> bool:
        """Ask a replica to come down. Returns False if it is not there any more, or was asked before."""
        now = self._clock.now()
        claim = self._store.ask_to_lower(
            shrink.pod,
            shrink.pod_uid,
            shrink.bytes_per_device,
            now,
            shrink.preemptor,
            now + (NARROW_SECONDS if shrink.format else EXPECTED_SECONDS),
            lent=shrink.loan,
            fmt=shrink.format,
        )
        if claim is None:
            return False
        self.raised.discard(shrink.pod)
        self._write_down(shrink.pod, shrink.pod_uid, shrink.victim)
        self._outcomes.shrunk(shrink)
        return True

    def restore(self, restore: Restore) -> bool:
        """Give a replica back all it was bound with. Returns False if nothing was taken."""
        claim = self._store.restore_memory(restore.pod, restore.pod_uid)
        if claim is None:
            return False
        self.raised.add(restore.pod)
        self._write_down(restore.pod, restore.pod_uid, restore.workload)
        self._outcomes.restored(restore)
        return True

    def yielded(self, pod: Pod) -> None:
        """A replica was seen to have come down: count it with that."""
        claim = self._store.note_yielded(pod.key, pod.uid)
        if claim is not None:
            self._write_down(pod.key, pod.uid, claim.workload)
            self._outcomes.yielded(pod)

    def refused(self, pod: Pod, why: str) -> None:
        """A replica did not come down: it keeps all it has, and is not asked again for a while."""
        claim = self._store.restore_memory(pod.key, pod.uid, self._clock.now() + FIRM_SECONDS)
        if claim is not None:
            self.raised.add(pod.key)
            self._write_down(pod.key, pod.uid, claim.workload)
            self._outcomes.not_shrunk(pod, why)

    def sleep(self, sleep: Sleep) -> bool:
        """Ask a replica to sleep. Returns False if it is not there any more, sleeps, or its node has no room for its weights."""
        until = self._clock.now() + EXPECTED_SECONDS
        if self._store.ask_to_sleep(sleep.pod, sleep.pod_uid, sleep.sleeping, until) is None:
            return False
        self.waking.discard(sleep.pod)
        self._write_down(sleep.pod, sleep.pod_uid, sleep.victim)
        self._outcomes.put_to_sleep(sleep)
        return True

    def asleep(self, pod: Pod) -> None:
        """A replica was seen to sleep: count it as asleep."""
        claim = self._store.note_asleep(pod.key, pod.uid)
        if claim is not None:
            self._write_down(pod.key, pod.uid, claim.workload)
            self._outcomes.fell_asleep(pod)

    def not_slept(self, pod: Pod, why: str) -> None:
        """A replica did not go to sleep: it keeps its place, is woken, and not asked again for a while."""
        claim = self._store.wake(pod.key, pod.uid, self._clock.now() + FIRM_SECONDS)
        if claim is not None:
            self.waking.add(pod.key)
            self._write_down(pod.key, pod.uid, claim.workload)
            self._outcomes.not_slept(pod, why)

    def wake(self, wake: Wake) -> bool:
        """Let a replica serve again. Returns False if it does not sleep, or its room is taken."""
        if self._store.wake(wake.pod, wake.pod_uid) is None:
            return False
        self.waking.add(wake.pod)
        self._write_down(wake.pod, wake.pod_uid, wake.workload)
        self._outcomes.woken(wake)
        return True

    def corrected(self, pod: Pod) -> None:
        """A pod was given other devices than planned: write down which, so that whoever reads its claim knows."""
        if pod.claim is not None:
            log.info("pod got other devices than planned", pod=pod.key, devices=",".join(pod.claim.devices))
            self._write_down(pod.key, pod.uid, pod.claim.workload)

    def resume(self) -> None:
        """Write down what could not be when this process had to stop writing."""
        dropped, self._dropped = self._dropped, {}
        for key, (uid, workload) in dropped.items():
            self._write_down(key, uid, workload)

    # -- the claim on the pod -------------------------------------------------------------------------------

    def _write_down(self, key: str, uid: str, workload: str) -> None:
        def drop() -> None:
            self._dropped[key] = (uid, workload)

        self._submit(Rank.EVICT, f"claim {key}", workload, lambda: self._write(key, uid, workload), drop)

    async def _write(self, key: str, uid: str, workload: str) -> None:
        self._dropped.pop(key, None)
        pod = self._store.pod(key)
        if pod is None or pod.uid != uid or pod.claim is None:
            return
        namespace, _, name = key.partition("/")
        annotations = {names.ANNOTATION_CLAIM: claim_json(pod.claim)}
        patch = {"metadata": {"uid": uid, "annotations": annotations}}
        try:
            await self._port.merge_patch(PODS, name, patch, namespace=namespace)
        except (NotFound, Conflict):
            return  # gone, or another pod by now: the watch tells
        except Retryable as error:
            log.warning("claim not written down yet, trying again", pod=key, error=error)
            self._write_later(key, uid, workload)
        except LlmosError as error:
            # What the ledger counts is then forgotten with this process: what was taken is given back instead.
            log.warning("claim cannot be written down", pod=key, error=error)
            why, firm_until = (
                f"its claim could not be written down: {error}",
                self._clock.now() + FIRM_SECONDS,
            )
            if pod.claim.sleeping is not None and self._store.wake(key, uid, firm_until):
                self.waking.add(key)
                self._outcomes.not_slept(pod, why)
            elif pod.claim.lowered and self._store.restore_memory(key, uid, firm_until):
                self.raised.add(key)
                self._outcomes.not_shrunk(pod, why)

    def _write_later(self, key: str, uid: str, workload: str) -> None:
        async def again() -> None:
            self._write_down(key, uid, workload)

        self._queue.submit_after(_RETRY_SECONDS, Job(Rank.EVICT, f"claim later {key}", again))
