"""What a request binds its answer to: from `response_format` or `structured_outputs` to a grammar."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmos_operator.runtime.answers import bad_request
from llmos_operator.runtime.grammar import schema, text

if TYPE_CHECKING:
    from llmos_operator.runtime.protocol import ResponseFormat, Sampling, StructuredOutputs


@dataclass(frozen=True, slots=True)
class Form:
    """A grammar and the field that asked for it; both "" where the answer is free."""

    grammar: str = ""
    param: str = ""
    schema: dict[str, Any] | None = None  # what the grammar was made of, if it is JSON


FREE = Form()


def form_of(body: Sampling, response_format: ResponseFormat | None = None, *, base: str = "#") -> Form:
    """Return the form a request asks for; ``base`` is where its schema will stand.

    Raises ApiError (400) naming the place in a schema that is at fault.
    """
    found = _of_format(response_format, base) if response_format is not None else FREE
    if body.structured_outputs is not None:
        if found.grammar:
            text_ = "'structured_outputs' and 'response_format' cannot be combined."
            raise bad_request("invalid_value", text_, "structured_outputs")
        found = _of_structured(body.structured_outputs)
    if found.grammar:
        refuse_endless(body, found.param)
    return found


def refuse_endless(body: Sampling, param: str) -> None:
    """Refuse what would make an answer go on after its form is complete. Raises ApiError (400)."""
    for name, given in (("ignore_eos", body.ignore_eos), ("min_tokens", body.min_tokens)):
        if given:
            raise bad_request("invalid_value", f"'{name}' cannot be combined with '{param}'.", name)


def _of_format(wanted: ResponseFormat, base: str) -> Form:
    if wanted.type == "text":
        return FREE
    if wanted.type == "json_object":
        return _of_schema(text.ANY_OBJECT, "response_format")
    named = wanted.json_schema
    if named is None:
        param = "response_format.json_schema"
        raise bad_request("missing_required_parameter", f"Missing required parameter: '{param}'.", param)
    param = "response_format.json_schema.schema"
    if named.schema_ is None:
        return _of_schema(text.ANY_OBJECT, param)
    return _of_schema(schema.checked(named.schema_, param, strict=bool(named.strict), base=base), param)


def _of_structured(wanted: StructuredOutputs) -> Form:
    if wanted.choice is not None:
        return Form(text.of_choice(wanted.choice), "structured_outputs.choice")
    if wanted.regex is not None:
        return Form(text.of_regex(wanted.regex), "structured_outputs.regex")
    param = "structured_outputs.json"
    return _of_schema(schema.checked(wanted.json_ or {}, param, strict=False), param)


def _of_schema(checked: dict[str, Any], param: str) -> Form:
    return Form(text.of_schema(checked), param, checked)
