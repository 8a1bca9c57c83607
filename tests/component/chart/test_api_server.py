"""The chart on a real API server: every object is accepted, roles and admission policies hold for real tokens."""

from __future__ import annotations

import itertools
import json
import subprocess
import tempfile
import time
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from llmos_operator.api import names
from llmos_operator.manifests.deviceclaim import FINALIZER, allocation, user
from llmos_operator.state.slices import Handle
from tests.support.chart import NAMESPACE, VALUES_FILES, find, render
from tests.support.crds import install_crds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from llmos_operator.local.controlplane import ControlPlane

pytestmark = pytest.mark.component

# Kinds of the Prometheus operator are not part of Kubernetes; test_monitoring checks them.
FOREIGN = {"ServiceMonitor", "PodMonitor", "PrometheusRule"}


@pytest.fixture(scope="module")
def plane(api_server: ControlPlane) -> ControlPlane:
    install_crds(api_server)
    for name in (NAMESPACE, "monitoring"):
        api_server.kubectl("create", "namespace", name, check=False)
    return api_server


def apply(plane: ControlPlane, objects: list[dict[str, Any]], *options: str) -> str:
    return plane.kubectl("apply", "--server-side", *options, "-f", "-", stdin=yaml.safe_dump_all(objects))


@pytest.mark.parametrize("values_file", VALUES_FILES, ids=lambda name: name or "defaults")
def test_the_api_server_accepts_every_object(plane: ControlPlane, values_file: str):
    objects = [obj for obj in render(values_file) if obj["kind"] not in FOREIGN]
    output = apply(plane, objects, "--dry-run=server", "--force-conflicts", "--validate=strict")
    assert output.count("server dry run") == len(objects)


@pytest.fixture(scope="module")
def installed(plane: ControlPlane) -> Any:
    """Roles, accounts and policies of the chart, for real."""
    kinds = {"ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"}
    objects = [
        obj for obj in render() if obj["kind"] in kinds or obj["kind"].startswith("ValidatingAdmissionPolicy")
    ]
    apply(plane, objects)
    yield plane
    plane.kubectl("delete", "-f", "-", stdin=yaml.safe_dump_all(objects))


def account(name: str) -> str:
    return f"system:serviceaccount:{NAMESPACE}:{name}"


@pytest.mark.parametrize(
    ("who", "verb", "what", "where", "allowed"),
    [
        ("llmos-operator", "create", "pods", "team", True),
        ("llmos-operator", "delete", "pods", "team", True),
        ("llmos-operator", "create", "pods/eviction", "team", True),
        ("llmos-operator", "create", "secrets", "team", True),
        ("llmos-operator", "get", "secrets", "team", False),
        ("llmos-operator", "list", "secrets", "", False),
        ("llmos-operator", "watch", "secrets", "", False),
        ("llmos-operator", "patch", "modelworkloads/status.llmos.dev", "team", True),
        ("llmos-operator", "patch", "modelworkloads.llmos.dev", "team", False),
        ("llmos-operator", "delete", "modelworkloads.llmos.dev", "team", True),
        ("llmos-operator", "delete", "modelprofiles.llmos.dev", "", True),
        ("llmos-operator", "delete", "gpunodes.llmos.dev", "", False),
        ("llmos-operator", "patch", "pods", "team", True),
        ("llmos-operator", "update", "pods", "team", False),
        ("llmos-operator", "create", "pods/exec", "team", False),
        ("llmos-operator", "update", "leases.coordination.k8s.io/llmos-operator", NAMESPACE, True),
        ("llmos-operator", "update", "leases.coordination.k8s.io/llmos-operator", "team", False),
        ("llmos-operator", "update", "leases.coordination.k8s.io/other", NAMESPACE, False),
        ("llmos-operator", "patch", "nodes", "", False),
        ("llmos-operator", "watch", "resourceclaims.resource.k8s.io", "", True),
        ("llmos-operator", "create", "resourceclaims.resource.k8s.io", "team", False),
        ("llmos-operator", "patch", "resourceclaims/status.resource.k8s.io", "team", False),
        ("llmos-operator", "create", "clusterrolebindings.rbac.authorization.k8s.io", "", False),
        ("llmos-agent", "patch", "gpunodes/status.llmos.dev", "", True),
        ("llmos-agent", "list", "pods", "", False),
        ("llmos-agent", "get", "secrets", NAMESPACE, False),
        ("llmos-agent", "watch", "nodes", "", True),
        ("llmos-agent", "patch", "nodes", "", False),
        ("llmos-gateway", "watch", "modelworkloads.llmos.dev", "", True),
        ("llmos-gateway", "watch", "pods", "", True),
        ("llmos-gateway", "create", "pods", "team", False),
        ("llmos-gateway", "get", "secrets", NAMESPACE, False),
        ("llmos-gateway", "patch", "modelworkloads/status.llmos.dev", "team", False),
    ],
)
def test_accounts_may_do_what_they_need_and_no_more(
    installed: ControlPlane, who: str, verb: str, what: str, where: str, allowed: bool
):
    resource, _, rest = what.partition("/")
    subresource, _, group = rest.partition(".")
    resource, _, own_group = resource.partition(".")
    name = ""
    if own_group and rest:
        name, subresource = rest, ""
    attributes = {
        "verb": verb, "resource": resource, "subresource": subresource, "group": group or own_group, "namespace": where, "name": name,
    }  # fmt: skip
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SubjectAccessReview",
        "spec": {
            "user": account(who),
            "groups": ["system:serviceaccounts"],
            "resourceAttributes": attributes,
        },
    }
    answer = json.loads(installed.kubectl("create", "-o", "json", "-f", "-", stdin=json.dumps(review)))
    assert answer["status"].get("allowed", False) is allowed


def agent_token(plane: ControlPlane, node: str) -> str:
    """Return a token as the kubelet gives it to the agent's pod on ``node``."""
    name = f"agent-on-{node}"
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "nodeName": node,
            "serviceAccountName": "llmos-agent",
            "containers": [{"name": "a", "image": "a"}],
        },
    }
    plane.kubectl(
        "apply", "-f", "-", stdin=json.dumps({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node}})
    )
    plane.kubectl("apply", "-f", "-", stdin=json.dumps(pod))
    return plane.kubectl(
        "create",
        "token",
        "llmos-agent",
        "-n",
        NAMESPACE,
        "--bound-object-kind=Pod",
        f"--bound-object-name={name}",
    ).strip()


def as_account(plane: ControlPlane, token: str, *arguments: str, body: dict[str, Any]) -> str:
    """Run kubectl with this token and nothing else; return stdout, or raise with what the API server said."""
    config = yaml.safe_load(plane.kubeconfig.read_text())
    config["users"] = [{"name": user["name"], "user": {"token": token}} for user in config["users"]]
    with tempfile.NamedTemporaryFile("w", suffix=".kubeconfig") as file:
        file.write(yaml.safe_dump(config))
        file.flush()
        return plane.kubectl(f"--kubeconfig={file.name}", *arguments, stdin=json.dumps(body))


def gpu_node(name: str, **status: Any) -> dict[str, Any]:
    body = {"apiVersion": "llmos.dev/v1alpha1", "kind": "GPUNode", "metadata": {"name": name}}
    return body | ({"status": status} if status else {})


APPLY = ("apply", "--server-side", "--field-manager=llmos-agent", "-f", "-")


def wait_for_policy(plane: ControlPlane, token: str) -> None:
    """Wait until the chart's policies hold."""
    _until_refused(
        lambda: as_account(plane, token, *APPLY, "--dry-run=server", body=gpu_node("nobody-s-node")),
        "must not write",
    )


def test_an_agent_writes_the_gpunode_of_its_own_node_only(installed: ControlPlane):
    token = agent_token(installed, "node-1")
    wait_for_policy(installed, token)
    device = {"uuid": "GPU-1", "product": "A100"}
    as_account(installed, token, *APPLY, body=gpu_node("node-1"))
    as_account(installed, token, *APPLY, "--subresource=status", body=gpu_node("node-1", devices=[device]))

    with pytest.raises(subprocess.CalledProcessError) as foreign:
        as_account(installed, token, *APPLY, body=gpu_node("node-2"))
    assert 'an agent on node "node-1" must not write GPUNode "node-2"' in foreign.value.stderr

    installed.kubectl("apply", "-f", "-", stdin=json.dumps(gpu_node("node-2")))
    with pytest.raises(subprocess.CalledProcessError) as foreign_status:
        as_account(
            installed, token, *APPLY, "--subresource=status", body=gpu_node("node-2", devices=[device])
        )
    assert "must not write GPUNode" in foreign_status.value.stderr


def test_an_agent_cannot_touch_what_is_done_about_its_devices(installed: ControlPlane):
    token = agent_token(installed, "node-7")
    wait_for_policy(installed, token)
    care = {"treatments": [{"target": "GPU-1", "phase": "Draining"}]}
    as_account(installed, token, *APPLY, body=gpu_node("node-7"))
    installed.kubectl(
        "apply", "--server-side", "--field-manager=llmos-operator-care", "--subresource=status", "-f", "-",
        stdin=json.dumps(gpu_node("node-7", care=care)),
    )  # fmt: skip
    released = {"treatments": [{"target": "GPU-1", "phase": "Released"}]}
    with pytest.raises(subprocess.CalledProcessError) as refused:
        as_account(
            installed,
            token,
            *APPLY,
            "--subresource=status",
            "--force-conflicts",
            body=gpu_node("node-7", care=released),
        )
    assert "status.care belongs to the operator" in refused.value.stderr


# kubectl reads what it patches; the operator does not, and has no right to.
READS_NODES: list[dict[str, Any]] = [
    {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": "reads-nodes"},
        "rules": [{"apiGroups": [""], "resources": ["nodes"], "verbs": ["get"]}],
    },
    {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "reads-nodes"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "reads-nodes"},
        "subjects": [{"kind": "ServiceAccount", "name": "llmos-operator", "namespace": NAMESPACE}],
    },
]


@pytest.fixture
def acting(installed: ControlPlane) -> Iterator[ControlPlane]:
    """The rights and the policy of an operator that may cordon."""
    act = render(values={"operator": {"config": {"health": {"mode": "Act"}}}})
    nodes = {"llmos-operator-nodes"}
    policies = [one for one in act if one["metadata"]["name"] in nodes]
    assert len(policies) == 2  # the policy and its binding
    more = [*policies, *READS_NODES]
    apply(installed, [find(act, "ClusterRole", "llmos-operator"), *more])
    yield installed
    installed.kubectl("delete", "-f", "-", stdin=yaml.safe_dump_all(more))
    apply(installed, [find(render(), "ClusterRole", "llmos-operator")])


def test_an_operator_that_acts_cordons_nodes_and_changes_nothing_else(acting: ControlPlane):
    node = "to-be-cordoned"
    acting.kubectl(
        "create",
        "-f",
        "-",
        stdin=json.dumps({"apiVersion": "v1", "kind": "Node", "metadata": {"name": node}}),
    )
    token = acting.kubectl("create", "token", "llmos-operator", "-n", NAMESPACE).strip()

    def patch(body: dict[str, Any]) -> str:
        return as_account(
            acting, token, "patch", "node", node, "--type=merge", "--patch-file=/dev/stdin", body=body
        )

    try:
        labels = map(str, itertools.count())  # one that is there already would change nothing
        _until_refused(
            lambda: patch({"metadata": {"labels": {"a": next(labels)}}}), "changes nothing else of them"
        )
        for change in (
            {"metadata": {"annotations": {"a": "b"}}},
            {"spec": {"taints": [{"key": "a", "effect": "NoExecute"}]}},
            {"spec": {"unschedulable": True, "providerID": "elsewhere"}},
        ):
            with pytest.raises(subprocess.CalledProcessError) as refused:
                patch(change)
            assert "the operator cordons nodes and changes nothing else of them" in refused.value.stderr
        patch({"spec": {"unschedulable": True}})
        assert json.loads(acting.kubectl("get", "node", node, "-o", "json"))["spec"]["unschedulable"] is True
        patch({"spec": {"unschedulable": None}})
    finally:
        acting.kubectl("delete", "node", node)


def test_an_operator_that_cuts_gpus_asks_by_the_labels_of_mig_manager_and_changes_nothing_else(
    installed: ControlPlane,
):
    cuts = render(values={"operator": {"config": {"partitioning": {"enabled": True}}}})
    policies = [one for one in cuts if one["metadata"]["name"] == "llmos-operator-nodes"]
    assert len(policies) == 2
    more = [*policies, *READS_NODES]
    apply(installed, [find(cuts, "ClusterRole", "llmos-operator"), *more])
    meta = {
        "name": "to-be-cut",
        "labels": {"nvidia.com/mig.config.state": "success", "kept": "yes"},
        "annotations": {"kept": "yes"},
    }
    node = {"apiVersion": "v1", "kind": "Node", "metadata": meta}
    installed.kubectl("create", "-f", "-", stdin=json.dumps(node))
    token = installed.kubectl("create", "token", "llmos-operator", "-n", NAMESPACE).strip()

    def patch(body: dict[str, Any]) -> str:
        return as_account(
            installed,
            token,
            "patch",
            "node",
            "to-be-cut",
            "--type=merge",
            "--patch-file=/dev/stdin",
            body=body,
        )

    asked = {
        "labels": {"nvidia.com/mig.config": "all-1g.10gb", "nvidia.com/mig.config.state": None},
        "annotations": {"llmos.dev/mig-recut": "{}"},
    }
    try:
        others = map(str, itertools.count())
        _until_refused(
            lambda: patch({"metadata": {"labels": {"a": next(others)}}}),
            "asks for GPUs to be cut and changes nothing",
        )
        for change in (
            {"metadata": {"labels": {"kept": None}}},
            {"metadata": {"labels": {"kept": "no"}}},
            {"metadata": {"annotations": {"kept": None}}},
            {"metadata": {"annotations": {"other": "b"}}},
            {"metadata": asked, "spec": {"unschedulable": True}},
            {"spec": {"taints": [{"key": "a", "effect": "NoExecute"}]}},
        ):
            with pytest.raises(subprocess.CalledProcessError) as refused:
                patch(change)
            assert "changes nothing else of nodes" in refused.value.stderr
        patch({"metadata": asked})
        patch({"metadata": {"labels": {"nvidia.com/mig.config.state": "failed"}}})
        now = json.loads(installed.kubectl("get", "node", "to-be-cut", "-o", "json"))["metadata"]
        assert now["labels"]["nvidia.com/mig.config"] == "all-1g.10gb"
    finally:
        installed.kubectl("delete", "node", "to-be-cut")
        installed.kubectl("delete", "-f", "-", stdin=yaml.safe_dump_all(more))
        apply(installed, [find(render(), "ClusterRole", "llmos-operator")])


def device_claim(name: str, **labels: str) -> dict[str, Any]:
    request = {"name": "devices", "exactly": {"deviceClassName": "gpu.nvidia.com"}}
    return {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "ResourceClaim",
        "metadata": {"name": name, "labels": labels, "finalizers": [FINALIZER]},
        "spec": {"devices": {"requests": [request]}},
    }


def test_an_operator_that_writes_resource_claims_may_do_all_that_takes_to_its_own(
    installed: ControlPlane, namespace: str
):
    claims = render(values={"operator": {"config": {"resourceClaims": {"enabled": True}}}})
    policies = [one for one in claims if one["metadata"]["name"] == "llmos-operator-resourceclaims"]
    assert len(policies) == 2
    role = find(claims, "ClusterRole", "llmos-operator")
    # kubectl reads what it patches, which the operator does not.
    asked = {"apiGroups": ["resource.k8s.io"], "resources": ["resourceclaims/status"], "verbs": ["get"]}
    apply(installed, [role | {"rules": [*role["rules"], asked]}, *policies])
    token = installed.kubectl("create", "token", "llmos-operator", "-n", NAMESPACE).strip()
    label = {names.LABEL_MANAGED_BY: names.MANAGED_BY}
    given = {"status": {"allocation": allocation("n1", [Handle("gpu.nvidia.com", "n1", "gpu-0")])}}
    serial = map(str, itertools.count())

    def create(name: str, **labels: str) -> str:
        body = device_claim(name, **labels)
        return as_account(installed, token, "create", "-n", namespace, "-f", "-", body=body)

    def patch(body: dict[str, Any], name: str, *where: str) -> str:
        how = ("--type=merge", "--patch-file=/dev/stdin", "-n", namespace, *where)
        return as_account(installed, token, "patch", "resourceclaim", name, *how, body=body)

    def delete(name: str) -> str:
        return as_account(installed, token, "delete", "resourceclaim", name, "-n", namespace, body={})

    try:
        _until_refused(lambda: create(f"bare-{next(serial)}"), "its own ResourceClaims only")
        create("ours", **label)
        patch(given, "ours", "--subresource=status")
        patch({"status": {"reservedFor": [user("pod", "uid")]}}, "ours", "--subresource=status")
        patch({"status": {"allocation": None, "reservedFor": None}}, "ours", "--subresource=status")
        patch({"metadata": {"finalizers": []}}, "ours")
        delete("ours")
        installed.kubectl("create", "-n", namespace, "-f", "-", stdin=json.dumps(device_claim("theirs")))
        for act in (
            lambda: patch(given, "theirs", "--subresource=status"),
            lambda: patch({"metadata": {"labels": label}}, "theirs"),
            lambda: delete("theirs"),
        ):
            with pytest.raises(subprocess.CalledProcessError) as refused:
                act()
            assert "its own ResourceClaims only" in refused.value.stderr
    finally:
        installed.kubectl("delete", "-f", "-", stdin=yaml.safe_dump_all(policies))
        apply(installed, [find(render(), "ClusterRole", "llmos-operator")])


def _until_refused(act: Callable[[], object], why: str) -> None:
    """Policies and rights take effect some time after they are written."""
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        try:
            act()
        except subprocess.CalledProcessError as error:
            if why in error.stderr:
                return
        time.sleep(0.1)
    raise TimeoutError("the admission policy never took effect")


def test_an_agent_cannot_touch_the_operators_ledger(installed: ControlPlane):
    token = agent_token(installed, "node-3")
    wait_for_policy(installed, token)
    ledger = {"devices": [{"uuid": "GPU-1", "reserved": "1Gi", "claims": 1}]}
    as_account(installed, token, *APPLY, body=gpu_node("node-3"))
    installed.kubectl(
        "apply", "--server-side", "--field-manager=llmos-operator-status", "--subresource=status", "-f", "-",
        stdin=json.dumps(gpu_node("node-3", ledger=ledger)),
    )  # fmt: skip
    forged = {"devices": [{"uuid": "GPU-1", "reserved": "0", "claims": 0}]}
    with pytest.raises(subprocess.CalledProcessError) as refused:
        as_account(
            installed,
            token,
            *APPLY,
            "--subresource=status",
            "--force-conflicts",
            body=gpu_node("node-3", ledger=forged),
        )
    assert "status.ledger belongs to the operator" in refused.value.stderr
    as_account(installed, token, *APPLY, "--subresource=status", body=gpu_node("node-3", mode="nvml"))
    stored = json.loads(installed.kubectl("get", "gpunode", "node-3", "-o", "json"))["status"]
    assert stored == {"ledger": ledger, "mode": "nvml"}


def test_a_token_without_a_node_writes_no_gpunode(installed: ControlPlane):
    token = installed.kubectl("create", "token", "llmos-agent", "-n", NAMESPACE).strip()
    wait_for_policy(installed, agent_token(installed, "node-4"))
    with pytest.raises(subprocess.CalledProcessError) as refused:
        as_account(installed, token, *APPLY, body=gpu_node("node-4"))
    assert 'an agent on node "" must not write' in refused.value.stderr


def test_the_operator_creates_no_secret_but_the_control_token(installed: ControlPlane, namespace: str):
    token = installed.kubectl("create", "token", "llmos-operator", "-n", NAMESPACE).strip()

    def create(name: str) -> str:
        body = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name, "namespace": namespace},
            "stringData": {"token": "x"},
        }
        return as_account(installed, token, "create", "-f", "-", body=body)

    wait_for_policy(installed, agent_token(installed, "node-5"))
    assert "created" in create("llmos-runtime-control")
    with pytest.raises(subprocess.CalledProcessError) as refused:
        create("default-token")
    assert "creates no Secret but the runtimes' control token" in refused.value.stderr


def test_the_operator_deletes_no_workload_but_one_that_has_finished_and_says_so(
    installed: ControlPlane, namespace: str
):
    token = installed.kubectl("create", "token", "llmos-operator", "-n", NAMESPACE).strip()
    batch = {"input": {"uri": "pvc://a/in"}, "output": {"uri": "pvc://a/out"}}
    finished = {"type": "Finished", "status": "True", "reason": "Succeeded", "message": ""}
    finished["lastTransitionTime"] = "2026-01-01T00:00:00Z"

    def made(name: str, *conditions: dict[str, str], **spec: Any) -> None:
        body = {
            "apiVersion": "llmos.dev/v1alpha1",
            "kind": "ModelWorkload",
            "metadata": {"name": name},
            "spec": {"type": "Batch", "batch": batch, "model": {"uri": "hf://a/b"}, **spec},
        }
        installed.kubectl("create", "-n", namespace, "-f", "-", stdin=json.dumps(body))
        patch = json.dumps({"status": {"conditions": conditions}})
        how = ("--subresource=status", "--type=merge", "-p", patch)
        installed.kubectl("patch", "mw", name, "-n", namespace, *how)

    def delete(name: str, *how: str) -> str:
        words = ("delete", "mw", name, "-n", namespace, "--wait=false", *how)
        return as_account(installed, token, *words, body={})

    made("runs", ttlSecondsAfterFinished=1)
    made("kept", finished)
    made("over", finished, ttlSecondsAfterFinished=1)
    _until_refused(
        lambda: delete("runs", "--dry-run=server"), "deletes no workload but one that has finished"
    )
    with pytest.raises(subprocess.CalledProcessError) as refused:
        delete("kept")
    assert "has ttlSecondsAfterFinished" in refused.value.stderr
    assert "deleted" in delete("over")


def claimed_pod(name: str, **changes: dict[str, str]) -> dict[str, Any]:
    """Return a pod with everything the operator relies on, `changes` (labels, annotations) on top."""
    labels = {"llmos.dev/workload": "chat", "llmos.dev/workload-uid": "u1", "llmos.dev/ordinal": "0"}
    notes = {"llmos.dev/claim": "{}", "llmos.dev/spec-hash": "abc"}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "labels": labels | changes.get("labels", {}),
            "annotations": notes | changes.get("annotations", {}),
        },
        "spec": {"containers": [{"name": "c", "image": "i"}]},
    }


def test_nobody_but_the_operator_writes_the_ledger_on_pods(installed: ControlPlane, namespace: str):
    wait_for_policy(installed, agent_token(installed, "node-6"))
    token = installed.kubectl("create", "token", "llmos-operator", "-n", NAMESPACE).strip()
    as_account(installed, token, "create", "-n", namespace, "-f", "-", body=claimed_pod("held"))

    def refused(*arguments: str, stdin: str = "") -> str:
        with pytest.raises(subprocess.CalledProcessError) as error:
            installed.kubectl(*arguments, "-n", namespace, stdin=stdin or None)
        return str(error.value.stderr)

    theirs = "operator's ledger; nobody else sets or changes them"
    assert theirs in refused("annotate", "pod", "held", "--overwrite", "llmos.dev/claim=forged")
    assert theirs in refused("annotate", "pod", "held", "llmos.dev/claim-")
    assert theirs in refused("annotate", "pod", "held", "--overwrite", "llmos.dev/spec-hash=x")
    assert theirs in refused("create", "-f", "-", stdin=json.dumps(claimed_pod("forged")))
    labels = "of a pod are the operator's; nobody else sets or changes them"
    for label in ("workload=x", "workload-uid=x", "ordinal=7", "role=holder", "leader=true"):
        assert labels in refused("label", "pod", "held", "--overwrite", f"llmos.dev/{label}")

    installed.kubectl("annotate", "pod", "held", "-n", namespace, "example.com/note=mine")
    installed.kubectl("label", "pod", "held", "-n", namespace, "team=mine")
    installed.kubectl("run", "plain", "-n", namespace, "--image=i")
    installed.kubectl("delete", "pod", "held", "plain", "-n", namespace, "--now")


def test_users_roles_reach_the_clusters_own():
    view = find(render(), "ClusterRole", "llmos-view")
    edit = find(render(), "ClusterRole", "llmos-edit")
    assert view["metadata"]["labels"]["rbac.authorization.k8s.io/aggregate-to-view"] == "true"
    assert "rbac.authorization.k8s.io/aggregate-to-view" not in edit["metadata"]["labels"]
    assert edit["metadata"]["labels"]["rbac.authorization.k8s.io/aggregate-to-edit"] == "true"
    admin = find(render(), "ClusterRole", "llmos-queue-admin")
    assert not [label for label in admin["metadata"]["labels"] if "aggregate" in label]
