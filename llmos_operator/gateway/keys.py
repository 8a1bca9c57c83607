"""API keys of clients: a file of hashed keys, each with a name, what it may use and its limits.

::

    keys:
    - name: team-a                    # shown in logs and metrics instead of the key
      sha256: 6ca13d52…               # of the key; `llmos gateway --new-key team-a` prints both
      namespaces: [research]          # empty or absent: all
      requestsPerMinute: 600          # 0 or absent: no limit
      tokensPerMinute: 200000

The keys are random 256-bit strings, so a plain hash is enough: there is no dictionary to try. Looking up a hash in a
mapping tells an attacker nothing either, because he cannot choose the hash's bytes.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from llmos_operator.gateway.catalog import NO_LIMIT, Rate, WorkloadKey
from llmos_operator.settings import BadSettings

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIX = "llmos-"
_PerMinute = Annotated[int, Field(ge=0, le=1_000_000_000)]


class _Wire(BaseModel):
    model_config = ConfigDict(
        alias_generator=to_camel, validate_by_name=True, validate_by_alias=True, extra="forbid", frozen=True
    )


class _Entry(_Wire):
    name: str = Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$")
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    namespaces: tuple[str, ...] = ()
    requests_per_minute: _PerMinute = 0
    tokens_per_minute: _PerMinute = 0


class _File(_Wire):
    keys: tuple[_Entry, ...]


@dataclass(frozen=True, slots=True)
class Client:
    """Who asks: a key's name, limits and the namespaces it may use (empty: all)."""

    name: str
    rate: Rate = NO_LIMIT
    namespaces: frozenset[str] = frozenset()

    def may_use(self, key: WorkloadKey) -> bool:
        """Whether the client may use this workload, and hence know of it."""
        return not self.namespaces or key.namespace in self.namespaces


ANONYMOUS = Client("")


def parse(text: str, path: str) -> dict[str, Client]:
    """Return clients by hash of their key. Raises BadSettings naming file, field and fix, never a key."""
    import yaml  # noqa: PLC0415 - only a gateway with keys pays for the parser

    try:
        content = _File.model_validate(yaml.safe_load(text) or {})
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1})" if mark is not None else ""
        raise BadSettings(f"keys file {path} is not YAML{where}; see docs/gateway.md for its form") from error
    except ValidationError as error:
        # Inputs are left out of the message: somebody may have written a key in the clear.
        faults = "; ".join(
            f"{'.'.join(str(part) for part in item['loc'])}: {item['msg']}"
            for item in error.errors(include_input=False, include_url=False)
        )
        raise BadSettings(f"keys file {path}: {faults}") from error
    names = [entry.name for entry in content.keys]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise BadSettings(f"keys file {path}: name {doubled[0]} is used twice; names tell clients apart")
    return {
        entry.sha256: Client(
            entry.name,
            Rate(entry.requests_per_minute, entry.tokens_per_minute),
            frozenset(entry.namespaces),
        )
        for entry in content.keys
    }


class KeyRing:
    """The keys of a file, read again when the file changes. Without a file everybody is let in."""

    def __init__(self, path: str) -> None:
        """Read the file at ``path`` ("" = no keys). Raises BadSettings if it cannot be used."""
        self._path = path
        self._stamp: tuple[int, int, int] | None = None
        self._clients: Mapping[str, Client] = {}
        if path:
            self._stamp, self._clients = self._read()

    @property
    def required(self) -> bool:
        """Whether a key is needed."""
        return bool(self._path)

    def __len__(self) -> int:
        return len(self._clients)

    def refresh(self) -> bool:
        """Read the file again if it changed; return whether it did. Raises BadSettings and keeps the old keys."""
        if not self._path or self._stat() == self._stamp:
            return False
        self._stamp, self._clients = self._read()
        return True

    def client(self, key: str) -> Client | None:
        """Return the client a key belongs to, None for an unknown key."""
        return self._clients.get(hash_key(key))

    def _read(self) -> tuple[tuple[int, int, int], dict[str, Client]]:
        stamp = self._stat()
        try:
            text = Path(self._path).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise BadSettings(f"cannot read keys file {self._path}: {error}; correct keysFile") from error
        return stamp, parse(text, self._path)

    def _stat(self) -> tuple[int, int, int]:
        try:
            found = Path(self._path).stat()
        except OSError as error:
            raise BadSettings(
                f"cannot read keys file {self._path}: {error.strerror}; correct keysFile"
            ) from error
        return found.st_ino, found.st_mtime_ns, found.st_size


def hash_key(key: str) -> str:
    """Return the hexadecimal SHA-256 of a key."""
    return hashlib.sha256(key.encode()).hexdigest()


def new_key() -> str:
    """Return a fresh random key."""
    return PREFIX + secrets.token_urlsafe(32)
