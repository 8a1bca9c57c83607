"""Another precision in the same pod, with a real model: bf16 to int8 under a stream, and a format that does not come up."""

from __future__ import annotations

import json
import threading
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.models import CHAT, packaged
from tests.support.served import LOAD_SECONDS, MIB, runtime_process
from tests.support.waiting import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.support.served import Served

pytestmark = pytest.mark.model

PROMPT = "The capital of France is"
TOKENS = 160


def order(served: Served, what: str, **body: Any) -> None:
    request = urllib.request.Request(  # noqa: S310 - loopback
        f"{served.control}/{what}",
        data=json.dumps(body).encode(),
        headers={"Authorization": "Bearer t"},
    )
    with urllib.request.urlopen(request, timeout=5) as answer:  # noqa: S310 - loopback
        assert answer.status == 202


def changed(served: Served) -> Any:
    """Return the change once it is over and the former engine has ended."""

    def over() -> bool:
        change = served.report()["change"]
        return change is not None and change["state"] != "Running"

    eventually(over, "the change is over", LOAD_SECONDS)
    return served.report()["change"]


def say(served: Served, tokens: int = 12) -> Any:
    return served.client.completions.create(model="m", prompt=PROMPT, max_tokens=tokens, temperature=0)


def stream(served: Served) -> Iterator[Any]:
    return iter(
        served.client.completions.create(
            model="m",
            prompt=PROMPT,
            max_tokens=TOKENS,
            temperature=0,
            stream=True,
            extra_body={"ignore_eos": True, "stream_options": {"include_usage": True}},
        )
    )


class Reader(threading.Thread):
    """Asks one question after another until told to stop, and keeps what went wrong."""

    def __init__(self, served: Served) -> None:
        super().__init__(daemon=True)
        self.served, self.formats, self.errors = served, list[str](), list[Exception]()
        self.stop = threading.Event()

    def run(self) -> None:
        while not self.stop.is_set():
            try:
                self.formats.append(say(self.served, 4).system_fingerprint.split("-")[1])
            except Exception as error:  # noqa: BLE001 - the test shows it
                self.errors.append(error)
                return


def engines(served: Served) -> list[int]:
    """Return the pids of the engines: children of the front's only child."""
    (zygote,) = _children(served.process.pid)
    return _children(zygote)


def _children(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def resident(pid: int) -> int:
    """Return the resident bytes of a process; unlike its proportional share they do not depend on neighbours."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


def ended(events: Iterator[Any], first: Any) -> tuple[int, str]:
    """Return how many tokens a stream had in the end, and why it ended."""
    reason, tokens, chunks = "", 0, [first, *events]
    for chunk in chunks:
        reason = next((one.finish_reason for one in chunk.choices if one.finish_reason), reason)
        tokens = chunk.usage.completion_tokens if chunk.usage else tokens
    return tokens, reason


def test_a_stream_ends_whole_while_the_model_becomes_int8_and_memory_falls(tmp_path: Path) -> None:
    options = {
        "LLMOS_FORMAT": "bf16",
        "LLMOS_MAX_MODEL_LEN": "2048",
        "LLMOS_MEMORY_LIMIT_BYTES": str(2400 * MIB),
    }
    with runtime_process(tmp_path, str(packaged(CHAT)), "127.99.8.31", **options) as served:
        before = say(served)
        memory = served.report()["memory"]
        (engine,) = engines(served)
        held = resident(engine)
        reader = Reader(served)
        reader.start()
        events = stream(served)
        first = next(events)
        order(served, "requantise", precision="int8", budgetBytes=1100 * MIB, timeoutSeconds=600)
        assert ended(events, first) == (TOKENS, "length")
        change = changed(served)
        assert (change["state"], change["beside"], change["failure"]) == ("Done", True, None)
        after = say(served)
        assert after.system_fingerprint.split("-")[1] == "int8"
        assert after.choices[0].text.split()[0] == before.choices[0].text.split()[0]
        reader.stop.set()
        reader.join(120)
        assert reader.errors == []
        assert (reader.formats[0], reader.formats[-1]) == ("bf16", "int8")
        eventually(
            lambda: served.report()["memory"]["limitBytes"] == 1100 * MIB, "the old engine is gone", 60
        )
        report = served.report()
        assert report["model"]["format"] == "int8"
        assert report["model"]["maxModelLen"] == 2048
        assert report["memory"]["weightsBytes"] < 0.65 * memory["weightsBytes"]
        (engine,) = engines(served)
        freed = memory["weightsBytes"] - report["memory"]["weightsBytes"]
        assert resident(engine) < held - freed // 2
        assert report["memory"]["baseBytes"] == memory["baseBytes"]
        assert len(served.client.models.list().data) == 1


def test_without_room_for_both_requests_wait_and_a_failing_format_leaves_the_old_one(tmp_path: Path) -> None:
    options = {"LLMOS_FORMAT": "int8", "LLMOS_MAX_MODEL_LEN": "2048"}
    with runtime_process(tmp_path, str(packaged(CHAT)), "127.99.8.32", **options) as served:
        (record,) = tmp_path.glob("cache/quant/*/int8/record.json")
        memory = served.report()["memory"]
        # Weights at bf16 are twice those at int8: enough for them and one context, not for both.
        tight = memory["predictedBytes"] - memory["kvBytes"] + memory["weightsBytes"] + 110 * MIB
        order(served, "budget", memoryBytes=tight)
        eventually(lambda: served.report()["memory"]["limitBytes"] == tight, "the budget is taken", 60)
        events = stream(served)
        first = next(events)
        order(served, "requantise", precision="bf16", timeoutSeconds=600)
        assert ended(events, first) == (TOKENS, "length")
        assert say(served).usage.completion_tokens == 12  # it waited for the new format
        change = changed(served)
        assert (change["state"], change["beside"], change["failure"]) == ("Done", False, None)
        assert served.report()["model"]["format"] == "bf16"

        # A format that was found too costly by now does not come up.
        found = json.loads(record.read_text())
        found["quality"]["loss_milli"] = 9000
        record.write_text(json.dumps(found))
        (former,) = engines(served)
        order(served, "requantise", precision="int8", timeoutSeconds=600)
        assert say(served).usage.completion_tokens == 12  # it waited until the old format was there again
        change = changed(served)
        assert (change["state"], change["beside"]) == ("Failed", False)
        assert change["failure"]["reason"] == "QualityLossExceeded"
        report = served.report()
        assert (report["model"]["format"], report["state"], report["failure"]) == ("bf16", "Ready", None)
        assert engines(served) != [former]
