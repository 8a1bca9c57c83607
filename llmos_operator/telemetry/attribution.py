"""Which pod a process belongs to, read from `/proc`.

First the cgroup path, which the kubelet writes and the process cannot change; every form in use is known here
(cgroupfs and systemd drivers, cgroup v1 and v2, nested kubelets, static pods). Where a pod is a plain child process
without a cgroup of its own (the local cluster), its environment's POD_UID.

Process ids of the driver are those of the host: the caller must know that this process sees the host's ids, see
:func:`sees_host_processes`, or pods would be charged for strangers.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from llmos_operator.api import names

if TYPE_CHECKING:
    from collections.abc import Iterable

PROC = Path("/proc")

# .../kubepods/burstable/pod<uid>/<container>, kubepods-besteffort-pod<uid with _>.slice/…, and static pods, whose uid
# is a hash without dashes. Seen from a private cgroup namespace a path begins with /.. instead of naming kubepods.
_POD_IN_CGROUP = re.compile(
    rb"(?:kubepods|/\.\.)[^\n]*?[/-]pod([0-9a-f]{8}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{4}[-_][0-9a-f]{12}|[0-9a-f]{32})(?![0-9a-f])"
)
_UID = re.compile(r"[0-9a-zA-Z][0-9a-zA-Z.-]{0,127}\Z")
_WANTED = {
    name.encode(): name
    for name in (
        names.ENV_POD_UID,
        names.ENV_POD_NAME,
        names.ENV_POD_NAMESPACE,
        names.ENV_NODE_NAME,
        names.ENV_DEVICES,
        names.ENV_LOCAL_CLUSTER,
    )
}


class Owner(NamedTuple):
    """The pod of a process; empty strings are unknown."""

    pod_uid: str = ""
    workload: str = ""  # "namespace/pod"


NOBODY = Owner()


def pod_uid_of_cgroup(text: bytes) -> str:
    """Return the pod UID in the content of a `/proc/<pid>/cgroup` file, with dashes, or ""."""
    found = _POD_IN_CGROUP.search(text)
    return found.group(1).decode().replace("_", "-") if found else ""


def _read(proc: Path, pid: int, name: str) -> bytes:
    with open(f"{proc}/{pid}/{name}", "rb", buffering=0) as file:  # noqa: PTH123 - paths cost more than the reading
        return file.read()


def environment(pid: int, proc: Path = PROC) -> dict[str, str]:
    """Return the variables of a process that concern us; empty when it is gone or not ours to read."""
    try:
        raw = _read(proc, pid, "environ")
    except OSError:
        return {}
    values: dict[str, str] = {}
    for line in raw.split(b"\0"):
        name, _, value = line.partition(b"=")
        if name in _WANTED:
            values[_WANTED[name]] = value.decode(errors="replace")
    return values


def owner_of(pid: int, proc: Path = PROC) -> Owner:
    """Return the pod of a process, or :data:`NOBODY`."""
    try:
        uid = pod_uid_of_cgroup(_read(proc, pid, "cgroup"))
    except OSError:
        return NOBODY
    return owner_in(environment(pid, proc), uid)


def owner_in(variables: dict[str, str], uid: str = "") -> Owner:
    """Return the pod an environment names; ``uid`` from a better source wins over the environment's."""
    claimed = variables.get(names.ENV_POD_UID, "")
    uid = uid or (claimed if _UID.match(claimed) else "")
    if not uid:
        return NOBODY
    namespace, name = variables.get(names.ENV_POD_NAMESPACE, ""), variables.get(names.ENV_POD_NAME, "")
    return Owner(uid, f"{namespace}/{name}" if namespace and name else "")


def start_time(pid: int, proc: Path = PROC) -> int:
    """Return the start of a process in clock ticks after boot (field 22 of stat), or -1 when it is gone.

    With the pid it identifies a process for ever; a pid alone is used again.
    """
    try:
        stat = _read(proc, pid, "stat")
    except OSError:
        return -1
    return int(stat[stat.rindex(b")") + 2 :].split(None, 20)[19])


def sees_host_processes(proc: Path = PROC) -> bool:
    """Return whether `/proc` shows the host's processes: only there pid 2 is the kernel's thread parent."""
    try:
        return (proc / "2" / "comm").read_bytes().strip() == b"kthreadd"
    except OSError:
        return False


class Attribution:
    """Owners of processes, remembered as long as the processes live."""

    def __init__(self, proc: Path = PROC) -> None:
        self._proc = proc
        self._known: dict[tuple[int, int], Owner] = {}

    def owners(self, pids: Iterable[int]) -> dict[int, Owner]:
        """Return the owner of each pid; forget everybody not asked for."""
        known: dict[tuple[int, int], Owner] = {}
        result: dict[int, Owner] = {}
        for pid in pids:
            started = start_time(pid, self._proc)
            if started < 0:
                result[pid] = NOBODY
                continue
            key = (pid, started)
            owner = self._known.get(key)
            if owner is None or not owner.pod_uid:
                owner = owner_of(pid, self._proc)
            known[key] = result[pid] = owner
        self._known = known
        return result
