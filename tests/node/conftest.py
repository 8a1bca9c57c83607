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
import yaml

from llmos_operator.api import names
from scripts.realnode.cluster import bring_up
from scripts.realnode.host import CannotHere
from scripts.realnode.layout import NodePaths, default_state
from scripts.realnode.node import Node
from tests.support.abreast import Abreast
from tests.support.apiclient import ApiClient, Refused
from tests.support.nodegpus import plugged
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llmos_operator.local.tools import Tools
    from tests.support.nodedevices import Devices

ROOT = Path(__file__).parents[2]
CHART = ROOT / "helm" / "llmos-operator"
NAMESPACE = names.SYSTEM_NAMESPACE
_SECONDS = 900  # for one test, with what has to be made for it
# Files that come last, in this order. Those before share a chat model, which this one's first removes; README's lines begin
# where nothing is installed; rights are judged by all tests.
_LAST = (
    "test_trouble.py",
    "test_whole_gpus.py",
    "test_shared_gpus.py",
    "test_uninstall.py",
    "test_readme.py",
    "test_rights.py",
)
_SIDE_BY_SIDE = 4  # tests of one file, where they ask for it: they wait more than they work
CHAT = "chat"  # the workload of the first example
MODEL = "smollm2"
REST = 3.0  # seconds a holder pod stays behind: short, so that a test sees it go
POD_SECURITY = "pod-security.kubernetes.io/enforce"


class Installed:
    """The chart's release on the node, with the verbs tests need."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self.tools: Tools = node.tools()
        self.api = ApiClient(self.tools)
        self.standing: tuple[str, ...] | None = None  # options of what is installed as `install` left it
        self.audited_from = (node.paths.logs / "audit.log").stat().st_size  # bytes: where these tests begin

    def helm(self, *arguments: str) -> str:
        self.standing = None
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
        self.standing = (security, *options)

    def items(self, kind: str, namespace: str = NAMESPACE, **query: str) -> list[dict[str, Any]]:
        """Return the objects of a kind, by its plural: ``labelSelector``, ``fieldSelector``."""
        return self.api.items(kind, namespace, **query)

    def pods(self, component: str) -> dict[str, dict[str, Any]]:
        """Return the live pods of a component of the chart by name."""
        found = self.items("pods", labelSelector=f"app.kubernetes.io/component={component}")
        return {one["metadata"]["name"]: one for one in found if "deletionTimestamp" not in one["metadata"]}

    def leader(self) -> str:
        """Return the name of the pod that holds the operator's lease, "" if nobody does."""
        lease = self.api.get("leases", "llmos-operator", NAMESPACE)
        return str(lease["spec"].get("holderIdentity") or "")

    # -- workloads, in the namespace default

    def workload(self, name: str) -> dict[str, Any]:
        return self.api.get("modelworkloads", name, "default")

    def condition(self, name: str, kind: str) -> dict[str, Any]:
        conditions = self.workload(name).get("status", {}).get("conditions", [])
        return next((one for one in conditions if one["type"] == kind), {})

    def pods_of(self, workload: str) -> list[dict[str, Any]]:
        return self.items("pods", "default", labelSelector=f"llmos.dev/workload={workload}")

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
        service = self.api.get("services", "llmos-gateway", NAMESPACE)
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

    def remove(self, *workloads: str) -> None:
        """Delete workloads and wait until their pods are gone."""
        if workloads:
            words = ("--namespace=default", "--ignore-not-found", "--wait=false")
            self.tools.kubectl("delete", "mw", *workloads, *words)
        for name in workloads:
            eventually(lambda name=name: not self.pods_of(name), f"the pods of {name} to go")

    def clear(self, keep: str = "") -> None:
        """Delete all workloads but ``keep`` and wait until their pods are gone."""
        try:
            found = self.items("modelworkloads", "default")
        except Refused:  # there is no such kind
            return
        self.remove(*({one["metadata"]["name"] for one in found} - {keep}))


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
def release(node: Node) -> Iterator[Installed]:
    """The means to install; nothing may be installed yet."""
    made = Installed(node)
    yield made
    made.api.close()


@pytest.fixture(scope="module")
def installed(release: Installed) -> Installed:
    """The installed chart, without workloads but the chat model."""
    if release.standing != ("restricted",):
        release.install()
    release.clear(keep=CHAT)
    return release


@pytest.fixture(scope="module")
def chatting(installed: Installed) -> Installed:
    """The installed chart with the first example: started by the first test that needs it, then shared."""
    if not installed.api.find("modelworkloads", CHAT, "default"):
        workload = yaml.safe_load((ROOT / "examples/01-chat/workload.yaml").read_text(encoding="utf-8"))
        workload["spec"]["serving"]["drainTimeout"] = "280s"  # the machine may be slow
        installed.tools.apply(workload, namespace="default")
    return installed


@pytest.fixture(scope="session")
def plugin(release: Installed) -> Iterator[tuple[Installed, Devices]]:
    """The chart on a node with three GPUs of a device plugin, until the test of the uninstall ends that."""
    with plugged(release, holders={"rest": REST}) as devices:
        yield release, devices


@pytest.fixture(scope="module")
def together(installed: Installed, request: pytest.FixtureRequest) -> Iterator[Abreast]:
    """The release, for tests of a file that run side by side: each removes its own workloads, and disturbs no other."""
    beside = [
        one
        for one in request.session.items
        if isinstance(one, pytest.Function)
        and one.module is request.module
        and "together" in one.fixturenames
    ]
    with Abreast(beside, lambda test: test.obj(together=installed), _SIDE_BY_SIDE) as running:
        yield running


def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Report a test that ran, or still runs, beside others of its file."""
    running = pyfuncitem.funcargs.get("together")
    if not isinstance(running, Abreast):
        return None
    running.outcome(pyfuncitem)
    return True
