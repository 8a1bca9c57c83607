"""Probes and lifecycle hooks. Held by every kubelet we run on."""

from tests.support.pods import condition, container, ended, http_server, python, sh

STATE = {"volumeMounts": [{"name": "state", "mountPath": "/state"}]}
VOLUME = [{"name": "state", "emptyDir": {}}]


def test_readiness_follows_the_probe_in_both_directions(pods) -> None:
    main = http_server(
        readinessProbe={
            "httpGet": {"port": "http", "path": "/healthz"},
            "periodSeconds": 1,
            "failureThreshold": 1,
        },
        ports=[{"name": "http", "containerPort": 8000}],
        env=[{"name": "BAD", "value": "/state/bad"}, {"name": "SERVED", "value": "/state/served"}],
        **STATE,
    )
    toggler = sh(
        "until test -e /state/served; do sleep 0.1; done; sleep 5; touch /state/bad; sleep 5; rm /state/bad; sleep 600",
        "toggler",
        **STATE,
    )
    name = pods.create(main, toggler, volumes=VOLUME)
    pods.wait_ready(name)
    # It is unready for seconds only: a slow test looks at what was.
    pods.wait(name, lambda _pod: _lost_readiness(pods.past(name)))
    pods.wait(name, lambda _pod: any("503" in message for message in pods.events(name, "Unhealthy")))
    pod = pods.wait_ready(name)
    assert container(pod)["restartCount"] == 0


def _lost_readiness(versions) -> bool:
    seen = [condition(one, "Ready").get("status") for one in versions]
    return "False" in seen[seen.index("True") :]


def test_a_container_is_not_ready_before_its_first_success(pods) -> None:
    main = http_server(delay=2.0, readinessProbe={"tcpSocket": {"port": 8000}, "periodSeconds": 1})
    name = pods.create(main)
    pod = pods.wait(name, lambda pod: container(pod).get("started"))
    assert container(pod)["ready"] is False
    assert condition(pod, "Ready")["status"] == "False"
    pods.wait_ready(name)


def test_liveness_restarts_a_container_that_fails_it(pods) -> None:
    script = "echo run; touch /state/ok; sleep 2; rm /state/ok; sleep 600"
    probe = {
        "exec": {"command": ["test", "-e", "/state/ok"]},
        "periodSeconds": 1,
        "failureThreshold": 2,
        "initialDelaySeconds": 1,
    }
    name = pods.create(sh(script, livenessProbe=probe, **STATE), volumes=VOLUME)
    pod = pods.wait(name, lambda pod: container(pod).get("restartCount") == 1, timeout=180)
    assert ended(pod)["exitCode"] in {137, 143}
    assert "liveness" in pods.wait_event(name, "Killing")


def test_startup_gates_the_other_probes(pods) -> None:
    script = "sleep 2; touch /state/started; sleep 600"
    main = sh(
        script,
        startupProbe={
            "exec": {"command": ["test", "-e", "/state/started"]},
            "periodSeconds": 1,
            "failureThreshold": 30,
        },
        livenessProbe={
            "exec": {"command": ["test", "-e", "/state/started"]},
            "periodSeconds": 1,
            "failureThreshold": 1,
        },
        **STATE,
    )
    name = pods.create(main, volumes=VOLUME)
    pod = pods.wait(name, lambda pod: container(pod).get("state", {}).get("running"))
    assert container(pod)["started"] is False
    pod = pods.wait_ready(name)
    assert container(pod)["restartCount"] == 0


def test_a_startup_probe_that_never_passes_ends_the_container(pods) -> None:
    main = sh(
        "sleep 600", startupProbe={"exec": {"command": ["false"]}, "periodSeconds": 1, "failureThreshold": 2}
    )
    name = pods.create(main, restartPolicy="Never")
    pod = pods.wait_phase(name, "Failed", timeout=180)
    assert ended(pod)["exitCode"] in {137, 143}


def test_a_probe_that_takes_too_long_has_failed(pods) -> None:
    main = sh(
        "sleep 600",
        readinessProbe={"exec": {"command": ["sleep", "30"]}, "periodSeconds": 1, "timeoutSeconds": 1},
    )
    name = pods.create(main)
    assert "timed out" in pods.wait_event(name, "Unhealthy").lower()


def test_pre_stop_runs_before_the_container_is_asked_to_end(pods) -> None:
    script = "trap 'echo asked; exit 0' TERM; echo up; while true; do test -e /state/hook && echo hook && rm /state/hook; sleep 0.05; done"
    hook = {"preStop": {"exec": {"command": ["sh", "-c", "touch /state/hook; sleep 0.5"]}}}
    name = pods.create(sh(script, lifecycle=hook, **STATE), volumes=VOLUME, terminationGracePeriodSeconds=20)
    pods.wait_ready(name)
    pods.wait(name, lambda _pod: "up" in pods.logs(name))
    follower = pods.follow_on(name)
    pods.delete(name)
    pods.wait_gone(name)
    output, _ = follower.communicate(timeout=90)
    assert output.splitlines()[-2:] == ["hook", "asked"]


def test_a_pre_stop_hook_cannot_outlast_the_grace_period(pods) -> None:
    hook = {"preStop": {"sleep": {"seconds": 2}}}
    name = pods.create(
        sh("trap '' TERM; while true; do sleep 0.1; done", lifecycle=hook), terminationGracePeriodSeconds=3
    )
    pods.wait_ready(name)
    pods.delete(name)
    assert pods.wait_gone(name) > 1.5


def test_post_start_runs_beside_the_container(pods) -> None:
    hook = {"postStart": {"exec": {"command": ["sh", "-c", "echo hooked > /state/hooked"]}}}
    name = pods.create(
        sh("until cat /state/hooked 2>/dev/null; do sleep 0.1; done; sleep 600", lifecycle=hook, **STATE),
        volumes=VOLUME,
    )
    pods.wait(name, lambda pod: container(pod).get("started") and "hooked" in pods.logs(name))


def test_a_failed_post_start_hook_ends_the_container(pods) -> None:
    hook = {"postStart": {"exec": {"command": ["false"]}}}
    name = pods.create(sh("sleep 600", lifecycle=hook), restartPolicy="Never")
    pods.wait_phase(name, "Failed", timeout=180)
    # Events come when they come: the pod may be Failed first.
    pods.wait(
        name,
        lambda _pod: pods.events(name, "FailedPostStartHook") or pods.events(name, "FailedLifecycleHook"),
    )


def test_http_probes_send_the_headers_they_are_given(pods) -> None:
    code = """
import http.server, os
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        good = self.headers.get("X-Probe") == "yes" and self.headers["User-Agent"].startswith("kube-probe/")
        self.send_response(200 if good else 400); self.end_headers()
http.server.ThreadingHTTPServer((os.environ["IP"], 8000), Handler).serve_forever()
"""
    env = [{"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}]
    action = {"port": 8000, "path": "/", "httpHeaders": [{"name": "X-Probe", "value": "yes"}]}
    name = pods.create(python(code, env=env, readinessProbe={"httpGet": action, "periodSeconds": 1}))
    pods.wait_ready(name)
