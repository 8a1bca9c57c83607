"""Services, and the controllers whose pods run on simulated nodes."""

from __future__ import annotations

import json
import socket
import threading
from http.client import HTTPConnection

import pytest

from tests.support.pods import PodClient, http_server, python, sh
from tests.support.waiting import eventually

pytestmark = pytest.mark.component


@pytest.fixture
def pods(local_cluster, local_namespace):
    client = PodClient(local_cluster.tools, local_namespace, "sim-0", "host")
    yield client
    client.remove_all()


def _service(pods: PodClient, name: str, selector: dict, target: int | str = 8000, **spec) -> str:
    body = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"selector": selector, "ports": [{"port": 80, "targetPort": target}], **spec},
    }
    pods.apply(body)
    address = pods.kubectl("get", "service", name, "-o", "jsonpath={.spec.clusterIP}")
    assert address
    return address


def _get(address: str, port: int = 80) -> str:
    connection = HTTPConnection(address, port, timeout=5)
    connection.request("GET", "/")
    return connection.getresponse().read().decode()


def _answers(address: str) -> bool:
    try:
        return bool(_get(address))
    except OSError:
        return False


def _log(pods: PodClient, name: str) -> str:
    """The log so far, empty while there is none."""
    return pods.kubectl("logs", name, check=False)


def _labelled(app: str) -> dict:
    return {"labels": {"app": app}}


def test_a_service_reaches_all_ready_pods_and_only_those(pods) -> None:
    address = _service(pods, "web", {"app": "web"}, target="http")
    with pytest.raises(ConnectionRefusedError):
        _get(address)
    ports = [{"name": "http", "containerPort": 8000}]
    names = [pods.create(http_server(ports=ports), meta=_labelled("web")) for _ in range(2)]
    unready = pods.create(
        http_server(ports=ports, readinessProbe={"exec": {"command": ["false"]}}), meta=_labelled("web")
    )
    for name in names:
        pods.wait_ready(name)
    eventually(lambda: _answers(address), "the Service answers")
    eventually(lambda: {_get(address) for _ in range(8)} == set(names), "both pods are asked")
    assert unready not in {_get(address) for _ in range(8)}


def test_connections_go_to_whoever_is_left(pods) -> None:
    address = _service(pods, "moving", {"app": "moving"})
    first = pods.create(http_server(), meta=_labelled("moving"))
    pods.wait_ready(first)
    eventually(lambda: _answers(address), "the Service answers")
    second = pods.create(http_server(), meta=_labelled("moving"))
    pods.wait_ready(second)
    pods.delete(first)
    pods.wait_gone(first)
    assert {_get(address) for _ in range(5)} == {second}
    pods.delete(second)
    pods.wait_gone(second)
    eventually(lambda: not _answers(address), "nobody is left")


def test_streams_pass_as_they_come_and_half_closed_connections_stay_open(pods) -> None:
    code = """
import os, socket, time
server = socket.create_server((os.environ["IP"], 8000))
print("listening", flush=True)
while True:
    connection, _ = server.accept()
    connection.sendall(b"tick 0\\n")
    received = connection.recv(1)  # what comes next depends on the client having read the first tick
    connection.sendall(b"tick 1\\ntick 2\\n")
    while block := connection.recv(65536): received += block
    connection.sendall(b"got %d" % len(received)); connection.close()
"""
    env = [{"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}]
    address = _service(pods, "stream", {"app": "stream"})
    name = pods.create(python(code, env=env), meta=_labelled("stream"))
    pods.wait(name, lambda _pod: "listening" in _log(pods, name))

    def connect() -> socket.socket | None:
        try:
            return socket.create_connection((address, 80), timeout=10)
        except ConnectionRefusedError:
            return None

    connection = eventually(connect, "the Service answers")
    connection.settimeout(60)
    assert connection.recv(100) == b"tick 0\n"
    payload = b"x" * 5_000_000
    connection.sendall(payload)
    connection.shutdown(socket.SHUT_WR)
    rest = b""
    while block := connection.recv(65536):
        rest += block
    assert rest == b"tick 1\ntick 2\n" + b"got 5000000"


def test_a_client_that_leaves_is_noticed_behind_the_service(pods) -> None:
    code = """
import os, socket
server = socket.create_server((os.environ["IP"], 8000))
print("listening", flush=True)
connection, _ = server.accept()
print("connected", flush=True)
try:
    while connection.recv(100): pass
except ConnectionResetError: pass
print("gone", flush=True)
"""
    env = [{"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}]
    address = _service(pods, "leave", {"app": "leave"})
    name = pods.create(python(code, env=env), meta=_labelled("leave"), restartPolicy="Never")
    pods.wait(name, lambda _pod: "listening" in _log(pods, name))

    def connect() -> socket.socket | None:
        try:
            return socket.create_connection((address, 80), timeout=10)
        except ConnectionRefusedError:
            return None

    connection = eventually(connect, "the Service answers")
    pods.wait(name, lambda _pod: "connected" in pods.logs(name))
    connection.close()
    pods.wait_phase(name, "Succeeded")
    assert "gone" in pods.logs(name)


def test_the_api_server_is_a_service_too(local_cluster) -> None:
    import ssl  # noqa: PLC0415 - only here

    address = local_cluster.tools.get("service", "kubernetes", namespace="default")["spec"]["clusterIP"]
    context = ssl.create_default_context(cafile=str(local_cluster.paths.pki / "ca.crt"))
    with (
        socket.create_connection((address, 443), timeout=5) as raw,
        context.wrap_socket(raw, server_hostname="kubernetes.default.svc") as tls,
    ):
        assert tls.version()


def test_many_connections_at_once(pods) -> None:
    address = _service(pods, "many", {"app": "many"})
    pods.wait_ready(pods.create(http_server(), meta=_labelled("many")))
    eventually(lambda: _answers(address), "the Service answers")
    failures: list[Exception] = []

    def ask() -> None:
        try:
            for _ in range(10):
                _get(address)
        except Exception as error:  # noqa: BLE001 - collected and asserted
            failures.append(error)

    threads = [threading.Thread(target=ask) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def _template(app: str, container: dict) -> dict:
    return {
        "metadata": {"labels": {"app": app}},
        "spec": {"containers": [{**container, "image": "host"}], "terminationGracePeriodSeconds": 1},
    }


def test_deployments_roll_out_and_roll_over(pods) -> None:
    def deployment(marker: str) -> dict:
        probe = {"httpGet": {"port": 8000}, "periodSeconds": 1}
        main = http_server(readinessProbe=probe, env=[{"name": "MARKER", "value": marker}])
        return {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": "roll"},
            "spec": {
                "replicas": 2,
                "selector": {"matchLabels": {"app": "roll"}},
                "template": _template("roll", main),
            },
        }

    pods.apply(deployment("one"))
    pods.kubectl("rollout", "status", "deployment/roll", "--timeout=180s")
    before = pods.kubectl("get", "pods", "-l", "app=roll", "-o", "name")
    pods.apply(deployment("two"))
    pods.kubectl("rollout", "status", "deployment/roll", "--timeout=180s")
    after = pods.kubectl(
        "get", "pods", "-l", "app=roll", "--field-selector=status.phase=Running", "-o", "name"
    )
    assert not set(before.split()) & set(after.split())


def test_a_daemon_set_runs_on_every_node(pods) -> None:
    body = {
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": "everywhere"},
        "spec": {
            "selector": {"matchLabels": {"app": "everywhere"}},
            "template": _template("everywhere", sh("sleep 600")),
        },
    }
    pods.apply(body)
    pods.kubectl("rollout", "status", "daemonset/everywhere", "--timeout=180s")
    found = json.loads(pods.kubectl("get", "pods", "-l", "app=everywhere", "-o", "json"))["items"]
    assert {pod["spec"]["nodeName"] for pod in found} == {"sim-0", "sim-1"}


def test_jobs_run_to_their_end(pods) -> None:
    body = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "once"},
        "spec": {
            "completions": 3,
            "parallelism": 3,
            "template": {"spec": {"restartPolicy": "Never", "containers": [sh("echo worked", image="host")]}},
        },
    }
    pods.apply(body)
    pods.kubectl("wait", "--for=condition=Complete", "job/once", "--timeout=180s")


def test_a_disruption_budget_holds_back_evictions(pods, local_cluster) -> None:
    replicas = {
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "metadata": {"name": "guarded"},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": {"app": "guarded"}},
            "template": _template("guarded", sh("sleep 600")),
        },
    }
    budget = {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": "guarded"},
        "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "guarded"}}},
    }
    pods.apply(replicas, budget)
    pods.kubectl("wait", "--for=jsonpath={.status.currentHealthy}=1", "pdb/guarded", "--timeout=180s")
    name = pods.kubectl("get", "pods", "-l", "app=guarded", "-o", "jsonpath={.items[0].metadata.name}")
    eviction = {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": name, "namespace": pods.namespace},
    }
    path = f"/api/v1/namespaces/{pods.namespace}/pods/{name}/eviction"
    refused = local_cluster.tools.run(
        "kubectl", "create", "--raw", path, "-f", "-", stdin=json.dumps(eviction)
    )
    assert "disruption budget" in refused.stderr
    pods.kubectl("delete", "pdb", "guarded")
    local_cluster.tools.run("kubectl", "create", "--raw", path, "-f", "-", stdin=json.dumps(eviction))
    pods.wait_gone(name)
