"""What `tools` and `tool_choice` make of a request: which tools the model sees, what binds its answer, what is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from llmos_operator.runtime.answers import bad_request, shown
from llmos_operator.runtime.forms import Form, form_of, refuse_endless
from llmos_operator.runtime.grammar import schema
from llmos_operator.runtime.protocol import NamedToolChoice
from llmos_operator.runtime.tools.reading import CallReader
from llmos_operator.runtime.tools.styles import ANSWER_BASE, base_of, forced_grammar, guarded_grammar

if TYPE_CHECKING:
    from llmos_operator.runtime.protocol import ChatRequest, Tool
    from llmos_operator.runtime.tools.styles import ToolStyle

_NO_ARGUMENTS: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True, slots=True)
class ToolUse:
    """How a request's answers may call tools."""

    style: ToolStyle
    names: frozenset[str]
    most: int = 0  # calls; 0: any number
    told: tuple[dict[str, Any], ...] = ()  # what the chat template is given

    def reader(self) -> CallReader:
        """Return the reader of one answer."""
        return CallReader(self.style, self.names, self.most)


def tool_use(body: ChatRequest, style: ToolStyle | None) -> tuple[ToolUse | None, Form]:
    """Return how tools may be called, None if not at all, and what the answer is bound to. Raises ApiError (400)."""
    choice = body.tool_choice
    if not body.tools:
        if choice is not None and choice != "none":
            raise bad_request("invalid_value", "'tool_choice' is only allowed with 'tools'.", "tool_choice")
        return None, form_of(body, body.response_format)
    if choice == "none":
        return None, form_of(body, body.response_format)
    if style is None:
        text = (
            "The format in which this model calls tools is not known to this runtime; set 'tool_choice' to "
            "'none' to ignore 'tools'."
        )
        raise bad_request("unsupported_parameter", text, "tools")
    if body.structured_outputs is not None:
        text = "'structured_outputs' and 'tools' cannot be combined."
        raise bad_request("invalid_value", text, "structured_outputs")
    named = choice.function.name if isinstance(choice, NamedToolChoice) else ""
    tools = _checked(body.tools, named)
    forced = bool(named) or choice == "required"
    several = body.parallel_tool_calls is not False and not named
    use = ToolUse(
        style=style,
        names=frozenset(tool.function.name for tool in tools),
        most=0 if several else 1,
        told=tuple(tool.model_dump(exclude_none=True) for tool in body.tools),
    )
    return use, _form(body, tools, style, forced=forced, several=several)


def _checked(tools: list[Tool], named: str) -> list[Tool]:
    """Return the tools that may be called. Raises ApiError (400) for equal names or an unknown choice."""
    names = [tool.function.name for tool in tools]
    for place, name in enumerate(names):
        if name in names[:place]:
            param = f"tools[{place}].function.name"
            raise bad_request("invalid_value", f"Invalid '{param}': {shown(name)} is there twice.", param)
    if not named:
        return tools
    if named not in names:
        text = f"Invalid 'tool_choice': {shown(named)} is not among 'tools'."
        raise bad_request("invalid_value", text, "tool_choice")
    return [tool for tool in tools if tool.function.name == named]


def _form(body: ChatRequest, tools: list[Tool], style: ToolStyle, *, forced: bool, several: bool) -> Form:
    """Return what binds the answer: nothing, unless a call is forced, a tool is strict or the text is bound."""
    plain = form_of(body, body.response_format, base=ANSWER_BASE if style.opening == "" else "#")
    strict = any(tool.function.strict for tool in tools)
    if not (forced or strict or plain.grammar):
        return plain
    given = body.tools or []
    functions = {
        tool.function.name: _schema(tool, f"tools[{given.index(tool)}].function.parameters", base_of(place))
        for place, tool in enumerate(tools)
    }
    if forced:
        refuse_endless(body, "tool_choice")
        return Form(forced_grammar(style, functions, several=several), "tools")
    refuse_endless(body, "tools")
    grammar = guarded_grammar(style, functions, several=several, answer=plain.schema)
    return Form(grammar, "tools")


def _schema(tool: Tool, param: str, base: str) -> dict[str, Any]:
    found = tool.function.parameters
    if found is None:
        return _NO_ARGUMENTS
    cleaned = schema.checked(found, param, strict=bool(tool.function.strict), base=base)
    # Arguments are an object, whatever else a schema leaves open.
    return {"type": "object", **cleaned}
