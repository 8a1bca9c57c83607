"""Environment variables of containers, and paths in them."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos_operator.local.kubelet.environment import (
    ConfigProblem,
    build_environment,
    expand,
    resource_value,
    service_variables,
)
from llmos_operator.local.kubelet.mounts import MountMap


@dataclass
class Facts:
    pod: dict = field(
        default_factory=lambda: {
            "metadata": {"name": "p", "namespace": "n", "uid": "u", "labels": {"b": "2", "a": 'q"\n'}},
            "spec": {"nodeName": "node"},
        }
    )
    pod_ip: str = "127.8.0.1"
    host_ip: str = "127.7.0.1"
    allocatable: dict = field(default_factory=lambda: {"cpu": "4", "memory": "8Gi"})


def _build(
    container: dict, data: dict | None = None, services: dict | None = None, rewrite=lambda text: text
) -> dict:
    found = data or {}
    return build_environment(
        container, Facts(), lambda kind, name: found.get((kind, name)), services or {}, rewrite
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("$(A)", "1"),
        ("x$(A)y$(B)", "x1y2"),
        ("$(C)", "$(C)"),
        ("$$(A)", "$(A)"),
        ("$$$(A)", "$1"),
        ("$A $", "$A $"),
        ("$(A", "$(A"),
        ("$()", "$()"),
        ("$$", "$"),
    ],
)
def test_references_are_expanded_as_kubernetes_does(text, expected) -> None:
    assert expand(text, {"A": "1", "B": "2"}) == expected


@given(st.text())
def test_text_without_a_dollar_is_left_alone(text) -> None:
    clean = text.replace("$", "")
    assert expand(clean, {"A": "1"}) == clean


def test_later_variables_win_and_see_earlier_ones_and_services() -> None:
    container = {"env": [{"name": "A", "value": "$(WEB_SERVICE_HOST)"}, {"name": "A", "value": "$(A)!"}]}
    assert _build(container, services={"WEB_SERVICE_HOST": "127.9.0.9"})["A"] == "127.9.0.9!"


def test_labels_are_quoted_and_sorted() -> None:
    container = {"env": [{"name": "L", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels"}}}]}
    assert _build(container)["L"] == 'a="q\\"\\n"\nb="2"'


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ({"secretKeyRef": {"name": "s", "key": "k"}}, 'secret "s" not found'),
        ({"configMapKeyRef": {"name": "c", "key": "k"}}, "couldn't find key k in ConfigMap c"),
        ({"fieldRef": {"fieldPath": "status.phase"}}, "unsupported fieldPath"),
        ({"fileKeyRef": {"path": "x"}}, "fileKeyRef"),
    ],
)
def test_what_cannot_be_found_is_named(source, words) -> None:
    with pytest.raises(ConfigProblem, match=words):
        _build({"env": [{"name": "X", "valueFrom": source}]}, {("ConfigMap", "c"): {"other": b""}})


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ({"resource": "limits.cpu"}, "1"),
        ({"resource": "limits.cpu", "divisor": "1m"}, "600"),
        ({"resource": "requests.cpu", "divisor": "1m"}, "0"),
        ({"resource": "limits.memory", "divisor": "1Mi"}, "8192"),
        ({"resource": "requests.memory", "divisor": "1Gi"}, "1"),
        ({"resource": "requests.memory", "divisor": "0"}, "104857600"),
    ],
)
def test_resources_are_rounded_up_and_fall_back_to_the_node(reference, expected) -> None:
    container = {"resources": {"limits": {"cpu": "600m"}, "requests": {"memory": "100Mi"}}}
    assert resource_value(reference, container, Facts()) == expected


def test_headless_services_have_no_variables() -> None:
    service = {"metadata": {"name": "x"}, "spec": {"clusterIP": "None", "ports": [{"port": 1}]}}
    assert service_variables([service], lambda _address, port: port) == {}


def test_variables_name_the_port_a_service_really_has() -> None:
    service = {
        "metadata": {"name": "my-web"},
        "spec": {"clusterIP": "127.9.0.9", "ports": [{"port": 80, "name": "h"}]},
    }
    found = service_variables([service], lambda _address, port: port + 8000)
    assert found["MY_WEB_SERVICE_PORT"] == found["MY_WEB_SERVICE_PORT_H"] == "8080"
    assert found["MY_WEB_PORT_80_TCP"] == "tcp://127.9.0.9:8080"


MAP = MountMap(
    {"/data": Path("/real/one"), "/data/models": Path("/real/two"), "/etc/app/": Path("/real/three")}
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/data", "/real/one"),
        ("/data/", "/real/one/"),
        ("/data/x", "/real/one/x"),
        ("/data/models/m", "/real/two/m"),
        ("--config=/etc/app/c.yaml", "--config=/real/three/c.yaml"),
        ("a:/data:b", "a:/real/one:b"),
        ("file:///data/m", "file:///real/one/m"),
        ("cat /data/a /data/b", "cat /real/one/a /real/one/b"),
        ('["/data/x"]', '["/real/one/x"]'),
        ("/database", "/database"),
        ("/data-2", "/data-2"),
        ("/data.json", "/data.json"),
        ("/srv/data", "/srv/data"),
        ("https://host/data", "https://host/data"),
        ("", ""),
    ],
)
def test_mount_paths_are_rewritten_at_their_borders_only(text, expected) -> None:
    assert MAP.rewrite(text) == expected


def test_a_mount_of_the_whole_file_system_is_refused() -> None:
    with pytest.raises(ValueError, match="mountPath /"):
        MountMap({"/": Path("/x")})


@given(st.text(alphabet="/abdt.-: =", max_size=40))
def test_without_mounts_nothing_changes(text) -> None:
    assert MountMap({}).rewrite(text) == text
