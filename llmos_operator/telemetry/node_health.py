"""Health of all devices of a node, and its memory across restarts of the agent.

Time here is the agent's own axis: wall time at its start plus monotonic seconds since, so that a corrected clock
neither heals nor condemns anything. What must outlive the agent (active causes, history for repeats) is a small JSON
text, which the agent keeps in an annotation of its GPUNode: a restart must not make a broken card look healthy.
"""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any, Final

from llmos_operator.api.telemetry import Verdict
from llmos_operator.telemetry.health import Cause, DeviceHealth, Fault, Observation, fold, forget, worst
from llmos_operator.telemetry.policy import RULES, SEVERITY, Reason

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from llmos_operator.telemetry.sample import DeviceEvent, DeviceInfo, Hang, Sample

STALE_INTERVALS: Final = 3
MEMORY_LIMIT: Final = 65_536  # bytes; an annotation must never grow until the object cannot be written

_CAUSE_FIELDS: Final = frozenset(field.name for field in fields(Cause)) - {"hits"}


class NodeHealth:
    """Folds each round into a state per device."""

    def __init__(self, interval: float) -> None:
        """``interval`` is the time in seconds between rounds."""
        self._stale_after = STALE_INTERVALS * interval
        self._states: dict[str, DeviceHealth] = {}
        self._sampled: dict[str, float] = {}
        self._parents: dict[str, str] = {}

    def observe(
        self,
        devices: Iterable[DeviceInfo],
        samples: Mapping[str, Sample],
        events: Iterable[DeviceEvent],
        hangs: Iterable[Hang],
        owners: Mapping[str, frozenset[str]],
        now: float,
    ) -> None:
        """Fold one round. ``samples`` holds only those measured since the last round."""
        devices, hangs = tuple(devices), tuple(hangs)
        by_device = _addressed(devices, events)
        self._parents = {device.uuid: device.parent for device in devices if device.parent}
        states: dict[str, DeviceHealth] = {}
        for device in devices:
            uuid = device.uuid
            hang = next((hang for hang in hangs if hang.device in {"", uuid}), None)
            sample = samples.get(uuid)
            if sample is not None or uuid not in self._sampled:
                self._sampled[uuid] = now
            seen = Observation(
                sample=sample,
                events=by_device.get(uuid, ()),
                hang=hang,
                owners=owners.get(uuid, frozenset()),
                stale=hang is None and now - self._sampled[uuid] > self._stale_after,
            )
            states[uuid] = fold(self._states.get(uuid, DeviceHealth(since=now)), seen, now)
        # A device that is gone keeps its state as long as it has causes: it may come back as sick as it went.
        for uuid, state in self._states.items():
            if uuid not in states and state.causes:
                states[uuid] = state
        self._sampled = {uuid: at for uuid, at in self._sampled.items() if uuid in states}
        self._states = states

    def of(self, uuid: str) -> DeviceHealth:
        """Return the health of a device; an instance is never better than its GPU."""
        state = self._states.get(uuid, DeviceHealth())
        parent = self._states.get(self._parents.get(uuid, ""))
        return worst(state, parent) if parent is not None else state

    def forget(self, uuid: str, now: float) -> None:
        """Drop causes and history of a device, or of all for "*": a person says it is repaired."""
        for known in self._states:
            if uuid in {known, "*"}:
                self._states[known] = forget(self._states[known], now)

    # -- memory

    def dump(self) -> str:
        """Return what must outlive the agent, as JSON with sorted keys; "" if there is nothing.

        On a node where everything fails at once it keeps less: first the texts go, then all but each device's worst.
        """
        for texts, causes in ((True, len(Reason)), (False, len(Reason)), (False, 1)):
            memory = {
                uuid: entry
                for uuid, state in sorted(self._states.items())
                if (entry := _dump_state(state, texts=texts, causes=causes))
            }
            text = json.dumps(memory, sort_keys=True, separators=(",", ":")) if memory else ""
            if len(text) <= MEMORY_LIMIT:
                return text
        return ""

    def restore(self, text: str, now: float) -> int:
        """Take up what an earlier agent remembered; return for how many devices. Damaged parts are left out."""
        try:
            memory = json.loads(text) if text else {}
        except ValueError:
            return 0
        for uuid, entry in memory.items() if isinstance(memory, dict) else ():
            causes = tuple(filter(None, (_load_cause(raw, now) for raw in _list(entry, "causes"))))
            faults = tuple(filter(None, (_load_fault(raw, now) for raw in _list(entry, "faults"))))
            if causes or faults:
                state = DeviceHealth(verdict=Verdict.UNKNOWN, since=now, causes=causes, faults=faults)
                self._states.setdefault(uuid, state)
        return len(self._states)


def _addressed(
    devices: tuple[DeviceInfo, ...], events: Iterable[DeviceEvent]
) -> dict[str, tuple[DeviceEvent, ...]]:
    """Return the events by the device they concern.

    An event of one GPU instance concerns that instance; one of the whole GPU is folded into the GPU, whose instances
    take its verdict from there.
    """
    result: dict[str, tuple[DeviceEvent, ...]] = {}
    for event in events:
        target = event.uuid
        if event.gpu_instance is not None:
            target = next(
                (
                    device.uuid
                    for device in devices
                    if device.parent == event.uuid and device.gpu_instance == event.gpu_instance
                ),
                event.uuid,
            )
        result[target] = (*result.get(target, ()), event)
    return result


def _dump_state(state: DeviceHealth, *, texts: bool, causes: int) -> dict[str, Any]:
    kept = [cause for cause in state.causes if cause.active or cause.cleared is not None]
    kept.sort(key=lambda cause: (not cause.active, -SEVERITY[cause.weight], cause.since, cause.reason))
    entry: dict[str, Any] = {}
    if kept:
        entry["causes"] = [_dump_cause(cause) for cause in kept[:causes]]
    if state.faults:
        entry["faults"] = [[round(fault.at), sorted(fault.owners)] for fault in state.faults]
    if not texts:
        for cause in entry.get("causes", ()):
            cause.pop("detail", None)
    return entry


def _dump_cause(cause: Cause) -> dict[str, Any]:
    """Return a cause without its hits and with whole seconds: the text must not change while nothing happens.

    The time a lasting finding was seen last moves every second; for an active cause it is left out and counts as the
    moment of the restart.
    """
    raw = {
        key: value for key, value in asdict(cause).items() if key in _CAUSE_FIELDS and value not in {None, 0}
    }
    raw.pop("last", None)
    return {key: round(value) if isinstance(value, float) else value for key, value in raw.items()}


def _load_cause(raw: Any, now: float) -> Cause | None:
    try:
        reason = Reason(raw["reason"])
        cleared = raw.get("cleared")
        return Cause(
            reason=reason,
            detail=str(raw.get("detail", ""))[:200],
            last=min(float(cleared), now) if cleared is not None and not raw.get("active") else now,
            since=min(float(raw["since"]), now),
            active=bool(raw.get("active")),
            full=bool(raw.get("full")),
            cleared=None if cleared is None else min(float(cleared), now),
            relapses=min(int(raw.get("relapses", 0)), 16),
            repeated=bool(raw.get("repeated")) and RULES[reason].repeats,
        )
    except (KeyError, TypeError, ValueError):
        return None


def _load_fault(raw: Any, now: float) -> Fault | None:
    try:
        at, owners = raw
        return Fault(min(float(at), now), frozenset(str(owner) for owner in owners))
    except (TypeError, ValueError):
        return None


def _list(entry: Any, key: str) -> list[Any]:
    values = entry.get(key) if isinstance(entry, dict) else None
    return values[:64] if isinstance(values, list) else []
