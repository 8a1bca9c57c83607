"""Tool calls out of streamed text: however it is cut into pieces, the same calls and never a piece of a mark."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llmos_operator.runtime.tools.reading import CallReader
from llmos_operator.runtime.tools.styles import HERMES, LLAMA, style_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from llmos_operator.runtime.tools.styles import ToolStyle

NAMES = frozenset({"weather", "time_in"})


@dataclass
class Read:
    text: str = ""
    calls: list[tuple[str, str]] = field(default_factory=list)
    shown: list[str] = field(default_factory=list)
    over: bool = False


def _read(style: ToolStyle, pieces: Iterable[str], *, most: int = 0, cut: bool = False) -> Read:
    reader, found, ids = CallReader(style, NAMES, most), Read(), set()
    for piece in [*pieces, None]:
        text, calls = reader.push(piece) if piece is not None else reader.end(cut=cut)
        found.text += text
        found.shown.append(text)
        for call in calls:
            if call.id:
                assert call.index == len(found.calls)
                ids.add(call.id)
                found.calls.append((call.name, call.arguments))
            else:
                name, arguments = found.calls[call.index]
                found.calls[call.index] = (name, arguments + call.arguments)
        if reader.over:
            break
    found.over = reader.over
    assert len(ids) == len(found.calls)
    return found


ARGS = '{"city": "Paris </tool_call> \\" }{", "days": [1, {"a": 2}]}'
ONE = f'<tool_call>\n{{"name": "weather", "arguments": {ARGS}}}\n</tool_call>'
TWO = '<tool_call>\n{"name": "time_in", "arguments": {}}\n</tool_call>'

HERMES_CASES = [
    (ONE, "", [("weather", ARGS)]),
    (f"{ONE}\n{TWO}", "", [("weather", ARGS), ("time_in", "{}")]),
    (f"I will look.\n\n{ONE}", "I will look.", [("weather", ARGS)]),
    (f"\n{ONE}\n", "", [("weather", ARGS)]),
    (f"{TWO} and {TWO}", " and", [("time_in", "{}"), ("time_in", "{}")]),
    ("Just text, with < and <tool and a line.\n", "Just text, with < and <tool and a line.\n", []),
    ("Ends in <tool_ca", "Ends in <tool_ca", []),
    # other orders, and lists, are read when the call is complete
    ('<tool_call>{"arguments": {"a": 1}, "name": "weather"}</tool_call>', "", [("weather", '{"a": 1}')]),
    (
        '<tool_call>[{"name": "weather", "arguments": {}}, {"name": "time_in", "arguments": {"z": 1}}]</tool_call>',
        "",
        [("weather", "{}"), ("time_in", '{"z": 1}')],
    ),
    ('<tool_call>{"name": "time_in"}</tool_call>', "", [("time_in", "{}")]),
    # what is no call is text
    ("a <tool_call>not json</tool_call> b", "a<tool_call>not json</tool_call> b", []),
    (
        '<tool_call>{"name": "rm", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "rm", "arguments": {}}</tool_call>',
        [],
    ),
    ('<tool_call>\n{"name": "weather", "arguments": {"city": "Par', "", [("weather", '{"city": "Par')]),
]


@pytest.mark.parametrize(("text", "shown", "calls"), HERMES_CASES)
def test_hermes(text: str, shown: str, calls: list[tuple[str, str]]) -> None:
    for size in (1, 2, 3, 7, len(text)):
        found = _read(HERMES, [text[at : at + size] for at in range(0, len(text), size)])
        assert (found.text, found.calls) == (shown, calls), size


LLAMA_CASES = [
    ('{"name": "weather", "parameters": {"city": "P"}}', "", [("weather", '{"city": "P"}')]),
    ('\n{"type": "function", "name": "weather", "parameters": {}}', "", [("weather", "{}")]),
    (
        '{"name": "weather", "parameters": {}}; {"name": "time_in", "parameters": {"a": 1}}',
        "",
        [("weather", "{}"), ("time_in", '{"a": 1}')],
    ),
    ('{"city": "Paris"} is JSON', '{"city": "Paris"} is JSON', []),
    ('{"name": "rm", "parameters": {}}', '{"name": "rm", "parameters": {}}', []),
    ('{"name": "weather"}', "", [("weather", "{}")]),
    ("Text {and more}", "Text {and more}", []),
    ('{"na', '{"na', []),
]


@pytest.mark.parametrize(("text", "shown", "calls"), LLAMA_CASES)
def test_llama(text: str, shown: str, calls: list[tuple[str, str]]) -> None:
    for size in (1, 2, 5, len(text)):
        found = _read(LLAMA, [text[at : at + size] for at in range(0, len(text), size)])
        assert (found.text, found.calls) == (shown, calls), size


@given(
    parts=st.lists(
        st.sampled_from(
            [ONE, TWO, "text ", "<", "<tool_call", "</tool_call>", "{", "}", '"', "\n", "é", "\\"]
        ),
        max_size=8,
    ),
    cuts=st.lists(st.integers(1, 9), min_size=1, max_size=20),
)
def test_how_a_text_is_cut_changes_nothing(parts: list[str], cuts: list[int]) -> None:
    text = "".join(parts)
    pieces, at, turn = [], 0, 0
    while at < len(text):
        size = cuts[turn % len(cuts)]
        pieces.append(text[at : at + size])
        at, turn = at + size, turn + 1
    for style in (HERMES, LLAMA):
        cut, whole = _read(style, pieces), _read(style, [text])
        assert (cut.text, cut.calls) == (whole.text, whole.calls)


def test_arguments_stream_as_they_come() -> None:
    reader = CallReader(HERMES, NAMES)
    assert reader.push('<tool_call>\n{"name": "weather", ') == ("", [])
    _, begun = reader.push('"arguments": {"ci')
    assert [(one.name, one.arguments) for one in begun] == [("weather", ""), ("", '{"ci')]
    _, more = reader.push('ty": "P"')
    assert [(one.id, one.arguments) for one in more] == [("", 'ty": "P"')]


def test_when_one_call_is_allowed_nothing_follows_it() -> None:
    found = _read(HERMES, list(f"Hm. {TWO}\n{ONE} more"), most=1)
    assert (found.text, found.calls, found.over) == ("Hm.", [("time_in", "{}")], True)


def test_a_call_that_was_cut_off_in_its_head_leaves_nothing() -> None:
    found = _read(HERMES, ['Yes <tool_call>\n{"name": "wea'], cut=True)
    assert (found.text, found.calls) == ("Yes", [])


def test_styles_are_told_by_the_template() -> None:
    assert style_of("{{ messages }}", mentions_tools=False) is HERMES
    assert style_of("{% if tools %}<tool_call>{% endif %}", mentions_tools=True) is HERMES
    assert style_of("""{{ tools }}{"name": function name, "parameters": {}}""", mentions_tools=True) is LLAMA
    for unknown in ("{{ tools }}[TOOL_CALLS]", "{{ tools }}<tool_call><function=x>"):
        assert style_of(unknown, mentions_tools=True) is None


def test_json_of_the_cases_is_json() -> None:
    assert json.loads(ARGS)["days"] == [1, {"a": 2}]
