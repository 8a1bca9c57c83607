"""What a container that waits for its image says. Held by every kubelet we run on."""

import pytest

from tests.support.pods import container, sh, waiting_reason

ABSENT = "example.invalid/none:1"


@pytest.mark.parametrize(
    ("image", "policy", "reason", "words"),
    [
        (ABSENT, "Never", "ErrImageNeverPull", "is not present with pull policy of Never"),
        ("example.invalid/Upper:1", "IfNotPresent", "InvalidImageName", "couldn't parse image name"),
    ],
)
def test_an_image_that_is_never_pulled_is_told_at_once(pods, image, policy, reason, words) -> None:
    name = pods.create(sh("true", image=image, imagePullPolicy=policy), restartPolicy="Never")
    pod = pods.wait(name, lambda pod: waiting_reason(pod) == reason)
    message = container(pod)["state"]["waiting"]["message"]
    assert words in message
    assert image in message
    assert pod["status"]["phase"] == "Pending"


def test_a_pull_that_failed_is_told_and_then_its_back_off_which_keeps_the_cause(pods) -> None:
    name = pods.create(sh("true", image=ABSENT))
    pod = pods.wait(name, lambda pod: waiting_reason(pod) == "ImagePullBackOff")
    reasons = [waiting_reason(one) for one in pods.past(name)]
    assert "ErrImagePull" in reasons[: reasons.index("ImagePullBackOff")]
    message = container(pod)["state"]["waiting"]["message"]
    assert message.startswith(f'Back-off pulling image "{ABSENT}": ErrImagePull: ')
    assert pods.wait_event(name, "Failed")


def test_another_image_lets_the_container_start(pods) -> None:
    name = pods.create(sh("echo up; sleep 600", image=ABSENT))
    pods.wait(name, lambda pod: waiting_reason(pod) == "ImagePullBackOff")
    pods.kubectl("set", "image", f"pod/{name}", f"main={pods.image}")
    pod = pods.wait_ready(name, timeout=180)
    assert container(pod)["restartCount"] == 0
