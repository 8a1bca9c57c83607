"""From containers to the status of a pod."""

import pytest

from llmos_operator.local.kubelet.model import Running, Terminated, Waiting, views_of, wants_restart
from llmos_operator.local.kubelet.status import differs, phase_of, pod_status

NOW = 1_700_000_000.0
UP = Running(NOW)
IDLE = Waiting("ContainerCreating")
DONE = Terminated(0, "Completed")
BAD = Terminated(1, "Error")
IN_42 = {"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}
NOT_IN_42 = {"action": "Restart", "exitCodes": {"operator": "NotIn", "values": [42]}}


def _pod(*app, init=(), policy="Always", **extra) -> tuple[dict, object]:
    spec = {
        "restartPolicy": policy,
        "containers": [{"name": f"c{number}"} for number in range(len(app))],
        "initContainers": [entry[0] for entry in init],
    }
    pod = {"metadata": {"name": "p", "generation": 1}, "spec": {**spec, **extra}, "status": {}}
    views = views_of(pod["spec"], {}, NOW)
    for view, state in zip(views.app, app, strict=True):
        view.state = state
        view.ready = view.started = isinstance(state, Running)
    for view, (_, state) in zip(views.init, init, strict=True):
        view.state = state
        view.started = view.ready = isinstance(state, Running)
    return pod, views


PLAIN = {"name": "i"}
SIDECAR = {"name": "s", "restartPolicy": "Always"}


@pytest.mark.parametrize(
    ("app", "init", "policy", "phase"),
    [
        ([IDLE], [], "Always", "Pending"),
        ([UP], [], "Always", "Running"),
        ([UP, IDLE], [], "Always", "Pending"),
        ([DONE], [], "Always", "Running"),
        ([DONE], [], "Never", "Succeeded"),
        ([DONE, DONE], [], "OnFailure", "Succeeded"),
        ([DONE, BAD], [], "Never", "Failed"),
        ([DONE, BAD], [], "OnFailure", "Running"),
        ([BAD, UP], [], "Never", "Running"),
        ([IDLE], [(PLAIN, UP)], "Never", "Pending"),
        ([IDLE], [(PLAIN, BAD)], "Never", "Failed"),
        ([IDLE], [(PLAIN, BAD)], "Always", "Pending"),
        ([UP], [(PLAIN, DONE)], "Always", "Running"),
        ([DONE], [(SIDECAR, UP)], "Never", "Running"),
        ([DONE], [(SIDECAR, DONE)], "Never", "Succeeded"),
        ([BAD], [(SIDECAR, DONE)], "Never", "Failed"),
        ([IDLE], [(SIDECAR, IDLE)], "Always", "Pending"),
    ],
)
def test_phases(app, init, policy, phase) -> None:
    pod, views = _pod(*app, init=init, policy=policy)
    assert phase_of(pod["spec"], views) == phase


def test_a_container_between_two_runs_still_counts_as_having_run() -> None:
    pod, views = _pod(Waiting("CrashLoopBackOff"))
    views.app[0].last = BAD
    assert phase_of(pod["spec"], views) == "Running"


@pytest.mark.parametrize(
    ("policy", "code", "again"),
    [
        ("Always", 0, True),
        ("Always", 1, True),
        ("OnFailure", 0, False),
        ("OnFailure", 2, True),
        ("Never", 1, False),
    ],
)
def test_restart_policies(policy, code, again) -> None:
    (view,) = views_of({"containers": [{"name": "main"}]}, {}, NOW).app
    assert wants_restart(view, policy, code) is again


@pytest.mark.parametrize(
    ("fields", "code", "again"),
    [
        ({"restartPolicy": "OnFailure"}, 1, True),
        ({"restartPolicy": "OnFailure"}, 0, False),
        ({"restartPolicy": "Never", "restartPolicyRules": [IN_42]}, 42, True),
        ({"restartPolicy": "Never", "restartPolicyRules": [IN_42]}, 1, False),
        ({"restartPolicy": "Never", "restartPolicyRules": [NOT_IN_42]}, 1, True),
        ({"restartPolicy": "Never", "restartPolicyRules": [NOT_IN_42]}, 42, False),
        ({"restartPolicy": "Never", "restartPolicyRules": [{**IN_42, "action": "Other"}]}, 42, False),
    ],
)
def test_a_containers_own_policy_and_rules_come_before_the_pods(fields, code, again) -> None:
    (view,) = views_of({"containers": [{"name": "main", **fields}]}, {}, NOW).app
    assert wants_restart(view, "Never", code) is again


@pytest.mark.parametrize(("pod_policy", "own"), [("Never", "OnFailure"), ("Always", None)])
def test_an_init_container_that_may_restart_keeps_the_pod_pending(pod_policy, own) -> None:
    init = {"name": "init"} | ({"restartPolicy": own} if own else {})
    spec = {"restartPolicy": pod_policy, "initContainers": [init], "containers": [{"name": "main"}]}
    views = views_of(spec, {}, NOW)
    views.init[0].state = Terminated(1, "Error")
    assert phase_of(spec, views) == "Pending"


def test_a_pod_with_a_container_that_will_run_again_is_running() -> None:
    spec = {
        "restartPolicy": "Never",
        "containers": [{"name": "main"}, {"name": "again", "restartPolicy": "Always"}],
    }
    views = views_of(spec, {}, NOW)
    for view in views.app:
        view.state = Terminated(0, "Completed")
    assert phase_of(spec, views) == "Running"


def _status(pod, views, now=NOW) -> dict:
    return pod_status(pod, views, pod_ip="127.8.0.1", host_ip="127.7.0.1", started_at=NOW, now=now)


def test_transition_times_move_only_with_the_status() -> None:
    pod, views = _pod(UP)
    first = _status(pod, views)
    pod["status"] = {"conditions": [dict(entry) for entry in first["conditions"]]}
    later = _status(pod, views, NOW + 100)
    assert later["conditions"] == first["conditions"]
    views.app[0].ready = False
    changed = {entry["type"]: entry for entry in _status(pod, views, NOW + 200)["conditions"]}
    before = {entry["type"]: entry for entry in first["conditions"]}
    assert changed["Ready"]["lastTransitionTime"] != before["Ready"]["lastTransitionTime"]
    assert changed["Initialized"]["lastTransitionTime"] == before["Initialized"]["lastTransitionTime"]


def test_an_equal_status_is_not_written_again() -> None:
    pod, views = _pod(UP)
    status = _status(pod, views)
    current = {**status, "qosClass": "Burstable"}
    current["conditions"] = [
        {"type": "Other", "status": "True"},
        *(
            {key: value for key, value in entry.items() if value is not None}
            for entry in status["conditions"]
        ),
    ]
    assert not differs(current, status)
    views.app[0].restarts = 1
    assert differs(current, _status(pod, views))


def test_a_cleared_reason_is_a_difference() -> None:
    pod, views = _pod(UP)
    status = _status(pod, views)
    current = {**status, "conditions": [{**entry, "reason": "Old"} for entry in status["conditions"]]}
    assert differs(current, status)


def test_after_a_restart_of_the_kubelet_running_containers_count_as_killed() -> None:
    spec = {"containers": [{"name": "a"}, {"name": "b"}, {"name": "c"}]}
    status = {
        "containerStatuses": [
            {"name": "a", "restartCount": 4, "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}}},
            {"name": "b", "restartCount": 1, "state": {"terminated": {"exitCode": 3, "reason": "Error"}}},
        ]
    }
    first, second, third = views_of(spec, status, NOW).app
    assert (first.restarts, first.state.exit_code, first.state.reason) == (4, 137, "ContainerStatusUnknown")
    assert (second.restarts, second.state.exit_code) == (1, 3)
    assert isinstance(third.state, Waiting)


def test_a_terminated_state_survives_the_way_through_json() -> None:
    end = Terminated(137, "OOMKilled", "told", NOW, NOW + 5, "process://x")
    assert Terminated.from_json(end.to_json()["terminated"]) == end
