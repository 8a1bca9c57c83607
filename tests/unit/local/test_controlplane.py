"""Starting the control plane when its parts end on the way."""

from __future__ import annotations

import subprocess
from typing import TYPE_CHECKING

import pytest

from llmos_operator.errors import Permanent, Retryable
from llmos_operator.local.addresses import AddressBlock
from llmos_operator.local.binaries import Binaries
from llmos_operator.local.controlplane import (
    API_SERVER,
    CONTROLLER_MANAGER,
    ControlPlane,
    ControlPlaneOptions,
)
from llmos_operator.local.layout import ClusterPaths

if TYPE_CHECKING:
    from pathlib import Path


class _Plane(ControlPlane):
    """Every part is `sleep`, the API server is ready after a few questions."""

    def __init__(self, root: Path) -> None:
        super().__init__(Binaries({}), ClusterPaths(root), AddressBlock(0), ControlPlaneOptions())
        self.questions = 0
        self.launched: list[str] = []

    def launch(self, name: str) -> None:
        self.launched.append(name)
        self._processes[name] = subprocess.Popen(["sleep", "600"])

    def request(self, path: str, timeout: float = 5.0) -> bytes:  # noqa: ARG002 - as in the class it stands for
        self.questions += 1
        if self.questions < 4:
            raise Retryable(path)
        return b"ok"


@pytest.fixture
def plane(tmp_path):
    found = _Plane(tmp_path)
    found.launch(API_SERVER)
    found.launch(CONTROLLER_MANAGER)
    yield found
    for process in found._processes.values():
        process.kill()
        process.wait()


def _end(plane: ControlPlane, name: str) -> None:
    plane.process(name).kill()
    plane.process(name).wait()


def test_controllers_that_did_not_wait_long_enough_are_started_again(plane) -> None:
    _end(plane, CONTROLLER_MANAGER)
    plane.wait_ready(timeout=10)
    assert plane.launched == [API_SERVER, CONTROLLER_MANAGER, CONTROLLER_MANAGER]


def test_an_api_server_that_ends_is_named(plane) -> None:
    _end(plane, API_SERVER)
    with pytest.raises(Permanent, match="kube-apiserver ended during start"):
        plane.wait_ready(timeout=10)


def test_waiting_has_an_end(plane) -> None:
    plane.questions = -1_000_000
    with pytest.raises(Permanent, match="not ready after 0 s"):
        plane.wait_ready(timeout=0.1)
