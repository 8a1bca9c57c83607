"""URIs of data that a FineTune or Batch reads and writes: what the operator and the programs in its pods must agree on.

A claim is mounted into the pod below `VOLUMES_ROOT` under its own name, so `pvc://claim/path` is the file
`VOLUMES_ROOT/claim/path` there. Paths are percent-decoded once, as in any URI.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from llmos_operator.api.conditions import Reason
from llmos_operator.api.runtime.uris import carries_credentials

if TYPE_CHECKING:
    from collections.abc import Mapping

VOLUMES_ROOT: Final = "/llmos/volumes"
BUCKETS: Final = ("s3", "gs")
READABLE: Final = ("pvc", *BUCKETS, "file", "https")  # the API knows hf, too, which waits to be built
WRITABLE: Final = ("pvc", *BUCKETS, "file")
WRITTEN_FIELDS: Final = ("output", "checkpoint")
FIELDS: Final = ("input", "dataset", *WRITTEN_FIELDS)  # of a run's block, that name data

# Keys of the Secret in a run's `secretRef`, named as each provider's own tools name them.
SECRET_KEYS: Final = (
    "AWS_ACCESS_KEY_ID",
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "AWS_REGION",
    "AWS_ENDPOINT_URL",
)
PAIR: Final = SECRET_KEYS[:2]  # a Secret has both; the others are there where they are needed
_PLAIN: Final = ("AWS_REGION", "AWS_ENDPOINT_URL")  # an administrator may set them for everybody

# A PersistentVolumeClaim's name: https://kubernetes.io/docs/concepts/overview/working-with-objects/names/ (DNS subdomain).
_CLAIM = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class DataUri:
    """A URI in parts: ``pvc`` has claim and path, ``file`` an absolute path, ``https`` its host and path."""

    scheme: str
    host: str  # claim of pvc, bucket of s3 and gs, host (lower case, without port) of https, "" of file
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
    if scheme in BUCKETS and (not host or not path.strip("/")):
        raise ValueError(f"{uri!r} is not of the form {scheme}://bucket/key")
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
            ("written to", "pvc://claim/path or s3://bucket/key")
            if write
            else ("read from", "pvc://claim/path, s3://bucket/key or https://…")
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


def variable(key: str) -> str:
    """Return the environment variable with a key of the Secret of a run's data; a model has one of its own."""
    return f"LLMOS_DATA_{key}"


def secret_variables() -> tuple[str, ...]:
    """Return all variables that hold proof of who reads or writes data."""
    return tuple(variable(key) for key in SECRET_KEYS if key not in _PLAIN)


def credentials(environ: Mapping[str, str]) -> dict[str, str]:
    """Return what a program's environment holds of them, by key; region and endpoint may be set for everybody."""
    found = {}
    for key in SECRET_KEYS:
        everybodys = environ.get(key, "") if key in _PLAIN else ""
        if value := environ.get(variable(key), "") or everybodys:
            found[key] = value
    return found


def claims(uris: tuple[str, ...]) -> tuple[str, ...]:
    """Return the claims that ``uris`` name, each once, in order."""
    parts = (parse(uri) for uri in uris)
    return tuple(dict.fromkeys(one.host for one in parts if one.scheme == "pvc"))
