"""What goes wrong for people, and the exit status that tells scripts which it was.

====== ======================================================
status meaning
====== ======================================================
0      done
1      it was tried and failed; the message says what to do
2      the command line is wrong
3      no cluster can be reached
4      the cluster does not have LLMOS installed
5      the object that was named does not exist
====== ======================================================
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from llmos_operator.errors import LlmosError

if TYPE_CHECKING:
    from collections.abc import Iterable

FAILED = 1
USAGE = 2
UNREACHABLE = 3
NOT_INSTALLED = 4
NOT_FOUND = 5


class CommandFailed(LlmosError):  # noqa: N818 - reads as what happened
    """A command cannot do what was asked. The message is shown as it is; `status` is the exit status."""

    def __init__(self, message: str, *, status: int = FAILED) -> None:
        super().__init__(message)
        self.status = status


_SUGGESTIONS = 3
_NEAR = 0.6


def unknown(what: str, name: str, known: Iterable[str], *, where: str = "") -> CommandFailed:
    """Return the failure for a name that does not exist, with the names closest to it."""
    names = sorted(known)
    close = sorted(((_nearness(name, other), other) for other in names), reverse=True)[:_SUGGESTIONS]
    likely = [other for nearness, other in close if nearness[0] >= _NEAR]
    text = f"there is no {what} {name!r}{where}"
    if likely:
        text += f"; did you mean {' or '.join(likely)}?"
    elif names:
        text += f"; there are: {', '.join(names[:10])}{', …' if len(names) > 10 else ''}"  # noqa: PLR2004
    else:
        text += f"; there is no {what} at all"
    return CommandFailed(text, status=NOT_FOUND)


def _nearness(name: str, other: str) -> tuple[float, bool]:
    """Return how alike the names are (0..1) without their namespaces, and whether those are the same."""
    namespace, _, short = name.rpartition("/")
    other_namespace, _, other_short = other.rpartition("/")
    return difflib.SequenceMatcher(None, short, other_short).ratio(), namespace == other_namespace
