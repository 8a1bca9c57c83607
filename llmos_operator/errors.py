"""The package's error tree: one root, four meanings.

::

    LlmosError
    ├── Retryable   try again, not before `after` seconds
    ├── Permanent   trying again cannot help; `reason` is a CamelCase word for conditions
    ├── Conflict    somebody else wrote first; read again, then decide again
    └── NotSynced   the cache is not complete yet; no decision may be taken

Adapters (Kubernetes, NVML, hubs) translate their libraries' errors into these; the core raises only its own.
"""

from __future__ import annotations


class LlmosError(Exception):
    """Root of every error this package raises on purpose."""


class Retryable(LlmosError):  # noqa: N818 - reads as what the caller should do
    """A passing failure. `after` is the least number of seconds to wait before the next try."""

    def __init__(self, message: str, *, after: float = 1.0) -> None:
        super().__init__(message)
        self.after = after


class Permanent(LlmosError):  # noqa: N818 - reads as what the caller should do
    """A failure that only a change of input can heal. `reason` is one CamelCase word."""

    def __init__(self, message: str, *, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class Conflict(LlmosError):  # noqa: N818 - reads as what the caller should do
    """A write lost against another writer (HTTP 409 or a failed precondition)."""


class NotSynced(LlmosError):  # noqa: N818 - reads as what the caller should do
    """A decision was asked for before all lists were complete."""
