"""Manifests a person has not submitted yet: read from a file or standard input, and checked by the API's own types.

All problems of a file are told at once, each with document, field, value and what is allowed. Rules between fields
(CEL) are the API server's to check, see `cli.submission`.
"""

from __future__ import annotations

import difflib
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from llmos_operator.api import names
from llmos_operator.api.schema import KubeModel, OpenModel
from llmos_operator.api.v1alpha1.modelprofile import ModelProfile
from llmos_operator.api.v1alpha1.modelworkload import ModelWorkload
from llmos_operator.api.v1alpha1.workloadqueue import WorkloadQueue
from llmos_operator.cli.failures import USAGE, CommandFailed
from llmos_operator.cluster import port

if TYPE_CHECKING:
    from collections.abc import Iterator

    from llmos_operator.cluster.port import Json, Kind

_TYPES: Final[dict[str, tuple[Kind, type[KubeModel]]]] = {
    "ModelWorkload": (port.MODEL_WORKLOADS, ModelWorkload),
    "WorkloadQueue": (port.WORKLOAD_QUEUES, WorkloadQueue),
    "ModelProfile": (port.MODEL_PROFILES, ModelProfile),
}
_PLAIN: Final[dict[tuple[str, str], Kind]] = {
    ("v1", "Namespace"): port.NAMESPACES,
    ("scheduling.k8s.io/v1", "PriorityClass"): port.PRIORITY_CLASSES,
}
_SHOWN: Final = 60


@dataclass(frozen=True, slots=True)
class Document:
    """One object of a file. `where` names it for people: "new.yaml, document 2 (ModelWorkload chat)"."""

    kind: Kind
    name: str
    namespace: str  # "" for cluster-scoped kinds
    body: Json
    where: str

    @property
    def key(self) -> str:
        """`namespace/name`, or the name alone."""
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


@dataclass(frozen=True, slots=True)
class Manifests:
    """What a file holds for the scheduler, in its order, and what was left out because it plays no part."""

    documents: tuple[Document, ...]
    left_out: tuple[str, ...] = ()


def read(path: str, namespace: str) -> Manifests:
    """Read the documents of a file, or of standard input for "-"; those without a namespace get ``namespace``.

    Raises `CommandFailed` with all problems of the file.
    """
    name = "standard input" if path == "-" else path
    documents, left_out, problems = [], [], []
    for number, body in enumerate(_objects(_text(path), name), 1):
        where = _where(name, number, body)
        try:
            found = _document(body, namespace, where)
        except CommandFailed as error:
            problems.append(str(error))
            continue
        if found is None:
            left_out.append(where)
        else:
            documents.append(found)
    if problems:
        raise CommandFailed("\n".join(problems))
    if not any(one.kind is port.MODEL_WORKLOADS for one in documents):
        raise CommandFailed(f"{name} holds no ModelWorkload: there is nothing to simulate")
    _refuse_twins(documents)
    return Manifests(tuple(documents), tuple(left_out))


def _text(path: str) -> str:
    try:
        return sys.stdin.read() if path == "-" else Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CommandFailed(f"cannot read {path}: {error}", status=USAGE) from error


def _objects(text: str, name: str) -> Iterator[Any]:
    """Yield each document, and each item of a List."""
    try:
        for body in yaml.safe_load_all(text):
            if isinstance(body, dict) and body.get("kind") == "List":
                yield from body.get("items") or ()
            elif body is not None:
                yield body
    except yaml.YAMLError as error:
        raise CommandFailed(f"{name} is not YAML: {error}") from error


def _where(name: str, number: int, body: Any) -> str:
    meta = body.get("metadata") if isinstance(body, dict) else None
    own = meta.get("name", "") if isinstance(meta, dict) else ""
    kind = body.get("kind", "no kind") if isinstance(body, dict) else type(body).__name__
    return f"{name}, document {number} ({f'{kind} {own}'.strip()})"


def _document(body: Any, namespace: str, where: str) -> Document | None:
    """Return a checked document, None for a kind that plays no part in scheduling."""
    if not isinstance(body, dict) or not isinstance(body.get("kind"), str):
        raise CommandFailed(f"{where}: is not a Kubernetes object: it needs apiVersion, kind and metadata")
    version, kind = str(body.get("apiVersion", "")), body["kind"]
    plain = _PLAIN.get((version, kind))
    if plain is None and kind not in _TYPES:
        return None
    if plain is None and version != names.API_VERSION:
        raise CommandFailed(f"{where}: apiVersion = {version!r}: must be {names.API_VERSION}")
    meta = body.get("metadata")
    name = meta.get("name") if isinstance(meta, dict) else None
    if not isinstance(meta, dict) or not isinstance(name, str) or not name:
        raise CommandFailed(f"{where}: metadata.name is required: a simulated object needs a name")
    if plain is None:
        found, model = _TYPES[kind]
        problems = check(model, body)
        if problems:
            raise CommandFailed("\n".join(f"{where}: {problem}" for problem in problems))
    else:
        found = plain
    scope = str(meta.get("namespace") or namespace) if found.namespaced else ""
    return Document(found, name, scope, {**body, "metadata": {**meta, **_scoped(scope)}}, where)


def _scoped(namespace: str) -> dict[str, str]:
    return {"namespace": namespace} if namespace else {}


def _refuse_twins(documents: list[Document]) -> None:
    seen: dict[tuple[str, str], Document] = {}
    for one in documents:
        other = seen.setdefault((one.kind.kind, one.key), one)
        if other is not one:
            raise CommandFailed(f"{one.where}: {one.kind.kind} {one.key} is in the file twice")


def check(model: type[KubeModel], body: Json) -> list[str]:
    """Return what is wrong with an object by its type: "spec.x = value: what is allowed; what the field means"."""
    problems = [f"{path}: is not a field{hint}" for path, hint in _unknown(model, body, "")]
    try:
        model.model_validate_json(json.dumps(body, default=str), strict=True)
    except ValidationError as error:
        for item in error.errors(include_url=False):
            path = _path(item["loc"])
            meaning = _meaning(model, item["loc"])
            shown = "" if item["type"] == "missing" else f" = {_short(item['input'])}"
            problems.append(f"{path}{shown}: {item['msg']}" + (f". It means: {meaning}" if meaning else ""))
    return problems


def _short(value: Any) -> str:
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "…"


def _path(location: tuple[int | str, ...]) -> str:
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}"
    return text.removeprefix(".")


def _unknown(model: type[BaseModel], value: Any, path: str) -> Iterator[tuple[str, str]]:
    """Yield (path, hint) of fields that the type does not have. The API server refuses them, too."""
    if not isinstance(value, dict) or issubclass(model, OpenModel):
        return
    fields = {field.alias or name: field for name, field in model.model_fields.items()}
    for name, inner in value.items():
        where = f"{path}.{name}".removeprefix(".")
        if name not in fields:
            if path != "metadata":  # the API server knows more of metadata than the types read
                near = difflib.get_close_matches(str(name), fields, 1)
                yield where, f"; did you mean {near[0]}?" if near else f" of {path or 'the object'}"
            continue
        nested = _nested(fields[name].annotation)
        if nested is None:
            continue
        for at, one in _values(inner, where):
            yield from _unknown(nested, one, at)


def _values(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, list):
        yield from ((f"{path}[{number}]", one) for number, one in enumerate(value))
    else:
        yield path, value


def _nested(annotation: Any) -> type[BaseModel] | None:
    """Return the one model that an annotation holds, alone, optional or in a tuple."""
    if isinstance(annotation, type) and get_origin(annotation) is None:
        return annotation if issubclass(annotation, BaseModel) else None
    if get_origin(annotation) is dict:
        return None
    found = [model for part in get_args(annotation) if (model := _nested(part)) is not None]
    return found[0] if len(found) == 1 else None


def _meaning(model: type[BaseModel], location: tuple[int | str, ...]) -> str:
    text, inner = "", model
    for part in location:
        if isinstance(part, int):
            continue
        field = next((f for n, f in inner.model_fields.items() if part in {n, f.alias}), None)
        if field is None:
            break
        text, nested = field.description or "", _nested(field.annotation)
        if nested is None:
            break
        inner = nested
    return text
