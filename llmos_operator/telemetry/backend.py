"""Where measurements come from: one protocol, implemented by the NVIDIA driver and by the simulation.

A backend is called from one worker thread for everything but :meth:`Backend.events`, which has a thread of its own.
Every call into a driver is announced to the :class:`~llmos_operator.telemetry.watchdog.InFlight` it was given, so that
a call that never returns is seen from outside.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from llmos_operator.errors import LlmosError

if TYPE_CHECKING:
    from llmos_operator.telemetry.sample import DeviceEvent, DeviceInfo, DriverInfo, ProcessUse, Sample

EVENT_WAIT_SECONDS = 5.0  # the longest a backend may block in `events`


class BackendUnavailable(LlmosError):  # noqa: N818 - reads as the state it reports
    """The backend cannot work at all on this node (no driver, no library, no announcement)."""


class DriverLost(LlmosError):  # noqa: N818 - same
    """The session with the driver is broken; only a restart of the process opens a new one."""


class Backend(Protocol):
    """A source of devices, samples, processes and events."""

    mode: str  # "nvml" | "simulated", as in GPUNode.status.mode

    def open(self) -> DriverInfo:
        """Connect. Raises :class:`BackendUnavailable`."""
        ...

    def devices(self) -> tuple[DeviceInfo, ...]:
        """Return the devices there are now: GPUs by index, each followed by its MIG instances.

        Raises :class:`DriverLost` when the driver no longer answers questions about the node.
        """
        ...

    def sample(self, device: DeviceInfo) -> Sample:
        """Measure a device. Never raises for a sick device: its faults are in the sample."""
        ...

    def processes(self, device: DeviceInfo) -> tuple[ProcessUse, ...] | None:
        """Return the processes on a device, or None where they cannot be told. Costs most of all calls."""
        ...

    def events(self, timeout: float) -> tuple[DeviceEvent, ...]:
        """Wait up to ``timeout`` seconds (at most `EVENT_WAIT_SECONDS`) for events."""
        ...

    def refresh(self, uuid: str) -> None:
        """Read everything about a device with its next sample, also what is read seldom. Any thread may call."""
        ...

    def self_test(self) -> str:
        """Return "" if the driver answers for at least one device, else what is wrong."""
        ...

    def close(self) -> None:
        """Disconnect; later calls are undefined."""
        ...
