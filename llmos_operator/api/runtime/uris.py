"""Model URIs: what the operator and the runtime must agree on."""

from __future__ import annotations

import re

_CREDENTIALS = re.compile(r"[^/]*://[^/]*@")


def carries_credentials(uri: str) -> bool:
    """Return whether a URI has a user or password before its host. Such a URI must not be shown to anybody."""
    return _CREDENTIALS.match(uri) is not None
