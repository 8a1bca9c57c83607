"""Takes what may be a secret out of the URIs in a recorded cycle: users and passwords, query strings, fragments.

Replaying must lead to the same plan, so a URI of a model becomes another one that stands for it everywhere in the file:
`?redacted=1` for the first, `?redacted=2` for the second and so on. What was learned of a model is found by a name that is
made from its URI, so that name changes along. Any other URI, as in a message, only loses those parts.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Final

from llmos_operator.api.v1alpha1.modelprofile import profile_name

if TYPE_CHECKING:
    from collections.abc import Iterable

# In a JSON document, from behind the scheme to the next space or the end of the string.
_REST: Final = re.compile(r'://(?:[^\s"\\]|\\.)+')
_PROFILE: Final = re.compile(r"\bmp-[0-9a-f]{16}\b")
_BEHIND: Final = ".,:;)]'`"  # of the sentence a URI stands in


def without_secrets(uri: str) -> str:
    """Return a URI without user, password, query and fragment."""
    scheme, separator, rest = uri.partition("://")
    authority, slash, path = rest.partition("/")
    host, *query = re.split(r"[?#]", authority, maxsplit=1)
    if query and "@" in query[0]:  # part of a password, or of a query? no host is safer than the wrong one
        return scheme + separator
    host = host.rpartition("@")[2]
    return scheme + separator + host if query else f"{scheme}{separator}{host}{slash}{_before_query(path)}"


def redact(document: str, models: Iterable[tuple[str, str]]) -> str:
    """Return a JSON document without secrets in URIs; `models` are the (URI, revision) that it names, in order."""
    shown: dict[str, str] = {}
    names: dict[str, str] = {}
    for uri, revision in models:
        bare = without_secrets(uri)
        if bare != uri:
            shown.setdefault(uri, f"{bare}?redacted={len(shown) + 1}")
            names[profile_name(uri, revision)] = profile_name(shown[uri], revision)
    for uri in sorted(shown, key=len, reverse=True):
        if any(letter.isspace() for letter in uri):  # no pattern finds its end
            document = document.replace(_inside(uri), _inside(shown[uri]))
    rests = {_behind_scheme(one): _behind_scheme(one) for one in shown.values()}
    rests |= {_behind_scheme(uri): _behind_scheme(one) for uri, one in shown.items()}

    def rest(found: re.Match[str]) -> str:
        whole = found[0]
        if not any(sign in whole for sign in "?#@"):
            return whole
        for known in (whole, whole.rstrip(_BEHIND)):
            if known in rests:
                return rests[known] + whole[len(known) :]
        return without_secrets(whole)

    document = _REST.sub(rest, document)
    return _PROFILE.sub(lambda found: names.get(found[0], found[0]), document) if names else document


def _before_query(path: str) -> str:
    return re.split(r"[?#]", path, maxsplit=1)[0]


def _inside(text: str) -> str:
    """Return a text as it stands inside a JSON string."""
    return json.dumps(text, ensure_ascii=False)[1:-1]


def _behind_scheme(uri: str) -> str:
    scheme, separator, rest = _inside(uri).partition("://")
    return separator + rest if separator else scheme
