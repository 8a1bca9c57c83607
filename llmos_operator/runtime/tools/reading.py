"""Tool calls out of an answer that comes in pieces: text before and between them, names, and arguments as they come.

Half a mark is held back until it is clear what it becomes. What looked like a call and is none (no JSON, an unknown
function) is the model's text and is given as it stands. Pure; one reader an answer.
"""

from __future__ import annotations

import json
import re
import uuid
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from llmos_operator.runtime.tools.styles import LLAMA

if TYPE_CHECKING:
    from llmos_operator.runtime.tools.styles import ToolStyle

_HEAD = re.compile(
    r'\s*\{\s*(?:"type"\s*:\s*"function"\s*,\s*)?"name"\s*:\s*"((?:[^"\\]|\\.)*)"\s*,\s*'
    r'"(?:arguments|parameters)"\s*:\s*(?=\{)'
)
_BEGINNINGS = ('{"name":', '{"type":"function","name":')
_SEPARATORS = " \t\r\n;,"


@dataclass(frozen=True, slots=True)
class CallPiece:
    """What is new of a call: its id and name in its first piece, then more of its arguments."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""


@dataclass(slots=True)
class _Object:
    """Finds the end of a JSON object that comes in pieces."""

    depth: int = 0
    in_string: bool = False
    escaped: bool = False

    def end(self, text: str) -> int:
        """Return how many characters of ``text`` belong to the object; ``depth`` is 0 when it is complete."""
        for place, char in enumerate(text):
            if self.in_string:
                if self.escaped:
                    self.escaped = False
                elif char == "\\":
                    self.escaped = True
                elif char == '"':
                    self.in_string = False
            elif char == '"':
                self.in_string = True
            elif char in "{[":
                self.depth += 1
            elif char in "}]":
                self.depth -= 1
                if self.depth <= 0:
                    return place + 1
        return len(text)


@dataclass(slots=True)
class CallReader:
    """Reads one answer in one style; ``names`` are the functions it may call, ``most`` how many calls (0: any number)."""

    style: ToolStyle
    names: frozenset[str]
    most: int = 0
    calls: int = 0  # begun so far
    over: bool = False  # as many calls as may be are complete: nothing may follow
    _held: str = ""
    _state: str = "text"  # text, call (its head is awaited), arguments, tail (what closes a call)
    _object: _Object = field(default_factory=_Object)
    _plain: bool = False  # Llama: the answer is text and stays so

    def push(self, text: str) -> tuple[str, list[CallPiece]]:
        """Return the text and the calls that ``text`` makes certain."""
        self._held += text
        shown: list[str] = []
        pieces: list[CallPiece] = []
        before = ("", "over")
        # Each round takes something from what is held, or changes the state, or is the last.
        while not self.over and before != (now := (self._held, self._state)):
            before = now
            step = {"text": self._text, "call": self._call, "arguments": self._arguments, "tail": self._tail}
            step[self._state](shown, pieces)
        return "".join(shown), pieces

    def end(self, *, cut: bool) -> tuple[str, list[CallPiece]]:
        """Return what was held back; ``cut`` says that the answer was ended before its own end."""
        held, state = self._held, self._state
        self._held = ""
        if self.over or state in {"arguments", "tail"}:
            return "", []
        if state == "text":
            return ("" if self.calls and not held.strip() else held), []
        if pieces := self._whole(held):
            return "", pieces
        # The beginning of a call whose end was cut off is of no use to anybody.
        return ("" if cut and self.style.opening else self.style.opening + held), []

    # ------------------------------------------------------------ states

    def _text(self, shown: list[str], _: list[CallPiece]) -> None:
        if self.style is LLAMA:
            self._llama_text(shown)
            return
        at = self._held.find(self.style.opening)
        if at >= 0:
            shown.append(self._held[:at].rstrip())
            self._held = self._held[at + len(self.style.opening) :]
            self._state = "call"
            return
        # White space before a call belongs to its format, not to the text.
        keep = len(self._held) - len(self._held[: len(self._held) - self._half_mark()].rstrip())
        shown.append(self._held[: len(self._held) - keep])
        self._held = self._held[len(self._held) - keep :]

    def _llama_text(self, shown: list[str]) -> None:
        rest = self._held.lstrip(_SEPARATORS if self.calls else None)
        if not self._plain and not rest:
            return
        if not self._plain and rest.startswith("{"):
            self._held, self._state = rest, "call"
            return
        self._plain = True
        shown.append(self._held)
        self._held = ""

    def _half_mark(self) -> int:
        """Return how many characters at the end may become the opening mark."""
        mark = self.style.opening
        longest = min(len(self._held), len(mark) - 1)
        return next((n for n in range(longest, 0, -1) if mark.startswith(self._held[-n:])), 0)

    def _call(self, shown: list[str], pieces: list[CallPiece]) -> None:
        head = _HEAD.match(self._held)
        name = _unquoted(head.group(1)) if head else ""
        if head and name in self.names:
            pieces.append(self._begin(name))
            self._held = self._held[head.end() :]
            self._state, self._object = "arguments", _Object()
        elif head and not self.style.closing:
            self._not_a_call(shown, len(self._held))
        elif self.style.closing and (at := self._held.find(self.style.closing)) >= 0:
            after = at + len(self.style.closing)
            if found := self._whole(self._held[:at]):
                pieces += found
                self._held, self._state = self._held[after:], "text"
                self._finish()
            else:
                self._not_a_call(shown, after)
        elif self.style is LLAMA and not _may_begin(self._held):
            self._not_a_call(shown, len(self._held))

    def _not_a_call(self, shown: list[str], length: int) -> None:
        shown.append(self.style.opening + self._held[:length])
        self._held, self._state = self._held[length:], "text"
        self._plain = self.style is LLAMA

    def _arguments(self, _: list[str], pieces: list[CallPiece]) -> None:
        length = self._object.end(self._held)
        if length:
            pieces.append(CallPiece(self.calls - 1, arguments=self._held[:length]))
            self._held = self._held[length:]
        if self._object.depth <= 0 and length:
            self._state = "tail"

    def _tail(self, _: list[str], __: list[CallPiece]) -> None:
        mark = self.style.closing or "}"
        at = self._held.find(mark)
        if at >= 0:
            self._held, self._state = self._held[at + len(mark) :], "text"
            self._finish()

    # ------------------------------------------------------------

    def _begin(self, name: str) -> CallPiece:
        self.calls += 1
        return CallPiece(self.calls - 1, f"call_{uuid.uuid4().hex[:24]}", name)

    def _finish(self) -> None:
        self.over = bool(self.most) and self.calls >= self.most

    def _whole(self, text: str) -> list[CallPiece]:
        """Return the calls of a complete JSON text in another order or in a list; [] if it is anything else."""
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            return []
        read = [_name_and_arguments(one) for one in (found if isinstance(found, list) else [found])]
        known = [one for one in read if one is not None and one[0] in self.names]
        if len(known) != len(read):
            return []
        pieces = []
        for name, arguments in known[: self.most or None]:
            begun = self._begin(name)
            pieces.append(CallPiece(begun.index, begun.id, name, arguments))
        return pieces


def _name_and_arguments(call: Any) -> tuple[str, str] | None:
    if not isinstance(call, dict) or not isinstance(call.get("name"), str):
        return None
    arguments = call.get("arguments", call.get("parameters", {}))
    return (call["name"], json.dumps(arguments, ensure_ascii=False)) if isinstance(arguments, dict) else None


def _may_begin(text: str) -> bool:
    """Whether a JSON object may still become a call."""
    compact = re.sub(r"\s", "", text)
    return any(one.startswith(compact) or compact.startswith(one) for one in _BEGINNINGS)


def _unquoted(text: str) -> str:
    try:
        return str(json.loads(f'"{text}"'))
    except ValueError:
        return ""
