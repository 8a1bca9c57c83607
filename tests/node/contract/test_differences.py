"""What a node does and the process kubelet does not: see docs/local-cluster.md."""

import subprocess
import urllib.request

import pytest

from tests.support.pods import python, sh


def _log(pods, name: str) -> str:
    """Return a container's log, "" while it has none."""
    try:
        return str(pods.logs(name))
    except subprocess.CalledProcessError:
        return ""


@pytest.mark.differs("read-only mounts")
def test_a_read_only_mount_cannot_be_written(pods) -> None:
    mount = {"name": "state", "mountPath": "/state", "readOnly": True}
    name = pods.create(
        sh("echo x > /state/file && echo written || echo refused", volumeMounts=[mount]),
        restartPolicy="Never",
        volumes=[{"name": "state", "emptyDir": {}}],
    )
    pods.wait_phase(name, "Succeeded")
    assert "refused" in pods.logs(name)


@pytest.mark.differs("loopback of a pod")
def test_two_pods_listen_on_one_port_of_all_addresses(pods) -> None:
    listens = python(
        "import socket, time; s = socket.create_server(('0.0.0.0', 18999)); print('up'); time.sleep(600)"
    )
    names = [pods.create(dict(listens), restartPolicy="Never") for _ in range(2)]
    for name in names:
        pods.wait(name, lambda _pod, name=name: _log(pods, name))
    assert [pods.logs(name) for name in names] == ["up\n", "up\n"]


@pytest.mark.differs("timestamps of log lines")
def test_log_lines_carry_the_time_they_came(pods) -> None:
    name = pods.create(sh("echo hello"), restartPolicy="Never")
    pods.wait_phase(name, "Succeeded")
    stamp, _, line = pods.logs(name, "--timestamps").partition(" ")
    assert stamp.endswith("Z")
    assert line == "hello\n"


@pytest.mark.differs("times of log lines")
def test_a_log_can_be_read_from_a_moment_on(pods) -> None:
    name = pods.create(sh("echo hello"), restartPolicy="Never")
    pods.wait_phase(name, "Succeeded")
    assert pods.logs(name, "--since=1h") == "hello\n"
    assert pods.logs(name, "--since-time=2999-01-01T00:00:00Z") == ""


@pytest.mark.differs("size of volumes in memory")
def test_a_volume_in_memory_takes_no_more_than_its_limit(pods) -> None:
    name = pods.create(
        sh(
            "head -c 4194304 /dev/zero > /memory/file 2> /dev/null && echo written || echo refused",
            volumeMounts=[{"name": "memory", "mountPath": "/memory"}],
        ),
        restartPolicy="Never",
        volumes=[{"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}}],
    )
    pods.wait_phase(name, "Succeeded")
    assert pods.logs(name) == "refused\n"


@pytest.mark.differs("ports of a pod")
def test_a_port_of_a_pod_is_forwarded(pods) -> None:
    code = """
import http.server, os
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(os.environ["HOSTNAME"].encode())
server = http.server.HTTPServer(("127.0.0.1", 18998), Handler)
print("up")
server.serve_forever()
"""
    name = pods.create(python(code), restartPolicy="Never")
    pods.wait(name, lambda _pod: _log(pods, name))
    forward = subprocess.Popen(
        [
            str(pods.tools.binaries["kubectl"]),
            f"--namespace={pods.namespace}",
            "port-forward",
            f"pod/{name}",
            ":18998",
            "--address=127.0.0.1",
        ],
        env=pods.tools.environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    with forward:
        assert forward.stdout is not None
        told = forward.stdout.readline()
        try:
            assert told, "nothing is forwarded"
            port = int(told.split(" -> ")[0].rpartition(":")[2])
            assert _get(port) == name
        finally:
            forward.terminate()


def _get(port: int) -> str:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=90) as answer:
            return str(answer.read().decode())
    except OSError as error:
        raise AssertionError(f"no answer through the forwarded port: {error}") from error


@pytest.mark.differs("commands in a pod")
def test_a_command_runs_in_a_container(pods) -> None:
    name = pods.create(sh("sleep 600"))
    pods.wait_ready(name)
    assert pods.kubectl("exec", name, "--", "echo", "inside") == "inside\n"


@pytest.mark.differs("users of containers")
def test_a_container_runs_as_the_user_it_names(pods) -> None:
    name = pods.create(sh("id -u", securityContext={"runAsUser": 12345}), restartPolicy="Never")
    pods.wait_phase(name, "Succeeded")
    assert pods.logs(name) == "12345\n"


@pytest.mark.differs("signals without a handler")
def test_a_first_process_is_not_ended_by_a_signal_it_does_not_handle(pods) -> None:
    name = pods.create(
        python("import os, signal; os.kill(os.getpid(), signal.SIGTERM); print('still here')"),
        restartPolicy="Never",
    )
    pods.wait(name, lambda pod: pod["status"].get("phase") in {"Succeeded", "Failed"})
    assert pods.logs(name) == "still here\n"
