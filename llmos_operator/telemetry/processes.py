"""Processes that use simulated devices, and what they really use: memory and CPU time from `/proc`.

A process belongs to a simulated device when its environment's NVIDIA_VISIBLE_DEVICES lists the device and NODE_NAME
is the device's node. Local clusters of one machine name their nodes and devices alike, and each sees all processes:
what was started by another cluster is on that cluster's devices. Memory is the proportional set size, so that pages
shared between the processes of one model count once; where that cannot be read, the resident size. Reading the
proportional size walks page tables (7 ms for 600 MB), so it is read again only when the resident size moved, when a
process came or went (sharing changed), or after a while.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from llmos_operator.api import names
from llmos_operator.telemetry.attribution import (
    NOBODY,
    PROC,
    Owner,
    environment,
    owner_in,
    pod_uid_of_cgroup,
)

if TYPE_CHECKING:
    from pathlib import Path

PAGE: Final = os.sysconf("SC_PAGE_SIZE")
TICKS: Final = os.sysconf("SC_CLK_TCK")
# A process seen between fork and exec still has its parent's environment: it is looked at again for this long.
SETTLE_SECONDS: Final = 5.0
MOVED_BYTES: Final = 4 << 20
MOVED_SHARE: Final = 64  # or by a 64th of its size
REREAD_SECONDS: Final = 10.0  # copied-on-write pages move between processes without a trace in resident sizes


@dataclass(slots=True)
class Tenant:
    """A process on one or more devices of the node. CPU seconds are since its start."""

    pid: int
    devices: tuple[str, ...]
    owner: Owner
    memory_bytes: int = 0
    cpu_seconds: float = 0.0
    resident: int = -1  # bytes when memory_bytes was read; -1: read it
    read_at: float = 0.0


class ProcessScan:
    """The tenants of one node, kept from scan to scan."""

    def __init__(self, node: str, proc: Path = PROC, cluster: str = "") -> None:
        """`cluster` is the state directory of the local cluster of the node, "" for one that is in none."""
        self._node = node
        self._cluster = cluster
        self._proc = proc
        self._own = os.getpid()
        self._first_seen: dict[int, float] = {}  # everybody, by pid
        self._tenants: dict[int, Tenant] = {}
        self._measured: frozenset[int] = frozenset()

    def scan(self, now: float) -> tuple[Tenant, ...]:
        """Return the tenants there are now (monotonic seconds), by pid."""
        present = {int(name) for name in os.listdir(self._proc) if name.isdigit()}  # noqa: PTH208 - a tenth of the cost
        present.discard(self._own)
        for pid in self._first_seen.keys() - present:
            self._drop(pid)
        for pid in present:
            first = self._first_seen.setdefault(pid, now)
            if now - first <= SETTLE_SECONDS:
                self._classify(pid)
        if self._tenants.keys() != self._measured:
            for tenant in self._tenants.values():
                tenant.resident = -1
        for pid in list(self._tenants):
            if not self._measure(self._tenants[pid], now):
                self._drop(pid)
        self._measured = frozenset(self._tenants)
        return tuple(self._tenants[pid] for pid in sorted(self._tenants))

    def _drop(self, pid: int) -> None:
        self._first_seen.pop(pid, None)
        self._tenants.pop(pid, None)

    def _classify(self, pid: int) -> None:
        variables = environment(pid, self._proc)
        devices = tuple(part for part in variables.get(names.ENV_DEVICES, "").split(",") if part)
        elsewhere = variables.get(names.ENV_NODE_NAME) != self._node or self._of_another_cluster(variables)
        if not devices or elsewhere:
            self._tenants.pop(pid, None)
            return
        known = self._tenants.get(pid)
        if known is None or known.devices != devices:
            self._tenants[pid] = Tenant(pid, devices, self._owner(pid, variables))

    def _of_another_cluster(self, variables: dict[str, str]) -> bool:
        # A process that names none may have been started by hand: it is believed to be where it says.
        named = variables.get(names.ENV_LOCAL_CLUSTER, "")
        return bool(self._cluster and named) and named != self._cluster

    def _owner(self, pid: int, variables: dict[str, str]) -> Owner:
        try:
            uid = pod_uid_of_cgroup((self._proc / str(pid) / "cgroup").read_bytes())
        except OSError:
            return NOBODY
        # In the local cluster pods are child processes: a cgroup here is the machine's own pod, not the tenant's.
        return owner_in(variables) if variables.get(names.ENV_POD_UID) else owner_in(variables, uid)

    def _measure(self, tenant: Tenant, now: float) -> bool:
        """Read memory and CPU time of a tenant; False when it has ended."""
        folder = self._proc / str(tenant.pid)
        try:
            resident = int((folder / "statm").read_bytes().split()[1]) * PAGE
            stat = (folder / "stat").read_bytes()
        except (OSError, IndexError):
            return False
        rest = stat[stat.rindex(b")") + 2 :].split(None, 14)
        if rest[0] in {b"Z", b"X"}:
            return False
        tenant.cpu_seconds = (int(rest[11]) + int(rest[12])) / TICKS
        moved = abs(resident - tenant.resident) > max(MOVED_BYTES, tenant.resident // MOVED_SHARE)
        if tenant.resident < 0 or moved or now - tenant.read_at >= REREAD_SECONDS:
            tenant.resident, tenant.read_at = resident, now
            tenant.memory_bytes = self._proportional(folder, resident)
        return True

    @staticmethod
    def _proportional(folder: Path, resident: int) -> int:
        try:
            for line in (folder / "smaps_rollup").read_bytes().splitlines():
                if line.startswith(b"Pss:"):
                    return int(line.split()[1]) * 1024
        except (OSError, ValueError, IndexError):
            return resident
        return resident
