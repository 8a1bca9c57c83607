"""The kubelets the pod contract is held against: the local cluster's (``process``) and the node's of tests/node (``real``).

Every test runs against both, in different lanes: ``-m "not node"`` chooses the process kubelet, ``-m node`` the real one.
The real one may be another cluster's: LLMOS_CONTRACT_KUBECONFIG, LLMOS_CONTRACT_NODE (the node pods are bound to) and
LLMOS_CONTRACT_IMAGE (an image on that node with a shell, its usual programs and ``python3``).

A test takes ``pods`` and nothing else that is shared, so the tests of a kubelet run side by side, in threads
(`tests.support.abreast`); each is reported at its turn. Tests marked ``differs("…")`` are of what the process kubelet does
otherwise: there they must fail, and the table of docs/local-cluster.md has a row of that name.
"""

from __future__ import annotations

import itertools
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from llmos_operator.local.binaries import resolve
from llmos_operator.local.tools import Tools
from scripts.realnode import layout
from scripts.realnode.images import probe_image
from tests.support.abreast import Abreast
from tests.support.apiwatch import ApiWatch
from tests.support.differences import documented
from tests.support.watchedpods import WatchedPods

if TYPE_CHECKING:
    from collections.abc import Iterator

_SIDE_BY_SIDE = 12
_SECONDS = 900  # for one test, with what has to be made for it, and those that run beside it
_AS_DIFFERING = (AssertionError, subprocess.CalledProcessError)  # a test that is wrong fails otherwise
_COUNTER = itertools.count()


@dataclass
class Kubelet:
    """A kubelet under test: one node of a cluster, and an image with a shell and Python."""

    name: str
    tools: Tools
    node: str
    image: str
    watch: ApiWatch
    namespaces: dict[str, str]  # by test module

    def pods(self, module: str) -> WatchedPods:
        """Return means to create pods in a module's namespace."""
        return WatchedPods(self.tools, self.namespaces[module], self.node, self.image, watch=self.watch)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Expect failures where the process kubelet differs, for the reason the documentation gives."""
    rows = documented()
    for item in items:
        if item.path.parent != Path(__file__).parent:
            continue
        item.add_marker(pytest.mark.timeout(_SECONDS))
        for mark in item.iter_markers("differs"):
            if _of_process(item):
                fails = pytest.mark.xfail(reason=rows[mark.args[0]], raises=_AS_DIFFERING, strict=True)
                item.add_marker(fails)


def _of_process(item: pytest.Item) -> bool:
    return bool(item.callspec.params.get("kubelet") == "process")  # type: ignore[attr-defined]


@pytest.fixture(
    scope="session",
    params=[
        pytest.param("process", marks=pytest.mark.component),
        pytest.param("real", marks=pytest.mark.node),
    ],
)
def kubelet(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kubelet]:
    """One of the kubelets."""
    if request.param == "process":
        tools, node, image = request.getfixturevalue("local_cluster").tools, "sim-0", "host"
    elif kubeconfig := os.environ.get("LLMOS_CONTRACT_KUBECONFIG"):
        tools = Tools(resolve().paths, Path(kubeconfig), tmp_path_factory.mktemp("home"))
        node, image = os.environ["LLMOS_CONTRACT_NODE"], os.environ["LLMOS_CONTRACT_IMAGE"]
    else:
        real = request.getfixturevalue("node")
        real.load(probe_image())
        tools, node, image = real.tools(), layout.NAME, layout.PROBE_IMAGE
    modules = {one.module.__name__ for one in _beside(request.session, request.param)}
    spaces = {one: f"{_stem(one)}-{os.getpid()}-{next(_COUNTER)}" for one in sorted(modules)}
    namespaces = [
        {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": one}} for one in spaces.values()
    ]
    tools.apply(*namespaces)
    with ApiWatch(tools) as watch:
        yield Kubelet(request.param, tools, node, image, watch, spaces)
    tools.kubectl("delete", "namespace", *spaces.values(), "--wait=false", check=False)


def _stem(module: str) -> str:
    return module.rpartition(".")[2].replace("_", "-")


def _beside(session: pytest.Session, name: str) -> list[Any]:
    """Return this folder's tests against a kubelet, in order."""
    here = Path(__file__).parent
    return [
        one
        for one in session.items
        if one.path.parent == here and one.callspec.params["kubelet"] == name  # type: ignore[attr-defined]
    ]


@pytest.fixture(scope="session")
def abreast(kubelet: Kubelet, request: pytest.FixtureRequest) -> Iterator[Abreast]:
    """The tests of this kubelet, running."""

    def run(item: Any) -> None:
        pods = kubelet.pods(item.module.__name__)
        parameters = {key: value for key, value in item.callspec.params.items() if key != "kubelet"}
        try:
            item.obj(pods=pods, **parameters)
        finally:
            pods.remove_all()

    with Abreast(_beside(request.session, kubelet.name), run, _SIDE_BY_SIDE) as found:
        yield found


@pytest.fixture
def pods(abreast: Abreast) -> Abreast:
    """Creates pods on one node and waits for what becomes of them; a test is given its own when it runs, which may be now."""
    return abreast


def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Report a test that ran, or still runs, beside the others."""
    running = pyfuncitem.funcargs.get("pods")
    if not isinstance(running, Abreast):
        return None
    running.outcome(pyfuncitem)
    return True
