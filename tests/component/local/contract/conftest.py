"""The clusters the pod contract is held against.

By default the local cluster. A real node takes part when these are set, and then only it: LLMOS_CONTRACT_KUBECONFIG,
LLMOS_CONTRACT_NODE (the node pods are bound to) and LLMOS_CONTRACT_IMAGE (an image on that node with `sh` and
`python3`, used with pull policy IfNotPresent).
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from llmos_operator.local.binaries import resolve
from llmos_operator.local.tools import Tools
from tests.support.pods import PodClient

if TYPE_CHECKING:
    from collections.abc import Iterator

_COUNTER = itertools.count()


@pytest.fixture(scope="session")
def tools(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tools:
    if kubeconfig := os.environ.get("LLMOS_CONTRACT_KUBECONFIG"):
        return Tools(resolve().paths, Path(kubeconfig), tmp_path_factory.mktemp("home"))
    cluster = request.getfixturevalue("local_cluster")
    found: Tools = cluster.tools
    return found


@pytest.fixture(scope="module")
def module_namespace(tools: Tools, request: pytest.FixtureRequest) -> Iterator[str]:
    stem = request.module.__name__.rpartition(".")[2].replace("_", "-")
    name = f"{stem}-{os.getpid()}-{next(_COUNTER)}"
    tools.kubectl("create", "namespace", name)
    yield name
    tools.kubectl("delete", "namespace", name, "--wait=false", check=False)


@pytest.fixture
def pods(tools: Tools, module_namespace: str) -> Iterator[PodClient]:
    """Creates pods on one node and waits for what becomes of them; removes them after the test."""
    client = PodClient(
        tools,
        module_namespace,
        node=os.environ.get("LLMOS_CONTRACT_NODE", "sim-0"),
        image=os.environ.get("LLMOS_CONTRACT_IMAGE", "host"),
    )
    yield client
    client.remove_all()
