"""Spans of a real runtime process with a real model: its load below the placement's span, and a request below the caller's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.support.models import CHAT, packaged
from tests.support.otlp import receiver
from tests.support.served import runtime_process

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.model

ADDRESS = "127.99.8.61"
PLACED = ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")
ASKED = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7")


def test_a_load_and_a_request_are_told_with_their_parts(tmp_path: Path) -> None:
    with receiver() as collector:
        environment = {
            "LLMOS_TRACING__ENDPOINT": collector.url,
            "TRACEPARENT": f"00-{'-'.join(PLACED)}-01",
            "OTEL_BSP_SCHEDULE_DELAY": "50",
        }
        with runtime_process(tmp_path, packaged(CHAT), ADDRESS, **environment) as served:
            load = collector.one("load")
            answer = served.client.chat.completions.create(
                model="m",
                messages=[{"role": "user", "content": "MARKER: say hello"}],
                max_tokens=5,
                temperature=0,
                extra_headers={"traceparent": f"00-{'-'.join(ASKED)}-01"},
            )
            request = collector.one("POST /v1/chat/completions")
            queue, prefill, decode = (collector.one(name) for name in ("queue", "prefill", "decode"))
    assert (load.trace, load.parent) == PLACED
    stages = [one for one in collector.spans if one.name.startswith("load ")]
    assert "load Loading" in {one.name for one in stages}
    assert {one.parent for one in stages} == {load.id}
    assert sum(one.end - one.start for one in stages) <= load.end - load.start + 0.001
    assert all(one.end > one.start for one in stages)
    assert (request.trace, request.parent) == ASKED
    assert answer.usage is not None
    assert request.attributes["gen_ai.usage.input_tokens"] == answer.usage.prompt_tokens
    assert request.attributes["gen_ai.usage.output_tokens"] == answer.usage.completion_tokens
    assert {one.parent for one in (queue, prefill, decode)} == {request.id}
    assert request.start <= queue.start <= prefill.start < decode.start < decode.end <= request.end
    first = request.attributes["gen_ai.server.time_to_first_token"]
    assert decode.start - queue.start <= first <= request.end - request.start
    assert b"MARKER" not in b"".join(collector.raw)
