"""Takes out of a text what may be a secret, before a person or a ticket gets to see it.

Logs are written by whatever runs in a pod, so nothing is known of them but how credentials usually look. A mask too many
costs a word; one too few costs a key.
"""

from __future__ import annotations

import re
from typing import Final

MASK: Final = "***"
_WHOLE: Final = re.compile(
    r"""
    \bhf_[A-Za-z0-9]{8,}                                # Hugging Face
    | \bsk-[A-Za-z0-9_-]{8,}                            # OpenAI and those who copied it
    | \bgh[pousr]_[A-Za-z0-9]{20,}                      # GitHub
    | \b(?:AKIA|ASIA)[0-9A-Z]{16}\b                     # AWS access key id
    | \beyJ[A-Za-z0-9_-]{6,}\.[A-Za-z0-9_-]{6,}\.[A-Za-z0-9_-]*   # JSON Web Token
    | -----BEGIN\ [A-Z ]*PRIVATE\ KEY-----.*            # up to the end of the line
    """,
    re.VERBOSE,
)
# A word that names a credential, then what stands for it: `token=…`, `"api_key": "…"`, `Authorization: Bearer …`.
_NAMED: Final = re.compile(
    r"""
    (?P<name>["']?[\w.-]*(?:authorization|password|passwd|secret|token|api[_-]?key|access[_-]?key|credential)[\w.-]*["']?
       \s*[:=]\s*)
    (?:(?:bearer|basic)\s+)?
    (?P<value>"[^"]*"|'[^']*'|[^\s,;}\]]+)
    """,
    re.VERBOSE | re.IGNORECASE,
)
_BEARER: Final = re.compile(r"\b(?P<name>bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}", re.IGNORECASE)
_URL: Final = re.compile(r"(?P<scheme>\b[a-z][a-z0-9+.-]*://)(?P<rest>[^\s\"'<>]+)", re.IGNORECASE)
_NUMBER: Final = re.compile(r"[0-9]+(?:\.[0-9]+)?")


def mask(text: str) -> str:
    """Return ``text`` with what looks like a credential replaced."""
    text = _URL.sub(_bare_url, text)
    text = _NAMED.sub(_named, text)
    text = _BEARER.sub(lambda found: f"{found['name']} {MASK}", text)
    return _WHOLE.sub(MASK, text)


def _named(found: re.Match[str]) -> str:
    # `tokens: 512` and `token=3` count tokens of a model; they are numbers and stay.
    return found[0] if _NUMBER.fullmatch(found["value"].strip("\"'")) else f"{found['name']}{MASK}"


def _bare_url(found: re.Match[str]) -> str:
    """Return a URL without user, password and the values of its query."""
    rest, mark, query = found["rest"].partition("?")
    user, at, place = rest.rpartition("@")  # a password may hold a slash
    shown = f"{MASK}" if at and user else place
    return f"{found['scheme']}{shown}" + (f"?{MASK}" if mark and query else mark)
