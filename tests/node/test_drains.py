"""What is ended on purpose, on a real node: drains, disruption budgets, SIGTERM; answers in flight are not lost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from scripts.realnode import layout
from tests.node.conftest import CHAT, MODEL
from tests.support.streaming import Stream
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.node.conftest import Installed

pytestmark = pytest.mark.node

TOKENS = 100  # a stream of some seconds
QUESTION = "What is the capital of France?"
DRAIN = (
    "drain",
    layout.NAME,
    "--ignore-daemonsets",
    "--delete-emptydir-data",
    "--pod-selector=llmos.dev/workload=chat",
)


@pytest.fixture
def serving(chatting: Installed) -> Iterator[tuple[Installed, dict[str, Any]]]:
    """The release and the pod that serves, on a node that takes pods before and after."""
    pod = chatting.ready(CHAT)
    eventually(lambda: "Paris" in chatting.chat(MODEL, QUESTION), "it answers")
    yield chatting, pod
    chatting.tools.kubectl("uncordon", layout.NAME)


def streams(installed: Installed, count: int) -> list[Stream]:
    """Return answers in flight."""
    found = [Stream(installed.gateway(), MODEL, TOKENS, count_from=one) for one in range(count)]
    for stream in found:
        stream.in_flight()
    return found


def gone(installed: Installed, pod: dict[str, Any]) -> bool:
    return pod["metadata"]["uid"] not in {one["metadata"]["uid"] for one in installed.pods_of("chat")}


def test_no_stream_is_dropped_when_the_gateway_is_replaced(
    serving: tuple[Installed, dict[str, Any]],
) -> None:
    installed, _ = serving
    (before,) = installed.pods("gateway")
    answers = streams(installed, 4)
    installed.tools.kubectl("delete", "pod", before, "--namespace=llmos-system", "--wait=false")
    for answer in answers:
        answer.whole()
    eventually(lambda: "Paris" in installed.chat(MODEL, QUESTION), "another gateway answers")


def test_a_disruption_budget_refuses_the_drain_and_the_model_serves_on(
    serving: tuple[Installed, dict[str, Any]],
) -> None:
    installed, pod = serving
    budget = {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": "chat-stays"},
        "spec": {"minAvailable": 1, "selector": {"matchLabels": {"llmos.dev/workload": "chat"}}},
    }
    installed.tools.apply(budget, namespace="default")
    try:
        eventually(
            lambda: (
                installed.api.get("poddisruptionbudgets", "chat-stays", "default")
                .get("status", {})
                .get("expectedPods")
            ),
            "the budget counts the pod",
        )
        done = installed.tools.run("kubectl", *DRAIN, "--timeout=10s")
        assert done.returncode
        assert "violate the pod's disruption budget" in done.stderr
        assert "Paris" in installed.chat(MODEL, QUESTION)
        (now,) = installed.pods_of("chat")
        assert (now["metadata"]["uid"], "deletionTimestamp" in now["metadata"]) == (
            pod["metadata"]["uid"],
            False,
        )
    finally:
        installed.tools.kubectl("delete", "pdb", "chat-stays", "--namespace=default")


def test_a_drained_node_lets_the_stream_finish_and_gets_its_work_back_when_it_takes_pods(
    serving: tuple[Installed, dict[str, Any]],
) -> None:
    installed, pod = serving
    (answer,) = streams(installed, 1)
    installed.tools.kubectl(*DRAIN, "--timeout=280s")
    answer.whole()
    assert installed.pods_of("chat") == []
    eventually(
        lambda: (
            (told := installed.condition("chat", "Scheduled")).get("status") == "False"
            and "1 cordoned" in told["message"]
        ),
        "it says that it waits for a node that takes pods",
    )
    installed.tools.kubectl("uncordon", layout.NAME)
    assert installed.ready("chat")["metadata"]["uid"] != pod["metadata"]["uid"]


def test_no_stream_is_dropped_when_its_replica_is_told_to_end(
    serving: tuple[Installed, dict[str, Any]],
) -> None:
    installed, pod = serving
    answers = streams(installed, 4)
    installed.tools.kubectl("delete", "pod", pod["metadata"]["name"], "--namespace=default", "--wait=false")
    for answer in answers:
        answer.whole()
    eventually(lambda: gone(installed, pod), "the old pod ends when its last answer has")
    assert installed.ready("chat")["metadata"]["uid"] != pod["metadata"]["uid"]
