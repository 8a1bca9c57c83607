"""Which pods of an older spec may go now: a rolling update within maxSurge and maxUnavailable, or a canary. Pure.

What is wanted meanwhile, and so which replicas start beside those that serve, is in `state.snapshot.wanted_ordinals`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmos_operator.actuators.outcomes import Retire
from llmos_operator.api.conditions import Reason
from llmos_operator.control.gangs import serving
from llmos_operator.state.snapshot import held_back, ordinals_of, outdated

if TYPE_CHECKING:
    from llmos_operator.state.types import Pod, PodKey, Workload


def replaced(workload: Workload, pods: list[Pod], *, instead: PodKey = "") -> list[Retire]:
    """Return the pods of an older spec that may go now; `pods` are those that run and are wanted.

    As many serving replicas go as leave the wanted number less `maxUnavailable`, whichever spec those are of. Where none may
    start beside them, at least one is replaced in place; where none can, the one that makes room (`instead`) goes first.
    What a canary holds back stays, also where there is no room for one.
    """
    held = {pod.uid for pod in held_back(workload, pods)}
    old = [pod for pod in outdated(workload, pods) if pod.uid not in held]
    rollout = workload.spec.get("rollout") or {}
    if rollout.get("strategy") == "Recreate":
        return [_retire(workload, pod) for pod in old]
    first = ordinals_of(pod for pod in old if pod.key == instead)
    unavailable = int(rollout.get("maxUnavailable", 1))
    if not workload.surge or first:
        unavailable = max(1, unavailable)
    spare = serving(workload, [pod for pod in pods if pod.ready]) - workload.replicas + unavailable
    unready = ordinals_of(pod for pod in old if not pod.ready)
    busy = sorted(ordinals_of(old) - unready, key=lambda one: (one not in first, one))
    going = unready | set(busy[: max(0, spare)])
    return [_retire(workload, pod) for pod in old if pod.claim is not None and pod.claim.ordinal in going]


def _retire(workload: Workload, pod: Pod) -> Retire:
    text = "The spec has changed."
    return Retire(pod.key, pod.uid, workload.key, workload.uid, str(Reason.PROGRESSING), text)
