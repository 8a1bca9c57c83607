"""Waiting for driver events, in the one thread that does.

The set of events is built anew when the GPUs change or when waiting fails: there is no way to take a GPU out of a set.
A GPU is registered for those of our events it supports, because one unknown bit fails the whole registration.
"""

from __future__ import annotations

from threading import Event
from typing import TYPE_CHECKING, Final

from llmos_operator.errors import Retryable
from llmos_operator.observability.logging import logger
from llmos_operator.telemetry.backend import EVENT_WAIT_SECONDS
from llmos_operator.telemetry.nvml import calls, codes
from llmos_operator.telemetry.nvml.codes import Meaning, NvmlFailure
from llmos_operator.telemetry.nvml.library import address
from llmos_operator.telemetry.sample import DeviceEvent

if TYPE_CHECKING:
    from collections.abc import Mapping

    from llmos_operator.telemetry.nvml.library import Handle, Nvml, RawEvent

log = logger(__name__)

RETRY_WAITS: Final = 12  # waits (5 s each) after which a GPU that refused registration is asked again
BURST: Final = 64  # events taken at once; a storm must not keep the thread from seeing new GPUs


class EventWaiter:
    """Events of the GPUs of a node. `follow` may be called from any thread, `wait` from one."""

    def __init__(self, nvml: Nvml) -> None:
        self.registered: frozenset[str] = frozenset()  # GPUs whose events arrive
        self._nvml = nvml
        self._wanted: dict[str, Handle] = {}
        self._built_for: dict[str, int] = {}
        self._events: Handle | None = None
        self._uuids: dict[int, str] = {}
        self._changed = Event()
        self._waits_left = 0  # until a failed registration is tried again; 0 when none failed
        self._closed = False

    def follow(self, handles: Mapping[str, Handle]) -> None:
        """Name the GPUs whose events are wanted from the next wait on."""
        if {uuid: address(handle) for uuid, handle in handles.items()} != {
            uuid: address(handle) for uuid, handle in self._wanted.items()
        }:
            self._wanted = dict(handles)
            self._changed.set()

    def close(self) -> None:
        """Let a waiting thread go at its next chance."""
        self._closed = True
        self._changed.set()

    def wait(self, timeout: float) -> tuple[DeviceEvent, ...]:
        """Return the events of at most ``timeout`` seconds. Raises `Retryable` when the driver refuses to wait."""
        if self._closed:
            self._drop()
            return ()
        self._changed.clear()  # before reading what is wanted: a change after this line ends the pause below
        self._rebuild_if_changed()
        timeout = min(timeout, EVENT_WAIT_SECONDS)
        if self._events is None:
            self._changed.wait(timeout)
            return ()
        found: list[DeviceEvent] = []
        try:
            raw = self._nvml.wait_event(self._events, timeout)
            while raw is not None:
                found.append(self._name(raw))
                raw = self._nvml.wait_event(self._events, 0.0) if len(found) < BURST else None
        except NvmlFailure as failure:
            self._drop()
            if found:
                return tuple(found)
            raise Retryable(f"waiting for driver events failed: {failure}", after=1.0) from failure
        return tuple(found)

    def _name(self, raw: RawEvent) -> DeviceEvent:
        uuid = self._uuids.get(address(raw.handle), "")
        return DeviceEvent(uuid=uuid, kind=raw.kind, code=raw.data, gpu_instance=raw.gpu_instance)

    def _rebuild_if_changed(self) -> None:
        wanted = self._wanted
        addresses = {uuid: address(handle) for uuid, handle in wanted.items()}
        if self._waits_left:
            self._waits_left -= 1
            if not self._waits_left:
                self._drop()
        if addresses == self._built_for:
            return
        self._drop()
        if not wanted:
            return
        try:
            self._events = self._nvml.event_set()
        except NvmlFailure as failure:
            raise Retryable(f"no event set: {failure}", after=5.0) from failure
        self._built_for = addresses
        self._uuids = {number: uuid for uuid, number in addresses.items()}
        self.registered = frozenset(uuid for uuid, handle in wanted.items() if self._register(uuid, handle))
        if not self.registered:
            self._free()

    def _register(self, uuid: str, handle: Handle) -> bool:
        try:
            supported = self._nvml.get(calls.SUPPORTED_EVENTS, uuid, handle)
            mask = supported & codes.EVENT_MASK
            if not mask:
                return False
            self._nvml.register_events(handle, uuid, mask, self._events)
        except NvmlFailure as failure:
            log.warning("GPU's events cannot be followed", gpu=uuid, error=str(failure))
            if failure.meaning is not Meaning.ABSENT:
                self._waits_left = RETRY_WAITS
            return False
        return True

    def _drop(self) -> None:
        """Forget the set and what it was built for: the next wait builds a new one."""
        self._free()
        self._built_for = {}

    def _free(self) -> None:
        if self._events is not None:
            try:
                self._nvml.free_event_set(self._events)
            except NvmlFailure as failure:
                log.debug("event set not freed", error=str(failure))
        self._events = None
        self.registered = frozenset()
