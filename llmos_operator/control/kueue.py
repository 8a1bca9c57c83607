"""Workloads that wait in a queue of Kueue: what each look finds is to be done about one, and what it means for its pods.

A ModelWorkload with the label `kueue.x-k8s.io/queue-name` runs while Kueue admits the Workload that the operator owns
in its name. Pods are created bound, so Kueue's pod gates cannot hold them (ADR 0045): until then the workload is
treated as suspended. Each ruling depends on what is observed now, never on what was done before. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from llmos_operator.state.types import Gate

if TYPE_CHECKING:
    from llmos_operator.manifests.kueue import Ask
    from llmos_operator.state.reservation import Reservation


class Step(StrEnum):
    """What is to be written, or read, next."""

    CREATE = "create"
    DELETE = "delete"
    RELEASE = "release"
    FINISH = "finish"
    TELL_READY = "tell ready"
    PLACE = "read flavors"


@dataclass(frozen=True, slots=True)
class Seen:
    """One workload and its Workload as they stand."""

    asked: Ask
    found: Reservation | None
    pods: int  # that run, or are about to, or end
    ready: bool  # all wanted ones are
    finished: bool
    known: bool  # Kueue's objects have been listed
    placed: bool  # the flavors of this admission are known
    trouble: str = ""  # why the last write failed


@dataclass(frozen=True, slots=True)
class Ruling:
    """What the workload may do (None: Kueue is not asked), and what is to be done."""

    gate: Gate | None
    step: Step | None = None


def rule(seen: Seen) -> Ruling:
    """Return what to do about one workload."""
    found, asked = seen.found, seen.asked
    if not asked.queue:
        return Ruling(None, Step.DELETE if found is not None else None)
    if seen.finished:
        told = found is None or found.finished
        return Ruling(None, None if told else Step.FINISH)
    if (
        not asked.pods
    ):  # suspended by its user, or scaled to none: its quota is given back when its pods are gone
        return Ruling(None, Step.DELETE if found is not None and not seen.pods else None)
    if not seen.known:
        return Ruling(_held(seen.trouble or "Kueue has not been asked yet."))
    return _unasked(seen) if found is None or _differs(asked, found) else _asked(seen, found)


def _unasked(seen: Seen) -> Ruling:
    """Rule on one for which there is no Workload, or one of something else."""
    queue = seen.asked.queue
    if seen.found is None:
        why = seen.trouble or f"Quota of LocalQueue {queue} of Kueue is to be asked for."
        return Ruling(_closed(why), None if seen.pods else Step.CREATE)
    why = f"It asks LocalQueue {queue} of Kueue for something else than before."
    return Ruling(_closed(why), None if seen.pods else Step.DELETE)


def _asked(seen: Seen, found: Reservation) -> Ruling:
    """Rule on one by what its Workload says."""
    if found.evicted:
        why = f"Kueue has evicted it ({found.evicted}): {found.message}"
        return Ruling(_closed(why), Step.RELEASE if found.reserved and not seen.pods else None)
    if not found.admitted or not found.active:
        return Ruling(_closed(_waits(found)))
    if not seen.placed:
        why = seen.trouble or f"Its ResourceFlavors are read: {', '.join(found.flavors)}."
        return Ruling(_held(why), Step.PLACE)
    return Ruling(Gate(closed=False), Step.TELL_READY if seen.ready != found.ready else None)


def _held(message: str) -> Gate:
    return Gate(closed=False, held=True, message=message)


def _closed(message: str) -> Gate:
    return Gate(closed=True, message=message)


def _waits(found: Reservation) -> str:
    if not found.active:
        return f"Workload {found.name} of Kueue is deactivated; set its spec.active to true."
    if found.reserved:
        return f"Workload {found.name} of Kueue has quota; its admission checks are not ready."
    return f"It waits in LocalQueue {found.queue} of Kueue: {found.message or 'not looked at yet'}"


def _differs(asked: Ask, found: Reservation) -> bool:
    """Return whether Kueue has to be asked anew. While quota is held fewer pods, or another priority, are no reason."""
    if found.finished or found.queue != asked.queue or found.asked != asked.mark or asked.pods > found.pods:
        return True
    return not found.reserved and (asked.pods != found.pods or asked.priority != found.priority)
