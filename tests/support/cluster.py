"""Real control planes for tests.

Fixtures (registered by ``tests/conftest.py`` through ``pytest_plugins``):

- ``api_server``: session-wide etcd + kube-apiserver (no controllers, no ServiceAccount admission): pods, custom
  resources, RBAC, watches. Tests share it, so they work in a namespace of their own.
- ``control_plane``: session-wide, with kube-controller-manager and kube-scheduler (garbage collection, Deployments).
- ``namespace`` / ``cp_namespace``: a fresh namespace on either, deleted afterwards without waiting.

For chaos, start one of your own::

    with control_plane(tmp_path) as cp:
        cp.kubectl("get ns")              # or cp.kubectl("get", "ns", "-o", "json"), stdin="..." for apply -f -
        cp.apply({...manifest...})
        cp.restart("kube-apiserver", down_for=1.0); cp.wait_ready()
        cp.halt("kube-apiserver"); cp.launch("kube-apiserver"); cp.wait_ready()
        with cp.frozen("kube-apiserver"): ...   # SIGSTOP .. SIGCONT

``cp.kubeconfig`` is an administrator's kubeconfig file, ``cp.url`` the API server's URL. The processes die with the
thread that started them: start from the main thread (fixtures do).
"""

from __future__ import annotations

import itertools
import os
import re
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from llmos_operator.local.addresses import claim_block
from llmos_operator.local.binaries import resolve
from llmos_operator.local.controlplane import ControlPlane, ControlPlaneOptions
from llmos_operator.local.layout import ClusterPaths

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

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
def api_only(folder: Path) -> Iterator[ControlPlane]:
    """Only etcd and kube-apiserver: ready in about three seconds, no ServiceAccounts needed to create pods."""
    with control_plane(folder, _API_ONLY) as plane:
        yield plane


@pytest.fixture(scope="session", name="api_server")
def _api_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with api_only(tmp_path_factory.mktemp("api-server")) as plane:
        yield plane


@pytest.fixture(scope="session", name="control_plane")
def _control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    with control_plane(tmp_path_factory.mktemp("control-plane")) as plane:
        yield plane


def _fresh_namespace(plane: ControlPlane, request: pytest.FixtureRequest) -> Iterator[str]:
    stem = re.sub(r"[^a-z0-9]+", "-", request.node.name.lower()).strip("-")[:40].strip("-") or "test"
    name = f"{stem}-{os.getpid()}-{next(_COUNTER)}"
    plane.kubectl("create", "namespace", name)
    yield name
    plane.kubectl("delete", "namespace", name, "--wait=false", check=False)


@pytest.fixture
def namespace(api_server: ControlPlane, request: pytest.FixtureRequest) -> Iterator[str]:
    """A fresh namespace on ``api_server``."""
    yield from _fresh_namespace(api_server, request)


@pytest.fixture
def cp_namespace(control_plane: ControlPlane, request: pytest.FixtureRequest) -> Iterator[str]:
    """A fresh namespace on ``control_plane``."""
    yield from _fresh_namespace(control_plane, request)
