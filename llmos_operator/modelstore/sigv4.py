"""AWS Signature Version 4.

Written from the specification, as the whole of it is thirty lines and the official library would be the largest part of
the agent's and the runtime's images (docs/adr/0023). Pure: the time is an argument.
Source: https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html, whose example a test recomputes.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, quote, urlsplit

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

_ALGORITHM = "AWS4-HMAC-SHA256"
EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()


@dataclass(frozen=True, slots=True)
class Keys:
    """Whose signature it is."""

    access: str
    secret: str = field(repr=False)
    session: str = field(default="", repr=False)


def signed(
    url: str,
    headers: Mapping[str, str],
    keys: Keys,
    *,
    region: str,
    at: datetime,
    method: str = "GET",
    body_sha256: str = EMPTY_SHA256,
    service: str = "s3",
) -> dict[str, str]:
    """Return ``headers`` with those that prove who sends the request, and what.

    ``at`` is in UTC, the URL's path is encoded, ``body_sha256`` is in hex.
    """
    parts = urlsplit(url)
    stamp = at.strftime("%Y%m%dT%H%M%SZ")
    made = {**headers, "x-amz-content-sha256": body_sha256, "x-amz-date": stamp}
    if keys.session:
        made["x-amz-security-token"] = keys.session
    covered = {"host": parts.netloc} | {name.lower(): value.strip() for name, value in made.items()}
    names = ";".join(sorted(covered))
    query = sorted((_encoded(k), _encoded(v)) for k, v in parse_qsl(parts.query, keep_blank_values=True))
    canonical = "\n".join(
        (
            method,
            parts.path or "/",
            "&".join(f"{key}={value}" for key, value in query),
            *(f"{name}:{covered[name]}" for name in sorted(covered)),
            "",
            names,
            body_sha256,
        )
    )
    scope = f"{stamp[:8]}/{region}/{service}/aws4_request"
    text = "\n".join((_ALGORITHM, stamp, scope, hashlib.sha256(canonical.encode()).hexdigest()))
    key = f"AWS4{keys.secret}".encode()
    for step in (stamp[:8], region, service, "aws4_request"):
        key = hmac.digest(key, step.encode(), "sha256")
    signature = hmac.digest(key, text.encode(), "sha256").hex()
    made["Authorization"] = (
        f"{_ALGORITHM} Credential={keys.access}/{scope},SignedHeaders={names},Signature={signature}"
    )
    return made


def _encoded(text: str) -> str:
    return quote(text, safe="-_.~")
