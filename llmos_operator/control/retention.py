"""Deletes ModelProfiles that no workload has named for a while: what was learned of a model outlives a pause, not for ever.

When a profile was first seen unused is written into its status, so that a restarted operator goes on counting where the
former one was. A profile is deleted only while the whole picture of workloads is known, and by its UID.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from llmos_operator.api.v1alpha1.modelprofile import profile_name
from llmos_operator.clock import parse_rfc3339, rfc3339
from llmos_operator.cluster.failures import NotFound
from llmos_operator.cluster.port import MODEL_PROFILES
from llmos_operator.errors import LlmosError
from llmos_operator.observability.logging import logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmos_operator.clock import Clock
    from llmos_operator.cluster.port import ClusterPort
    from llmos_operator.control.metrics import OperatorMetrics
    from llmos_operator.control.profiles import KnownProfile, Model, Profiles

log = logger(__name__)

_LONGEST_PAUSE: Final = 60.0
_SHORTEST_PAUSE: Final = 1.0
_LOOKS: Final = 4  # within the time a profile is kept


class Retention:
    """Looks now and then at which profiles are used."""

    def __init__(
        self,
        port: ClusterPort,
        profiles: Profiles,
        metrics: OperatorMetrics,
        clock: Clock,
        *,
        keep: float,
        used: Callable[[], set[Model]],
        may_act: Callable[[], bool],
    ) -> None:
        """`keep` is in seconds, 0 for ever; `used` tells the models of all workloads of the cluster."""
        self._port = port
        self._profiles = profiles
        self._metrics = metrics
        self._clock = clock
        self._keep = keep
        self._used = used
        self._may_act = may_act

    async def run(self) -> None:
        """Look until cancelled."""
        pause = (
            min(_LONGEST_PAUSE, max(_SHORTEST_PAUSE, self._keep / _LOOKS)) if self._keep else _LONGEST_PAUSE
        )
        while True:
            await asyncio.sleep(pause)
            await self.sweep()

    async def sweep(self) -> None:
        """Mark profiles that have become unused or used, and delete what has been unused for too long."""
        if not self._may_act():
            return
        used = {profile_name(*model) for model in self._used()}
        known = self._profiles.known()
        unused = [one for one in known if one.name not in used]
        self._metrics.profiles.labels("used").set(len(known) - len(unused))
        self._metrics.profiles.labels("unused").set(len(unused))
        if not self._keep:
            return
        for one in known:
            if one.name in used and one.status.unused_since is not None:
                await self._profiles.mark_unused(one.model, None)
        for one in unused:
            await self._age(one)

    async def _age(self, one: KnownProfile) -> None:
        now = self._clock.now()
        if one.status.unused_since is None:
            await self._profiles.mark_unused(one.model, rfc3339(now))
            return
        # Asked again: writes of other profiles took time, in which a workload may have come.
        taken = {profile_name(*model) for model in self._used()}
        if (
            now - parse_rfc3339(one.status.unused_since) < self._keep
            or one.name in taken
            or not self._may_act()
        ):
            return
        try:
            await self._port.delete(MODEL_PROFILES, one.name, uid=one.uid)
        except NotFound:
            return
        except LlmosError as error:
            log.warning("unused model profile not deleted", profile=one.name, uri=one.model[0], error=error)
            return
        self._metrics.profiles_deleted.inc()
        log.info(
            "unused model profile deleted",
            profile=one.name,
            uri=one.model[0],
            revision=one.model[1],
            unused_since=one.status.unused_since,
        )
