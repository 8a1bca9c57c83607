"""How pods end, restart and are told to go. Held by every kubelet we run on."""

import time

import pytest

from tests.support.pods import condition, container, ended, python, sh, waiting_reason


def test_a_container_that_exits_with_zero_makes_the_pod_succeed(pods) -> None:
    name = pods.create(sh("echo done"), restartPolicy="Never")
    pod = pods.wait_phase(name, "Succeeded")
    end = ended(pod)
    assert (end["exitCode"], end["reason"]) == (0, "Completed")
    assert end["containerID"] == container(pod)["containerID"]
    assert condition(pod, "Ready")["reason"] == "PodCompleted"
    assert condition(pod, "Initialized")["status"] == "True"
    assert pods.logs(name) == "done\n"


def test_a_container_that_exits_with_an_error_makes_the_pod_fail(pods) -> None:
    name = pods.create(sh("exit 3"), restartPolicy="Never")
    pod = pods.wait_phase(name, "Failed")
    assert (ended(pod)["exitCode"], ended(pod)["reason"]) == (3, "Error")
    assert container(pod)["restartCount"] == 0
    assert condition(pod, "ContainersReady")["reason"] == "PodFailed"


def test_a_signal_is_reported_as_128_plus_its_number(pods) -> None:
    deaf = sh(
        "trap '' TERM; while true; do sleep 0.1; done",
        livenessProbe={
            "exec": {"command": ["false"]},
            "periodSeconds": 1,
            "failureThreshold": 1,
            "terminationGracePeriodSeconds": 1,  # of the probe: the pod's would be too long to wait for
        },
    )
    # A pod that will not start it again is ended as a whole, by its own grace: so this one may.
    name = pods.create(deaf, terminationGracePeriodSeconds=3600)
    pod = pods.wait(name, lambda pod: container(pod).get("restartCount"))
    assert (ended(pod)["exitCode"], ended(pod)["reason"]) == (137, "Error")


def test_on_failure_restarts_until_it_succeeds(pods) -> None:
    script = 'echo x >> /state/runs; test "$(wc -l < /state/runs)" -ge 3'
    name = pods.create(
        sh(script, volumeMounts=[{"name": "state", "mountPath": "/state"}]),
        restartPolicy="OnFailure",
        volumes=[{"name": "state", "emptyDir": {}}],
    )
    pod = pods.wait_phase(name, "Succeeded", timeout=180)
    assert container(pod)["restartCount"] == 2
    assert container(pod)["lastState"]["terminated"]["exitCode"] == 1


def test_always_restarts_after_success_too_and_then_backs_off(pods) -> None:
    name = pods.create(sh("exit 0"))
    pod = pods.wait(name, lambda pod: waiting_reason(pod) == "CrashLoopBackOff")
    assert pod["status"]["phase"] == "Running"
    assert container(pod)["restartCount"] >= 1
    assert condition(pod, "Ready")["reason"] == "ContainersNotReady"
    assert container(pod)["lastState"]["terminated"]["reason"] == "Completed"
    assert "back-off" in container(pod)["state"]["waiting"]["message"]


def test_a_running_pod_says_where_it_is_and_since_when(pods) -> None:
    name = pods.create(sh("sleep 600"))
    pod = pods.wait_ready(name)
    status = pod["status"]
    assert status["phase"] == "Running"
    assert status["podIP"] == status["podIPs"][0]["ip"]
    assert status["hostIP"] == status["hostIPs"][0]["ip"]
    assert status["startTime"]
    assert status["observedGeneration"] == pod["metadata"]["generation"]
    assert status["qosClass"] == "BestEffort"
    assert container(pod)["started"] is True
    assert container(pod)["state"]["running"]["startedAt"]
    for kind in ("PodScheduled", "Initialized", "ContainersReady", "PodReadyToStartContainers"):
        assert condition(pod, kind)["status"] == "True", kind


def test_pods_have_addresses_of_their_own(pods) -> None:
    names = [pods.create(sh("sleep 600")) for _ in range(3)]
    addresses = {pods.wait_ready(name)["status"]["podIP"] for name in names}
    assert len(addresses) == 3


def test_init_containers_run_one_after_the_other_before_the_app(pods) -> None:
    mount = {"volumeMounts": [{"name": "state", "mountPath": "/state"}]}
    name = pods.create(
        sh("cat /state/order; sleep 600", **mount),
        initContainers=[
            sh("sleep 0.3; echo first >> /state/order", "first", **mount),
            sh("echo second >> /state/order", "second", **mount),
        ],
        volumes=[{"name": "state", "emptyDir": {}}],
    )
    early = pods.wait(name, lambda pod: condition(pod, "Initialized"))
    if condition(early, "Initialized")["status"] == "False":
        assert "second" in condition(early, "Initialized")["message"]
        assert waiting_reason(early) == "PodInitializing"
    pod = pods.wait_ready(name)
    assert pods.logs(name, "-c", "main") == "first\nsecond\n"
    assert container(pod, "first")["state"]["terminated"]["reason"] == "Completed"


def test_a_failed_init_container_fails_the_pod_if_it_may_not_restart(pods) -> None:
    name = pods.create(sh("echo never"), initContainers=[sh("exit 7", "broken")], restartPolicy="Never")
    pod = pods.wait_phase(name, "Failed")
    assert ended(pod, "broken")["exitCode"] == 7
    assert not ended(pod, "main")


def test_a_failing_init_container_is_tried_again(pods) -> None:
    mount = {"volumeMounts": [{"name": "state", "mountPath": "/state"}]}
    script = 'echo x >> /state/runs; test "$(wc -l < /state/runs)" -ge 2'
    name = pods.create(
        sh("sleep 600"),
        initContainers=[sh(script, "flaky", **mount)],
        volumes=[{"name": "state", "emptyDir": {}}],
    )
    pod = pods.wait_ready(name, timeout=180)
    assert container(pod, "flaky")["restartCount"] == 1


def test_deletion_asks_first_and_removes_the_object_when_the_containers_have_ended(pods) -> None:
    script = "trap 'echo asked; sleep 0.2; echo bye; exit 0' TERM; echo up; while true; do sleep 0.05; done"
    name = pods.create(sh(script), terminationGracePeriodSeconds=30)
    pods.wait_ready(name)
    pods.wait(name, lambda _pod: "up" in pods.logs(name))
    follower = pods.follow_on(name)
    pods.delete(name)
    assert pods.wait_gone(name) < 28
    output, _ = follower.communicate(timeout=90)
    assert output.splitlines()[-2:] == ["asked", "bye"]


def test_a_container_that_does_not_listen_is_killed_after_its_grace_period(pods) -> None:
    name = pods.create(
        sh("trap '' TERM; echo up; while true; do sleep 0.1; done"), terminationGracePeriodSeconds=2
    )
    pods.wait_ready(name)
    pods.wait(name, lambda _pod: "up" in pods.logs(name))
    pods.delete(name)
    assert pods.wait_gone(name) > 1.5


def test_the_grace_period_of_a_deletion_overrides_the_spec(pods) -> None:
    name = pods.create(sh("trap '' TERM; while true; do sleep 0.1; done"), terminationGracePeriodSeconds=300)
    pods.wait_ready(name)
    pods.delete(name, "--grace-period=1")
    pods.wait_gone(name)


def test_forced_deletion_does_not_wait_for_the_container(pods) -> None:
    name = pods.create(sh("trap '' TERM; while true; do sleep 0.1; done"), terminationGracePeriodSeconds=300)
    pods.wait_ready(name)
    pods.delete(name, "--grace-period=0", "--force")
    pods.wait_gone(name)


def test_a_terminating_pod_is_not_ready_only_when_it_says_so_and_keeps_its_object(pods) -> None:
    name = pods.create(sh("trap '' TERM; while true; do sleep 0.1; done"), terminationGracePeriodSeconds=3)
    pods.wait_ready(name)
    pods.delete(name)
    pod = pods.get(name)
    assert pod["metadata"]["deletionTimestamp"]
    assert container(pod)["state"].get("running")
    pods.wait_gone(name)


@pytest.mark.parametrize(
    "main",
    [
        sh("exit 1"),
        sh("sleep 600", image="example.invalid/none:1"),
        sh("sleep 600", envFrom=[{"secretRef": {"name": "absent"}}]),
    ],
    ids=["crash loop", "unknown image", "missing secret"],
)
def test_a_pod_that_never_became_ready_can_be_deleted_at_once(pods, main) -> None:
    name = pods.create(dict(main), terminationGracePeriodSeconds=60)
    pods.wait(name, waiting_reason)
    pods.delete(name)
    assert pods.wait_gone(name) < 55


def test_a_name_can_be_used_again_as_soon_as_the_pod_is_gone(pods) -> None:
    name = pods.create(sh("echo one; sleep 600"))
    first = pods.wait_ready(name)["metadata"]["uid"]
    pods.delete(name)
    pods.wait_gone(name)
    pods.create(sh("echo two; sleep 600"), name=name)
    pod = pods.wait_ready(name)
    assert pod["metadata"]["uid"] != first
    assert pods.logs(name) == "two\n"


def test_active_deadline_ends_a_pod(pods) -> None:
    name = pods.create(sh("sleep 600"), activeDeadlineSeconds=2)
    pod = pods.wait_phase(name, "Failed", timeout=180)
    assert pod["status"]["reason"] == "DeadlineExceeded"


def test_a_memory_limit_is_enforced(pods) -> None:
    code = (
        "import time\nblocks = []\nwhile True:\n blocks.append(bytearray(b'x' * (8 << 20))); time.sleep(0.05)"
    )
    name = pods.create(python(code, resources={"limits": {"memory": "100Mi"}}), restartPolicy="Never")
    pod = pods.wait_phase(name, "Failed", timeout=180)
    assert (ended(pod)["exitCode"], ended(pod)["reason"]) == (137, "OOMKilled")


def test_a_container_within_its_memory_limit_is_left_alone(pods) -> None:
    code = "import time; block = bytearray(b'x' * (40 << 20)); time.sleep(3); print('fine')"
    name = pods.create(python(code, resources={"limits": {"memory": "120Mi"}}), restartPolicy="Never")
    pods.wait_phase(name, "Succeeded")


def test_last_words_come_from_the_message_file_else_from_the_log(pods) -> None:
    told = pods.create(sh("echo 'out of cheese' > /dev/termination-log; exit 4"), restartPolicy="Never")
    logged = pods.create(
        sh("echo line one; echo line two; exit 5", terminationMessagePolicy="FallbackToLogsOnError"),
        restartPolicy="Never",
    )
    assert ended(pods.wait_phase(told, "Failed"))["message"] == "out of cheese\n"
    assert "line two" in ended(pods.wait_phase(logged, "Failed"))["message"]


def test_what_cannot_be_started_says_why(pods) -> None:
    name = pods.create({"name": "main", "command": ["/no/such/program"]}, restartPolicy="Never")
    pod = pods.wait(name, ended)
    assert (ended(pod)["exitCode"], ended(pod)["reason"]) == (128, "StartError")
    assert "/no/such/program" in ended(pod)["message"]


def test_an_unknown_image_is_named(pods) -> None:
    name = pods.create(sh("true", image="example.invalid/none:1"))
    pod = pods.wait(name, lambda pod: waiting_reason(pod) in {"ErrImagePull", "ImagePullBackOff"})
    assert pod["status"]["phase"] == "Pending"
    assert "example.invalid/none:1" in container(pod)["state"]["waiting"]["message"]


def test_one_container_of_two_that_is_not_ready_keeps_the_pod_from_being_ready(pods) -> None:
    never = sh("sleep 600", "never", readinessProbe={"exec": {"command": ["false"]}, "periodSeconds": 1})
    name = pods.create(sh("sleep 600"), never)
    pod = pods.wait(name, lambda pod: container(pod).get("ready") and container(pod, "never").get("started"))
    assert "[never]" in condition(pod, "Ready")["message"]
    assert pod["status"]["phase"] == "Running"


def test_readiness_gates_wait_for_somebody_elses_condition(pods) -> None:
    name = pods.create(sh("sleep 600"), readinessGates=[{"conditionType": "example.org/gate"}])
    pod = pods.wait(name, lambda pod: condition(pod, "ContainersReady").get("status") == "True")
    assert condition(pod, "Ready")["reason"] == "ReadinessGatesNotReady"
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    gate = f'{{"status":{{"conditions":[{{"type":"example.org/gate","status":"True","lastTransitionTime":"{now}"}}]}}}}'
    pods.kubectl("patch", "pod", name, "--subresource=status", "--type=strategic", "-p", gate)
    pod = pods.wait_ready(name)
    assert condition(pod, "example.org/gate")["status"] == "True"
