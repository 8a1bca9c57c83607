"""Kueue's own CRDs, from its Go module, and a controller of queues that is scripted: it admits, evicts and says why."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llmos_operator.clock import rfc3339
from llmos_operator.cluster import port as ports
from tests.support.crds import await_established
from tests.support.operator_process import collect

if TYPE_CHECKING:
    from llmos_operator.local.controlplane import ControlPlane
    from tests.support.operator_process import Bench

Json = dict[str, Any]
SOURCES = Path(__file__).parents[2] / "tools" / "kueue"
CRDS = ("workloads", "resourceflavors", "workloadpriorityclasses")


def module() -> Path | None:
    """Return the folder of Kueue's module, downloaded if need be; None without a Go tool."""
    go = shutil.which("go")
    if go is None:
        return None
    command = [go, "mod", "download", "-json", "sigs.k8s.io/kueue"]
    done = subprocess.run(command, cwd=SOURCES, capture_output=True, text=True, check=True)
    return Path(json.loads(done.stdout)["Dir"])


def install(plane: ControlPlane, folder: Path) -> None:
    """Serve what the operator uses of Kueue."""
    for name in CRDS:
        path = folder / "config" / "components" / "crd" / "bases" / f"kueue.x-k8s.io_{name}.yaml"
        plane.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(path))
        await_established(plane, "crd", f"{name}.kueue.x-k8s.io")


class ScriptedKueue:
    """What Kueue's controllers write, when a test says so."""

    def __init__(self, bench: Bench) -> None:
        self._bench = bench

    async def flavor(self, name: str, **labels: str) -> None:
        """Make a ResourceFlavor whose nodes have these labels."""
        body = {"metadata": {"name": name}, "spec": {"nodeLabels": labels} if labels else {}}
        await self._bench.port.apply(ports.KUEUE_FLAVORS, body, manager="test")

    async def workload(self, name: str) -> Json:
        """Return the Workload of a ModelWorkload, once there is one of it as it is now."""

        async def there() -> Json | None:
            uid = (await self._bench.workload(name))["metadata"]["uid"]
            for one in await collect(self._bench.port, ports.KUEUE_WORKLOADS, self._bench.namespace):
                if one["metadata"]["ownerReferences"][0]["uid"] == uid:
                    return one
            return None

        return dict(await self._bench.until(there, f"a Workload of {name}"))

    async def none(self, name: str) -> None:
        async def gone() -> bool:
            uid = (await self._bench.workload(name))["metadata"]["uid"]
            found = await collect(self._bench.port, ports.KUEUE_WORKLOADS, self._bench.namespace)
            return all(one["metadata"]["ownerReferences"][0]["uid"] != uid for one in found)

        await self._bench.until(gone, f"no Workload of {name}")

    async def admit(self, name: str, flavor: str = "default") -> None:
        found = await self.workload(name)
        pods = found["spec"]["podSets"][0]
        amounts = pods["template"]["spec"]["containers"][0]["resources"]["requests"]
        assignment = {"name": pods["name"], "count": pods["count"], "flavors": dict.fromkeys(amounts, flavor)}
        admission = {"clusterQueue": "gpus", "podSetAssignments": [assignment]}
        told = [("QuotaReserved", "True"), ("Admitted", "True"), ("Evicted", "False")]
        await self._write(
            found, {"admission": admission, "conditions": [self._condition(*one) for one in told]}
        )

    async def pend(self, name: str, why: str) -> None:
        await self._tell(name, "QuotaReserved", "False", "Pending", why)

    async def evict(self, name: str, reason: str = "Preempted", why: str = "to accommodate another") -> None:
        await self._tell(name, "Evicted", "True", reason, why)

    async def _tell(self, name: str, kind: str, status: str, reason: str, why: str) -> None:
        found = await self.workload(name)
        others = [one for one in found.get("status", {}).get("conditions", ()) if one["type"] != kind]
        told = self._condition(kind, status, reason, why)
        await self._write(found, {"conditions": [*others, told]})

    async def _write(self, found: Json, status: Json) -> None:
        meta = found["metadata"]
        await self._bench.port.merge_patch(
            ports.KUEUE_WORKLOADS,
            meta["name"],
            {"status": status},
            namespace=meta["namespace"],
            subresource="status",
        )

    @staticmethod
    def _condition(kind: str, status: str, reason: str = "Test", message: str = "") -> Json:
        return {
            "type": kind,
            "status": status,
            "reason": reason,
            "message": message,
            "lastTransitionTime": rfc3339(1_790_000_000),
        }


def condition(found: Json, kind: str) -> Json:
    """Return a condition of a Workload, empty if it has none of the kind."""
    return next((one for one in found.get("status", {}).get("conditions", ()) if one["type"] == kind), {})
