"""JSON schemas as clients send them: bounded, checked, and each fault named by its place. Pure.

What is enforced is what the grammar library enforces (its documentation, "Supported JSON schema features"). Beyond
that, `strict` decides: a strict schema with a keyword that cannot be enforced is refused, of another one the keyword is
left out. Annotations never reach the engine.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from llmos_operator.runtime.answers import bad_request, shown

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmos_operator.runtime.answers import ApiError

MAX_CHARACTERS = 64 << 10  # of the schema as JSON
MAX_DEPTH = 32  # schemas inside schemas
MAX_SCHEMAS = 1000  # OpenAI's bound is 5000 properties; compiling them takes seconds
MAX_VALUES = 1000  # of all enums together, as OpenAI's
MAX_REPEAT = 1 << 20  # of minLength, maxItems and their kind
_SHOWN_PATH = 200

_TYPES = frozenset({"string", "number", "integer", "boolean", "null", "array", "object"})
_FORMATS = frozenset(
    {
        "date-time",
        "time",
        "date",
        "duration",
        "email",
        "hostname",
        "ipv4",
        "ipv6",
        "uuid",
        "uri",
        "unknown",
    }
)
_ANNOTATIONS = frozenset(
    {
        "title",
        "description",
        "default",
        "examples",
        "example",
        "deprecated",
        "readOnly",
        "writeOnly",
        "$schema",
        "$id",
        "id",
        "$comment",
        "$anchor",
        "contentEncoding",
        "contentMediaType",
        "discriminator",
        "nullable",
    }
)
_SCHEMA_MAPS = frozenset({"properties", "patternProperties", "$defs", "definitions"})
_SCHEMA_LISTS = frozenset({"anyOf", "allOf", "oneOf", "prefixItems"})
_COUNTS = frozenset({"minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"})
_BOUNDS = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"})


def checked(schema: dict[str, Any], param: str, *, strict: bool, base: str = "#") -> dict[str, Any]:
    """Return what of ``schema`` is enforced, with its references as from ``base``, where it will stand.

    Raises ApiError (400) naming the place below ``param`` and the reason.
    """
    return _Check(schema, param, base, strict=strict).run()


class _Check:
    """One walk through one schema."""

    def __init__(self, root: dict[str, Any], param: str, base: str, *, strict: bool) -> None:
        self._root = root
        self._param = param
        self._base = base
        self._strict = strict
        self._schemas = self._values = 0
        self._references: list[tuple[str, str]] = []  # (path, reference)

    def run(self) -> dict[str, Any]:
        """Return the cleaned schema."""
        found = self._schema(self._root, self._param, 0)
        length = len(json.dumps(self._root))
        if length > MAX_CHARACTERS:
            raise self._fault(
                self._param, f"the schema has {length} characters, at most {MAX_CHARACTERS} are allowed"
            )
        for path, reference in self._references:
            if not _points_into(found, reference):
                raise self._fault(path, f"nothing stands at {shown(reference)}")
        if not isinstance(found, dict):
            raise self._fault(self._param, "the schema must be an object")
        return found

    def _schema(self, value: Any, path: str, depth: int) -> Any:
        if isinstance(value, bool):
            return value
        if not isinstance(value, dict):
            raise self._fault(path, f"a schema must be an object, got {shown(value)}")
        if depth > MAX_DEPTH:
            raise self._fault(path, f"schemas may be nested {MAX_DEPTH} deep")
        self._schemas += 1
        if self._schemas > MAX_SCHEMAS:
            raise self._fault(self._param, f"it has more than {MAX_SCHEMAS} schemas and properties")
        found = {}
        for key, inner in value.items():
            here = f"{path}.{key}" if key.isidentifier() or key.startswith("$") else f"{path}[{shown(key)}]"
            kept = self._keyword(key, inner, here, depth)
            if kept is not None:
                found[key] = kept
        return found

    def _keyword(self, key: str, value: Any, path: str, depth: int) -> Any:
        """Return what is kept of a keyword, None for nothing."""
        if key in _ANNOTATIONS:
            return None
        if key in _SCHEMA_MAPS:
            self._need(isinstance(value, dict), path, "an object of schemas", value)
            return {
                name: self._schema(
                    one, f"{path}.{name}" if name.isidentifier() else f"{path}[{shown(name)}]", depth + 1
                )
                for name, one in value.items()
            }
        if key in _SCHEMA_LISTS:
            self._need(isinstance(value, list) and bool(value), path, "a list of schemas", value)
            return [self._schema(one, f"{path}[{place}]", depth + 1) for place, one in enumerate(value)]
        if key in {"items", "additionalProperties"}:
            return self._schema(value, path, depth + 1)
        check = _CHECKS.get(key)
        if check is not None:
            check(self, value, path)
            return self._kept(key, value, path)
        if self._strict:
            raise self._fault(
                path, f"the keyword {shown(key)} cannot be enforced; leave it out or set 'strict' to false"
            )
        return None

    def _kept(self, key: str, value: Any, path: str) -> Any:
        if key == "$ref":
            return self._base + value[1:]
        if key != "format" or value in _FORMATS:
            return value
        if self._strict:
            known = ", ".join(sorted(_FORMATS - {"unknown"}))
            raise self._fault(path, f"the format {shown(value)} cannot be enforced; use one of {known}")
        return None

    # ------------------------------------------------------------ single keywords

    def check_type(self, value: Any, path: str) -> None:
        """A name, or a list of names."""
        names = value if isinstance(value, list) else [value]
        for name in names:
            good = isinstance(name, str) and name in _TYPES
            self._need(good, path, "one of " + ", ".join(sorted(_TYPES)), name)
        self._need(bool(names), path, "at least one type", value)

    def check_enum(self, value: Any, path: str) -> None:
        """A list of values."""
        self._need(isinstance(value, list) and bool(value), path, "a list of values", value)
        self._values += len(value)
        if self._values > MAX_VALUES:
            raise self._fault(path, f"all enums together may have {MAX_VALUES} values")

    def check_required(self, value: Any, path: str) -> None:
        """Names of properties."""
        good = isinstance(value, list) and all(isinstance(one, str) for one in value)
        self._need(good, path, "a list of property names", value)

    def check_text(self, value: Any, path: str) -> None:
        """A string."""
        self._need(isinstance(value, str), path, "a string", value)

    def check_reference(self, value: Any, path: str) -> None:
        """A place inside the same schema; looked up at the end of the walk."""
        self._need(isinstance(value, str), path, "a string", value)
        if not value.startswith("#"):
            raise self._fault(path, f"only references inside the schema are followed, got {shown(value)}")
        self._references.append((path, value))

    def check_count(self, value: Any, path: str) -> None:
        """How many characters, items or properties."""
        good = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_REPEAT
        self._need(good, path, f"a whole number from 0 to {MAX_REPEAT}", value)

    def check_bound(self, value: Any, path: str) -> None:
        """A limit of numbers."""
        self._need(isinstance(value, int | float) and not isinstance(value, bool), path, "a number", value)

    def check_anything(self, value: Any, path: str) -> None:
        """A constant may be any value."""

    # ------------------------------------------------------------

    def _need(self, good: bool, path: str, wanted: str, value: Any) -> None:
        if not good:
            raise self._fault(path, f"it should be {wanted}, got {shown(value)}")

    def _fault(self, path: str, reason: str) -> ApiError:
        if len(path) > _SHOWN_PATH:
            path = path[:_SHOWN_PATH] + "…"
        return bad_request("invalid_json_schema", f"Invalid schema at '{path}': {reason}.", self._param)


_CHECKS: dict[str, Callable[[_Check, Any, str], None]] = {
    "type": _Check.check_type,
    "enum": _Check.check_enum,
    "required": _Check.check_required,
    "pattern": _Check.check_text,
    "format": _Check.check_text,
    "$ref": _Check.check_reference,
    "const": _Check.check_anything,
    **dict.fromkeys(_COUNTS, _Check.check_count),
    **dict.fromkeys(_BOUNDS, _Check.check_bound),
}


def _points_into(schema: Any, reference: str) -> bool:
    """Whether a JSON pointer (RFC 6901, as a URI fragment) names a schema."""
    at = schema
    for part in reference.removeprefix("#").split("/")[1:]:
        name = part.replace("~1", "/").replace("~0", "~")
        if isinstance(at, dict) and name in at:
            at = at[name]
        elif isinstance(at, list) and name.isdecimal() and int(name) < len(at):
            at = at[int(name)]
        else:
            return False
    return isinstance(at, dict | bool) and (reference == "#" or reference.startswith("#/"))
