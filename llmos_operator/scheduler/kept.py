"""What one plan worked out and the next one may ask for again."""

from __future__ import annotations

from typing import Generic, TypeVar

_V = TypeVar("_V")


class Kept(Generic[_V]):
    """Values by key, of this turn and of the one before; what neither asked for is forgotten."""

    __slots__ = ("_former", "_now")

    def __init__(self) -> None:
        self._former: dict[str, _V] = {}
        self._now: dict[str, _V] = {}

    def turn(self) -> None:
        """Begin another turn."""
        self._former, self._now = self._now, {}

    def get(self, key: str) -> _V | None:
        """Return what was kept; it is kept on only where it is put back."""
        return self._now.get(key) or self._former.get(key)

    def put(self, key: str, value: _V) -> None:
        """Keep a value for this turn and the next."""
        self._now[key] = value

    def __len__(self) -> int:
        return len(self._now)
