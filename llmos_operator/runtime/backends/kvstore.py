"""Where keys and values lie: one row of memory a slot and layer, contiguous in token order.

On the CPU the whole store is one anonymous mapping far larger than the budget; the kernel gives a page when it is
first written, so a slot costs what it holds, attention reads it in place, and a released slot's pages go back with
madvise. That is the paging of "paged attention" done by the machine's own page tables. On a GPU memory is not lazy, so
there the store has as many rows as the budget pays for.

Layout of one layer: [slot, token, key | value, kv head, head dim].
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor

    from llmos_operator.runtime.batching.plan import Copy

_PAGE = mmap.PAGESIZE
_NORESERVE = 0x4000  # MAP_NORESERVE of Linux: do not charge what is not touched


@dataclass(frozen=True, slots=True)
class KvGeometry:
    """Sizes of the store."""

    layers: int
    kv_heads: int
    head_dim: int
    slots: int
    slot_tokens: int
    dtype: torch.dtype
    device: torch.device

    @property
    def token_bytes(self) -> int:
        """Bytes of one token in one layer."""
        return 2 * self.kv_heads * self.head_dim * self.dtype.itemsize


class KvStore:
    """The tensors behind kvcache.KvCache, which does the accounting."""

    def __init__(self, geometry: KvGeometry) -> None:
        self.geometry = geometry
        pages_of_tokens = _PAGE // _gcd(_PAGE, geometry.token_bytes)
        self.slot_tokens = -(-geometry.slot_tokens // pages_of_tokens) * pages_of_tokens
        shape = (geometry.layers, geometry.slots * self.slot_tokens, 2, geometry.kv_heads, geometry.head_dim)
        self._map: mmap.mmap | None = None
        if geometry.device.type == "cpu":
            size = geometry.layers * geometry.slots * self.slot_tokens * geometry.token_bytes
            self._map = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE)
            if hasattr(mmap, "MADV_NOHUGEPAGE"):
                self._map.madvise(
                    mmap.MADV_NOHUGEPAGE
                )  # a 2 MiB page for one token would defeat the accounting
            self._rows = torch.frombuffer(self._map, dtype=geometry.dtype).view(shape)
        else:
            self._rows = torch.zeros(shape, dtype=geometry.dtype, device=geometry.device)
        self._by_layer = self._rows.unbind(0)

    @property
    def gives_back(self) -> bool:
        """Whether what a slot no longer holds is the machine's again; rows on a GPU are there as long as the store is."""
        return self._map is not None

    def layer(self, index: int) -> Tensor:
        """Return one layer as [slot * slot_tokens, 2, kv_heads, head_dim]."""
        return self._by_layer[index]

    def spans(self, slot: int, tokens: int) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Return views of the first ``tokens`` keys and values of a slot, one [kv_heads, tokens, head_dim] a layer."""
        start = slot * self.slot_tokens
        both = self._rows[:, start : start + tokens].permute(2, 0, 3, 1, 4)
        return both[0].unbind(0), both[1].unbind(0)

    def copy(self, copies: Iterable[Copy]) -> None:
        """Copy prefixes between slots, in order."""
        for one in copies:
            source, target = one.source * self.slot_tokens, one.target * self.slot_tokens
            self._rows[:, target : target + one.tokens] = self._rows[:, source : source + one.tokens]

    def release(self, released: Iterable[tuple[int, int]]) -> None:
        """Give back the memory of slots beyond so many tokens. Contents there are lost."""
        if self._map is None:
            return
        size = self.geometry.token_bytes
        for slot, kept in released:
            for layer in range(self.geometry.layers):
                row = (layer * self.geometry.slots + slot) * self.slot_tokens * size
                begin = row + -(-kept * size // _PAGE) * _PAGE
                end = row + self.slot_tokens * size
                if begin < end:
                    self._map.madvise(mmap.MADV_DONTNEED, begin, end - begin)


def _gcd(a: int, b: int) -> int:
    while b:
        a, b = b, a % b
    return a
