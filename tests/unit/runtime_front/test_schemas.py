"""Schemas of clients: what is enforced passes, faults are named by their place, sizes are bounded."""

from __future__ import annotations

from typing import Any

import pytest

from llmos_operator.runtime.answers import ApiError
from llmos_operator.runtime.grammar import schema, text


def _check(value: dict[str, Any], *, strict: bool = True) -> dict[str, Any]:
    return schema.checked(value, "s", strict=strict)


def test_what_is_enforced_stays_and_annotations_go() -> None:
    value = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "T",
        "type": "object",
        "properties": {
            "title": {"type": "string", "description": "d", "pattern": "^a", "format": "date"},
            "list": {"type": ["array", "null"], "items": {"$ref": "#/$defs/n"}, "maxItems": 3},
        },
        "required": ["title"],
        "additionalProperties": False,
        "$defs": {"n": {"anyOf": [{"const": {"title": 1}}, {"enum": [1, None]}, {"minimum": 0.5}]}},
    }
    assert _check(value) == {
        "type": "object",
        "properties": {
            "title": {"type": "string", "pattern": "^a", "format": "date"},
            "list": {"type": ["array", "null"], "items": {"$ref": "#/$defs/n"}, "maxItems": 3},
        },
        "required": ["title"],
        "additionalProperties": False,
        "$defs": {"n": {"anyOf": [{"const": {"title": 1}}, {"enum": [1, None]}, {"minimum": 0.5}]}},
    }


def _nested(depth: int) -> dict[str, Any]:
    value: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        value = {"type": "array", "items": value}
    return value


@pytest.mark.parametrize(
    ("value", "path", "words"),
    [
        ({"type": "text"}, "s.type", 'array, boolean, integer, null, number, object, string, got "text"'),
        ({"type": []}, "s.type", "at least one type"),
        ({"properties": {"a": {"items": {"type": 5}}}}, "s.properties.a.items.type", "got 5"),
        ({"properties": {"a b": {"type": "x"}}}, 's.properties["a b"].type', "got"),
        ({"properties": []}, "s.properties", "an object of schemas, got []"),
        ({"anyOf": []}, "s.anyOf", "a list of schemas"),
        ({"anyOf": [{}, 3]}, "s.anyOf[1]", "must be an object, got 3"),
        ({"items": [{}]}, "s.items", "must be an object"),
        ({"required": "a"}, "s.required", "a list of property names"),
        ({"enum": []}, "s.enum", "a list of values"),
        ({"minLength": -1}, "s.minLength", "0 to 1048576, got -1"),
        ({"maxItems": 1 << 30}, "s.maxItems", "0 to 1048576"),
        ({"maxItems": True}, "s.maxItems", "a whole number"),
        ({"minimum": "1"}, "s.minimum", "a number"),
        ({"pattern": 1}, "s.pattern", "a string"),
        ({"$ref": "https://example.com/s.json"}, "s.$ref", "only references inside"),
        ({"$ref": "#/$defs/a"}, "s.$ref", 'nothing stands at "#/$defs/a"'),
        ({"$ref": "#a"}, "s.$ref", "nothing stands at"),
        ({"not": {}}, "s.not", "cannot be enforced"),
        ({"items": {"uniqueItems": True}}, "s.items.uniqueItems", "cannot be enforced"),
        ({"format": "phone"}, "s.format", "cannot be enforced; use one of date,"),
        (_nested(33), "s" + ".items" * 33, "32 deep"),
        (_nested(900), "s" + ".items" * 33, "32 deep"),
        ({"properties": {f"p{i}": {} for i in range(1000)}}, "s", "more than 1000"),
        ({"enum": list(range(1001))}, "s.enum", "1000 values"),
        ({"const": "x" * (64 << 10)}, "s", "at most 65536"),
    ],
)
def test_a_fault_is_named_by_its_place(value: dict[str, Any], path: str, words: str) -> None:
    with pytest.raises(ApiError) as caught:
        _check(value)
    error = caught.value
    assert (error.status, error.code, error.param) == (400, "invalid_json_schema", "s")
    assert f"'{path[:200]}" in error.message
    assert words in error.message
    assert len(error.message) < 500


def test_without_strict_what_cannot_be_enforced_is_left_out() -> None:
    value = {"type": "string", "format": "phone", "not": {"const": "a"}, "x-guidance": {"lenient": True}}
    assert _check(value, strict=False) == {"type": "string"}
    with pytest.raises(ApiError, match="type"):
        _check({"type": "text"}, strict=False)


def test_references_may_go_round_and_into_any_schema() -> None:
    value = {
        "properties": {"a/b": {"type": "string"}, "c": {"$ref": "#/properties/a~1b"}, "d": {"$ref": "#"}}
    }
    assert _check(value) == value


def test_a_pattern_is_written_so_that_its_slashes_do_not_end_it() -> None:
    assert text.of_regex("a/b\\/c\\\\/d\n") == "start: /a\\/b\\/c\\\\\\/d\\n/\n"
