"""Everything the chart renders, for every set of values: safe by default, and loaded by the processes it is for."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml

from llmos_operator.api import names
from llmos_operator.settings import AgentSettings, GatewaySettings, OperatorSettings, load
from tests.support.chart import CHART, NAMESPACE, VALUES_FILES, HelmError, find, helm, pod_specs, render

pytestmark = pytest.mark.component

with_all_values = pytest.mark.parametrize("values_file", VALUES_FILES, ids=lambda name: name or "defaults")
KEPT = {"everything-values.yaml": ["/mnt/fast/models"], "local-values.yaml": ["/var/cache/llmos-models"]}
SETTINGS = {"operator": OperatorSettings, "agent": AgentSettings, "gateway": GatewaySettings}


def containers(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [*spec.get("initContainers", []), *spec["containers"]]


@with_all_values
def test_helm_lints_without_a_warning(values_file: str):
    files = ["-f", str(CHART / "ci" / values_file)] if values_file else []
    output = helm("lint", "--strict", str(CHART), *files)
    assert "0 chart(s) failed" in output
    assert "WARNING" not in output


@with_all_values
def test_containers_are_restricted(values_file: str):
    for name, spec in pod_specs(render(values_file)):
        pod = spec["securityContext"]
        assert pod["runAsNonRoot"] is True, name
        assert pod["runAsUser"] >= 1000, name
        assert pod["seccompProfile"] == {"type": "RuntimeDefault"}, name
        for forbidden in ("hostNetwork", "hostIPC"):
            assert not spec.get(forbidden), name
        assert spec.get("hostPID", False) == (
            values_file == "everything-values.yaml" and name.startswith("DaemonSet")
        ), name
        agent = name.startswith("DaemonSet")
        asks_kubelet = values_file == "everything-values.yaml" and agent
        # Only agents reach into the node: for the kubelet's socket, and where nodes keep models.
        paths = [volume["hostPath"]["path"] for volume in spec.get("volumes", []) if "hostPath" in volume]
        asked = ["/var/lib/kubelet/pod-resources"] if asks_kubelet else []
        assert paths == (asked + KEPT.get(values_file, []) if agent else []), name
        for container in containers(spec):
            security = container["securityContext"]
            assert security["allowPrivilegeEscalation"] is False
            assert security["readOnlyRootFilesystem"] is True
            # The one that gives the models' folder to the agent's user may do that and nothing else.
            extra = {"add": ["CHOWN"]} if container["name"] == "own-models" else {}
            assert security["capabilities"] == {"drop": ["ALL"], **extra}
            assert not security.get("privileged")
            assert (security.get("runAsUser") == 0) == (asks_kubelet or container["name"] == "own-models"), (
                name
            )
            for mount in container.get("volumeMounts", []):
                assert mount["name"] != "pod-resources" or mount["readOnly"] is True


@with_all_values
def test_containers_have_probes_limits_and_a_fixed_image(values_file: str):
    for name, spec in pod_specs(render(values_file)):
        for container in containers(spec):
            assert "memory" in container["resources"]["limits"], name
            assert {"cpu", "memory"} <= container["resources"]["requests"].keys(), name
            assert re.search(r"(:[^:/]+|@sha256:[0-9a-f]{64})$", container["image"]), container["image"]
            assert not container["image"].endswith(":latest")
            if name.startswith("Pod/") or container["name"] == "own-models":
                continue  # ends by itself
            assert {"startupProbe", "livenessProbe", "readinessProbe"} <= container.keys(), name
            named = {port["name"] for port in container["ports"]}
            assert container["livenessProbe"]["httpGet"]["port"] in named
        assert spec["terminationGracePeriodSeconds" if not name.startswith("Pod/") else "restartPolicy"]


@with_all_values
def test_roles_have_no_wildcard_and_never_read_secrets(values_file: str):
    for obj in render(values_file):
        if obj["kind"] not in {"Role", "ClusterRole"}:
            continue
        for rule in obj["rules"]:
            assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]], obj["metadata"][
                "name"
            ]
            if "secrets" in rule["resources"]:
                # Agents read the credentials of kept models: those an administrator lists, by name.
                named = rule["verbs"] == ["get"] and all(rule.get("resourceNames") or [""])
                assert named or rule["verbs"] == ["create"]
            assert not {"escalate", "bind", "impersonate"} & set(rule["verbs"])
            assert "pods/exec" not in rule["resources"]
            # Specs belong to users: no process of ours writes them. Workloads that have finished the operator deletes where
            # they say so, and an admission policy holds it to that.
            if {"modelworkloads", "workloadqueues", "modelcaches"} & set(
                rule["resources"]
            ) and "users" not in obj["metadata"]["labels"]["app.kubernetes.io/component"]:
                ends = {"delete"} if rule["resources"] == ["modelworkloads"] else set()
                assert set(rule["verbs"]) <= {"get", "list", "watch"} | ends


@with_all_values
def test_every_object_is_labelled_named_and_in_the_releases_namespace(values_file: str):
    seen = set()
    cluster_scoped = {
        "CustomResourceDefinition",
        "ClusterRole",
        "ClusterRoleBinding",
        "PriorityClass",
        "WorkloadQueue",
    }
    for obj in render(values_file):
        meta = obj["metadata"]
        key = (obj["kind"], meta.get("namespace"), meta["name"])
        assert key not in seen, "rendered twice"
        seen.add(key)
        assert len(meta["name"]) <= 63
        if meta["name"].endswith(("-extra", "-text")):
            continue  # the user's own
        assert {
            "app.kubernetes.io/name",
            "app.kubernetes.io/instance",
            "app.kubernetes.io/version",
            "app.kubernetes.io/component",
            "app.kubernetes.io/part-of",
            "app.kubernetes.io/managed-by",
            "helm.sh/chart",
        } <= meta["labels"].keys(), key
        if obj["kind"] not in cluster_scoped and not obj["kind"].startswith("ValidatingAdmissionPolicy"):
            assert meta["namespace"] == ("monitoring" if "-dashboard-" in meta["name"] else NAMESPACE), key


@with_all_values
def test_selectors_find_their_pods_and_do_not_change_with_the_version(values_file: str):
    objects = render(values_file)
    pods = [
        obj["spec"]["template"]["metadata"]["labels"]
        for obj in objects
        if obj["kind"] in {"Deployment", "DaemonSet"}
    ]
    for obj in objects:
        if obj["kind"] in {"Deployment", "DaemonSet", "PodDisruptionBudget"}:
            selector = obj["spec"]["selector"]["matchLabels"]
        elif obj["kind"] == "Service":
            selector = {k: v for k, v in obj["spec"]["selector"].items() if k != "llmos.dev/leader"}
        elif obj["kind"] == "NetworkPolicy":
            selector = obj["spec"]["podSelector"]["matchLabels"]
        else:
            continue
        assert set(selector) == {
            "app.kubernetes.io/name",
            "app.kubernetes.io/instance",
            "app.kubernetes.io/component",
        }
        assert len([labels for labels in pods if selector.items() <= labels.items()]) == 1, obj["metadata"][
            "name"
        ]


@with_all_values
def test_the_processes_load_the_settings_that_are_rendered(values_file: str, tmp_path):
    objects = render(values_file)
    for obj in objects:
        component = obj["metadata"].get("labels", {}).get("app.kubernetes.io/component")
        if obj["kind"] != "ConfigMap" or component not in SETTINGS:
            continue
        path = tmp_path / f"{component}.yaml"
        path.write_text(obj["data"]["config.yaml"])
        settings = load(SETTINGS[component], str(path), {})
        assert settings.log.level in {"info", "debug"}
        if component == "operator":
            service_accounts = {o["metadata"]["name"] for o in objects if o["kind"] == "ServiceAccount"}
            if values_file != "everything-values.yaml":  # there the agent's account is somebody else's
                assert {settings.agent_account, settings.gateway_account} <= service_accounts | {
                    "default",
                    "llmos-agent",
                }
            assert settings.runtime.image.rpartition("/")[2].startswith("llmos-runtime:")


def test_values_reach_the_settings(tmp_path):
    path = tmp_path / "operator.yaml"
    values = {
        "operator": {
            "config": {
                "runtime": {"cacheHostPath": "/var/cache/llmos", "env": {"A": "b"}},
                "scheduling": {"writes": 8},
            }
        },
        "image": {"registry": "r.example.com/x/", "tag": "9"},
    }
    path.write_text(find(render(values=values), "ConfigMap", "llmos-operator")["data"]["config.yaml"])
    settings = load(OperatorSettings, str(path), {})
    assert settings.runtime.cache_host_path == "/var/cache/llmos"
    assert settings.runtime.env == {"A": "b"}
    assert settings.runtime.image == "r.example.com/x/llmos-runtime:9"
    assert settings.scheduling.writes == 8


def test_holder_pods_are_of_the_operators_image_and_go_with_its_deployment(tmp_path):
    path = tmp_path / "operator.yaml"
    values = {
        "agent": {"podResources": True},
        "image": {
            "registry": "r.example.com/x",
            "tag": "9",
            "pullPolicy": "Always",
            "pullSecrets": [{"name": "key"}],
        },
        "operator": {"config": {"holders": {"rest": 5}}},
    }
    objects = render(values=values)
    path.write_text(find(objects, "ConfigMap", "llmos-operator")["data"]["config.yaml"])
    holders = load(OperatorSettings, str(path), {}).holders
    deployment = find(objects, "Deployment", "llmos-operator")
    assert holders.image == deployment["spec"]["template"]["spec"]["containers"][0]["image"]
    assert holders.owner == deployment["metadata"]["name"]
    assert (holders.image_pull_policy, holders.pull_secrets, holders.rest) == ("Always", ("key",), 5)
    asked = {
        "apiGroups": ["apps"],
        "resources": ["deployments"],
        "resourceNames": [holders.owner],
        "verbs": ["get"],
    }
    assert asked in find(objects, "Role", "llmos-operator")["rules"]
    assert asked not in find(render(), "Role", "llmos-operator")["rules"], "nobody makes any there"


@pytest.mark.parametrize(
    ("endpoint", "port"),
    [
        ("http://collector.monitoring.svc:4318", 4318),
        ("https://otlp.example.com/prefix", 443),
        ("http://collector", 80),
    ],
)
def test_a_receiver_of_spans_reaches_operator_and_gateway_with_a_way_to_it(
    endpoint: str, port: int, tmp_path
):
    values = {
        "tracing": {"endpoint": endpoint, "sampleRatio": 0.25},
        "networkPolicy": {"enabled": True, "apiServerPorts": [6443]},
    }
    objects, silent = render(values=values), render(values={"networkPolicy": values["networkPolicy"]})
    for component, kind in (("operator", OperatorSettings), ("gateway", GatewaySettings)):
        path = tmp_path / f"{component}.yaml"
        path.write_text(find(objects, "ConfigMap", f"llmos-{component}")["data"]["config.yaml"])
        tracing = load(kind, str(path), {}).tracing
        assert (tracing.endpoint, tracing.sample_ratio) == (endpoint, 0.25)
        way = {"ports": [{"port": port}]}
        with_receiver = find(objects, "NetworkPolicy", f"llmos-{component}")["spec"]["egress"]
        without = find(silent, "NetworkPolicy", f"llmos-{component}")["spec"]["egress"]
        assert with_receiver.count(way) == without.count(way) + 1
        assert len(with_receiver) == len(without) + 1
    agent = find(objects, "ConfigMap", "llmos-agent")["data"]["config.yaml"]
    assert "tracing" not in agent


def test_large_numbers_stay_whole_numbers(tmp_path):
    path = tmp_path / "gateway.yaml"
    path.write_text(
        find(render("everything-values.yaml"), "ConfigMap", "models-gateway")["data"]["config.yaml"]
    )
    assert load(GatewaySettings, str(path), {}).max_body == 16_777_216


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"operators": {}}, ["additional properties 'operators' not allowed"]),
        ({"operator": {"replicas": 0}}, ["/operator/replicas", "minimum"]),
        (
            {"operator": {"config": {"scheduling": {"write": 3}}}},
            ["/operator/config/scheduling", "'write' not allowed"],
        ),
        (
            {"operator": {"config": {"runtime": {"runAsUser": 0}}}},
            ["/operator/config/runtime/runAsUser", "minimum"],
        ),
        ({"tracing": {"endpoint": "collector:4318"}}, ["/tracing/endpoint", "does not match pattern"]),
        ({"tracing": {"sampleRatio": 2}}, ["/tracing/sampleRatio", "maximum"]),
        ({"agent": {"config": {"mode": "magic"}}}, ["/agent/config/mode", "'auto'"]),
        ({"gateway": {"service": {"type": "Loadbalancer"}}}, ["/gateway/service/type", "'LoadBalancer'"]),
        ({"image": {"pullSecrets": ["registry"]}}, ["/image/pullSecrets/0", "want object"]),
        ({"operator": {"imageDigest": "sha256:abc"}}, ["/operator/imageDigest", "does not match pattern"]),
        ({"commonLabels": {"a": 1}}, ["/commonLabels/a", "want string"]),
    ],
    ids=lambda value: json.dumps(value)[:60],
)
def test_a_bad_value_is_refused_by_name(values: dict[str, Any], words: list[str]):
    with pytest.raises(HelmError) as refused:
        render(values=values)
    for word in words:
        assert word in str(refused.value)


def test_a_changed_setting_restarts_the_pods():
    def checksum(objects: list[dict[str, Any]], name: str) -> str:
        return find(objects, "Deployment", name)["spec"]["template"]["metadata"]["annotations"][
            "checksum/config"
        ]

    before, after = render(), render(values={"operator": {"config": {"scheduling": {"writes": 3}}}})
    assert checksum(before, "llmos-operator") != checksum(after, "llmos-operator")
    assert checksum(before, "llmos-gateway") == checksum(after, "llmos-gateway")


def test_the_local_cluster_gets_its_own_addresses():
    objects = render("local-values.yaml")
    for kind, name in (
        ("Deployment", "llmos-operator"),
        ("DaemonSet", "llmos-agent"),
        ("Deployment", "llmos-gateway"),
    ):
        spec = find(objects, kind, name)["spec"]["template"]["spec"]
        env = {entry["name"]: entry.get("value") for entry in spec["containers"][0]["env"]}
        order = [entry["name"] for entry in spec["containers"][0]["env"]]
        assert env["LLMOS_HOST"] == "$(POD_IP)"
        assert order.index("POD_IP") < order.index("LLMOS_HOST")
        assert spec["enableServiceLinks"] is True
        if name != "llmos-operator":
            assert (
                env["LLMOS_OPERATOR_URL"]
                == "http://$(LLMOS_OPERATOR_SERVICE_HOST):$(LLMOS_OPERATOR_SERVICE_PORT_INGEST)"
            )
    agent = find(objects, "DaemonSet", "llmos-agent")["spec"]["template"]["spec"]
    assert agent["nodeSelector"] == {"llmos.dev/simulated": "true"}


def test_crds_are_kept_unless_told_otherwise():
    policy = "helm.sh/resource-policy"
    for keep in (True, False):
        for obj in render(values={"crds": {"keep": keep}}):
            if obj["kind"] == "CustomResourceDefinition":
                assert obj["metadata"].get("annotations", {}).get(policy) == ("keep" if keep else None)
    assert not [
        obj
        for obj in render(values={"crds": {"enabled": False}})
        if obj["kind"] == "CustomResourceDefinition"
    ]


def test_names_follow_the_release_and_fit():
    assert find(render(release="llmos-operator"), "Deployment", "llmos-operator")
    assert find(render(release="team-a"), "Deployment", "team-a-llmos-operator")
    long = render(release="a" * 53)
    assert max(len(obj["metadata"]["name"]) for obj in long) <= 63


def test_notes_warn_of_risky_values():
    values = {
        "crds": {"keep": False},
        "agent": {"hostPID": True, "podResources": True},
        "gateway": {"service": {"type": "LoadBalancer"}},
        "operator": {"config": {"sources": {"allowFile": True}}},
        "admission": {"enabled": False},
    }
    command = ("install", "llmos", str(CHART), "-n", NAMESPACE, "--dry-run=client", "--hide-secret")
    notes = helm(*command, "-f", "-", stdin=json.dumps(values)).partition("NOTES:")[2]
    assert notes.count("WARNING:") == 6
    quiet = helm(*command).partition("NOTES:")[2]
    assert "WARNING:" not in quiet
    assert "kubectl apply -f -" in quiet


def test_monitors_find_ports_that_exist():
    objects = render("everything-values.yaml")
    monitor = find(objects, "ServiceMonitor", "models")["spec"]
    services = [
        obj
        for obj in objects
        if obj["kind"] == "Service"
        and monitor["selector"]["matchLabels"].items() <= obj["metadata"]["labels"].items()
    ]
    assert {obj["metadata"]["name"] for obj in services} == {f"models-{name}-metrics" for name in SETTINGS}
    for obj in services:
        assert obj["spec"]["publishNotReadyAddresses"] is True  # a sick process is measured too
        assert [port["name"] for port in obj["spec"]["ports"]] == [
            endpoint["port"] for endpoint in monitor["endpoints"]
        ]
    runtimes = find(objects, "PodMonitor", "models-runtimes")["spec"]
    assert runtimes["selector"]["matchLabels"] == {names.LABEL_ROLE: "runtime"}
    assert (
        names.LABEL_WORKLOAD.replace(".", "_").replace("/", "_")
        in runtimes["podMetricsEndpoints"][0]["relabelings"][0]["sourceLabels"][0]
    )


def test_rules_and_dashboards_are_rendered_as_they_are_in_the_chart():
    objects = render("everything-values.yaml")
    rules = [
        rule
        for group in find(objects, "PrometheusRule", "models")["spec"]["groups"]
        for rule in group["rules"]
    ]
    source = [
        rule
        for group in yaml.safe_load((CHART / "rules.yaml").read_text())["groups"]
        for rule in group["rules"]
    ]
    assert [(rule.get("record"), rule.get("alert"), rule["expr"]) for rule in rules] == [
        (rule.get("record"), rule.get("alert"), rule["expr"]) for rule in source
    ]
    for rule in rules:
        if "record" in rule:
            continue
        assert (
            rule["annotations"]["runbook_url"]
            == f"https://runbooks.example.com/alerts.md#{rule['alert'].lower()}"
        )
    for path in (CHART / "dashboards").glob("*.json"):
        config = find(objects, "ConfigMap", f"models-dashboard-{path.stem}")
        assert json.loads(config["data"][path.name]) == json.loads(path.read_text())
        assert config["metadata"]["labels"]["grafana_dashboard"] == "yes"
        assert config["metadata"]["annotations"] == {"grafana_folder": "LLMOS"}


def test_the_leader_alone_gets_telemetry_and_all_are_measured():
    objects = render()
    assert find(objects, "Service", "llmos-operator")["spec"]["selector"][names.LABEL_LEADER] == "true"
    assert names.LABEL_LEADER not in find(objects, "Service", "llmos-operator-metrics")["spec"]["selector"]
