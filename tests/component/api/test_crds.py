"""The CRDs on a real API server: columns, scale, explain, shared ownership of status."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from llmos_operator.api import crd
from tests.support.crds import await_established, install_crds
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from llmos_operator.local.controlplane import ControlPlane

pytestmark = pytest.mark.component

MINIMAL = {
    "apiVersion": "llmos.dev/v1alpha1",
    "kind": "ModelWorkload",
    "metadata": {"name": "chat"},
    "spec": {"model": {"uri": "hf://a/b"}},
}


@pytest.fixture(scope="module")
def plane(api_server: ControlPlane) -> ControlPlane:
    install_crds(api_server)
    return api_server


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("mw.spec.quantization.mode", ["Auto", "Fixed", "ENUM: Auto None Fixed", "best allowed format"]),
        ("mw.spec.resources.memory", ["Memory to reserve on each device"]),
        ("mw.spec.podTemplate.spec.hostNetwork", ["Not allowed"]),
        ("mw.status.conditions.reason", ["CamelCase"]),
        ("wq.spec.preemption.reclaim", ["lent", "LowerPriority"]),
        ("gn.status.devices.health.verdict", ["Unhealthy"]),
        ("mc.spec.nodeSelector", ["Labels of the nodes"]),
        ("mp.status.formats.klMicro", ["KL divergence"]),
    ],
)
def test_explain_is_documentation(plane: ControlPlane, path: str, words: list[str]):
    text = " ".join(plane.kubectl("explain", path).split())
    for word in words:
        assert word in text


def test_columns_show_what_the_status_says(plane: ControlPlane, namespace: str):
    plane.kubectl("create", "-n", namespace, "-f", "-", stdin=json.dumps(MINIMAL))
    status = {
        "phase": "Running",
        "replicas": 2,
        "readyReplicas": 2,
        "url": "http://chat.team.svc",
        "summary": {
            "ready": "2/2",
            "priority": "100",
            "queue": "default",
            "nodes": "n1,n2",
            "devices": "A100 x2",
            "memory": "10Gi",
        },
        "model": {"quantization": "int8"},
        "conditions": [
            {
                "type": "Ready",
                "status": "True",
                "reason": "Ready",
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }
        ],
    }
    plane.kubectl(
        "patch",
        "mw",
        "chat",
        "-n",
        namespace,
        "--subresource=status",
        "--type=merge",
        "-p",
        json.dumps({"status": status}),
    )
    narrow = plane.kubectl("get", "llmos", "-n", namespace)
    headings = [line.split() for line in narrow.splitlines()]  # of every kind there is an object of
    assert ["NAME", "TYPE", "MODEL", "QUANT", "READY", "PHASE", "REASON", "AGE"] in headings
    assert "hf://a/b   int8    2/2     Running   Ready" in narrow
    wide = plane.kubectl("get", "modelworkload", "chat", "-n", namespace, "-o", "wide")
    for cell in (
        "PRIORITY",
        "QUEUE",
        "NODE",
        "GPU",
        "MEMORY",
        "URL",
        "100",
        "n1,n2",
        "A100 x2",
        "10Gi",
        "http://chat.team.svc",
    ):
        assert cell in wide


def test_replicas_scale_and_bounds_hold_there_too(plane: ControlPlane, namespace: str):
    body = MINIMAL | {"spec": {"model": {"uri": "hf://a/b"}, "replicas": 1}}
    plane.kubectl("create", "-n", namespace, "-f", "-", stdin=json.dumps(body))
    plane.kubectl("scale", "mw/chat", "-n", namespace, "--replicas=3")
    scale = json.loads(
        plane.request(f"/apis/llmos.dev/v1alpha1/namespaces/{namespace}/modelworkloads/chat/scale")
    )
    assert scale["spec"]["replicas"] == 3
    with pytest.raises(Exception, match="less than or equal to 1000") as refused:
        plane.kubectl("scale", "mw/chat", "-n", namespace, "--replicas=2000")
    assert "spec.replicas" in refused.value.stderr


def test_agent_and_operator_share_a_gpunode_without_losing_fields(plane: ControlPlane):
    base = {"apiVersion": "llmos.dev/v1alpha1", "kind": "GPUNode", "metadata": {"name": "shared-node"}}
    device = {
        "uuid": "GPU-1",
        "index": 0,
        "product": "A100",
        "memory": "80Gi",
        "health": {"verdict": "Healthy"},
    }
    agent = base | {"status": {"mode": "nvml", "devices": [device]}}
    operator = base | {
        "status": {"ledger": {"devices": [{"uuid": "GPU-1", "reserved": "10Gi", "claims": 1}]}}
    }
    plane.kubectl("apply", "--server-side", "--field-manager=llmos-agent", "-f", "-", stdin=json.dumps(base))
    for manager, body in (
        ("llmos-agent", agent),
        ("llmos-operator-status", operator),
        ("llmos-agent", agent),
    ):
        plane.kubectl(
            *("apply", "--server-side", "--subresource=status", f"--field-manager={manager}", "-f", "-"),
            stdin=json.dumps(body),
        )
    status = json.loads(plane.kubectl("get", "gn", "shared-node", "-o", "json"))["status"]
    assert status["devices"] == [device]  # nothing was added or pruned
    assert status["ledger"] == operator["status"]["ledger"]
    plane.kubectl("delete", "gn", "shared-node")


def test_no_rule_costs_more_than_the_api_server_allows_and_none_warns(plane: ControlPlane):
    for item in json.loads(plane.kubectl("get", "crd", "-o", "json"))["items"]:
        if item["spec"]["group"] == "llmos.dev":
            conditions = {entry["type"]: entry["status"] for entry in item["status"]["conditions"]}
            assert conditions["Established"] == "True"
            assert conditions.get("NonStructuralSchema", "False") == "False"


def _sample(schema: dict[str, Any], *, high: bool) -> Any:  # noqa: PLR0911 - one return a type
    """Return a value the schema allows: the largest or the smallest number, one item a list."""
    if "enum" in schema:
        return schema["enum"][-1]
    if schema.get("x-kubernetes-int-or-string"):
        return "1Gi"
    match schema["type"]:
        case "integer":
            return schema["maximum"] if high else schema["minimum"]
        case "boolean":
            return True
        case "string":
            return "2026-01-01T00:00:00Z" if schema.get("format") == "date-time" else "x"
        case "array":
            return [_sample(schema["items"], high=high)]
        case _:
            return {name: _sample(inner, high=high) for name, inner in schema.get("properties", {}).items()}


@pytest.mark.parametrize("high", [True, False], ids=["largest", "smallest"])
@pytest.mark.parametrize("kind", crd.KINDS, ids=lambda kind: kind.plural)
def test_every_status_field_can_be_written_at_its_bounds_and_is_kept(
    plane: ControlPlane, namespace: str, kind: crd.Kind, high: bool
):
    schema = crd.definition(kind)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
    status = _sample(schema["status"], high=high)
    body = {
        "apiVersion": "llmos.dev/v1alpha1",
        "kind": kind.model.__name__,
        "metadata": {"name": f"full-{str(high).lower()}"},
    }
    uri = {"uri": "hf://a/b"}
    spec = {
        "modelworkloads": {"model": uri},
        "workloadqueues": {},
        "modelcaches": uri,
        "modelprofiles": uri,
    }.get(kind.plural)
    created = body if spec is None else body | {"spec": spec}
    apply = ("apply", "--server-side", "--validate=strict", "-n", namespace, "-o", "json", "-f", "-")
    plane.kubectl(*apply, stdin=json.dumps(created))
    stored = json.loads(
        plane.kubectl(*apply, "--subresource=status", stdin=json.dumps(body | {"status": status}))
    )
    assert stored["status"] == status
    plane.kubectl("delete", kind.plural, body["metadata"]["name"], "-n", namespace)


def _condition(kind: str, status: str) -> dict[str, Any]:
    since = "2026-01-01T00:00:00Z"
    return {"type": kind, "status": status, "reason": "Because", "message": "x", "lastTransitionTime": since}


def test_an_object_from_before_lists_of_a_status_were_atomic_is_written_on(
    plane: ControlPlane, namespace: str
):
    group = "former.llmos.test"
    (kind,) = (kind for kind in crd.KINDS if kind.plural == "modelworkloads")
    definition = crd.definition(kind)
    definition["metadata"] = {"name": f"modelworkloads.{group}"}
    definition["spec"] |= {"group": group, "names": {"kind": "Former", "plural": "modelworkloads"}}
    body = MINIMAL | {"apiVersion": f"{group}/v1alpha1", "kind": "Former"}

    def install(how: dict[str, Any]) -> None:
        status = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]
        conditions = status["properties"]["conditions"]
        for key in [key for key in conditions if key.startswith("x-kubernetes-list")]:
            del conditions[key]
        conditions |= how
        plane.kubectl("apply", "--server-side", "-f", "-", stdin=json.dumps(definition))
        await_established(plane, "crd", definition["metadata"]["name"])

    def write(manager: str, *conditions: dict[str, Any]) -> dict[str, Any]:
        flags = ("--server-side", "--force-conflicts", "--subresource=status", f"--field-manager={manager}")
        wanted = json.dumps(body | {"status": {"conditions": conditions}})
        made = plane.kubectl(
            "apply", *flags, "-n", namespace, "--show-managed-fields", "-o", "json", "-f", "-", stdin=wanted
        )
        return dict(json.loads(made))

    install({"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]})
    eventually(
        lambda: plane.kubectl("create", "-n", namespace, "-f", "-", stdin=json.dumps(body), check=False)
    )
    write("somebody", _condition("Extra", "True"))
    former = write("operator", _condition("Accepted", "True"), _condition("Ready", "False"))
    assert [one["type"] for one in former["status"]["conditions"]] == ["Extra", "Accepted", "Ready"]
    install({"x-kubernetes-list-type": "atomic"})

    def atomic() -> bool:
        written = write("operator", _condition("Ready", "True"))
        owned = [one["fieldsV1"].get("f:status", {}) for one in written["metadata"]["managedFields"]]
        return {"f:conditions": {}} in owned and written["status"]["conditions"] == [
            _condition("Ready", "True")
        ]

    eventually(atomic, "the list is owned as a whole")
    plane.kubectl("delete", "crd", definition["metadata"]["name"], "--wait=false")
