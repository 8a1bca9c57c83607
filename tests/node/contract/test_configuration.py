"""What a container is told: environment, files, tokens. Held by every kubelet we run on."""

import base64
import json

from tests.support.pods import container, ended, python, sh, waiting_reason

PRINT_ENV = "import json, os; print(json.dumps(dict(os.environ)))"


def _environment(pods, name: str) -> dict[str, str]:
    pods.wait_phase(name, "Succeeded")
    return json.loads(pods.logs(name))


def test_the_downward_api_names_pod_node_and_resources(pods) -> None:
    fields = {
        "NAME": "metadata.name",
        "NS": "metadata.namespace",
        "UID": "metadata.uid",
        "NODE": "spec.nodeName",
        "SA": "spec.serviceAccountName",
        "IP": "status.podIP",
        "HOST": "status.hostIP",
        "TEAM": "metadata.labels['team']",
        "NOTE": "metadata.annotations['example.org/note']",
    }
    env = [{"name": key, "valueFrom": {"fieldRef": {"fieldPath": path}}} for key, path in fields.items()]
    env += [
        {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "limits.cpu", "divisor": "1m"}}},
        {
            "name": "MEMORY",
            "valueFrom": {"resourceFieldRef": {"resource": "requests.memory", "divisor": "1Mi"}},
        },
    ]
    resources = {"requests": {"memory": "64Mi"}, "limits": {"cpu": "250m", "memory": "128Mi"}}
    meta = {"labels": {"team": "blue"}, "annotations": {"example.org/note": "a b"}}
    name = pods.create(python(PRINT_ENV, env=env, resources=resources), meta=meta, restartPolicy="Never")
    seen = _environment(pods, name)
    pod = pods.get(name)
    expected = {
        "NAME": name,
        "NS": pods.namespace,
        "UID": pod["metadata"]["uid"],
        "NODE": pods.node,
        "SA": "default",
        "IP": pod["status"]["podIP"],
        "HOST": pod["status"]["hostIP"],
        "TEAM": "blue",
        "NOTE": "a b",
        "CPU": "250",
        "MEMORY": "64",
        "HOSTNAME": name,
    }
    assert {key: seen.get(key) for key in expected} == expected


def test_variables_come_from_secrets_and_config_maps(pods) -> None:
    pods.apply(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "s"},
            "stringData": {"token": "t-1", "other": "o"},
        },
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"color": "red"}},
    )
    env = [
        {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "s", "key": "token"}}},
        {"name": "COLOR", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "color"}}},
        {"name": "NONE", "valueFrom": {"secretKeyRef": {"name": "absent", "key": "x", "optional": True}}},
        {"name": "NOKEY", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "x", "optional": True}}},
    ]
    source = [
        {"prefix": "S_", "secretRef": {"name": "s"}},
        {"configMapRef": {"name": "absent", "optional": True}},
    ]
    name = pods.create(python(PRINT_ENV, env=env, envFrom=source), restartPolicy="Never")
    seen = _environment(pods, name)
    assert (seen["TOKEN"], seen["COLOR"], seen["S_token"], seen["S_other"]) == ("t-1", "red", "t-1", "o")
    assert not {"NONE", "NOKEY"} & seen.keys()


def test_references_between_variables_are_expanded_also_in_the_command_line(pods) -> None:
    env = [
        {"name": "HOST", "value": "example"},
        {"name": "URL", "value": "http://$(HOST):80/$(UNKNOWN)/$$(HOST)"},
        {"name": "LATER", "value": "$(AFTER)"},
        {"name": "AFTER", "value": "x"},
    ]
    main = {
        "name": "main",
        "command": ["sh", "-c"],
        "args": ["echo '$(URL) $(AFTER) $$(URL)' \"$LATER\""],
        "env": env,
    }
    name = pods.create(main, restartPolicy="Never")
    pods.wait_phase(name, "Succeeded")
    assert pods.logs(name) == "http://example:80/$(UNKNOWN)/$(HOST) x $(URL) $(AFTER)\n"


def test_a_missing_reference_holds_the_container_until_it_appears(pods) -> None:
    env = [{"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "late-env", "key": "k"}}}]
    name = pods.create(sh('echo "$KEY"', env=env), restartPolicy="Never")
    pod = pods.wait(name, lambda pod: waiting_reason(pod) == "CreateContainerConfigError")
    assert 'secret "late-env" not found' in container(pod)["state"]["waiting"]["message"]
    pods.apply(
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "late-env"}, "stringData": {"k": "now"}}
    )
    pods.wait_phase(name, "Succeeded", timeout=180)
    assert pods.logs(name) == "now\n"


def test_a_missing_volume_source_holds_the_pod_until_it_appears(pods) -> None:
    name = pods.create(
        sh("cat /etc/late/file", volumeMounts=[{"name": "late", "mountPath": "/etc/late"}]),
        restartPolicy="Never",
        volumes=[{"name": "late", "configMap": {"name": "late-volume"}}],
    )
    assert 'configmap "late-volume" not found' in pods.wait_event(name, "FailedMount")
    assert pods.get(name)["status"]["phase"] == "Pending"
    pods.apply(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "late-volume"},
            "data": {"file": "here"},
        }
    )
    pods.wait_phase(name, "Succeeded", timeout=180)
    assert pods.logs(name) == "here"


def test_files_of_secrets_config_maps_and_the_downward_api(pods) -> None:
    pods.apply(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "files"},
            "stringData": {"a": "A", "b": "B"},
        },
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "files"},
            "data": {"x": "X", "y": "Y"},
        },
    )
    code = """
import json, os, stat, sys
found = {}
for folder in sys.argv[1:]:
    for name in sorted(os.listdir(folder)):
        path = os.path.join(folder, name)
        if not name.startswith("..") and os.path.isfile(path):
            found[os.path.basename(folder) + "/" + name] = [open(path).read(), oct(stat.S_IMODE(os.stat(path).st_mode))]
print(json.dumps(found))
"""
    mounts = [
        {"name": name, "mountPath": f"/etc/contract/{name}"}
        for name in ("secret", "config", "downward", "projected")
    ]
    volumes = [
        {"name": "secret", "secret": {"secretName": "files", "defaultMode": 0o400}},
        {"name": "config", "configMap": {"name": "files", "items": [{"key": "x", "path": "renamed"}]}},
        {
            "name": "downward",
            "downwardAPI": {"items": [{"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}]},
        },
        {
            "name": "projected",
            "projected": {
                "sources": [
                    {"secret": {"name": "files", "items": [{"key": "a", "path": "from-secret"}]}},
                    {"configMap": {"name": "files", "items": [{"key": "y", "path": "from-config"}]}},
                ]
            },
        },
    ]
    main = {
        "name": "main",
        "command": ["python3", "-c", code],
        "args": [mount["mountPath"] for mount in mounts],
        "volumeMounts": mounts,
    }
    name = pods.create(main, meta={"labels": {"app": "x"}}, restartPolicy="Never", volumes=volumes)
    pods.wait_phase(name, "Succeeded")
    seen = json.loads(pods.logs(name))
    assert seen["secret/a"] == ["A", "0o400"]
    assert seen["secret/b"][0] == "B"
    assert seen["config/renamed"] == ["X", "0o644"]
    assert "config/x" not in seen
    assert 'app="x"' in seen["downward/labels"][0]
    assert (seen["projected/from-secret"][0], seen["projected/from-config"][0]) == ("A", "Y")


def test_containers_of_a_pod_share_an_empty_dir_and_sub_paths_are_parts_of_it(pods) -> None:
    writer = sh(
        "echo hello > /out/file; sleep 600", "writer", volumeMounts=[{"name": "v", "mountPath": "/out"}]
    )
    reader = sh(
        "until cat /in/sub/file 2>/dev/null; do sleep 0.1; done; ls /part",
        volumeMounts=[
            {"name": "v", "mountPath": "/in/sub"},
            {"name": "v", "mountPath": "/part", "subPath": "nested"},
        ],
    )
    name = pods.create(reader, writer, restartPolicy="Never", volumes=[{"name": "v", "emptyDir": {}}])
    pods.wait(name, lambda pod: ended(pod).get("exitCode") == 0)
    assert "hello" in pods.logs(name, "-c", "main")


def test_a_mounted_config_map_follows_its_source(pods) -> None:
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "live"}}
    pods.apply({**body, "data": {"value": "one"}})
    name = pods.create(
        sh(
            "while true; do cat /etc/live/value; echo; sleep 0.2; done",
            volumeMounts=[{"name": "live", "mountPath": "/etc/live"}],
        ),
        volumes=[{"name": "live", "configMap": {"name": "live"}}],
    )
    pods.wait_ready(name)
    pods.apply({**body, "data": {"value": "two"}})
    pods.wait(name, lambda _pod: "two" in pods.logs(name, "--tail=5"), timeout=120)


def test_the_service_account_token_names_pod_and_node(pods) -> None:
    script = "cat /var/run/secrets/kubernetes.io/serviceaccount/token; echo; cat /var/run/secrets/kubernetes.io/serviceaccount/namespace"
    name = pods.create(sh(script), restartPolicy="Never")
    pods.wait_phase(name, "Succeeded")
    token, namespace = pods.logs(name).splitlines()
    payload = token.split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))["kubernetes.io"]
    pod = pods.get(name)
    assert namespace == pods.namespace
    assert claims["pod"] == {"name": name, "uid": pod["metadata"]["uid"]}
    assert claims["node"]["name"] == pods.node
    assert claims["serviceaccount"]["name"] == "default"


def test_a_pod_may_do_without_a_token(pods) -> None:
    script = 'test -e /var/run/secrets/kubernetes.io/serviceaccount/token && echo token; echo "${KUBECONFIG:-none}"'
    name = pods.create(sh(script), restartPolicy="Never", automountServiceAccountToken=False)
    pods.wait_phase(name, "Succeeded")
    assert pods.logs(name) == "none\n"


def test_services_that_exist_are_named_in_the_environment(pods) -> None:
    pods.apply(
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "my-db"},
            "spec": {"selector": {"app": "db"}, "ports": [{"name": "sql", "port": 5432}]},
        }
    )
    address = json.loads(pods.kubectl("get", "service", "my-db", "-o", "json"))["spec"]["clusterIP"]
    first = pods.create(python(PRINT_ENV), restartPolicy="Never")
    seen = _environment(pods, first)
    assert (seen["MY_DB_SERVICE_HOST"], seen["MY_DB_SERVICE_PORT"]) == (address, "5432")
    assert seen["MY_DB_SERVICE_PORT_SQL"] == "5432"
    assert seen["MY_DB_PORT_5432_TCP"] == f"tcp://{address}:5432"
    assert seen["KUBERNETES_SERVICE_HOST"]
    second = pods.create(python(PRINT_ENV), restartPolicy="Never", enableServiceLinks=False)
    assert "MY_DB_SERVICE_HOST" not in _environment(pods, second)


def test_the_working_directory_and_relative_commands(pods) -> None:
    name = pods.create(
        sh(
            "pwd -P > /dev/null; echo x > file; cat /data/file",
            workingDir="/data",
            volumeMounts=[{"name": "w", "mountPath": "/data"}],
        ),
        restartPolicy="Never",
        volumes=[{"name": "w", "emptyDir": {}}],
    )
    pods.wait_phase(name, "Succeeded")
    assert pods.logs(name) == "x\n"
