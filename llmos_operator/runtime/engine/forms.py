"""Requests whose grammar is being compiled: they join the queue once it is."""

from __future__ import annotations

from concurrent import futures
from typing import TYPE_CHECKING

from llmos_operator.runtime.grammar.compiler import GrammarCompiler
from llmos_operator.runtime.grammar.guide import BadGrammar, Guide

if TYPE_CHECKING:
    from concurrent.futures import Future

    from llmos_operator.runtime.ipc.messages import EngineInfo, Submit

PAUSE_SECONDS = 0.01  # an idle engine waits so long for the compiler before it reads its socket again


class Forms:
    """Compiles beside the step loop."""

    def __init__(self, info: EngineInfo) -> None:
        self._compiler = GrammarCompiler(info.model_dir, info.vocab_size, info.eos_token_ids)
        self._compiling: dict[str, tuple[Submit, Future[Guide]]] = {}

    @property
    def pending(self) -> int:
        """Requests whose grammar is not ready."""
        return len(self._compiling)

    @property
    def adapters(self) -> frozenset[str]:
        """Adapters of those requests."""
        return frozenset(submit.adapter for submit, _ in self._compiling.values())

    def compile(self, submit: Submit) -> str:
        """Begin; return "" or what is wrong with the request."""
        if submit.request_id in self._compiling:
            return f"request id {submit.request_id!r} is in use"
        self._compiling[submit.request_id] = (submit, self._compiler.compile(submit.grammar))
        return ""

    def cancel(self, request_id: str) -> bool:
        """Forget a request; False if it is not here."""
        found = self._compiling.pop(request_id, None)
        return found is not None and (found[1].cancel() or True)

    def cancel_all(self) -> list[str]:
        """Forget everything and return the ids."""
        gone = list(self._compiling)
        for request_id in gone:
            self.cancel(request_id)
        return gone

    def finished(self, *, wait: bool) -> list[tuple[Submit, Guide | None, str]]:
        """Return the requests that are ready, with their guide or why there is none; ``wait`` a moment for the first."""
        if wait and self._compiling:
            running = [future for _, future in self._compiling.values()]
            futures.wait(running, timeout=PAUSE_SECONDS, return_when=futures.FIRST_COMPLETED)
        done = [one for one, (_, future) in self._compiling.items() if future.done()]
        return [_result(*self._compiling.pop(one)) for one in done]


def _result(submit: Submit, future: Future[Guide]) -> tuple[Submit, Guide | None, str]:
    try:
        return submit, future.result(), ""
    except BadGrammar as error:
        return submit, None, str(error)
