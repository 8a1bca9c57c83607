"""LLMOS on a real node: the chart installed with the images of this checkout, on the node of `scripts.realnode`.

``node`` is used as it runs (`make node-up`), else started for these tests and ended after them. Where this machine cannot
carry one the tests are skipped and say why.
"""

from __future__ import annotations

import fcntl
import json
import urllib.error
import urllib.request
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from llmos_operator.api import names
from scripts.realnode.cluster import bring_up
from scripts.realnode.host import CannotHere
from scripts.realnode.layout import NodePaths, default_state
from scripts.realnode.node import Node
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llmos_operator.local.tools import Tools

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm" / "llmos-operator"
NAMESPACE = names.SYSTEM_NAMESPACE
_SECONDS = 900  # for one test, with what has to be made for it
# Files that come last, in this order: README's lines begin where nothing is installed, and rights are judged by all tests.
_LAST = ("test_uninstall.py", "test_readme.py", "test_rights.py")
POD_SECURITY = "pod-security.kubernetes.io/enforce"


class Installed:
    """The chart's release on the node, with the verbs tests need."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.tools: Tools = node.tools()
        self.audited_from = (node.paths.logs / "audit.log").stat().st_size  # bytes: where these tests begin

    def helm(self, *arguments: str) -> str:
        done = self.tools.run("helm", *arguments, f"--namespace={NAMESPACE}")
        assert done.returncode == 0, done.stderr
        return done.stdout

    def install(self, *options: str, security: str = "restricted") -> None:
        """Install or upgrade, and wait until everything is ready; the namespace takes pods of this level of security."""
        if self.tools.run("kubectl", "get", "namespace", NAMESPACE).returncode:
            self.tools.kubectl("create", "namespace", NAMESPACE)
        for name, level in ((NAMESPACE, security), ("default", "restricted")):
            self.tools.kubectl("label", "namespace", name, f"{POD_SECURITY}={level}", "--overwrite")
        words = ["upgrade", "--install", "llmos-operator", str(CHART), f"--values={self.node.paths.values}"]
        self.helm(*words, "--wait", "--timeout=180s", *options)

    def items(self, kind: str, *options: str, namespace: str = NAMESPACE) -> list[dict[str, Any]]:
        found = self.tools.kubectl("get", kind, f"--namespace={namespace}", "-o", "json", *options)
        return json.loads(found)["items"]

    def pods(self, component: str) -> dict[str, dict[str, Any]]:
        """Return the live pods of a component of the chart by name."""
        selector = f"--selector=app.kubernetes.io/component={component}"
        found = self.items("pods", selector)
        return {one["metadata"]["name"]: one for one in found if "deletionTimestamp" not in one["metadata"]}

    def leader(self) -> str:
        """Return the name of the pod that holds the operator's lease, "" if nobody does."""
        lease = self.tools.get("lease", "llmos-operator", namespace=NAMESPACE)
        return str(lease["spec"].get("holderIdentity") or "")

    # -- workloads, in the namespace default

    def apply_file(self, path: Path) -> None:
        self.tools.kubectl("apply", "--namespace=default", "-f", str(path))

    def workload(self, name: str) -> dict[str, Any]:
        return self.tools.get("modelworkload", name, namespace="default")

    def condition(self, name: str, kind: str) -> dict[str, Any]:
        conditions = self.workload(name).get("status", {}).get("conditions", [])
        return next((one for one in conditions if one["type"] == kind), {})

    def pods_of(self, workload: str) -> list[dict[str, Any]]:
        return self.items("pods", f"--selector=llmos.dev/workload={workload}", namespace="default")

    def ready(self, name: str, seconds: float = 90.0) -> dict[str, Any]:
        """Wait until a workload is Ready and return its one pod."""

        def check() -> bool:
            return self.condition(name, "Ready").get("status") == "True"

        try:
            eventually(check, f"{name} to be Ready", seconds)
        except AssertionError as error:
            error.add_note(json.dumps(self.workload(name).get("status"), indent=1))
            for pod in self.pods_of(name):
                error.add_note(json.dumps(pod["status"], indent=1))
            raise
        (pod,) = self.pods_of(name)
        return pod

    def gateway(self) -> str:
        """Return the gateway's address: its Service's, as kube-proxy routes it."""
        service = self.tools.get("service", "llmos-gateway", namespace=NAMESPACE)
        return f"http://{service['spec']['clusterIP']}"

    def ask(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Ask the gateway; raise URLError if it cannot be reached."""
        data, kind = json.dumps(body).encode(), {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{self.gateway()}{path}", data=data, headers=kind)  # noqa: S310
        with urllib.request.urlopen(request, timeout=60) as reply:  # noqa: S310
            return json.load(reply)

    def chat(self, model: str, question: str) -> str:
        """Return the answer of a chat model; a connection that fails is tried again, since Services take a moment."""
        body = {
            "model": model,
            "messages": [{"role": "user", "content": question}],
            "max_tokens": 16,
            "temperature": 0,
        }

        def check() -> dict[str, Any] | None:
            try:
                return self.ask("/v1/chat/completions", body)
            except urllib.error.URLError:
                return None

        answer = eventually(check, f"an answer of {model}")
        return str(answer["choices"][0]["message"]["content"])

    def clear(self) -> None:
        """Delete all workloads and wait until their pods are gone."""
        if self.tools.run("kubectl", "get", "crd", "modelworkloads.llmos.dev").returncode:
            return
        self.tools.kubectl("delete", "mw", "--all", "--namespace=default", "--wait=false")
        eventually(
            lambda: not self.items("pods", "--selector=llmos.dev/workload", namespace="default"), "pods to go"
        )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the files of `_LAST` come last, and give each test time for a node and a release to be made."""
    here = {item for item in items if item.path.parent == Path(__file__).parent}
    for item in here:
        item.add_marker(pytest.mark.timeout(_SECONDS))
    last = {name: place for place, name in enumerate(_LAST, 1)}
    items.sort(key=lambda item: last.get(item.path.name, 0) if item in here else 0)


@pytest.fixture(scope="session")
def alone() -> Iterator[None]:
    """Nobody else runs these tests on this machine: there is one node."""
    file = default_state().with_suffix(".tests")
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="ascii") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pytest.skip(f"other tests use this machine's node (they hold {file})")
        yield


@pytest.fixture(scope="session")
def node(alone: None) -> Iterator[Node]:  # noqa: ARG001 - held until the node's end
    found = Node(NodePaths(default_state()), print)
    with ExitStack() as ends:
        if found.record() is None:
            ends.callback(found.down)
        try:
            bring_up(found)
        except CannotHere as error:
            ends.pop_all()  # nothing was started
            pytest.skip(str(error))
        yield found


@pytest.fixture(scope="session")
def release(node: Node) -> Installed:
    """The means to install; nothing may be installed yet."""
    return Installed(node)


@pytest.fixture(scope="module")
def installed(release: Installed) -> Iterator[Installed]:
    """The installed chart, without workloads before and after the module."""
    release.install()
    release.clear()
    yield release
    release.clear()
