"""Conversations through chat templates of strangers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from jinja2 import TemplateError

from llmos_operator.runtime import chat
from llmos_operator.runtime.answers import ApiError
from llmos_operator.runtime.protocol import Message

if TYPE_CHECKING:
    from pathlib import Path


def _messages(*pairs: tuple[str, str]) -> list[Message]:
    return [Message(role=role, content=content) for role, content in pairs]  # type: ignore[arg-type]


def _render(source: str, special: dict[str, str] | None = None, **arguments: Any) -> str:
    return chat.ChatTemplate(source, special or {}).render(_messages(("user", "Hi")), **arguments)


def test_messages_special_tokens_and_the_generation_prompt_reach_the_template() -> None:
    source = "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] | trim }}{% endfor %}{{ add_generation_prompt }}"
    assert _render(source, {"bos_token": "<s>"}) == "<s>[user] HiTrue"
    assert _render(source, {"bos_token": "<s>"}, add_generation_prompt=False).endswith("False")


def test_blocks_take_no_lines_and_loops_can_be_left() -> None:
    source = "{% for m in [1, 2, 3] %}\n  {% if m == 2 %}{% break %}{% endif %}\n{{ m }}\n{% endfor %}"
    assert _render(source) == "1\n"


def test_json_is_written_plainly_and_clients_may_add_variables() -> None:
    assert _render("{{ {'a': 'é<b>'} | tojson }} {{ mood }}", extra={"mood": "dry"}) == '{"a": "é<b>"} dry'


def test_clients_cannot_replace_what_the_runtime_says() -> None:
    extra = {"messages": [], "bos_token": "evil", "add_generation_prompt": False}
    assert _render(
        "{{ bos_token }}{{ messages | length }}{{ add_generation_prompt }}", {"bos_token": "<s>"}, extra=extra
    ) == ("<s>1True")


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__class__ }}{{ messages.append(1) }}",
        "{{ self.__init__.__globals__ }}",
        "{{ cycler.__init__.__globals__.os.system('id') }}",
        "{% for i in range(10000000) %}x{% endfor %}",
        "{{ raise_exception('no') }}",
        "{{ messages[5]['content'] + 1 }}",
        "{{ 1 / 0 }}",
        "{{ 'x' * 100000000000 }}",
        "{{ [0] * 100000000000 }}",
        "{{ 9 ** 99 }}",
        "{{ 'x' * 10 | int('a') }}{{ undefined_name.attribute }}",
    ],
)
def test_a_hostile_or_broken_template_ends_as_a_400_and_never_runs_code(source: str) -> None:
    with pytest.raises(ApiError) as caught:
        _render(source)
    assert (caught.value.status, caught.value.param) == (400, "messages")


def test_a_template_cannot_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "MAX_OUTPUT", 10_000)
    with pytest.raises(ApiError, match="too long"):
        _render("{% for i in range(90000) %}xxxxxxxxxx{% endfor %}")


def _write(folder: Path, name: str, content: Any) -> None:
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))


@pytest.mark.parametrize("place", ["file", "settings", "named", "json"])
def test_templates_are_found_wherever_models_keep_them(tmp_path: Path, place: str) -> None:
    settings: dict[str, Any] = {"bos_token": {"content": "<s>", "special": True}}
    if place == "file":
        _write(tmp_path, "chat_template.jinja", "{{ bos_token }}x")
        settings["chat_template"] = "ignored"
    elif place == "settings":
        settings["chat_template"] = "{{ bos_token }}x"
    elif place == "named":
        settings["chat_template"] = [
            {"name": "tool_use", "template": "no"},
            {"name": "default", "template": "{{ bos_token }}x"},
        ]
    else:
        _write(tmp_path, "chat_template.json", {"chat_template": "{{ bos_token }}x"})
    found = chat.load(str(tmp_path), settings)
    assert found is not None
    assert found.render(_messages(("user", "Hi"))) == "<s>x"


def test_special_tokens_may_stand_in_a_file_of_their_own(tmp_path: Path) -> None:
    _write(tmp_path, "special_tokens_map.json", {"eos_token": "</s>"})
    found = chat.load(str(tmp_path), {"chat_template": "{{ eos_token }}"})
    assert found is not None
    assert found.render([]) == "</s>"


def test_a_model_without_a_template_has_none_and_a_broken_one_raises(tmp_path: Path) -> None:
    assert chat.load(str(tmp_path), {}) is None
    with pytest.raises(TemplateError):
        chat.load(str(tmp_path), {"chat_template": "{% if %}"})
