"""Streamed answers that are read beside the test: begun, in flight, and judged when they have ended."""

from __future__ import annotations

import json
import threading
import urllib.request
from typing import Any

_BETWEEN_TOKENS = 120.0  # seconds without a byte: far more than the slowest machine needs


class Stream(threading.Thread):
    """One streamed chat answer of ``tokens`` tokens, whatever the model would say by itself."""

    def __init__(self, base: str, model: str, tokens: int, *, count_from: int = 1) -> None:
        super().__init__(daemon=True)
        self.url = f"{base}/v1/chat/completions"
        self.body = {
            "model": model,
            "messages": [{"role": "user", "content": f"Count from {count_from}."}],
            "max_tokens": tokens,
            "min_tokens": tokens,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        self.begun = threading.Event()  # the first token is here
        self.ended = threading.Event()
        self.finish = ""
        self.tokens = 0
        self.problem = ""
        self.start()

    def run(self) -> None:
        try:
            self._read()
        except Exception as error:  # noqa: BLE001 - what a client would see is the finding
            self.problem = f"{type(error).__name__}: {error}"
        finally:
            self.begun.set()
            self.ended.set()

    def _read(self) -> None:
        body, kind = json.dumps(self.body).encode(), {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url, data=body, headers=kind)  # noqa: S310
        done = False
        with urllib.request.urlopen(request, timeout=_BETWEEN_TOKENS) as reply:  # noqa: S310
            for line in reply:
                if line.strip() == b"data: [DONE]":
                    done = True
                elif line.startswith(b"data: "):
                    self._take(json.loads(line.removeprefix(b"data: ")))
        if not done:
            raise ConnectionError("the stream ended without [DONE]")

    def _take(self, event: dict[str, Any]) -> None:
        if "error" in event:
            raise ConnectionError(str(event["error"]))
        if event.get("usage"):
            self.tokens = event["usage"]["completion_tokens"]
        for choice in event.get("choices", []):
            self.finish = choice.get("finish_reason") or self.finish
            if (choice.get("delta") or {}).get("content"):
                self.begun.set()

    def in_flight(self) -> None:
        """Wait for the first token; fail if there is none, or if the answer has ended already."""
        assert self.begun.wait(_BETWEEN_TOKENS), "no token came"
        assert not self.ended.is_set(), f"it has ended already: {self.problem or self.finish}"

    def whole(self) -> None:
        """Wait for the end; fail unless the answer is all that was asked for."""
        assert self.ended.wait(4 * _BETWEEN_TOKENS), "it did not end"
        assert not self.problem, self.problem
        got, asked = (self.finish, self.tokens), ("length", self.body["max_tokens"])
        assert got == asked, f"it ended with {got} instead of {asked}"
