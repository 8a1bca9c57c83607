"""How model families write tool calls, found out from their chat templates, and grammars that force a call. Pure.

Hermes (Nous Research; Qwen, SmolLM and many others): `<tool_call>`, a JSON object with `name` and `arguments`,
`</tool_call>`, as often as there are calls. Llama 3: the whole answer is the JSON object, with `parameters`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmos_operator.runtime.grammar import text

if TYPE_CHECKING:
    from collections.abc import Mapping

_FREE_TEXT = "TEXT: /(.|\\n)*/\n"
_NO_OBJECT = "TEXT: /[^{](.|\\n)*/\n"


@dataclass(frozen=True, slots=True)
class ToolStyle:
    """One format. ``opening`` and ``closing`` stand around a call's JSON, each "" where a call is marked by nothing."""

    name: str
    arguments: str  # the key of a call's arguments
    opening: str = ""
    closing: str = ""


HERMES = ToolStyle("hermes", "arguments", "<tool_call>", "</tool_call>")
LLAMA = ToolStyle("llama", "parameters")


def style_of(source: str, *, mentions_tools: bool) -> ToolStyle | None:
    """Return the format that a chat template teaches; None if it is one that is not known here.

    A template that knows nothing of tools leaves the choice to us: `conversation` tells the model about Hermes'.
    """
    if not mentions_tools:
        return HERMES
    if HERMES.opening in source:
        # Qwen3-Coder writes XML inside the same tag.
        return None if "<function=" in source else HERMES
    return LLAMA if '"name": ' in source and '"parameters": ' in source else None


def forced_grammar(style: ToolStyle, functions: Mapping[str, dict[str, Any]], *, several: bool) -> str:
    """Return the grammar of one call, or of one and more, to any of ``functions`` (schemas of arguments by name)."""
    call = _call(style, functions)
    if style is LLAMA:
        return f'start: call{_more("; ", several=several)}\ncall: {call}\n'
    return f'start: call{_more(chr(10), several=several)}\ncall: {_marked(style, call)}\n'


def guarded_grammar(
    style: ToolStyle, functions: Mapping[str, dict[str, Any]], *, several: bool, answer: dict[str, Any] | None
) -> str:
    """Return the grammar of text, or of JSON by the schema ``answer``, in which calls keep to their schemas."""
    call = _call(style, functions)
    if answer is not None:
        rule = f"answer: {text.embedded(answer)}\n"
        if style is LLAMA:
            return f"start: {text.embedded(_either(style, functions, answer))}\n"
        return f"start: answer | call{_more(chr(10), several=several)}\n{rule}call: {_marked(style, call)}\n"
    if style is LLAMA:
        return f"start: TEXT | {call}\n{_NO_OBJECT}"
    body = f'"\\n" {call} {text.literal(chr(10) + style.closing)}'
    again = f" ({text.literal(chr(10) + style.opening)} body)*" if several else ""
    # Lazy: the first opening mark in the text begins a call.
    return f"start: TEXT | head body{again}\nhead[lazy]: TEXT {text.literal(style.opening)}\nbody: {body}\n{_FREE_TEXT}"


def base_of(name_place: int) -> str:
    """Return where the schema of a call's function stands in the grammar's own schema, as the base of its references."""
    return f"#/$defs/f{name_place}"


ANSWER_BASE = "#/$defs/answer"


def _more(separator: str, *, several: bool) -> str:
    return f" ({text.literal(separator)} call)*" if several else ""


def _marked(style: ToolStyle, call: str) -> str:
    return f"{text.literal(style.opening + chr(10))} {call} {text.literal(chr(10) + style.closing)}"


def _call(style: ToolStyle, functions: Mapping[str, dict[str, Any]]) -> str:
    return text.embedded(_either(style, functions, None))


def _either(
    style: ToolStyle, functions: Mapping[str, dict[str, Any]], answer: dict[str, Any] | None
) -> dict[str, Any]:
    """Return the schema of a call to any of the functions, or of the answer."""
    calls: list[dict[str, Any]] = [
        {
            "type": "object",
            "properties": {"name": {"const": name}, style.arguments: {"$ref": base_of(place)}},
            "required": ["name", style.arguments],
            "additionalProperties": False,
        }
        for place, name in enumerate(functions)
    ]
    definitions = {f"f{place}": schema for place, schema in enumerate(functions.values())}
    if answer is not None:
        calls.append({"$ref": ANSWER_BASE})
        definitions["answer"] = answer
    return {"anyOf": calls, "$defs": definitions}
