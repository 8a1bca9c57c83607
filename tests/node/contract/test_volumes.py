"""Volumes: parts of them, paths of the node, tokens. Held by every kubelet we run on."""

import base64
import json
import uuid

import pytest

from tests.support.pods import container, sh, waiting_reason

NAME = [{"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]


def _expression(expression: str) -> list[dict]:
    return [
        {"name": "state", "mountPath": "/all"},
        {"name": "state", "mountPath": "/part", "subPathExpr": expression},
    ]


def test_a_sub_path_may_name_the_containers_variables(pods) -> None:
    main = sh('echo x > /part/file; ls "/all/logs/$POD"', env=NAME, volumeMounts=_expression("logs/$(POD)"))
    name = pods.create(main, restartPolicy="Never", volumes=[{"name": "state", "emptyDir": {}}])
    pods.wait_phase(name, "Succeeded")
    assert pods.logs(name) == "file\n"


def test_a_sub_path_with_an_unknown_variable_holds_the_container(pods) -> None:
    main = sh("true", env=NAME, volumeMounts=_expression("$(POD)/$(ABSENT)"))
    name = pods.create(main, restartPolicy="Never", volumes=[{"name": "state", "emptyDir": {}}])
    pod = pods.wait(name, lambda pod: waiting_reason(pod) == "CreateContainerConfigError")
    assert "missing value for" in container(pod)["state"]["waiting"]["message"]
    assert "ABSENT" in container(pod)["state"]["waiting"]["message"]


def _host(name: str, path: str, kind: str) -> dict:
    return {"name": name, "hostPath": {"path": path, "type": kind}}


def _mounts(*names: str) -> list[dict]:
    return [{"name": name, "mountPath": f"/host/{name}"} for name in names]


def test_paths_of_the_node_that_are_of_their_type_are_mounted(pods) -> None:
    volumes = [
        _host("directory", "/etc", "Directory"),
        _host("file", "/etc/passwd", "File"),
        _host("device", "/dev/null", "CharDevice"),
        _host("any", "/usr", ""),
    ]
    script = "test -d /host/directory && test -f /host/file && test -c /host/device && test -d /host/any"
    main = sh(script, volumeMounts=_mounts("directory", "file", "device", "any"))
    name = pods.create(main, restartPolicy="Never", volumes=volumes)
    pods.wait_phase(name, "Succeeded")


def test_paths_of_the_node_are_made_where_the_type_says_so(pods) -> None:
    own = f"llmos-contract-{uuid.uuid4().hex[:12]}"
    volumes = [
        _host("top", "/tmp", "Directory"),
        _host("directory", f"/tmp/{own}/a/b", "DirectoryOrCreate"),
        _host("file", f"/tmp/{own}/file", "FileOrCreate"),
    ]
    script = f"test -d /host/directory && test -f /host/file && echo made; rm -r /host/top/{own}"
    main = sh(script, volumeMounts=_mounts("top", "directory", "file"))
    name = pods.create(main, restartPolicy="Never", volumes=volumes)
    pods.wait_phase(name, "Succeeded", timeout=180)
    assert pods.logs(name) == "made\n"


@pytest.mark.parametrize(
    ("path", "kind", "words"),
    [
        ("/etc/passwd", "Directory", "is not a directory"),
        ("/etc/passwd", "DirectoryOrCreate", "is not a directory"),
        ("/etc", "File", "is not a file"),
        ("/etc", "FileOrCreate", "is not a file"),
        ("/etc/passwd", "Socket", "is not a socket file"),
        ("/etc/passwd", "CharDevice", "is not a character device"),
        ("/dev/null", "BlockDevice", "is not a block device"),
    ],
)
def test_a_path_of_the_node_of_another_type_is_told_and_not_mounted(pods, path, kind, words) -> None:
    name = pods.create(
        sh("true", volumeMounts=_mounts("wrong")),
        restartPolicy="Never",
        volumes=[_host("wrong", path, kind)],
    )
    assert f"hostPath type check failed: {path} {words}" in pods.wait_event(name, "FailedMount")
    assert pods.get(name)["status"]["phase"] == "Pending"


def test_a_token_has_the_audience_and_the_life_it_was_asked_for(pods) -> None:
    token = {"path": "token", "audience": "vault", "expirationSeconds": 7200}
    name = pods.create(
        sh("cat /tokens/token", volumeMounts=[{"name": "tokens", "mountPath": "/tokens"}]),
        restartPolicy="Never",
        volumes=[{"name": "tokens", "projected": {"sources": [{"serviceAccountToken": token}]}}],
    )
    pods.wait_phase(name, "Succeeded")
    payload = pods.logs(name).split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    assert claims["aud"] == ["vault"]
    assert claims["exp"] - claims["iat"] == 7200
    assert claims["kubernetes.io"]["pod"]["name"] == name
