"""Lays the table of causes over the clues: the first cause with a sign is the verdict, the others stand beside it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from llmos_operator.cli.diagnosis.causes import CAUSES, UNKNOWN, Cause, Sign

if TYPE_CHECKING:
    from collections.abc import Sequence

    from llmos_operator.cli.diagnosis.clues import Clue

_EVIDENCE = 5  # clues shown of one cause


@dataclass(frozen=True, slots=True)
class Finding:
    """A cause and the clues that speak for it, the strongest first."""

    cause: Cause
    evidence: tuple[Clue, ...]


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The verdict, and what else was found."""

    verdict: Finding
    others: tuple[Finding, ...] = ()


def judge(clues: Sequence[Clue], causes: Sequence[Cause] = CAUSES) -> Diagnosis:
    """Return the diagnosis. Causes stand in the order in which one explains the next: the first that fits is the root."""
    findings = []
    explained: set[str] = set()
    for cause in causes:
        evidence = [clue for sign in cause.signs for clue in clues if fits(sign, clue)]
        unique = tuple(dict.fromkeys(evidence))
        if unique and cause.name not in explained:
            findings.append(Finding(cause, unique[:_EVIDENCE]))
            explained |= set(cause.explains)
    if not findings:
        return Diagnosis(Finding(UNKNOWN, tuple(clues[:_EVIDENCE])))
    first, *others = findings
    return Diagnosis(first, tuple(one for one in others if one.cause.trouble or not first.cause.trouble))


def fits(sign: Sign, clue: Clue) -> bool:
    """Return whether a clue is what a sign looks for."""
    return (
        clue.source in sign.sources
        and re.fullmatch(sign.reason, clue.reason) is not None
        and (not sign.about or re.fullmatch(sign.about, clue.about) is not None)
        and (not sign.text or re.search(sign.text, clue.text, re.IGNORECASE) is not None)
    )
