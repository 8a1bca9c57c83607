"""`kubectl logs`. Held by every kubelet we run on."""

import subprocess

import pytest

from tests.support.pods import container, sh


def test_tail_and_limit(pods) -> None:
    name = pods.create(sh("for i in 1 2 3 4 5; do echo line $i; done"), restartPolicy="Never")
    pods.wait_phase(name, "Succeeded")
    assert pods.logs(name, "--tail=2") == "line 4\nline 5\n"
    assert pods.logs(name, "--tail=0") == ""
    assert pods.logs(name, "--limit-bytes=4") == "line"
    assert pods.logs(name).count("\n") == 5


def test_both_streams_are_kept(pods) -> None:
    name = pods.create(sh("echo out; echo err >&2"), restartPolicy="Never")
    pods.wait_phase(name, "Succeeded")
    assert sorted(pods.logs(name).split()) == ["err", "out"]


def test_previous_shows_the_run_before(pods) -> None:
    name = pods.create(
        sh(
            'echo x >> /state/runs; echo "run $(wc -l < /state/runs | tr -d " ")"; test "$(wc -l < /state/runs)" -ge 2 || exit 1; sleep 600',
            volumeMounts=[{"name": "state", "mountPath": "/state"}],
        ),
        volumes=[{"name": "state", "emptyDir": {}}],
    )
    pods.wait(
        name,
        lambda pod: container(pod).get("restartCount") == 1 and container(pod)["state"].get("running"),
        timeout=180,
    )
    pods.wait(name, lambda _pod: pods.logs(name) == "run 2\n")
    assert pods.logs(name, "--previous") == "run 1\n"


def test_previous_without_an_earlier_run_is_refused(pods) -> None:
    name = pods.create(sh("sleep 600"))
    pods.wait_ready(name)
    with pytest.raises(subprocess.CalledProcessError) as failure:
        pods.logs(name, "--previous")
    assert "previous terminated container" in failure.value.stderr


def test_follow_shows_lines_as_they_come_and_ends_with_the_container(pods) -> None:
    name = pods.create(sh("for i in 1 2 3 4; do echo tick $i; sleep 0.4; done"), restartPolicy="Never")
    pods.wait(name, lambda pod: container(pod).get("state", {}).get("running"))
    follower = pods.follow(name)
    output, _ = follower.communicate(timeout=180)
    assert output.splitlines() == ["tick 1", "tick 2", "tick 3", "tick 4"]


def test_an_unknown_container_is_refused(pods) -> None:
    name = pods.create(sh("sleep 600"))
    pods.wait_ready(name)
    with pytest.raises(subprocess.CalledProcessError):
        pods.logs(name, "-c", "absent")
