"""Restart policies of single containers, and the graces of probes. Held by every kubelet we run on."""

from tests.support.pods import container, ended, sh

STATE = {"volumeMounts": [{"name": "state", "mountPath": "/state"}]}
VOLUME = [{"name": "state", "emptyDir": {}}]
SECOND = 'echo x >> /state/{0}; test "$(wc -l < /state/{0})" -ge 2 || exit {1}'


def test_a_container_may_restart_in_a_pod_that_does_not(pods) -> None:
    main = sh(SECOND.format("main", 1), restartPolicy="OnFailure", **STATE)
    name = pods.create(main, restartPolicy="Never", volumes=VOLUME)
    pod = pods.wait_phase(name, "Succeeded", timeout=180)
    assert container(pod)["restartCount"] == 1


def test_an_init_container_may_restart_in_a_pod_that_does_not(pods) -> None:
    init = sh(SECOND.format("init", 1), "init", restartPolicy="OnFailure", **STATE)
    name = pods.create(sh("true"), initContainers=[init], restartPolicy="Never", volumes=VOLUME)
    pod = pods.wait_phase(name, "Succeeded", timeout=180)
    assert container(pod, "init")["restartCount"] == 1


def test_a_container_may_end_for_good_in_a_pod_that_restarts(pods) -> None:
    once = sh("exit 3", "once", restartPolicy="Never")
    name = pods.create(sh("sleep 600"), once)
    pod = pods.wait(name, lambda pod: ended(pod, "once") and container(pod)["state"].get("running"))
    assert (ended(pod, "once")["exitCode"], container(pod, "once")["restartCount"]) == (3, 0)
    assert pod["status"]["phase"] == "Running"


def test_rules_restart_a_container_on_the_exit_codes_they_name(pods) -> None:
    rule = {"action": "Restart", "exitCodes": {"operator": "In", "values": [42]}}
    own = {"restartPolicy": "Never", "restartPolicyRules": [rule]}
    named = sh(SECOND.format("named", 42), "named", **own, **STATE)
    other = sh("exit 41", "other", **own)
    name = pods.create(named, other, restartPolicy="Never", volumes=VOLUME)
    pod = pods.wait_phase(name, "Failed", timeout=180)
    assert [container(pod, one)["restartCount"] for one in ("named", "other")] == [1, 0]
    assert ended(pod, "other")["exitCode"] == 41


def test_a_probes_grace_is_not_heeded_where_the_whole_pod_ends(pods) -> None:
    probe = {
        "exec": {"command": ["false"]},
        "periodSeconds": 1,
        "failureThreshold": 1,
        "terminationGracePeriodSeconds": 600,
    }
    script = "trap 'for i in $(seq 300); do sleep 0.1; done; exit 7' TERM; while true; do sleep 0.1; done"
    name = pods.create(sh(script, livenessProbe=probe), restartPolicy="Never")
    assert ended(pods.wait_phase(name, "Failed", timeout=180))["exitCode"] == 137
