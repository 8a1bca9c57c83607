"""The demo's cluster: brought up, installed, watched, hurt on purpose, and taken down."""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.request
from typing import TYPE_CHECKING, Any

from demo.screen import DemoFailed
from llmos_operator.api import names
from llmos_operator.cli import workloads
from llmos_operator.cli.render import dig
from llmos_operator.local.cluster import LocalCluster, Request
from llmos_operator.local.installation import install
from llmos_operator.local.layout import default_state
from llmos_operator.local.processes import marked_processes
from llmos_operator.local.spec import ClusterSpec, GpuModel, uniform_nodes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from llmos_operator.cli.workloads import WorkloadRow
    from llmos_operator.local.state import ClusterState

POLL_SECONDS = 0.2  # between two looks at least
_PAUSE_FOR_LOOK = 2.0  # and so many times as long as the look took
_LONGEST_PAUSE = 1.0
Json = dict[str, Any]


class Lab:
    """One local cluster with LLMOS in it."""

    def __init__(self, root: Path | None = None) -> None:
        self.cluster = LocalCluster(root or default_state().parent / "demo")
        self.namespace = "default"

    # -- life

    def up(
        self, *, nodes: int, gpus: int, gpu: Sequence[str], hub_store: str, attached: bool
    ) -> ClusterState:
        """Start the cluster; a former one of the same place is taken down first. ``attached``: it ends with us.

        ``gpu`` are kinds of devices (`PRODUCT:MEMORY`), dealt to the nodes in turn.
        """
        self.cluster.down()
        models = tuple(map(GpuModel.parse, gpu))
        spec = ClusterSpec(index=0, nodes=uniform_nodes(nodes, gpus, models), hub_store=hub_store)
        return self.cluster.up(Request(spec), attached=attached)

    def install(self, overrides: Json | None = None) -> None:
        """Install the chart and wait for its processes."""
        install(self.cluster, overrides=overrides)

    def down(self) -> list[str]:
        """End the cluster; return the names of processes that had to be killed."""
        return [record.name for record in self.cluster.down()]

    # -- looking

    def kubectl(self, *arguments: str, stdin: str | None = None) -> str:
        """Run kubectl and return what it printed."""
        return self.cluster.tools.kubectl(*arguments, stdin=stdin)

    def get(self, kind: str, name: str = "", *, namespace: str = "default") -> Json:
        """Return an object or a list as the API serves it."""
        return self.cluster.tools.get(kind, name, namespace=namespace)

    def items(self, kind: str, *, namespace: str = "default") -> list[Json]:
        """Return all objects of a kind."""
        found: list[Json] = self.get(kind, namespace=namespace).get("items", [])
        return found

    def rows(self) -> dict[str, WorkloadRow]:
        """Return the workloads by name."""
        now = time.time()
        return {item["metadata"]["name"]: workloads.row(item, now) for item in self.items("mw")}

    def pods(self) -> list[Json]:
        """Return the live pods of workloads."""
        found = self.items("pods")
        return [pod for pod in found if dig(pod, "metadata", "labels", names.LABEL_WORKLOAD_UID)]

    def wait(self, what: str, check: Callable[[], Any], seconds: float) -> Any:
        """Poll ``check`` until it returns something true; return that. Raises `DemoFailed` naming ``what``."""
        deadline = time.monotonic() + seconds
        while True:
            began = time.monotonic()
            found = check()
            if found:
                return found
            now = time.monotonic()
            if now > deadline:
                raise DemoFailed(f"waited {seconds:.0f} s for {what}")
            # A look is a process or several: on a busy machine it must not hold up what it waits for.
            time.sleep(min(_LONGEST_PAUSE, max(POLL_SECONDS, _PAUSE_FOR_LOOK * (now - began))))

    # -- acting

    def apply(self, *documents: Json) -> str:
        """Apply manifests given as objects."""
        return self.cluster.tools.apply(*documents, namespace=self.namespace)

    def apply_file(self, path: Path) -> str:
        """Apply a manifest file."""
        return self.kubectl("apply", f"--namespace={self.namespace}", "-f", str(path))

    def leader(self) -> str:
        """Return the name of the leading operator's pod, "" if nobody leads."""
        lease = self.get("lease", names.LEASE_NAME, namespace=names.SYSTEM_NAMESPACE)
        holder = str(dig(lease, "spec", "holderIdentity", default=""))
        return holder.partition("_")[0]  # the rest tells one run of the pod from the next

    def kill_pod_process(self, pod: str) -> list[int]:
        """SIGKILL every process of a pod; return their pids."""
        pids = [record.pid for record in marked_processes(f"{names.ENV_POD_NAME}={pod}")]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        return pids

    def evidence(self) -> str:
        """Return what helps to see why something did not happen: objects, warnings, the end of the leader's log."""
        tools, system = self.cluster.tools, f"--namespace={names.SYSTEM_NAMESPACE}"
        parts = [
            tools.run("kubectl", "get", "mw,pods,gn", "--all-namespaces", "--output=wide"),
            tools.run("kubectl", "get", "events", "--all-namespaces", "--field-selector=type=Warning"),
            tools.run("kubectl", "logs", system, self.leader() or "-", "--tail=25"),
        ]
        return "\n".join(part.stdout + part.stderr for part in parts)

    # -- talking

    def service_url(self, name: str, *, namespace: str = names.SYSTEM_NAMESPACE) -> str:
        """Return the address of a Service, which this machine can open."""
        service = self.get("service", name, namespace=namespace)
        return f"http://{service['spec']['clusterIP']}:{service['spec']['ports'][0]['port']}"

    def post(self, url: str, body: Json) -> Json:
        """POST JSON and return the answer."""
        request = urllib.request.Request(  # noqa: S310 - an address of the local cluster
            url, data=json.dumps(body).encode(), headers={"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310 - same
            answer: Json = json.loads(response.read())
        return answer

    def metrics(self, pods: Sequence[Json], port: int) -> str:
        """Return the metrics of several pods, one after the other."""
        texts = []
        for pod in pods:
            address = dig(pod, "status", "podIP", default="")
            with urllib.request.urlopen(f"http://{address}:{port}/metrics", timeout=5) as response:
                texts.append(response.read().decode())
        return "\n".join(texts)
