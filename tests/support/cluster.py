"""Real control planes for tests.

Fixtures (registered by ``tests/conftest.py`` through ``pytest_plugins``):

- ``api_server``: session-wide etcd + kube-apiserver (no controllers, no ServiceAccount admission): pods, custom
  resources, RBAC, watches. Tests share it, so they work in a namespace of their own.
- ``control_plane``: session-wide, with kube-controller-manager and kube-scheduler (garbage collection, Deployments).
- ``local_cluster``: session-wide, with two simulated nodes of two GPUs (SIM-A, 1Gi each) and the process kubelet.
- ``namespace`` / ``cp_namespace`` / ``local_namespace``: a fresh namespace on each, deleted afterwards without waiting.

For chaos, start one of your own::

    with control_plane(tmp_path) as cp:
        cp.kubectl("get ns")              # or cp.kubectl("get", "ns", "-o", "json"), stdin="..." for apply -f -
        cp.apply({...manifest...})
        cp.restart("kube-apiserver", down_for=1.0); cp.wait_ready()
        cp.halt("kube-apiserver"); cp.launch("kube-apiserver"); cp.wait_ready()
        with cp.frozen("kube-apiserver"): ...   # SIGSTOP .. SIGCONT

    with local_cluster(tmp_path, nodes=4, gpus_per_node=8) as cluster:
        cluster.tools.kubectl("get nodes")
        cluster.kill("node")              # SIGKILL of a part; the supervisor starts it again

``cp.kubeconfig`` is an administrator's kubeconfig file, ``cp.url`` the API server's URL. The processes die with the
thread that started them: start from the main thread (fixtures do).
"""

from __future__ import annotations

import itertools
import os
import re
import signal
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from llmos_operator.local.addresses import claim_block
from llmos_operator.local.binaries import resolve
from llmos_operator.local.cluster import LocalCluster, Request
from llmos_operator.local.controlplane import ControlPlane, ControlPlaneOptions
from llmos_operator.local.layout import ClusterPaths
from llmos_operator.local.spec import ClusterSpec, GpuModel, uniform_nodes

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from llmos_operator.local.images import Image
    from llmos_operator.local.tools import Tools

_API_ONLY = ControlPlaneOptions(controller_manager=False, scheduler=False)
_COUNTER = itertools.count()


@contextmanager
def control_plane(folder: Path, options: ControlPlaneOptions | None = None) -> Iterator[ControlPlane]:
    """A control plane whose files lie under ``folder``; by default etcd, API server, controllers and scheduler."""
    claim = claim_block()
    plane = ControlPlane(
        resolve(), ClusterPaths(folder / "cluster"), claim.block, options or ControlPlaneOptions()
    )
    try:
        plane.start()
        yield plane
    finally:
        plane.stop()
        claim.close()


@contextmanager
def with_scheduler(folder: Path, *flags: str) -> Iterator[ControlPlane]:
    """Only etcd, kube-apiserver and kube-scheduler, the last with further flags."""
    options = ControlPlaneOptions(controller_manager=False, scheduler_flags=flags)
    with control_plane(folder, options) as plane:
        yield plane


@contextmanager
def api_only(folder: Path, *flags: str) -> Iterator[ControlPlane]:
    """Only etcd and kube-apiserver, the latter with further flags: ready in about three seconds, pods need no ServiceAccount."""
    with control_plane(folder, replace(_API_ONLY, api_server_flags=flags)) as plane:
        yield plane


class RunningCluster(LocalCluster):
    """A local cluster that is up."""

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        return self.paths.kubeconfig

    def pid(self, part: str) -> int:
        """The present pid of a part: etcd, kube-apiserver, …, node, hub, supervisor."""
        state = self.state()
        assert state is not None
        parts = {process.name: process.pid for process in (state.supervisor, *state.processes)}
        return parts[part]

    def kill(self, part: str, number: int = signal.SIGKILL) -> None:
        """Send a signal to a part. Ended parts are started again by the supervisor."""
        os.kill(self.pid(part), number)


@contextmanager
def local_cluster(
    folder: Path,
    *,
    nodes: int = 2,
    gpus_per_node: int = 2,
    gpu: str = "SIM-A:1Gi",
    images: Sequence[Image] = (),
    **spec: Any,
) -> Iterator[RunningCluster]:
    """A local cluster whose files lie under ``folder``; ``spec`` are further fields of ClusterSpec."""
    cluster = RunningCluster(folder / "local")
    layout = uniform_nodes(nodes, gpus_per_node, (GpuModel.parse(gpu),))
    fast = {"crash_backoff_initial": 0.2} | spec
    try:
        cluster.up(Request(ClusterSpec(index=0, nodes=layout, **fast), tuple(images)), attached=True)
        yield cluster
    finally:
        cluster.down(keep_logs=True)


@pytest.fixture(scope="session", name="local_cluster")
def _local_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningCluster]:
    with local_cluster(tmp_path_factory.mktemp("local-cluster")) as cluster:
        yield cluster


@pytest.fixture(scope="session", name="api_server")
def _api_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with api_only(tmp_path_factory.mktemp("api-server")) as plane:
        yield plane


@pytest.fixture(scope="session", name="control_plane")
def _control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with control_plane(tmp_path_factory.mktemp("control-plane")) as plane:
        yield plane


def _fresh_namespace(tools: Tools, request: pytest.FixtureRequest) -> Iterator[str]:
    stem = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower()).strip("-")[:40].strip("-") or "test"
    name = f"{stem}-{os.getpid()}-{next(_COUNTER)}"
    tools.kubectl("create", "namespace", name)
    yield name
    tools.kubectl("delete", "namespace", name, "--wait=false", check=False)


@pytest.fixture
def namespace(api_server: ControlPlane, request: pytest.FixtureRequest) -> Iterator[str]:
    """A fresh namespace on ``api_server``."""
    yield from _fresh_namespace(api_server.tools, request)


@pytest.fixture
def cp_namespace(control_plane: ControlPlane, request: pytest.FixtureRequest) -> Iterator[str]:
    """A fresh namespace on ``control_plane``."""
    yield from _fresh_namespace(control_plane.tools, request)


@pytest.fixture
def local_namespace(local_cluster: RunningCluster, request: pytest.FixtureRequest) -> Iterator[str]:
    """A fresh namespace on ``local_cluster``."""
    yield from _fresh_namespace(local_cluster.tools, request)
