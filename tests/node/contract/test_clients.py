"""Pods as controllers and people meet them: Jobs, evictions, kubectl. Held by every kubelet we run on."""

import json
import time

import pytest

from tests.support.apiwatch import Refused
from tests.support.pods import condition, container, ended, sh

_TOO_MANY = 429


def _evict(pods, name: str) -> None:
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}}
    pods.watch.ask("POST", f"/api/v1/namespaces/{pods.namespace}/pods/{name}/eviction", body)


def test_an_eviction_ends_a_pod_as_a_deletion_does(pods) -> None:
    name = pods.create(sh("trap 'exit 0' TERM; while true; do sleep 0.05; done"))
    pods.wait_ready(name)
    _evict(pods, name)
    pods.wait_gone(name)


def test_an_eviction_waits_for_the_disruption_budget(pods) -> None:
    name = pods.create(sh("sleep 600"), meta={"labels": {"app": "budgeted"}})
    pods.apply(
        {
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": {"name": "budgeted"},
            "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "budgeted"}}},
        }
    )
    pods.wait_ready(name)
    pods.kubectl("wait", "pdb/budgeted", "--for=jsonpath={.status.currentHealthy}=1", "--timeout=120s")
    with pytest.raises(Refused) as refused:
        _evict(pods, name)
    assert refused.value.status == _TOO_MANY
    assert "deletionTimestamp" not in pods.get(name)["metadata"]
    pods.kubectl("delete", "pdb", "budgeted")
    _evict_when_allowed(pods, name)
    pods.wait_gone(name)


def _evict_when_allowed(pods, name: str) -> None:
    """The API server may know the budget for a moment after its deletion."""
    deadline = time.monotonic() + 120
    while True:
        try:
            return _evict(pods, name)
        except Refused as error:
            if error.status != _TOO_MANY or time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def test_a_job_is_complete_when_its_app_has_ended_beside_a_sidecar(pods) -> None:
    sidecar = sh("trap 'exit 0' TERM; while true; do sleep 0.05; done", "sidecar", restartPolicy="Always")
    spec = {
        "nodeName": pods.node,
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 5,
        "initContainers": [{**sidecar, "image": pods.image}],
        "containers": [{**sh("echo worked"), "image": pods.image}],
    }
    job = {"backoffLimit": 0, "template": {"spec": spec}}
    pods.apply({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "work"}, "spec": job})
    pods.kubectl("wait", "job/work", "--for=condition=Complete", "--timeout=180s")
    assert pods.logs("job/work", "-c", "main") == "worked\n"
    pods.kubectl("delete", "job", "work", "--wait=false")


def test_the_deadline_of_a_job_ends_its_pods(pods) -> None:
    main = {**sh("sleep 600"), "image": pods.image}
    spec = {
        "nodeName": pods.node,
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 1,
        "containers": [main],
    }
    job = {"backoffLimit": 0, "activeDeadlineSeconds": 3, "template": {"spec": spec}}
    pods.apply({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "late"}, "spec": job})
    pods.kubectl("wait", "job/late", "--for=condition=Failed", "--timeout=180s")
    found = json.loads(pods.kubectl("get", "job", "late", "-o", "json"))["status"]["conditions"]
    assert {one["type"]: one["reason"] for one in found}["Failed"] == "DeadlineExceeded"
    pods.kubectl("delete", "job", "late", "--wait=false")


def test_conditions_become_true_in_order_and_keep_their_times(pods) -> None:
    order = ["PodReadyToStartContainers", "Initialized", "ContainersReady", "Ready"]
    name = pods.create(sh("sleep 600"), initContainers=[sh("sleep 1", "init")])
    last = pods.wait_ready(name)
    met = [{one: condition(pod, one) for one in order} for pod in pods.past(name)]
    firsts = [next(at for at, seen in enumerate(met) if seen[one].get("status") == "True") for one in order]
    assert firsts == sorted(firsts)
    times = [condition(last, one)["lastTransitionTime"] for one in order]
    assert times == sorted(times)
    for one, first in zip(order, firsts, strict=True):
        assert {seen[one]["lastTransitionTime"] for seen in met[first:]} == {times[order.index(one)]}


def test_kubectl_describes_why_a_container_ended_and_waits(pods) -> None:
    name = pods.create(sh("exit 5"))
    # It runs again soon, so a look may come between two back-offs.
    pods.wait(name, lambda _pod: "CrashLoopBackOff" in pods.kubectl("describe", "pod", name), timeout=180)
    assert "Exit Code:    5" in pods.kubectl("describe", "pod", name)


def test_kubectl_waits_for_conditions_and_deletions(pods) -> None:
    name = pods.create(sh("sleep 600"))
    pods.kubectl("wait", f"pod/{name}", "--for=condition=Ready", "--timeout=120s")
    assert container(pods.get(name))["ready"] is True
    pods.kubectl("delete", "pod", name, "--timeout=120s")
    assert not pods.exists(name)


def test_a_deadline_is_told_beside_a_sidecar(pods) -> None:
    sidecar = sh("trap 'exit 0' TERM; while true; do sleep 0.05; done", "sidecar", restartPolicy="Always")
    name = pods.create(sh("sleep 600"), initContainers=[sidecar], activeDeadlineSeconds=3)
    pod = pods.wait_phase(name, "Failed", timeout=180)
    assert pod["status"]["reason"] == "DeadlineExceeded"
    assert ended(pod, "sidecar")["exitCode"] == 0
