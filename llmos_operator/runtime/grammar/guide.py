"""One answer's place in its grammar."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llmos_operator.errors import Permanent

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llguidance import LLMatcher


class Guide:
    """Says which tokens may come next. It follows the sequence: the scheduler tells it each token that was kept.

    A preempted sequence keeps its guide, because its tokens stay; drafts are tried and taken back.
    """

    __slots__ = ("_eos", "_matcher", "trouble")

    def __init__(self, matcher: LLMatcher, eos_token_ids: Sequence[int]) -> None:
        """``matcher`` stands at the beginning and belongs to this guide alone."""
        self._matcher = matcher
        self._eos = tuple(eos_token_ids)
        self.trouble = ""  # why the guide cannot go on; the request has to end

    def masks(self, drafts: Sequence[int] = ()) -> list[bytes | None]:
        """Return the tokens allowed next and after each of ``drafts``, one bit a token, lowest bit first.

        None where anything may be sampled, since it is thrown away: after a draft that is not allowed.
        """
        found: list[bytes | None] = [self._mask()]
        tried = 0
        for draft in drafts:
            if draft in self._eos or self.trouble or self._matcher.try_consume_tokens([draft]) != 1:
                break
            tried += 1
            found.append(self._mask())
        if tried and not self._matcher.rollback(tried):
            self._fail()
        return found + [None] * (len(drafts) + 1 - len(found))

    def take(self, token: int) -> bool:
        """Move past a kept token; return whether the answer is complete, so that nothing may follow."""
        if token in self._eos:
            return True
        if not self._matcher.consume_token(token):
            self._fail()
        return bool(self._matcher.is_stopped())

    def _mask(self) -> bytes | None:
        mask = self._matcher.compute_bitmask()
        if self._matcher.is_error():
            self._fail()
            return None
        if not (self._eos and self._allows(mask, self._eos[0])):
            return mask
        # The library knows one end of text, models have several.
        wide = bytearray(mask)
        for token in self._eos:
            wide[token >> 3] |= 1 << (token & 7)
        return bytes(wide)

    @staticmethod
    def _allows(mask: bytes, token: int) -> bool:
        return bool(mask[token >> 3] >> (token & 7) & 1)

    def _fail(self) -> None:
        text = self._matcher.get_error().partition("\n")[0]
        self.trouble = self.trouble or f"the grammar could not be followed: {text or 'unknown trouble'}"


class BadGrammar(Permanent):
    """A grammar cannot be used; the request is at fault."""

    def __init__(self, message: str) -> None:
        super().__init__(message, reason="BadGrammar")
