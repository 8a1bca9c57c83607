"""Native sidecars: init containers that keep running. Held by every kubelet we run on."""

from tests.support.pods import condition, container, ended, sh

STATE = {"volumeMounts": [{"name": "state", "mountPath": "/state"}]}
VOLUME = [{"name": "state", "emptyDir": {}}]
LOOP = "while true; do sleep 0.05; done"


def _sidecar(script: str, name: str = "sidecar", **fields):
    return sh(script, name, restartPolicy="Always", **fields)


def test_the_app_waits_for_the_sidecars_startup_probe(pods) -> None:
    sidecar = _sidecar(
        f"sleep 1.5; echo sidecar >> /state/order; touch /state/up; {LOOP}",
        startupProbe={
            "exec": {"command": ["test", "-e", "/state/up"]},
            "periodSeconds": 1,
            "failureThreshold": 30,
        },
        **STATE,
    )
    name = pods.create(sh("cat /state/order; sleep 600", **STATE), initContainers=[sidecar], volumes=VOLUME)
    pod = pods.wait(name, lambda pod: container(pod, "sidecar").get("state", {}).get("running"))
    assert container(pod, "sidecar")["started"] is False
    assert pod["status"]["phase"] == "Pending"
    pod = pods.wait_ready(name)
    assert pods.logs(name, "-c", "main") == "sidecar\n"
    assert container(pod, "sidecar")["ready"] is True


def test_a_sidecar_ends_when_the_app_has_finished(pods) -> None:
    sidecar = _sidecar(f"trap 'echo asked; exit 0' TERM; {LOOP}")
    name = pods.create(sh("sleep 1; echo done"), initContainers=[sidecar], restartPolicy="Never")
    pod = pods.wait_phase(name, "Succeeded", timeout=180)
    assert ended(pod, "sidecar")["exitCode"] == 0
    assert pods.logs(name, "-c", "sidecar") == "asked\n"


def test_a_sidecar_is_restarted_whatever_the_pods_policy(pods) -> None:
    sidecar = _sidecar(
        'echo x >> /state/runs; test "$(wc -l < /state/runs)" -ge 2 || exit 1; sleep 600', **STATE
    )
    name = pods.create(sh("sleep 600"), initContainers=[sidecar], restartPolicy="Never", volumes=VOLUME)
    pod = pods.wait(
        name,
        lambda pod: (
            container(pod, "sidecar").get("restartCount") == 1
            and container(pod, "sidecar").get("state", {}).get("running")
        ),
        timeout=180,
    )
    assert pod["status"]["phase"] == "Running"


def test_a_sidecar_that_is_not_ready_keeps_the_pod_from_being_ready(pods) -> None:
    sidecar = _sidecar("sleep 600", readinessProbe={"exec": {"command": ["false"]}, "periodSeconds": 1})
    name = pods.create(sh("sleep 600"), initContainers=[sidecar])
    pod = pods.wait(name, lambda pod: container(pod).get("ready"))
    assert condition(pod, "Initialized")["status"] == "True"
    assert "[sidecar]" in condition(pod, "Ready")["message"]


def test_on_deletion_sidecars_outlive_the_app_and_end_in_reverse_order(pods) -> None:
    def sidecar(name):
        return _sidecar(f"trap 'echo {name} >> /state/order; exit 0' TERM; {LOOP}", name, **STATE)

    main = sh(f"trap 'sleep 0.5; echo main >> /state/order; exit 0' TERM; echo up; {LOOP}", **STATE)
    watcher = _sidecar(f"trap 'cat /state/order; exit 0' TERM; echo up; {LOOP}", "watcher", **STATE)
    name = pods.create(
        main,
        initContainers=[watcher, sidecar("one"), sidecar("two")],
        volumes=VOLUME,
        terminationGracePeriodSeconds=30,
    )
    pods.wait_ready(name)
    pods.wait(name, lambda _pod: "up" in pods.logs(name, "-c", "main"))
    follower = pods.follow_on(name, "-c", "watcher")
    pods.delete(name)
    pods.wait_gone(name)
    output, _ = follower.communicate(timeout=90)
    assert output.splitlines() == ["main", "two", "one"]


def test_init_containers_after_a_sidecar_run_beside_it(pods) -> None:
    sidecar = _sidecar("touch /state/sidecar; sleep 600", **STATE)
    check = sh("until test -e /state/sidecar; do sleep 0.1; done", "check", **STATE)
    name = pods.create(sh("sleep 600"), initContainers=[sidecar, check], volumes=VOLUME)
    pod = pods.wait_ready(name)
    assert ended(pod, "check")["exitCode"] == 0
    assert container(pod, "sidecar")["state"]["running"]
