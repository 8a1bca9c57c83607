"""Tools and tool calls inside a conversation, as chat templates expect them. Pure.

Templates that know tools get them in the hub's form. To the others the tools are told in a system message and calls
and results are written as text, in the words and marks of the Hermes format, which many small models have seen.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from llmos_operator.runtime.answers import bad_request
from llmos_operator.runtime.tools.styles import HERMES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmos_operator.runtime.protocol import ToolCall


def calls_of(calls: Sequence[ToolCall], place: int) -> list[dict[str, Any]]:
    """Return an assistant's calls with their arguments as objects. Raises ApiError (400) if they are no JSON object."""
    found = []
    for number, call in enumerate(calls):
        try:
            arguments = json.loads(call.function.arguments or "{}")
        except (ValueError, RecursionError):
            arguments = None
        if not isinstance(arguments, dict):
            param = f"messages[{place}].tool_calls[{number}].function.arguments"
            raise bad_request("invalid_value", f"Invalid '{param}': it must be a JSON object as text.", param)
        function = {"name": call.function.name, "arguments": arguments}
        found.append({"id": call.id, "type": "function", "function": function})
    return found


def written_out(messages: list[dict[str, Any]], tools: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a conversation without tool calls and tool messages: as text, for a template that does not know them."""
    found: list[dict[str, Any]] = []
    answering = False  # the last message holds results of tools
    for message in messages:
        if message["role"] == "tool":
            result = f"<tool_response>\n{message['content']}\n</tool_response>"
            if answering:
                found[-1] = {**found[-1], "content": f"{found[-1]['content']}\n{result}"}
            else:
                found.append({"role": "user", "content": result})
            answering = True
            continue
        answering = False
        calls = message.get("tool_calls")
        if calls:
            parts = [message["content"], *(_call_text(call["function"]) for call in calls)]
            rest = {key: value for key, value in message.items() if key != "tool_calls"}
            found.append({**rest, "content": "\n".join(part for part in parts if part)})
        else:
            found.append(message)
    return _with_tools(found, tools) if tools else found


def _call_text(function: dict[str, Any]) -> str:
    call = {"name": function["name"], HERMES.arguments: function["arguments"]}
    return f"{HERMES.opening}\n{json.dumps(call, ensure_ascii=False)}\n{HERMES.closing}"


def _with_tools(messages: list[dict[str, Any]], tools: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Tell about the tools at the end of the system message, or in one of its own."""
    listed = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    example = '{"name": <function name>, "arguments": <object of arguments>}'
    told = (
        f"You can call these functions:\n<tools>\n{listed}\n</tools>\n"
        f"To call one, answer with its name and arguments as JSON between tags:\n"
        f"{HERMES.opening}\n{example}\n{HERMES.closing}"
    )
    if messages and messages[0]["role"] in {"system", "developer"}:
        return [{**messages[0], "content": f"{messages[0]['content']}\n\n{told}"}, *messages[1:]]
    return [{"role": "system", "content": told}, *messages]
