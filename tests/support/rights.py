"""What the chart's accounts may do, and what they did: rules of RBAC against the API server's audit log."""

from __future__ import annotations

import json
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

from llmos_operator.api.names import SYSTEM_NAMESPACE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from tests.node.conftest import Installed

_USERS = f"system:serviceaccount:{SYSTEM_NAMESPACE}:"
_BINDINGS = {"clusterrolebindings", "rolebindings"}
_FORBIDDEN, _CREATED = 403, 201


class Right(NamedTuple):
    """One verb on one resource ("pods", "modelworkloads.llmos.dev/status")."""

    verb: str
    resource: str


class Used(NamedTuple):
    """What the accounts did, and what they were denied."""

    done: dict[str, set[Right]]  # account -> rights
    denied: list[str]


def granted(installed: Installed) -> dict[str, set[Right]]:
    """Return the rights of each account of the release's namespace that a role of the release gives it."""
    found: dict[str, set[Right]] = {}
    for kind in ("clusterrole", "role"):
        roles = {one["metadata"]["name"]: one for one in _release(installed, f"{kind}s")}
        for binding in _release(installed, f"{kind}bindings"):
            role = roles.get(binding["roleRef"]["name"])
            for subject in binding.get("subjects", []):
                if role is not None and subject["kind"] == "ServiceAccount":
                    found.setdefault(subject["name"], set()).update(_rights(role.get("rules") or []))
    return found


def _release(installed: Installed, kind: str) -> list[dict[str, Any]]:
    words = ("get", kind, f"--namespace={SYSTEM_NAMESPACE}", "-o", "json")
    found = installed.tools.kubectl(*words, "--selector=app.kubernetes.io/instance=llmos-operator")
    return list(json.loads(found)["items"])


def _rights(rules: Iterable[dict[str, Any]]) -> Iterator[Right]:
    for rule in rules:
        for group, resource, verb in product(rule["apiGroups"], rule["resources"], rule["verbs"]):
            yield Right(verb, _name(group, resource))


def _name(group: str, resource: str) -> str:
    kind, slash, part = resource.partition("/")
    return f"{kind}.{group}{slash}{part}" if group else resource


def used(log: Path, denied_from: int) -> Used:
    """Return what the accounts did since the node exists, and what they were denied since ``denied_from`` (bytes of the log).

    While a release has no bindings its processes are denied everything: what they ask before they end is not counted.
    """
    done: dict[str, set[Right]] = {}
    denied: list[str] = []
    bound: set[str] = set()
    with log.open("rb") as file:
        at = 0
        for line in file:
            at += len(line)
            event = json.loads(line)
            what = event.get("objectRef") or {}
            if what.get("resource") in _BINDINGS:
                _follow(event, what, bound)
            user = event["user"].get("username", "")  # none where nobody knows the credentials
            if not user.startswith(_USERS) or not what:
                continue
            account = user.removeprefix(_USERS)
            rights, code = _rights_of(event, what), (event.get("responseStatus") or {}).get("code", 0)
            if code != _FORBIDDEN:
                done.setdefault(account, set()).update(rights)
            elif at > denied_from and account in bound:
                denied += [
                    f"{account}: {right.verb} {right.resource} {what.get('name', '')}" for right in rights
                ]
    return Used(done, denied)


def _follow(event: dict[str, Any], what: dict[str, Any], bound: set[str]) -> None:
    """Keep in mind which accounts have their bindings, which are named like them."""
    if event["verb"] == "delete":
        bound.discard(what.get("name", ""))
    elif event["verb"] in {"create", "patch", "update"}:
        bound.add(what.get("name", ""))


def _rights_of(event: dict[str, Any], what: dict[str, Any]) -> list[Right]:
    resource = what["resource"] + (f"/{what['subresource']}" if what.get("subresource") else "")
    name = _name(what.get("apiGroup", ""), resource)
    rights = [Right(event["verb"], name)]
    if event["verb"] == "patch" and (event.get("responseStatus") or {}).get("code") == _CREATED:
        rights.append(Right("create", name))  # a server-side apply of what was not there asks for both
    return rights
