"""The runtime before a vLLM: its parts, put together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmos_operator.clock import Clock, SystemClock
from llmos_operator.observability import metrics
from llmos_operator.runtime.admission import Admission
from llmos_operator.runtime.front import LINGER_SECONDS, Front
from llmos_operator.runtime.handover.app import RelayApi
from llmos_operator.runtime.handover.collecting import VllmCollector
from llmos_operator.runtime.handover.fetching import SOCKET
from llmos_operator.runtime.handover.host import LOOK_SECONDS, VllmHost
from llmos_operator.runtime.handover.link import Link
from llmos_operator.runtime.metrics import FrontMetrics

if TYPE_CHECKING:
    from llmos_operator.runtime.settings import RuntimeSettings


class VllmRuntime(Front):
    """A runtime whose answers are made by a vLLM in the container beside it."""

    def __init__(
        self,
        settings: RuntimeSettings,
        *,
        clock: Clock | None = None,
        linger_seconds: float = LINGER_SECONDS,
        look_seconds: float = LOOK_SECONDS,
    ) -> None:
        """``look_seconds`` lie between looks at vLLM."""
        clock = clock or SystemClock()
        self.registry = metrics.new_registry("runtime")
        counted = FrontMetrics(self.registry)
        super().__init__(settings, counted, clock, linger_seconds)
        self.admission = Admission(settings.max_num_seqs, settings.max_queue, settings.max_wait_seconds)
        link = Link(settings.engine_url, str(settings.engine_dir / SOCKET))
        self.host = VllmHost(
            settings,
            link,
            self.admission,
            self.drain,
            clock,
            counted.adapter_swapped,
            look_seconds=look_seconds,
        )
        self.registry.register(VllmCollector(self.host, self.admission))
        api = RelayApi(self.host, self.admission, self.drain, counted, self.registry, self.live)
        self.open_for(self.host, link, api.build())
