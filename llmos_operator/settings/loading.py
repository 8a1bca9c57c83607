"""Settings from a file and the environment, and what is said of bad ones."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic.alias_generators import to_camel

from llmos_operator.settings.base import BadSettings, ProcessSettings
from llmos_operator.settings.operator import OperatorSettings

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIX = "LLMOS_"
S = TypeVar("S", bound=ProcessSettings)


def load(kind: type[S], path: str = "", environ: Mapping[str, str] | None = None) -> S:
    """Return the settings of a process from the file at ``path`` (none if empty) and the environment.

    Raises :class:`BadSettings` for an unreadable file and for every bad value, all of them in one message.
    """
    env = os.environ if environ is None else environ
    values: dict[str, Any] = _read_file(path) if path else {}
    sources: dict[tuple[str, ...], str] = {}
    _overlay_environment(kind, env, values, (), sources)
    try:
        settings = kind.model_validate(values)
    except ValidationError as error:
        raise BadSettings(_explain(kind, error, path, sources)) from error
    _check_lease(settings)
    return settings


def _check_lease(settings: ProcessSettings) -> None:
    if isinstance(settings, OperatorSettings) and settings.lease.renew_deadline >= settings.lease.duration:
        raise BadSettings(
            f"lease.renewDeadline = {settings.lease.renew_deadline} must be below lease.duration = "
            f"{settings.lease.duration}, or two leaders could write at once; lower renewDeadline"
        )


def _read_file(path: str) -> dict[str, Any]:
    import yaml  # noqa: PLC0415 - only processes with a file pay for the parser

    try:
        with open(path, encoding="utf-8") as file:  # noqa: PTH123 - pathlib costs import time for nothing
            values = yaml.safe_load(file)
    except OSError as error:
        raise BadSettings(
            f"cannot read settings file {path}: {error.strerror}; pass an existing file to --config"
        ) from error
    except yaml.YAMLError as error:
        raise BadSettings(f"settings file {path} is not YAML: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise BadSettings(
            f"settings file {path} must hold a mapping of settings, not {type(values).__name__}"
        )
    return values


def _overlay_environment(
    kind: type[BaseModel],
    env: Mapping[str, str],
    values: dict[str, Any],
    path: tuple[str, ...],
    sources: dict[tuple[str, ...], str],
) -> None:
    """Write the variables of ``env`` that name a field of ``kind`` into ``values``; note their source."""
    for name, field in kind.model_fields.items():
        key = field.alias or name
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            inner = values.get(key, values.get(name))
            inner = dict(inner) if isinstance(inner, dict) else {}
            before = len(sources)
            _overlay_environment(annotation, env, inner, (*path, name), sources)
            if len(sources) > before:
                values.pop(name, None)
                values[key] = inner
            continue
        variable = PREFIX + "__".join((*path, name)).upper()
        if variable in env:
            values.pop(name, None)
            values[key] = _from_text(annotation, env[variable])
            sources[(*(to_camel(part) for part in path), key)] = variable


def _from_text(annotation: Any, text: str) -> Any:
    """Return ``text`` as pydantic can validate it: collections are written as YAML, the rest as they are."""
    if getattr(annotation, "__origin__", None) in {tuple, list, dict}:
        import yaml  # noqa: PLC0415 - rarely needed

        try:
            return yaml.safe_load(text)
        except yaml.YAMLError:
            return text
    return text


def _explain(
    kind: type[BaseModel], error: ValidationError, path: str, sources: dict[tuple[str, ...], str]
) -> str:
    lines = []
    for item in error.errors():
        location = tuple(str(part) for part in item["loc"])
        origin = next((name for at, name in sources.items() if location[: len(at)] == at), path or "defaults")
        field = ".".join(to_camel(part) for part in location)
        hint = _description(kind, location)
        if item["type"] == "extra_forbidden":
            lines.append(f"{field} (from {origin}) is not a setting; remove it or correct its spelling")
        else:
            lines.append(
                f"{field} (from {origin}) = {item['input']!r}: {item['msg']}" + (f"; {hint}" if hint else "")
            )
    return "bad settings: " + "; ".join(lines)


def _description(kind: type[BaseModel], location: tuple[str, ...]) -> str:
    model: Any = kind
    text = ""
    for part in location:
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            break
        field = next((f for n, f in model.model_fields.items() if part in {n, f.alias}), None)
        if field is None:
            return ""
        text = field.description or ""
        model = field.annotation
    return text
