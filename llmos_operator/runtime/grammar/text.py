"""Grammars as text, in the Lark dialect of the engine's library (its documentation, "Syntax of LLGuidance Grammars"). Pure.

The front writes them without importing the library. JSON has one layout, that of Python's `json.dumps`: where white
space is free, small models fill their token limit with it.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

_LAYOUT = {"x-guidance": {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}}
ANY_OBJECT: dict[str, Any] = {"type": "object"}


def of_schema(schema: dict[str, Any]) -> str:
    """Return the grammar of values that keep to ``schema``."""
    return f"start: {embedded(schema)}\n"


def of_choice(choices: Sequence[str]) -> str:
    """Return the grammar that allows one of some texts."""
    return f"start: {' | '.join(map(literal, choices))}\n"


def of_regex(pattern: str) -> str:
    """Return the grammar of a whole text that matches a regular expression (Rust's syntax, without look-around)."""
    return f"start: /{_slashes_escaped(pattern)}/\n"


def embedded(schema: dict[str, Any]) -> str:
    """Return a schema as a part of a rule."""
    return "%json " + json.dumps({**schema, **_LAYOUT})


def literal(text: str) -> str:
    """Return a text as a part of a rule."""
    return json.dumps(text, ensure_ascii=False)


def _slashes_escaped(pattern: str) -> str:
    """A slash ends a pattern, so it is escaped where it is not yet; a line break is written as one."""
    found, escaped = [], False
    for char in pattern:
        if char == "/" and not escaped:
            found.append("\\")
        found.append({"\n": "\\n", "\r": "\\r"}.get(char, char))
        escaped = char == "\\" and not escaped
    return "".join(found)
