"""Reading untyped JSON with the field path in every error, so that a person can find what to fix."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from llmos_operator.api.conditions import Reason
from llmos_operator.errors import Permanent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from enum import StrEnum

_E = TypeVar("_E", bound="StrEnum")
_T = TypeVar("_T")
_SHOWN = 64
_INT64 = (1 << 63) - 1
_NOTHING: Mapping[str, Any] = {}


def invalid(path: str, message: str) -> Permanent:
    """Return the error for one field; `path` is dotted, from the object's root."""
    return Permanent(f"{path}: {message}", reason=Reason.INVALID_SPEC)


def shown(value: object) -> str:
    """Return a value for a message, cut so that hostile input cannot fill a log."""
    text = repr(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


class Fields:
    """One JSON object and where it stands. Absent and null fields read as the default."""

    __slots__ = ("data", "path")

    def __init__(self, data: object, path: str = "") -> None:
        if data is None:
            data = _NOTHING
        if not isinstance(data, dict) and data is not _NOTHING:
            raise invalid(path, f"{shown(data)} is not an object")
        self.data: Mapping[str, Any] = data
        self.path = path

    def __bool__(self) -> bool:
        return bool(self.data)

    def at(self, name: str) -> str:
        """Return the path of a field."""
        return f"{self.path}.{name}" if self.path else name

    def has(self, name: str) -> bool:
        """Return whether the field is there and not null."""
        return self.data.get(name) is not None

    def child(self, name: str) -> Fields:
        """Return a nested object; an empty one if it is absent."""
        return Fields(self.data.get(name), self.at(name))

    def text(self, name: str, default: str = "") -> str:
        """Return a string field."""
        value = self.data.get(name)
        if value is None:
            return default
        if not isinstance(value, str):
            raise invalid(self.at(name), f"{shown(value)} is not a string")
        return value

    def required(self, name: str) -> str:
        """Return a string field that must not be empty."""
        value = self.text(name)
        if not value:
            raise invalid(self.at(name), "is required and must not be empty")
        return value

    def flag(self, name: str, *, default: bool = False) -> bool:
        """Return a boolean field."""
        value = self.data.get(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise invalid(self.at(name), f"{shown(value)} is not true or false")
        return value

    def number(self, name: str, default: int = 0, least: int = 0, most: int = _INT64) -> int:
        """Return an integer field from `least` to `most`."""
        value = self.data.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int):
            raise invalid(self.at(name), f"{shown(value)} is not a whole number")
        if value < least:
            raise invalid(self.at(name), f"{shown(value)} is below {least}")
        if value > most:
            raise invalid(self.at(name), f"{shown(value)} is above {most}")
        return value

    def choice(self, name: str, kind: type[_E], default: _E) -> _E:
        """Return an enumeration field."""
        text = self.text(name)
        if not text:
            return default
        try:
            return kind(text)
        except ValueError:
            words = ", ".join(kind)
            raise invalid(self.at(name), f"{shown(text)} is not one of {words}") from None

    def parsed(self, name: str, parse: Callable[[Any], _T], default: _T) -> _T:
        """Return a field read by one of `api.quantity`'s parsers (they raise ValueError)."""
        value = self.data.get(name)
        if value is None:
            return default
        try:
            return parse(value)
        except (ValueError, TypeError) as error:
            raise invalid(self.at(name), str(error)) from error

    def items(self, name: str) -> list[Any]:
        """Return a list field as it is."""
        value = self.data.get(name)
        if value is None:
            return []
        if not isinstance(value, list):
            raise invalid(self.at(name), f"{shown(value)} is not a list")
        return value

    def objects(self, name: str) -> Iterator[Fields]:
        """Yield the objects of a list field."""
        for i, value in enumerate(self.items(name)):
            yield Fields(value, f"{self.at(name)}[{i}]")

    def texts(self, name: str) -> tuple[str, ...]:
        """Return a list of strings."""
        for i, value in enumerate(self.items(name)):
            if not isinstance(value, str):
                raise invalid(f"{self.at(name)}[{i}]", f"{shown(value)} is not a string")
        return tuple(self.items(name))

    def labels(self, name: str) -> dict[str, str]:
        """Return a map of strings."""
        return {k: v for k, v in self.child(name).data.items() if isinstance(v, str)}
