"""From a grammar's text to a guide, on a thread of its own, so that the running batch does not wait for it.

Bounds hold for every grammar: its size, the states of its lexer (1 to 2 KiB each), the work of compiling it and that of
one mask. The library lets go of the interpreter lock while it compiles. A tokenizer's trie is built with the first
grammar and takes about half a CPU second and 50 MB for 49 thousand tokens.
"""

from __future__ import annotations

from collections import OrderedDict
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from llmos_operator.runtime.grammar.guide import BadGrammar, Guide

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llguidance import LLMatcher, LLParserLimits, LLTokenizer

MAX_GRAMMAR_CHARACTERS = 256 << 10
KEPT = 16  # compiled grammars; answers of one application share a few
_LEXER_STATES = 20_000
_GRAMMAR_SYMBOLS = 100_000
_ROW_ITEMS = 5000  # an object of a thousand optional properties takes four thousand
_SHOWN = 300
_UNSATISFIABLE = "no text can satisfy it"


class GrammarCompiler:
    """Compiles for one model's tokenizer."""

    def __init__(self, model_dir: str, vocab_size: int, eos_token_ids: Sequence[int]) -> None:
        self._path = Path(model_dir) / "tokenizer.json"
        self._vocab_size = vocab_size
        self._eos = tuple(eos_token_ids)
        self._tokenizer: LLTokenizer | None = None
        self._compiled: OrderedDict[str, LLMatcher] = OrderedDict()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="grammar")

    def compile(self, grammar: str) -> Future[Guide]:
        """Return a guide at the grammar's beginning, later. The future raises BadGrammar."""
        return self._thread.submit(self._guide, grammar)

    def close(self) -> None:
        """End the thread after what it does now."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _guide(self, grammar: str) -> Guide:
        matcher = self._compiled.get(grammar)
        if matcher is None:
            matcher = self._compiled[grammar] = self._compile(grammar)
            while len(self._compiled) > KEPT:
                self._compiled.popitem(last=False)
        self._compiled.move_to_end(grammar)
        return Guide(matcher.deep_copy(), self._eos)

    def _compile(self, grammar: str) -> LLMatcher:
        # Only engines that are asked for a form pay for the library.
        from llguidance import LLMatcher  # noqa: PLC0415

        if len(grammar) > MAX_GRAMMAR_CHARACTERS:
            raise BadGrammar(
                f"the grammar has {len(grammar)} characters, at most {MAX_GRAMMAR_CHARACTERS} are allowed"
            )
        matcher = LLMatcher(self._tokens(), grammar, log_level=0, limits=_limits())
        if not matcher.is_error():
            matcher.compute_bitmask()  # the first mask builds what all later ones share
        if matcher.is_error():
            raise BadGrammar(_reason(matcher.get_error()))
        if matcher.is_stopped():
            raise BadGrammar(_UNSATISFIABLE)
        return matcher

    def _tokens(self) -> LLTokenizer:
        from llguidance import LLTokenizer  # noqa: PLC0415

        if self._tokenizer is None:
            eos = self._eos[0] if self._eos else None
            try:
                self._tokenizer = LLTokenizer(str(self._path), n_vocab=self._vocab_size, eos_token=eos)
            except ValueError as error:
                raise BadGrammar(f"this model's tokenizer cannot follow a form: {error}") from error
        return self._tokenizer


def _limits() -> LLParserLimits:
    from llguidance import LLParserLimits  # noqa: PLC0415

    return LLParserLimits(
        max_lexer_states=_LEXER_STATES,
        max_grammar_size=_GRAMMAR_SYMBOLS,
        max_items_in_row=_ROW_ITEMS,
        verbose_errors=False,  # an error must not repeat the grammar
    )


def _reason(error: str) -> str:
    """Return the library's reason without its traces of the grammar around it."""
    lines = [line.strip() for line in error.splitlines() if line.strip()] or ["unknown trouble"]
    if lines[0].startswith("NoExtension"):
        return _UNSATISFIABLE
    # A bad pattern is drawn over several lines; the reason stands in the last of them.
    reason = next((line for line in lines if line.startswith("error: ")), lines[0])
    return reason.removeprefix("error: ").rpartition("failed to compile JSON schema: ")[2][:_SHOWN]
