"""Writes the ResourceClaims of our pods: made and allocated before the pod, reserved for it after, taken back when it has ended.

Nothing in the API keeps two claims off one device: an update of a claim is checked against that claim alone, and
kube-scheduler never looks back at what it has decided. So the operator is the one that yields: it writes its allocation, waits
until its own watch has shown it (claims come in the order of their versions, so every earlier one has been seen then), and
gives way to any other claim on the device. Each step may be repeated: the name says pod, devices and time of the bind.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Final

from llmos_operator.actuators.writequeue import Job, Rank
from llmos_operator.api.conditions import Reason
from llmos_operator.cluster.failures import NotFound
from llmos_operator.cluster.port import RESOURCE_CLAIMS
from llmos_operator.errors import Conflict, LlmosError, Permanent, Retryable
from llmos_operator.manifests import deviceclaim
from llmos_operator.observability.logging import logger
from llmos_operator.state.handouts import uses_claim

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from llmos_operator.actuators.writequeue import WriteQueue
    from llmos_operator.clock import Clock
    from llmos_operator.cluster.backoff import KeyedBackoff
    from llmos_operator.cluster.mirror import Mirror
    from llmos_operator.cluster.port import ClusterPort, Json
    from llmos_operator.cluster.retry import Retrier
    from llmos_operator.settings import ResourceClaimSettings
    from llmos_operator.state.slices import Allocation, Handle
    from llmos_operator.state.store import Store
    from llmos_operator.state.types import Claim, Pod

log = logger(__name__)

SHOWN_SECONDS: Final = (
    2.0  # for which a write waits for the watch in its slot of the queue; then it is tried again later
)


class Contested(Conflict):
    """Somebody else's ResourceClaim has a device: the place has to be decided again."""


class DeviceClaims:
    """What the operator writes of ResourceClaims."""

    def __init__(
        self,
        port: ClusterPort,
        store: Store,
        queue: WriteQueue,
        retrier: Retrier,
        claims: Mirror,
        clock: Clock,
        backoff: KeyedBackoff[str],
        settings: ResourceClaimSettings,
    ) -> None:
        """`claims` is fed by the watch alone; `backoff` spaces failed writes of one claim."""
        self._port = port
        self._store = store
        self._queue = queue
        self._retrier = retrier
        self._mirror = claims
        self._clock = clock
        self._backoff = backoff
        self._settings = settings
        self._waiting: defaultdict[str, set[asyncio.Event]] = defaultdict(set)  # by key; the watch sets

    # -- before the pod -------------------------------------------------------------------------------------

    async def take(self, claim: Claim) -> None:
        """Make sure that the ResourceClaim of a bind has its devices, and that nobody else has them.

        Raises Contested if somebody has, Permanent(NameTaken) for a claim of that name that is not ours.
        """
        if not claim.resource_claim:
            return
        namespace, key = claim.pod.partition("/")[0], key_of(claim)
        body = deviceclaim.build(claim, self._settings.device_class, self._settings.mig_device_class)
        made, _ = await self._retrier.create(self._port, RESOURCE_CLAIMS, body, namespace=namespace)
        if not deviceclaim.is_for(made, claim):
            text = f"a ResourceClaim {key} exists that is not the operator's; delete it"
            raise Permanent(text, reason=Reason.NAME_TAKEN)
        if not deviceclaim.allocated(made):
            made = await self._allocate(claim, made)
        await self._shown(key, int(made["metadata"]["resourceVersion"]))
        self._contest(claim)

    async def _allocate(self, claim: Claim, made: Json) -> Json:
        self._contest(claim)
        meta = made["metadata"]
        if meta.get("deletionTimestamp"):
            raise Retryable(f"ResourceClaim {key_of(claim)} is being deleted")
        handles = [self._handle(claim, uuid) for uuid in claim.devices]
        patch = {
            "metadata": {"uid": meta["uid"], "resourceVersion": meta["resourceVersion"]},
            "status": {"allocation": deviceclaim.allocation(claim.node, handles)},
        }
        try:
            return await self._patch(meta["namespace"], meta["name"], patch)
        except NotFound as error:
            raise Retryable(f"ResourceClaim {key_of(claim)} was deleted") from error

    def _handle(self, claim: Claim, uuid: str) -> Handle:
        found = self._store.handle(claim.node, uuid)
        if found is None:
            raise Contested(
                f"device {uuid} of {claim.node} is not published any more, or not as one to claim"
            )
        return found

    def _contest(self, claim: Claim) -> None:
        others = self.others(claim)
        if others:
            raise Contested(
                f"ResourceClaim {', '.join(others)} has a device of {claim.node} that it was to get"
            )

    def others(self, claim: Claim) -> list[str]:
        """Return the keys of the ResourceClaims of others that have devices of a claim."""
        return sorted(self._store.takers(claim.node, claim.devices) - {key_of(claim)})

    async def _shown(self, key: str, version: int) -> None:
        """Wait until the watch has shown a claim at a version. Raises Retryable if it does not, or shows that it has gone."""
        news = asyncio.Event()
        self._waiting[key].add(news)
        try:
            async with asyncio.timeout(SHOWN_SECONDS):
                while not self._has_shown(key, version):
                    news.clear()
                    await news.wait()
        except TimeoutError as error:
            raise Retryable(f"the watch has not shown ResourceClaim {key} yet") from error
        finally:
            self._waiting[key].discard(news)
            if not self._waiting[key]:
                del self._waiting[key]
        await asyncio.sleep(0)  # what the mirror has passed on is in the store then
        if self._store.allocation(key) is None:
            raise Retryable(f"ResourceClaim {key} was deleted")

    def _has_shown(self, key: str, version: int) -> bool:
        namespace, _, name = key.partition("/")
        known = self._mirror.known((namespace, name))
        return known is not None and known.version >= version

    def note(self, body: Json) -> None:
        """Take note of a claim that the watch shows."""
        meta = body["metadata"]
        for news in self._waiting.get(f"{meta.get('namespace', '')}/{meta['name']}", ()):
            news.set()

    # -- beside and after the pod ---------------------------------------------------------------------------

    async def reserve(self, claim: Claim, uid: str) -> None:
        """Reserve the ResourceClaim for its pod, which the kubelet waits for. What fails is done by :meth:`mend`."""
        if not claim.resource_claim:
            return
        try:
            await self._reserve(claim, uid)
        except LlmosError as error:
            log.warning("ResourceClaim not reserved yet", claim=key_of(claim), error=error)

    async def _reserve(self, claim: Claim, uid: str) -> None:
        namespace, _, pod = claim.pod.partition("/")
        found = await self._port.get(RESOURCE_CLAIMS, claim.resource_claim, namespace=namespace)
        users = deviceclaim.users(found)
        if any(one.get("uid") == uid for one in users):
            return
        meta = found["metadata"]
        patch = {
            "metadata": {"uid": meta["uid"], "resourceVersion": meta["resourceVersion"]},
            "status": {"reservedFor": [*users, deviceclaim.user(pod, uid)]},
        }
        await self._patch(namespace, claim.resource_claim, patch)

    def mend(self, pod: Pod, claim: Claim) -> None:
        """Queue what a former process has left undone of the claim of a pod that exists, all of it if need be."""

        async def both() -> None:
            await self.take(claim)
            await self._reserve(claim, pod.uid)

        self._submit(key_of(claim), both, "reserved")

    def release(self, one: Allocation) -> None:
        """Queue the end of a claim whose pod has ended, or was never made."""
        self._submit(one.key, partial(self._release, one), "released")

    async def _release(self, one: Allocation) -> None:
        """Take its devices from a claim and delete it. Each step is told by what stands there, so any may be the first."""
        namespace, _, name = one.key.partition("/")
        try:
            found = await self._port.get(RESOURCE_CLAIMS, name, namespace=namespace)
            pod, users = one.pod.partition("/")[2], deviceclaim.users(found)
            current = replace(one, users=tuple(str(user.get("uid")) for user in users))
            if uses_claim(self._store.pod(one.pod), current):
                raise Retryable(f"pod {one.pod} still has its devices by it")
            others = [str(user.get("name")) for user in users if user.get("name") != pod]
            if others:
                raise Retryable(f"pods use it that it was not made for: {', '.join(others)}", after=30.0)
            meta = {key: found["metadata"][key] for key in ("uid", "resourceVersion")}
            if deviceclaim.allocated(found) or users:
                freed = {"metadata": meta, "status": {"allocation": None, "reservedFor": None}}
                found = await self._patch(namespace, name, freed)
            if found["metadata"].get("finalizers"):
                kept = [key for key in found["metadata"]["finalizers"] if key != deviceclaim.FINALIZER]
                bare = {"metadata": {"uid": meta["uid"], "finalizers": kept}}
                await self._port.merge_patch(RESOURCE_CLAIMS, name, bare, namespace=namespace)
            await self._port.delete(RESOURCE_CLAIMS, name, namespace=namespace, uid=meta["uid"])
        except NotFound:
            return  # gone: kube-controller-manager, or a former process, did it

    async def _patch(self, namespace: str, name: str, patch: Json) -> Json:
        try:
            return await self._port.merge_patch(
                RESOURCE_CLAIMS, name, patch, namespace=namespace, subresource="status"
            )
        except Conflict as error:
            raise Retryable(f"ResourceClaim {namespace}/{name} was changed meanwhile: {error}") from error

    def _submit(self, key: str, run: Callable[[], Awaitable[None]], word: str) -> None:
        job = f"claim {key}"
        if self._queue.holds(job) or not self._backoff.ready(job, self._clock.monotonic()):
            return

        async def carry_out() -> None:
            try:
                await run()
            except LlmosError as error:
                after = error.after if isinstance(error, Retryable) else 0.0
                self._backoff.fail(job, self._clock.monotonic(), after=after)
                log.warning("ResourceClaim not put right yet", claim=key, to_be=word, error=error)
            else:
                self._backoff.succeed(job)
                log.info("ResourceClaim put right", claim=key, now=word)

        self._queue.submit(Job(Rank.SUPPORT, job, carry_out, lambda: None))


def key_of(claim: Claim) -> str:
    """Return namespace and name of the ResourceClaim of a bind."""
    return f"{claim.pod.partition('/')[0]}/{claim.resource_claim}"
