"""URIs of data that a FineTune or Batch reads and writes: what the operator and the programs in its pods must agree on.

A claim is mounted into the pod below `VOLUMES_ROOT` under its own name, so `pvc://claim/path` is the file
`VOLUMES_ROOT/claim/path` there. Paths are percent-decoded once, as in any URI.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from llmos_operator.api.conditions import Reason
from llmos_operator.api.runtime.uris import carries_credentials

VOLUMES_ROOT: Final = "/llmos/volumes"
READABLE: Final = (
    "pvc",
    "file",
    "https",
)  # schemes data is read from; the API knows more, which wait to be built
WRITABLE: Final = ("pvc", "file")

# A PersistentVolumeClaim's name: https://kubernetes.io/docs/concepts/overview/working-with-objects/names/ (DNS subdomain).
_CLAIM = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class DataUri:
    """A URI in parts: ``pvc`` has claim and path, ``file`` an absolute path, ``https`` its host and path."""

    scheme: str
    host: str  # claim of pvc, host (lower case, without port) of https, "" of file
    path: str  # as written, percent-encoded, with its leading slash


def parse(uri: str) -> DataUri:
    """Return a URI in parts. Raises ValueError saying what is wrong with it, without repeating credentials."""
    if carries_credentials(uri):
        raise ValueError("carries a user or password; they must not be written here")
    scheme, found, rest = uri.partition("://")
    if not found:
        raise ValueError(f"{uri!r} has no scheme; write it like pvc://claim/path")
    host, _, path = rest.partition("/")
    if scheme == "file" and host:
        raise ValueError(f"{uri!r} needs an absolute path, like file:///data/x.jsonl")
    if scheme == "pvc" and (not _CLAIM.fullmatch(host) or not path):
        raise ValueError(f"{uri!r} is not of the form pvc://claim/path")
    if ".." in path.split("?")[0].split("/"):
        raise ValueError(f"{uri!r} must not contain '..' segments")
    return DataUri(scheme, host.partition(":")[0].lower() if scheme == "https" else host, "/" + path)


def refusal(
    uri: str, *, write: bool, allow_file: bool, allowed_hosts: tuple[str, ...]
) -> tuple[Reason, str] | None:
    """Return why data cannot be read from (or written to) a URI here and what works instead, None if it can."""
    known = WRITABLE if write else READABLE
    try:
        parts = parse(uri)
    except ValueError as error:
        return Reason.INVALID_SPEC, f"{error}."
    if parts.scheme not in known:
        done, works = (
            ("written to", "pvc://claim/path") if write else ("read from", "pvc://claim/path or https://…")
        )
        text = f"{uri}: data cannot be {done} {parts.scheme}:// by this release; use {works}."
        return Reason.UNSUPPORTED_SCHEME, text
    ask = "use pvc://claim/path, or ask an administrator to"
    if parts.scheme == "file" and not allow_file:
        text = f"{uri}: file:// is not allowed in this cluster; {ask} set sources.allowFile."
        return Reason.SOURCE_NOT_ALLOWED, text
    if parts.scheme == "https" and parts.host not in allowed_hosts:
        text = f"{uri}: host {parts.host} is not an allowed source; {ask} add it to sources.allowedHosts."
        return Reason.SOURCE_NOT_ALLOWED, text
    return None


def claims(uris: tuple[str, ...]) -> tuple[str, ...]:
    """Return the claims that ``uris`` name, each once, in order."""
    parts = (parse(uri) for uri in uris)
    return tuple(dict.fromkeys(one.host for one in parts if one.scheme == "pvc"))
