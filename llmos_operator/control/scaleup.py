"""Asks for nodes: for work that waits because the cluster is too small, placeholders that cluster autoscalers can see.

Work that has waited for capacity for some time, and may have it by its quota, is stood for by one placeholder for each pod
it lacks (`manifests.placeholder`), up to a limit, in the order of the queues. Whoever adds nodes sees these; when the work has
its place, or does not want it any more, they go. Work that no node of another size would help is left out: what waits for
its turn, its quota or a decision on whom to displace.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from llmos_operator.actuators.placeholders import Wanted
from llmos_operator.api.conditions import Reason
from llmos_operator.manifests.placeholder import placeholder
from llmos_operator.scheduler.claims import host_needs
from llmos_operator.scheduler.filters.device_kind import product_matches

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from llmos_operator.actuators.placeholders import Placeholders
    from llmos_operator.clock import Clock
    from llmos_operator.control.metrics import OperatorMetrics
    from llmos_operator.scheduler.plan import Decision, Plan
    from llmos_operator.scheduler.policy import Policy
    from llmos_operator.settings import ScaleUpSettings
    from llmos_operator.state.store import Store
    from llmos_operator.state.types import Workload

SHORT: Final = frozenset({Reason.NO_CAPACITY, Reason.LARGER_THAN_CLUSTER, Reason.NO_MATCHING_DEVICE})


class ScaleUp:
    """Looks at every plan that is carried out. One caller."""

    def __init__(
        self,
        store: Store,
        placeholders: Placeholders,
        policy: Policy,
        settings: ScaleUpSettings,
        metrics: OperatorMetrics,
        clock: Clock,
        tell: Callable[[Workload, str], None],
    ) -> None:
        """`tell` is given each workload nodes are asked for, when that begins, with what to say of it."""
        self._store = store
        self._placeholders = placeholders
        self._policy = policy
        self._settings = settings
        self._metrics = metrics
        self._clock = clock
        self._tell = tell
        self._short: dict[
            str, Decision
        ] = {}  # by workload UID: what was last decided on those that lack capacity
        self._since: dict[str, float] = {}  # workload UID -> monotonic time since which it does
        self._asked: set[str] = set()

    def planned(self, plan: Plan) -> None:
        """Ask for what the plan found no place for."""
        if not self._settings.enabled:
            self._placeholders.keep({})  # of an operator that was set otherwise
            return
        now = self._clock.monotonic()
        self._take(plan)
        self._since = {uid: self._since.get(uid, now) for uid in self._short}
        wanted: dict[str, Wanted] = {}
        asked: set[str] = set()
        products = self._known_products() if self._short else set()
        for workload, decision in self._in_order():
            if len(wanted) >= self._settings.most:
                break
            if now - self._since[workload.uid] < self._settings.after:
                continue
            found = self._stand_ins(workload, decision, products, self._settings.most - len(wanted))
            if found:
                wanted |= found
                asked.add(workload.uid)
                self._announce(workload, len(found))
        self._asked = asked
        self._placeholders.keep(wanted)
        self._metrics.placeholders.set(len(wanted))

    def _take(self, plan: Plan) -> None:
        """Note who lacks capacity. A plan that was interrupted says nothing of what it did not look at."""
        before = self._short if plan.interrupted else {}
        looked_at = {one.workload_uid for one in plan.decisions.values()}
        self._short = {uid: one for uid, one in before.items() if uid not in looked_at} | {
            one.workload_uid: one for one in plan.decisions.values() if one.pending and one.reason in SHORT
        }

    def _in_order(self) -> Iterator[tuple[Workload, Decision]]:
        """Yield who lacks capacity in the order of the queues, without what is gone."""
        for one in sorted(
            self._short.values(), key=lambda one: (one.queue_position is None, one.queue_position or 0)
        ):
            workload = self._store.workload(one.workload)
            if workload is not None and workload.uid == one.workload_uid:
                yield workload, one

    def _stand_ins(
        self, workload: Workload, decision: Decision, known: set[str], room: int
    ) -> dict[str, Wanted]:
        products = _products(workload, known)
        if products is None:
            return {}
        needs = host_needs(workload, decision.bytes_per_device, self._policy)
        count = min(room, decision.pending * workload.members)
        bodies = (placeholder(workload, needs, products, number) for number in range(count))
        return {
            f"{workload.namespace}/{body['metadata']['name']}": Wanted(body, decision.message)
            for body in bodies
        }

    def _known_products(self) -> set[str]:
        return {
            one.device.product for state in self._store.snapshot().nodes.values() for one in state.devices
        }

    def _announce(self, workload: Workload, count: int) -> None:
        if workload.uid not in self._asked:
            self._tell(workload, f"asked for room on new nodes: {count} placeholder pods show what is needed")


def _products(workload: Workload, known: set[str]) -> tuple[str, ...] | None:
    """Return the products a new node may have, none for any; None where nobody could tell which node would do.

    A workload names products by parts of their names; what their nodes are labelled with is known of products the
    cluster has. Of others only the workload's own selectors of nodes tell.
    """
    words = workload.selector.products
    if not words or not workload.accelerators:
        return ()
    found = tuple(sorted(one for one in known if product_matches(one, words)))
    if not found and not (workload.node_selector.requirements or workload.node_affinity):
        return None
    return found
