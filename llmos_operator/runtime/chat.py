"""Conversations as the text a model was trained on: the model's own chat template, in Jinja's sandbox.

A template is code from a stranger: it runs in an immutable sandbox with bounded ranges, sees only what is handed to
it, and its output is bounded. What templates may use beyond Jinja (`raise_exception`, `strftime_now`, a plain `tojson`,
loop controls) follows the convention of the hub's templates.
"""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError, meta
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from llmos_operator.runtime.answers import bad_request
from llmos_operator.runtime.tools.conversation import calls_of, written_out
from llmos_operator.runtime.tools.styles import style_of
from llmos_operator.runtime.vocabulary import read_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from llmos_operator.runtime.protocol import Message

MAX_OUTPUT = 64 << 20  # characters
MAX_POWER = 64
_TROUBLE = (
    TemplateError,
    ArithmeticError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)
_SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token")
_RESERVED = frozenset({"messages", "tools", "documents", "add_generation_prompt", *_SPECIAL})


class _Sandbox(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, which bounds ranges, with products and powers bounded as well."""

    intercepted_binops = frozenset({"*", "**"})

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Refuse a product or power that would fill the memory."""
        sizes = [len(one) if isinstance(one, str | list | tuple) else one for one in (left, right)]
        if all(isinstance(one, int) for one in sizes):
            large = sizes[1] > MAX_POWER if operator == "**" else abs(sizes[0] * sizes[1]) > MAX_OUTPUT
            if large:
                raise TemplateError(f"{operator} makes too large a value")
        return super().call_binop(context, operator, left, right)


class ChatTemplate:
    """The chat template of one model."""

    def __init__(self, source: str, special: dict[str, str]) -> None:
        """``source`` is Jinja; ``special`` maps names like `bos_token` to texts. Raises TemplateError if it is broken."""
        environment = _Sandbox(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[loopcontrols],
            # Output is text for a model, never HTML.
            autoescape=False,
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = lambda form: datetime.now().astimezone().strftime(form)
        self._template = environment.from_string(source)
        known = meta.find_undeclared_variables(environment.parse(source))
        self._knows_tools = "tools" in known
        self.tool_style = style_of(source, mentions_tools=self._knows_tools)
        self._special = special

    def render(
        self,
        messages: Iterable[Message],
        *,
        tools: Sequence[dict[str, Any]] = (),
        add_generation_prompt: bool = True,
        extra: dict[str, Any] | None = None,
    ) -> str:
        """Return the prompt; ``tools`` are told to the model. Raises ApiError (400) if the template refuses."""
        plain = [_plain(message, place) for place, message in enumerate(messages)]
        if not self._knows_tools:
            plain, tools = written_out(plain, tools), ()
        values: dict[str, Any] = {
            **{name: value for name, value in (extra or {}).items() if name not in _RESERVED},
            **self._special,
            "messages": plain,
            "tools": list(tools) or None,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        parts: list[str] = []
        size = 0
        try:
            for part in self._template.generate(values):
                size += len(part)
                if size > MAX_OUTPUT:
                    raise bad_request(
                        "invalid_value", "The chat template makes too long a prompt.", "messages"
                    )
                parts.append(part)
        except _TROUBLE as error:
            # Whatever a template stumbles over comes from the conversation it was given.
            text = f"The model's chat template refuses these messages: {error}."
            raise bad_request("invalid_value", text, "messages") from error
        return "".join(parts)


def load(model_dir: str, settings: dict[str, Any]) -> ChatTemplate | None:
    """Return the template in ``model_dir``, None if the model has none. ``settings`` is its tokenizer_config.json.

    Raises TemplateError if it is broken.
    """
    source = _source(Path(model_dir), settings)
    if not source:
        return None
    special = {**read_json(Path(model_dir) / "special_tokens_map.json"), **settings}
    return ChatTemplate(source, {name: _content(special.get(name)) for name in _SPECIAL if special.get(name)})


def _source(folder: Path, settings: dict[str, Any]) -> str:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text(encoding="utf-8")
    found = settings.get("chat_template") or read_json(folder / "chat_template.json").get("chat_template")
    if isinstance(found, list):
        # Several templates under names; the plain one is called default.
        named = {one.get("name"): one.get("template") for one in found if isinstance(one, dict)}
        found = named.get("default") or next(iter(named.values()), "")
    return found if isinstance(found, str) else ""


def _content(token: Any) -> str:
    """Return the text of a special token: a string, or an object with its text as `content`."""
    return str(token.get("content", "")) if isinstance(token, dict) else str(token)


def _plain(message: Message, place: int) -> dict[str, Any]:
    """Return a message as templates know it, with its parts of text joined."""
    found = message.model_dump(exclude_none=True)
    if isinstance(message.content, list):
        for number, part in enumerate(message.content):
            if part.type != "text" or part.text is None:
                raise bad_request(
                    "unsupported_value",
                    f"Unsupported content part {part.type!r}: this model reads text only.",
                    f"messages[{place}].content[{number}]",
                )
        found["content"] = "\n".join(part.text or "" for part in message.content)
    if message.tool_calls:
        found["tool_calls"] = calls_of(message.tool_calls, place)
    else:
        found.pop("tool_calls", None)
    found.setdefault("content", "")
    return found


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise(message: str) -> None:
    raise TemplateError(str(message))
