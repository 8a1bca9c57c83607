"""Who holds how much of the KV cache: slots, blocks and the prefix index. Pure accounting, no tensors.

A slot is a row of the cache that one sequence fills from its start; a block is KV_BLOCK_TOKENS tokens of memory. Live
slots belong to running sequences. When a sequence ends its slot stays behind as *cached*: it can still be the source
of a prefix, and it is the first thing to go when blocks or slots run short (least recently used first).

    used blocks = blocks of live slots + blocks of cached slots <= budget        (check() proves it)

A prefix is found by a chain of digests, one for each full block: equal digests mean equal tokens from the start, so
equal keys and values - if the same weights made them: the chain begins with a salt, one for each adapter. What a slot has computed never changes while it is live, so live slots are sources as well.
"""

from __future__ import annotations

import hashlib
from array import array
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llmos_operator.api.runtime.memory import KV_BLOCK_TOKENS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_DIGEST_BYTES = 16


@dataclass(frozen=True, slots=True)
class Admission:
    """A slot for a new sequence.

    ``reused`` tokens of its prefix are there already, or will be once the store has copied them from ``copy_from``.
    """

    slot: int
    reused: int = 0
    copy_from: int | None = None


@dataclass(slots=True)
class _Slot:
    blocks: int = 0
    salt: bytes = b""
    digests: list[bytes] = field(
        default_factory=list
    )  # of the full blocks whose keys and values are computed


class KvCache:
    """Accounting of ``slots`` rows of at most ``slot_tokens`` tokens under a budget of ``blocks``."""

    def __init__(
        self, *, blocks: int, slots: int, slot_tokens: int, prefix_caching: bool = True, beside: int = 0
    ) -> None:
        """``beside`` tokens more are counted for each slot: what a sequence has heard, which the store does not hold."""
        self.total_blocks = blocks
        self.beside = beside
        self.slot_tokens = slot_tokens
        self.prefix_caching = prefix_caching
        self._free_slots = list(range(slots - 1, -1, -1))
        self._live: dict[int, _Slot] = {}
        self._cached: OrderedDict[int, _Slot] = OrderedDict()  # least recently used first
        self._index: dict[bytes, dict[int, None]] = {}  # digest -> slots whose prefix has it, oldest first
        self._used = 0
        self._released: list[int] = []
        self.query_tokens = 0
        self.hit_tokens = 0

    @property
    def used_blocks(self) -> int:
        """Blocks of live and cached slots."""
        return self._used

    @property
    def live_blocks(self) -> int:
        """Blocks of running sequences alone."""
        return sum(slot.blocks for slot in self._live.values())

    def fits_ever(self, tokens: int) -> bool:
        """Return whether a sequence of ``tokens`` could run if it were alone."""
        return tokens <= self.slot_tokens and self._need(tokens) <= self.total_blocks

    def admit(self, tokens: Sequence[int], *, reuse: bool = True, salt: bytes = b"") -> Admission | None:
        """Give a slot with room for ``tokens``, evicting cached slots; None if there is no room.

        At least the last token is never taken from the cache: its logits have to be computed. ``salt`` (at most 64
        bytes) sets apart what equal tokens do not share: the adapter that computes them.
        """
        source, reused = (
            self._longest_prefix(tokens[:-1], salt) if reuse and self.prefix_caching else (None, 0)
        )
        need = self._need(len(tokens))
        whole = self._cached.get(source) if source is not None else None
        if whole is not None and len(whole.digests) * KV_BLOCK_TOKENS == reused:
            return self._take_over(source, need, reused)
        if not self._make_room(need, keep=source) or not self._make_slot(keep=source):
            # Without the source itself there may be room after all, and a take-over needs no second copy of it.
            return self._take_over(source, need, reused) if source in self._cached else None
        slot = self._free_slots.pop()
        self._live[slot] = _Slot(need, salt)
        self._used += need
        if source is None:
            return Admission(slot)
        if source in self._cached:
            self._cached.move_to_end(source)
        self._register(slot, self._holder(source).digests[: reused // KV_BLOCK_TOKENS])
        return Admission(slot, reused, source)

    def grow(self, slot: int, tokens: int) -> bool:
        """Make room for ``tokens`` in a live slot; False if only ending another sequence would give it."""
        holder = self._live[slot]
        more = self._need(tokens) - holder.blocks
        if more <= 0:
            return True
        if tokens > self.slot_tokens or not self._make_room(more, keep=None):
            return False
        holder.blocks += more
        self._used += more
        return True

    def computed(self, slot: int, tokens: Sequence[int], count: int) -> None:
        """Note that keys and values of the first ``count`` of ``tokens`` stand in a live slot."""
        known = len(self._live[slot].digests)
        if self.prefix_caching and count // KV_BLOCK_TOKENS > known:
            last = self._live[slot].digests[-1] if known else self._live[slot].salt
            new = list(_chain(tokens[known * KV_BLOCK_TOKENS : count], last))
            self._register(slot, new)

    def release(self, slot: int, *, keep: bool = True) -> None:
        """End a live slot; with ``keep`` its full blocks stay as a possible prefix."""
        holder = self._live.pop(slot)
        kept = len(holder.digests) if keep and self.prefix_caching else 0
        self._used -= holder.blocks - kept
        if kept:
            holder.blocks = kept
            self._cached[slot] = holder
        else:
            self._forget(slot, holder)

    def resize(self, blocks: int) -> bool:
        """Set the budget; evicts cached slots. False while live slots alone exceed it: preempt, then call again."""
        self.total_blocks = blocks
        return self._make_room(0, keep=None)

    def drop_cached(self) -> None:
        """Evict every cached slot."""
        while self._cached:
            self._evict_oldest(keep=None)

    def take_released(self) -> tuple[tuple[int, int], ...]:
        """Return (slot, tokens) for each slot freed since the last call: beyond ``tokens`` it holds nothing now.

        The store gives that memory back before anything is computed for the sequences admitted since.
        """
        released = dict.fromkeys(self._released)
        self._released.clear()
        holders = {slot: self._live.get(slot) or self._cached.get(slot) for slot in released}
        return tuple(
            (slot, holder.blocks * KV_BLOCK_TOKENS if holder else 0) for slot, holder in holders.items()
        )

    def check(self) -> None:
        """Raise AssertionError if the books do not balance (tests call it after every step)."""
        held = [*self._live.values(), *self._cached.values()]
        if self._used != sum(slot.blocks for slot in held):
            raise AssertionError(f"{self._used} blocks used, {sum(slot.blocks for slot in held)} held")
        if set(self._live) & set(self._cached) or (set(self._live) | set(self._cached)) & set(
            self._free_slots
        ):
            raise AssertionError("a slot is in two states")
        for digest, slots in self._index.items():
            for slot in slots:
                if digest not in self._holder(slot).digests:
                    raise AssertionError("the prefix index names a slot that lacks the block")

    # ------------------------------------------------------------ inside

    def _need(self, tokens: int) -> int:
        return blocks_of(tokens + self.beside)

    def _holder(self, slot: int) -> _Slot:
        return self._live.get(slot) or self._cached[slot]

    def _longest_prefix(self, tokens: Sequence[int], salt: bytes) -> tuple[int | None, int]:
        self.query_tokens += len(tokens)
        source, blocks = None, 0
        for digest in _chain(tokens, salt):
            slots = self._index.get(digest)
            if not slots:
                break
            source, blocks = next(reversed(slots)), blocks + 1
        self.hit_tokens += blocks * KV_BLOCK_TOKENS
        return source, blocks * KV_BLOCK_TOKENS

    def _take_over(self, slot: int | None, need: int, reused: int) -> Admission | None:
        """Make the cached ``slot`` live in place."""
        if slot is None:
            return None
        holder = self._cached[slot]
        if not self._make_room(need - holder.blocks, keep=slot):
            return None
        del self._cached[slot]
        self._unregister(slot, holder.digests[reused // KV_BLOCK_TOKENS :])
        del holder.digests[reused // KV_BLOCK_TOKENS :]
        self._used += need - holder.blocks
        holder.blocks = need
        self._live[slot] = holder
        return Admission(slot, reused)

    def _make_room(self, blocks: int, *, keep: int | None) -> bool:
        while self._used + blocks > self.total_blocks:
            if not self._evict_oldest(keep=keep):
                return False
        return True

    def _make_slot(self, *, keep: int | None) -> bool:
        return bool(self._free_slots) or self._evict_oldest(keep=keep)

    def _evict_oldest(self, *, keep: int | None) -> bool:
        slot = next((slot for slot in self._cached if slot != keep), None)
        if slot is None:
            return False
        holder = self._cached.pop(slot)
        self._used -= holder.blocks
        self._forget(slot, holder)
        return True

    def _forget(self, slot: int, holder: _Slot) -> None:
        self._unregister(slot, holder.digests)
        self._free_slots.append(slot)
        self._released.append(slot)

    def _register(self, slot: int, digests: list[bytes]) -> None:
        self._live[slot].digests += digests
        for digest in digests:
            self._index.setdefault(digest, {})[slot] = None

    def _unregister(self, slot: int, digests: list[bytes]) -> None:
        for digest in digests:
            slots = self._index[digest]
            del slots[slot]
            if not slots:
                del self._index[digest]


def blocks_of(tokens: int) -> int:
    """Return how many blocks hold ``tokens``."""
    return -(-tokens // KV_BLOCK_TOKENS)


def _chain(tokens: Sequence[int], parent: bytes) -> Iterator[bytes]:
    """Yield the digest of each full block of ``tokens``; each one covers everything before it."""
    for start in range(0, len(tokens) - KV_BLOCK_TOKENS + 1, KV_BLOCK_TOKENS):
        block = array("q", tokens[start : start + KV_BLOCK_TOKENS]).tobytes()
        parent = hashlib.blake2b(block, key=parent, digest_size=_DIGEST_BYTES).digest()
        yield parent
