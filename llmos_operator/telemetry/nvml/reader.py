"""Measuring one device: which calls, how often, and what a failing one means.

Two rates: the sample proper each time, the counters every `COUNTER_SECONDS`. A call the device cannot answer is not
made again for `REPROBE_SECONDS`; a call that says the device is sick ends the reading when going on could cost the
driver's patience (a lost or timing-out card answers every further call as slowly).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeVar

from llmos_operator.telemetry.nvml import calls, codes, library
from llmos_operator.telemetry.nvml.codes import Meaning, NvmlFailure
from llmos_operator.telemetry.sample import Capability, Counters, Fault, FaultKind, RecoveryAction, Sample

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmos_operator.telemetry.nvml.calls import Call, Use
    from llmos_operator.telemetry.nvml.library import Handle, Nvml
    from llmos_operator.telemetry.sample import DeviceInfo

T = TypeVar("T")
Field = tuple[int, int]

COUNTER_SECONDS: Final = 10.0
REPROBE_SECONDS: Final = 600.0

_ENDS_READING: Final = frozenset(
    {FaultKind.LOST, FaultKind.RESET_REQUIRED, FaultKind.TIMEOUT, FaultKind.DRIVER}
)
_EVENTS: Final = frozenset({Capability.EVENTS})
_FIELDS: Final = (
    library.MEMORY_TEMPERATURE,
    library.LINK_TX_KIB,
    library.LINK_RX_KIB,
    library.PCIE_TX_BYTES,
    library.PCIE_RX_BYTES,
    library.RECOVERY_ACTION,
    *library.LINK_ERROR_TOTALS,
)


class _Stopped(Exception):  # noqa: N818 - control flow inside this module
    """The device is in a state in which further calls only hurt."""


class DeviceReader:
    """Reads one GPU or MIG instance. Not for use by two threads at once."""

    def __init__(
        self, nvml: Nvml, handle: Handle, info: DeviceInfo, *, gpu: Handle | None = None, spread: float = 0.0
    ) -> None:
        """``gpu`` is the handle of the GPU a MIG instance is cut from.

        Counters are read with the first sample; ``spread`` is how many seconds later they are read again, so that of
        many devices no second is the expensive one.
        """
        self.handle = handle
        self.gone = False  # the handle no longer names this device: enumerate again
        self._nvml = nvml
        self.info = info
        self._blocked: dict[object, float] = {}
        self._replaced: dict[object, float] = {}  # until when an older call stands for one
        self._told: dict[Capability, set[object]] = {}  # which calls told something, by capability
        self._capabilities: frozenset[Capability] = frozenset()
        self._faults: list[Fault] = []
        self._now = 0.0
        self._counters: Counters | None = None
        self.counters_due = 0.0
        self._spread = spread
        self._gpu = gpu if gpu is not None else handle
        self._energy: int | None = None
        self._links: tuple[int, ...] | None = None
        self._links_due = 0.0
        self._seen_up: set[int] = set()
        self._gpm: list[Handle] = []
        self._gpm_taken = False

    def sample(self, now: float, *, events: bool = False) -> Sample:
        """Measure now (monotonic seconds). ``events``: those of the device arrive. Never raises :class:`NvmlFailure`."""
        self._now = now
        self._faults = []
        values: dict[str, Any] = {}
        try:
            self._read_vitals(values)
            if now >= self.counters_due:
                self.counters_due = now + (self._spread or COUNTER_SECONDS)
                self._spread = 0.0
                self._counters = self._read_counters()
        except _Stopped:
            self._counters = None
        return Sample(
            uuid=self.info.uuid,
            at=now,
            **values,
            energy_millijoules=self._energy if not self._faults else None,
            counters=self._counters,
            capabilities=self._capabilities | _EVENTS if events else self._capabilities,
            faults=tuple(self._faults),
        )

    def processes(self, now: float) -> tuple[Use, ...] | None:
        """Return the processes on the device, or None where the driver does not tell. Each process once."""
        self._now = now
        self._faults = []
        try:
            uses = self._get(calls.PROCESSES, Capability.PROCESSES)
            shared = self._get(calls.MPS_PROCESSES, Capability.PROCESSES) if uses is not None else None
        except _Stopped:
            return None
        if uses is None:
            return None
        return tuple({use.pid: use for use in (*(shared or ()), *uses)}.values())

    def close(self) -> None:
        """Give back what the driver holds for this reader; failures no longer matter."""
        for sample in self._gpm:
            try:
                self._nvml.gpm_free(sample, self.info.uuid)
            except NvmlFailure:
                return
        self._gpm = []

    # -- one call

    def _get(self, call: Call[T], capability: Capability | None, *args: object) -> T | None:
        """Return what ``call`` tells, or None; note faults; raise `_Stopped` when the device is past asking."""
        while call.older is not None and self._now < self._replaced.get(call, 0.0):
            call = call.older
        key = (call, args) if args else call
        blocked = self._blocked.get(key)
        if blocked is not None and self._now < blocked:
            return None
        try:
            value = self._nvml.get(call, self.info.uuid, self.handle, *args)
        except NvmlFailure as failure:
            if failure.meaning is Meaning.ABSENT and call.older is not None:
                self._replaced[call] = self._now + REPROBE_SECONDS
                return self._get(call.older, capability, *args)
            self._note(failure, key, capability)
            return None
        self._tells(capability, key)
        return value

    def _probe(self, capability: Capability | None, key: object, function: Callable[[], T]) -> T | None:
        """Do the same as `_get` for calls that are not in the table."""
        blocked = self._blocked.get(key)
        if blocked is not None and self._now < blocked:
            return None
        try:
            value = function()
        except NvmlFailure as failure:
            self._note(failure, key, capability)
            return None
        self._tells(capability, key)
        return value

    def _tells(self, capability: Capability | None, key: object) -> None:
        if capability is None:
            return
        told = self._told.get(capability)
        if told is None:
            told = self._told[capability] = set()
        if key not in told:
            told.add(key)
            self._capabilities |= {capability}

    def _cannot_tell(self, capability: Capability | None, key: object) -> None:
        """Block a call; the capability is off when no other call of it told anything."""
        self._blocked[key] = self._now + REPROBE_SECONDS
        if capability is not None and capability in self._told:
            self._told[capability].discard(key)
            if not self._told[capability]:
                self._capabilities -= {capability}

    def _note(self, failure: NvmlFailure, key: object, capability: Capability | None) -> None:
        meaning = failure.meaning
        if meaning is Meaning.GONE and key is calls.MEMORY:
            self.gone = True
            raise _Stopped
        if meaning in {Meaning.ABSENT, Meaning.GONE}:
            self._cannot_tell(capability, key)
        elif meaning is Meaning.FAULT:
            self._faults.append(Fault(failure.kind, failure.call, failure.code))
            if failure.kind in _ENDS_READING:
                raise _Stopped

    # -- every time

    def _read_vitals(self, values: dict[str, Any]) -> None:
        memory = self._get(calls.MEMORY, Capability.MEMORY)
        if memory is not None:
            values["memory_total_bytes"], values["memory_used_bytes"] = memory.usable, memory.used
            values["memory_reserved_bytes"] = memory.reserved
            if memory.reserved is not None:
                self._tells(Capability.MEMORY_RESERVED, calls.MEMORY)
        if self.info.is_mig:
            return  # utilisation, heat and power belong to the whole GPU; an instance cannot tell its part
        rates = self._get(calls.UTILIZATION, Capability.UTILIZATION)
        if rates is not None:
            values["utilization_percent"], values["memory_utilization_percent"] = rates
        values["temperature_celsius"] = self._get(calls.TEMPERATURE, Capability.TEMPERATURE)
        values["power_milliwatts"] = self._get(calls.POWER, Capability.POWER)
        values["clock_reasons"] = self._get(calls.CLOCK_REASONS, Capability.CLOCK_REASONS)

    # -- every few seconds

    def _read_counters(self) -> Counters:
        values: dict[str, Any] = {}
        self._read_gpm(values)
        if self.info.is_mig:
            return Counters(at=self._now, **values)
        self._energy = self._get(calls.ENERGY, Capability.ENERGY)
        values["power_limit_milliwatts"] = self._get(calls.POWER_LIMIT, Capability.POWER_LIMIT)
        values["sm_clock_mhz"] = self._get(calls.SM_CLOCK, Capability.CLOCKS)
        values["memory_clock_mhz"] = self._get(calls.MEMORY_CLOCK, Capability.CLOCKS)
        self._read_memory_errors(values)
        values["pcie_replays"] = self._get(calls.PCIE_REPLAYS, Capability.PCIE)
        values["pcie_generation"] = self._get(calls.PCIE_GENERATION, Capability.PCIE)
        values["pcie_width"] = self._get(calls.PCIE_WIDTH, Capability.PCIE)
        self._read_links(values)
        self._read_fields(values)
        return Counters(at=self._now, **values)

    def _read_memory_errors(self, values: dict[str, Any]) -> None:
        ecc = Capability.ECC
        values["ecc_volatile_corrected"] = self._get(calls.ECC_VOLATILE_CORRECTED, ecc)
        values["ecc_volatile_uncorrected"] = self._get(calls.ECC_VOLATILE_UNCORRECTED, ecc)
        values["ecc_aggregate_corrected"] = self._get(calls.ECC_AGGREGATE_CORRECTED, ecc)
        values["ecc_aggregate_uncorrected"] = self._get(calls.ECC_AGGREGATE_UNCORRECTED, ecc)
        values["sram_threshold_exceeded"] = self._probe(
            Capability.SRAM_ECC,
            "sram",
            lambda: self._nvml.sram_threshold_exceeded(self.handle, self.info.uuid),
        )
        rows = self._get(calls.REMAPPED_ROWS, Capability.REMAPPED_ROWS)
        if rows is not None:
            values["remapped_correctable"], values["remapped_uncorrectable"] = (
                rows.correctable,
                rows.uncorrectable,
            )
            values["remap_pending"], values["remap_failed"] = rows.pending, rows.failed
            return
        # Before Ampere pages were retired instead of rows remapped; a card has one or the other.
        single = self._get(calls.RETIRED_SINGLE, Capability.RETIRED_PAGES)
        double = self._get(calls.RETIRED_DOUBLE, Capability.RETIRED_PAGES)
        if single is not None and double is not None:
            values["retired_pages"] = single + double
        values["retirement_pending"] = self._get(calls.RETIREMENT_PENDING, Capability.RETIRED_PAGES)

    def _read_links(self, values: dict[str, Any]) -> None:
        if self._links is None or self._now >= self._links_due:
            self._links = self._find_links()
        up = down = 0
        for link in self._links or ():
            state = self._get(calls.LINK_STATE, Capability.NVLINK, link)
            if state:
                self._seen_up.add(link)
                up += 1
            elif state is False and link in self._seen_up:
                down += 1
        if self._links:
            values["nvlinks_active"], values["nvlinks_down"] = up, down

    def _find_links(self) -> tuple[int, ...] | None:
        """Return the links there are: numbered without gaps, so the first that does not exist ends the search."""
        self._links_due = self._now + REPROBE_SECONDS
        for link in range(codes.LINKS):
            if self._get(calls.LINK_STATE, Capability.NVLINK, link) is None:
                missing = (calls.LINK_STATE, (link,)) in self._blocked
                return tuple(range(link)) if missing else None
        return tuple(range(codes.LINKS))

    def _link_errors(self, totals: list[int | float]) -> int | None:
        """Return errors over all links: from the driver's totals, else by adding up each link's counters."""
        if totals:
            return int(sum(totals))
        counts = [
            self._get(calls.LINK_ERRORS, Capability.NVLINK, link, counter)
            for link in self._links or ()
            for counter in codes.LINK_ERRORS
        ]
        known = [count for count in counts if count is not None]
        return sum(known) if known else None

    def _read_fields(self, values: dict[str, Any]) -> None:
        wanted = [field for field in _FIELDS if self._now >= self._blocked.get(field, 0.0)]
        answers = self._probe(None, "fields", lambda: self._nvml.fields(self.handle, self.info.uuid, wanted))
        known: dict[Field, int | float] = {}
        for field, answer in (answers or {}).items():
            if isinstance(answer, NvmlFailure):
                self._note(answer, field, _FIELD_CAPABILITY.get(field, Capability.NVLINK))
            else:
                known[field] = answer
                self._tells(_FIELD_CAPABILITY.get(field, Capability.NVLINK), field)
        _set(values, "memory_temperature_celsius", known.get(library.MEMORY_TEMPERATURE))
        _set(values, "nvlink_tx_bytes", known.get(library.LINK_TX_KIB), 1024)
        _set(values, "nvlink_rx_bytes", known.get(library.LINK_RX_KIB), 1024)
        _set(values, "pcie_tx_bytes", known.get(library.PCIE_TX_BYTES))
        _set(values, "pcie_rx_bytes", known.get(library.PCIE_RX_BYTES))
        if library.RECOVERY_ACTION in known:
            # A number newer than this table asks for something: the least that can be is a reset.
            values["recovery_action"] = codes.RECOVERY.get(
                int(known[library.RECOVERY_ACTION]), RecoveryAction.RESET
            )
        values["nvlink_errors"] = self._link_errors(
            [known[field] for field in library.LINK_ERROR_TOTALS if field in known]
        )

    def _read_gpm(self, values: dict[str, Any]) -> None:
        uuid = self.info.uuid
        if not self._probe(
            None, calls.GPM_SUPPORT, lambda: self._nvml.get(calls.GPM_SUPPORT, uuid, self._gpu)
        ):
            return
        if not self._gpm:
            first = self._probe(Capability.GPM, "gpm", lambda: self._nvml.gpm_alloc(uuid))
            second = self._probe(Capability.GPM, "gpm", lambda: self._nvml.gpm_alloc(uuid))
            if first is None or second is None:
                return
            self._gpm = [first, second]
        old, new = self._gpm
        taken = self._probe(Capability.GPM, "gpm", lambda: self._take_gpm(new))
        if taken is None:
            self._gpm_taken = False
            return
        ratios = None
        if self._gpm_taken:
            ratios = self._probe(Capability.GPM, "gpm", lambda: self._nvml.gpm_ratios(old, new, uuid))
        self._gpm, self._gpm_taken = [new, old], True
        if ratios is not None:
            values["sm_active_ratio"], values["sm_occupancy_ratio"] = ratios.sm_active, ratios.sm_occupancy
            values["tensor_active_ratio"], values["dram_active_ratio"] = (
                ratios.tensor_active,
                ratios.dram_active,
            )

    def _take_gpm(self, into: Handle) -> bool:
        self._nvml.gpm_take(self._gpu, into, self.info.uuid, self.info.gpu_instance)
        return True


_FIELD_CAPABILITY: Final = {
    library.MEMORY_TEMPERATURE: Capability.MEMORY_TEMPERATURE,
    library.PCIE_TX_BYTES: Capability.PCIE,
    library.PCIE_RX_BYTES: Capability.PCIE,
    library.RECOVERY_ACTION: Capability.RECOVERY_ACTION,
}


def _set(values: dict[str, Any], name: str, value: float | None, factor: int = 1) -> None:
    if value is not None:
        values[name] = int(value) * factor
