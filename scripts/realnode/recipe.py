"""What the Dockerfile says about an image, read for building the same image without Docker.

Only what this project's Dockerfile uses is understood; an instruction that is not raises, so that the two ways to build an
image cannot part unnoticed.
"""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import dataclass, field, replace
from string import Template

from llmos_operator.errors import Permanent

# What the node harness does itself: an environment per process and a base, see images.py.
_DONE_ELSEWHERE = frozenset({"RUN", "COPY"})


@dataclass(frozen=True, slots=True)
class Recipe:
    """The configuration of one image. ``processes`` are the steps that fill its environment."""

    environment: dict[str, str] = field(default_factory=dict)
    working_directory: str = "/"
    user: str = ""
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    ports: tuple[str, ...] = ()
    labels: dict[str, str] = field(default_factory=dict)


def instructions(text: str, target: str) -> list[tuple[str, str]]:
    """Return (instruction, rest) of all a target's image is made of, its bases first. Raises :class:`Permanent`."""
    lines = re.sub(
        r"\\\n\s*", " ", "\n".join(one for one in text.splitlines() if not one.lstrip().startswith("#"))
    )
    stages: dict[str, tuple[str, list[tuple[str, str]]]] = {}
    steps: list[tuple[str, str]] = []
    for line in filter(None, map(str.strip, lines.splitlines())):
        word, _, rest = line.partition(" ")
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            steps = []
            stages[name] = (base, steps)
        else:
            steps.append((word, rest.strip()))
    if target not in stages:
        raise Permanent(f"the Dockerfile has no target {target}", reason="NoTarget")
    found: list[tuple[str, str]] = []
    name = target
    while name in stages:
        base, steps = stages[name]
        found = [*steps, *found]
        name = base
    return found


def recipe(text: str, target: str) -> Recipe:
    """Return the configuration of ``target``, build arguments at their defaults. Raises :class:`Permanent`."""
    made = Recipe({"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"})
    arguments: dict[str, str] = {}
    for word, rest in instructions(text, target):
        if word == "ARG":
            name, _, default = rest.partition("=")
            arguments[name] = default.strip('"')
        elif word not in _DONE_ELSEWHERE:
            made = _with(made, word, rest, arguments | made.environment)
    return made


def _with(made: Recipe, word: str, rest: str, known: dict[str, str]) -> Recipe:
    match word:
        case "ENV":
            made = replace(made, environment=made.environment | _pairs(rest, known))
        case "LABEL":
            made = replace(made, labels=made.labels | _pairs(rest, known))
        case "WORKDIR":
            made = replace(made, working_directory=rest)
        case "USER":
            made = replace(made, user=rest)
        case "EXPOSE":
            made = replace(made, ports=(*made.ports, *rest.split()))
        case "ENTRYPOINT":
            made = replace(made, entrypoint=tuple(json.loads(rest)), command=())
        case "CMD":
            made = replace(made, command=tuple(json.loads(rest)))
        case _:
            raise Permanent(f"Dockerfile: {word} is not understood here", reason="UnknownInstruction")
    return made


def _pairs(rest: str, known: dict[str, str]) -> dict[str, str]:
    """Read ``NAME=value NAME="value"``, with variables of ``known`` replaced."""
    found = {}
    for part in shlex.split(rest):
        name, _, value = part.partition("=")
        found[name] = Template(value).safe_substitute(known)
    return found
